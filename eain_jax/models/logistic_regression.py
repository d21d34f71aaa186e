"""LR: a logit that is a sum of one weight a feature value, and a bias."""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax

from eain_jax.config import LogisticRegressionConfig
from eain_jax.data.features import Feature
from eain_jax.layers.embedding import EmbeddedBatch
from eain_jax.models.fields import features_read, first_order


class LogisticRegression(nn.Module):
  """Logistic regression over all features; tables are one column wide.

  Attributes:
    config: its settings.
    axis_name: mapped axis of the devices, for models that take statistics.
  """

  config: LogisticRegressionConfig
  axis_name: str | None = None
  compute_dtype: ClassVar[str] = 'float32'

  @property
  def table_width(self) -> int:
    return 1

  def reads(self, features: Sequence[Feature]) -> tuple[Feature, ...]:
    """Of a dataset's features those that have a table."""
    return features_read(features, self.config.use_user)

  @nn.compact
  def __call__(self, inputs: EmbeddedBatch, train: bool = False) -> jax.Array:
    """float32 logits [R, C]."""
    del train
    bias = self.param('bias', nn.initializers.zeros, ())
    return first_order(inputs, 0) + bias
