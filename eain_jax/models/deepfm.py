"""DeepFM (arXiv 1703.04247): first order + FM + MLP on shared embeddings."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from eain_jax.config import DeepFMConfig
from eain_jax.data.features import Feature
from eain_jax.layers.embedding import EmbeddedBatch
from eain_jax.layers.mlp import MLP
from eain_jax.models.fields import (
  example_rows,
  features_read,
  first_order,
  make_fields,
  per_example,
  pooled_history,
)


def fm_second_order(fields_BFD: jax.Array) -> jax.Array:
  """The sum over pairs i < j of f_i . f_j, in O(F D): float32 [B]."""
  fields_BFD = fields_BFD.astype(jnp.float32)
  square_of_sum_BD = jnp.square(fields_BFD.sum(1))
  sum_of_squares_BD = jnp.square(fields_BFD).sum(1)
  return 0.5 * (square_of_sum_BD - sum_of_squares_BD).sum(-1)


class DeepFM(nn.Module):
  """DeepFM; the last column of each table is the first-order weight.

  Attributes:
    config: its settings.
    axis_name: mapped axis of the devices, for Dice.
  """

  config: DeepFMConfig
  axis_name: str | None = None

  @property
  def table_width(self) -> int:
    return self.config.embedding_dim + 1

  @property
  def compute_dtype(self) -> str:
    return self.config.compute_dtype

  def reads(self, features: Sequence[Feature]) -> tuple[Feature, ...]:
    """Of a dataset's features those that have a table."""
    return features_read(features, self.config.use_user)

  @nn.compact
  def __call__(self, inputs: EmbeddedBatch, train: bool = False) -> jax.Array:
    """float32 logits [R, C]."""
    config = self.config
    dim = config.embedding_dim
    pooled_RE = pooled_history(inputs, dim)
    fields_BFD = make_fields(
      inputs, per_example(pooled_RE, inputs.shape_RC[1]), dim
    )
    deep_B = MLP(
      config.mlp,
      config.activation,
      config.dropout,
      config.compute_dtype,
      self.axis_name,
      name='mlp',
    )(
      fields_BFD.reshape(fields_BFD.shape[0], -1),
      example_rows(inputs),
      inputs.valid_RC.reshape(-1),
      train,
    )
    logit_RC = (deep_B + fm_second_order(fields_BFD)).reshape(inputs.shape_RC)
    return logit_RC + first_order(inputs, dim)
