"""DIN (arXiv 1706.06978): the MLP with target attention over the history."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from eain_jax.config import DinConfig
from eain_jax.data.features import Feature
from eain_jax.layers.attention import ActivationUnit
from eain_jax.layers.embedding import EmbeddedBatch
from eain_jax.layers.mlp import MLP
from eain_jax.models.fields import (
  example_rows,
  features_read,
  flat_history,
  flat_target,
  make_fields,
)


class DIN(nn.Module):
  """The deep interest network.

  Attributes:
    config: its settings.
    axis_name: mapped axis of the devices, for Dice.
  """

  config: DinConfig
  axis_name: str | None = None

  @property
  def table_width(self) -> int:
    return self.config.embedding_dim

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
    h_u_RCE = ActivationUnit(
      config.attention,
      config.attention_activation,
      config.attention_softmax,
      config.compute_dtype,
      self.axis_name,
      name='attention',
    )(
      flat_history(inputs, dim),
      flat_target(inputs, dim),
      inputs.segment_N,
      train,
      inputs.valid_RC,
    )
    h_u_BE = h_u_RCE.reshape(-1, h_u_RCE.shape[-1])
    fields_BFD = make_fields(inputs, h_u_BE, dim)
    logit_B = MLP(
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
    return logit_B.reshape(inputs.shape_RC)
