"""What a search may change, and in which range.

Every setting has one range for all models that have it, so that no model is
searched more widely than another; a model's own settings come beside these.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from optuna.distributions import (
  BaseDistribution,
  CategoricalDistribution,
  FloatDistribution,
)

from eain_jax.config import ModelConfig, TrainConfig
from eain_jax.errors import InputError

# Lists are text, for Optuna's storage knows no tuples.
SPACE: dict[str, BaseDistribution] = {
  # 0 follows from the size of the dataset, and -1 from how tables are updated.
  'batch_size': CategoricalDistribution((0, 1024, 2048)),
  'ema_decay': CategoricalDistribution((-1.0, 0.0, 0.99, 0.998)),
  'learning_rate': FloatDistribution(3e-4, 1e-2, log=True),
  'table_l2': FloatDistribution(1e-7, 1e-2, log=True),
  'table_stddev': FloatDistribution(5e-3, 0.2, log=True),
  'embedding_dim': CategoricalDistribution((16, 32, 64)),
  'mlp': CategoricalDistribution(('80', '200,80', '400,200', '256,128,64')),
  'activation': CategoricalDistribution(('relu', 'dice')),
  'dropout': FloatDistribution(0.0, 0.6),
  'attention': CategoricalDistribution(('40', '80,40', '128,64')),
  'attention_activation': CategoricalDistribution(('sigmoid', 'dice')),
  'attention_softmax': CategoricalDistribution((True, False)),
  'use_softmax': CategoricalDistribution((True, False)),
  'attention_dim': CategoricalDistribution((32, 64, 128)),
  'attention_product': CategoricalDistribution((True, False)),
  'attention_recency': CategoricalDistribution(
    ('none', 'rank', 'age', 'rank_and_age')
  ),
  'se_reduction': CategoricalDistribution((1, 3)),
  'mask_hidden_dim': CategoricalDistribution((64, 128, 256)),
  'mask_norm': CategoricalDistribution((True, False)),
  'paim_layers': CategoricalDistribution((1, 2, 3)),
  'paim_dim': CategoricalDistribution((16, 32, 64)),
  'paim_input': CategoricalDistribution(('history', 'history_and_target')),
  'position': CategoricalDistribution(('sinusoidal', 'learned', 'none')),
  'use_linear': CategoricalDistribution((True, False)),
  'match_dim': CategoricalDistribution((0, 64)),
}
# What is of use only with a switch.
_OF_SWITCH = {
  'use_attention': (
    'use_softmax',
    'attention_dim',
    'attention_product',
    'attention_recency',
  ),
  'use_se': ('se_reduction',),
  'use_mask_block': ('mask_hidden_dim', 'mask_norm'),
  'use_paim': ('paim_layers', 'paim_dim', 'paim_input', 'position'),
}


@dataclasses.dataclass(frozen=True)
class Space:
  """The settings of one model that a search changes.

  Attributes:
    model: of `MODEL_CONFIGS`.
    model_config: what does not change, and where the search begins.
    train_config: the same, of training.
    distributions: by name of a setting its range.
  """

  model: str
  model_config: ModelConfig
  train_config: TrainConfig
  distributions: Mapping[str, BaseDistribution]

  def configs(
    self, values: Mapping[str, Any]
  ) -> tuple[ModelConfig, TrainConfig]:
    """The settings of a trial from its values."""
    own = {field.name for field in dataclasses.fields(self.model_config)}
    made = {name: _from_storage(name, value) for name, value in values.items()}
    of_model = {name: made[name] for name in made if name in own}
    of_training = {name: made[name] for name in made if name not in own}
    return (
      dataclasses.replace(self.model_config, **of_model),
      dataclasses.replace(self.train_config, **of_training),
    )

  def start(self) -> dict[str, Any]:
    """The values to begin with, of settings that are within their range."""
    values = {}
    for name, distribution in self.distributions.items():
      value = _setting(self.model_config, self.train_config, name)
      if _holds(distribution, value):
        values[name] = value
    return values


def make_space(
  model: str,
  model_config: ModelConfig,
  train_config: TrainConfig,
  *,
  fixed: Collection[str] = (),
  searched: Sequence[str] = (),
) -> Space:
  """The space of a model.

  Args:
    model: of `MODEL_CONFIGS`.
    model_config: its settings, where the search begins.
    train_config: the same, of training.
    fixed: names of settings that stay as they are.
    searched: of those that have a range the ones to search; () is all.

  Raises:
    InputError: a name has no range, or nothing is left.
  """
  own = {
    name: distribution
    for name, distribution in SPACE.items()
    if hasattr(model_config, name) or hasattr(train_config, name)
  }
  for name in searched:
    if name not in own:
      raise InputError(
        f'{name} cannot be searched for {model}: {", ".join(own)}'
      )
  for name in searched:
    if name in fixed:
      raise InputError(f'{name} is to be searched, and has a value: drop one')
  chosen = {
    name: distribution
    for name, distribution in own.items()
    if name not in fixed and (not searched or name in searched)
  }
  # What a setting that is off would do with them is nothing.
  for switch, names in _OF_SWITCH.items():
    if getattr(model_config, switch, True) is False:
      chosen = {n: d for n, d in chosen.items() if n not in names}
  if not chosen:
    raise InputError(f'no setting of {model} is left to be searched')
  return Space(model, model_config, train_config, chosen)


def as_flags(values: Mapping[str, Any]) -> list[str]:
  """Values of a trial as flags of the binaries."""
  return [
    f'--{name}={str(value).lower() if isinstance(value, bool) else value}'
    for name, value in values.items()
  ]


def describe(distribution: BaseDistribution) -> str:
  """A range in words."""
  if isinstance(distribution, CategoricalDistribution):
    return ' or '.join(str(choice) for choice in distribution.choices)
  assert isinstance(distribution, FloatDistribution)
  kind = ', by its logarithm' if distribution.log else ''
  return f'{distribution.low:g} to {distribution.high:g}{kind}'


def _setting(model_config: ModelConfig, train_config: TrainConfig, name) -> Any:
  config = model_config if hasattr(model_config, name) else train_config
  value = getattr(config, name)
  return ','.join(map(str, value)) if isinstance(value, tuple) else value


def _holds(distribution: BaseDistribution, value: Any) -> bool:
  if isinstance(distribution, CategoricalDistribution):
    return value in distribution.choices
  assert isinstance(distribution, FloatDistribution)
  return distribution.low <= value <= distribution.high


def _from_storage(name: str, value: Any) -> Any:
  if name in ('mlp', 'attention'):
    return tuple(int(width) for width in value.split(','))
  return value
