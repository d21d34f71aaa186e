"""DNN: an MLP over the concatenated fields, the history as its mean."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from eain_jax.config import DnnConfig
from eain_jax.data.features import Feature
from eain_jax.layers.embedding import EmbeddedBatch
from eain_jax.layers.mlp import MLP
from eain_jax.models.fields import (
  example_rows,
  features_read,
  make_fields,
  per_example,
  pooled_history,
)


class DNN(nn.Module):
  """The plain deep network of the paper's section 5.

  Attributes:
    config: its settings.
    axis_name: mapped axis of the devices, for Dice.
  """

  config: DnnConfig
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
    pooled_RE = pooled_history(inputs, config.embedding_dim)
    fields_BFD = make_fields(
      inputs, per_example(pooled_RE, inputs.shape_RC[1]), config.embedding_dim
    )
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
