"""MF: mu + b_u + b_i + p_u . q_i, over the ids alone (Koren et al. 2009)."""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from eain_jax.config import MatrixFactorizationConfig
from eain_jax.data.features import Feature
from eain_jax.layers.embedding import EmbeddedBatch


class MatrixFactorization(nn.Module):
  """Matrix factorization with biases; the last column holds the bias.

  Attributes:
    config: its settings.
    axis_name: mapped axis of the devices, for models that take statistics.
  """

  config: MatrixFactorizationConfig
  axis_name: str | None = None
  compute_dtype: ClassVar[str] = 'float32'

  @property
  def table_width(self) -> int:
    return self.config.embedding_dim + 1

  def reads(self, features: Sequence[Feature]) -> tuple[Feature, ...]:
    """Of a dataset's features those that have a table."""
    # The item's own id is the first item feature; attributes are not MF's.
    item = next(f for f in features if f.kind == 'item')
    return tuple(f for f in features if f.kind == 'user' or f is item)

  @nn.compact
  def __call__(self, inputs: EmbeddedBatch, train: bool = False) -> jax.Array:
    """float32 logits [R, C]."""
    del train
    item_RCW, user_RW = inputs.target_RCAW[:, :, 0], inputs.user_RW
    assert user_RW is not None
    bias = self.param('bias', nn.initializers.zeros, ())
    product_RC = jnp.einsum('rcd,rd->rc', item_RCW[..., :-1], user_RW[:, :-1])
    return bias + item_RCW[..., -1] + user_RW[:, None, -1] + product_RC
