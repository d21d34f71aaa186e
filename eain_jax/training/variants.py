"""EAIN with one thing changed: what an ablation compares with it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from eain_jax.config import EainConfig, TrainConfig
from eain_jax.data.dataset import Dataset
from eain_jax.data.skip_above import has_skip_above
from eain_jax.training.setup import resolve_config

PARTS, CHOICES, ADDITIONS = (
  'Parts of the paper',
  'Open choices',
  'Beyond the paper',
)


@dataclasses.dataclass(frozen=True)
class Variant:
  """A change to EAIN.

  Attributes:
    group: with which it is shown.
    name: short, for a chart.
    what: the change in words.
    equations: of the paper, that it concerns.
    model: settings of `EainConfig` that it changes.
    train: settings of `TrainConfig` that it changes.
    needs: settings of `EainConfig` without which it changes nothing.
  """

  group: str
  name: str
  what: str
  equations: str
  model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  train: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  needs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


VARIANTS: dict[str, Variant] = {
  'no_attention': Variant(
    PARTS,
    'Without attention',
    'h_u is the mean of the history',
    '(1)-(3)',
    {'use_attention': False},
  ),
  'no_mask_block': Variant(
    PARTS,
    'Without MaskBlock',
    'no masked pairs of fields',
    '(4)',
    {'use_mask_block': False},
  ),
  'no_se': Variant(
    PARTS,
    'Without SE gates',
    'fields are not gated',
    '(5)-(6)',
    {'use_se': False},
  ),
  'no_paim': Variant(
    PARTS,
    'Without PAIM',
    'no crosses of h_u and no position',
    '(7)-(12)',
    {'use_paim': False},
  ),
  'no_position': Variant(
    PARTS,
    'Without position',
    'the crosses of PAIM stay, p_t goes',
    '(7)-(9)',
    {'position': 'none'},
    needs={'use_paim': True},
  ),
  'skip_above': Variant(
    PARTS,
    'With Skip Above',
    'negatives below the positive, in a simulated order, are not trained on; '
    'the dataset was prepared without',
    '(16)-(17)',
    train={'skip_above': 'on'},
  ),
  'no_skip_above': Variant(
    PARTS,
    'Without Skip Above',
    'all sampled negatives are trained on',
    '(16)-(17)',
    train={'skip_above': 'off'},
  ),
  'no_context': Variant(
    PARTS,
    'Without context',
    'no hour, gap or other context feature',
    '(19)',
    {'use_context': False},
  ),
  'no_softmax': Variant(
    CHOICES,
    'Attention without softmax',
    'scores weigh as they are, as in the paper of DIN',
    '(1)',
    {'use_softmax': False},
    needs={'use_attention': True},
  ),
  'no_mask_norm': Variant(
    CHOICES,
    'MaskBlock without norm',
    'no layer norm on the masked pairs, as printed',
    '(4)',
    {'mask_norm': False},
    needs={'use_mask_block': True},
  ),
  'paim_with_target': Variant(
    CHOICES,
    'PAIM with the target',
    'f^(0) is made of h_u and the target, not of h_u alone',
    '(10)',
    {'paim_input': 'history_and_target'},
    needs={'use_paim': True},
  ),
  'learned_position': Variant(
    CHOICES,
    'Position learned',
    'p_t is an embedding, not sinusoidal',
    '(7)',
    {'position': 'learned'},
    needs={'use_paim': True},
  ),
  'negatives_once': Variant(
    CHOICES,
    'Negatives drawn once',
    'every epoch has the same negatives, as DIN and BARS have it; the paper '
    'does not say',
    '(14)',
    train={'negatives_once': True},
  ),
  'with_user': Variant(
    CHOICES,
    "With the user's id",
    "the user's own id is a field",
    '(15)',
    {'use_user': True},
  ),
  'no_product': Variant(
    ADDITIONS,
    'Without product term',
    'no W_3 (x_t * x*) in the attention',
    '(2)',
    {'attention_product': False},
    needs={'use_attention': True},
  ),
  'no_recency': Variant(
    ADDITIONS,
    'Without recency',
    'the attention does not know how far back an event lies',
    '(2)',
    {'attention_recency': 'none'},
    needs={'use_attention': True},
  ),
  'no_paim_norm': Variant(
    ADDITIONS,
    'PAIM without norm',
    'no layer norm after the crosses',
    '(10)',
    {'paim_norm': False},
    needs={'use_paim': True},
  ),
  'no_paim_projection': Variant(
    ADDITIONS,
    'PAIM unprojected',
    'f^(0) is h_u itself',
    '(10)',
    {'paim_dim': 0},
    needs={'use_paim': True},
  ),
  'no_linear': Variant(
    ADDITIONS,
    'Without linear weights',
    'no weight a feature value in the logit',
    '(12)',
    {'use_linear': False},
  ),
  'with_match': Variant(
    ADDITIONS,
    'With user match',
    "the product of a user's vector, of the whole history, with the target's "
    'is added to the logit',
    '(12)',
    {'match_dim': 64},
  ),
  'no_match': Variant(
    ADDITIONS,
    'Without user match',
    "no product of a user's vector with the target's in the logit",
    '(12)',
    {'match_dim': 0},
  ),
  'no_average': Variant(
    ADDITIONS,
    'Without averaging',
    'the parameters of the last step are evaluated, not their moving average',
    '(14)',
    train={'ema_decay': 0.0},
  ),
  'as_printed': Variant(
    ADDITIONS,
    'All as printed',
    'gone are what is added to attention, PAIM and the logit, and the norm '
    'of MaskBlock; sizes, penalties, dropout and the moving average stay',
    '(1)-(12)',
    {
      'attention_product': False,
      'attention_recency': 'none',
      'mask_norm': False,
      'paim_norm': False,
      'paim_dim': 0,
      'use_linear': False,
      'match_dim': 0,
    },
  ),
}


def changed_configs(
  variant: Variant, model: EainConfig, train: TrainConfig
) -> tuple[EainConfig, TrainConfig]:
  """The settings of a variant, from those of what it is compared with."""
  return (
    dataclasses.replace(model, **variant.model),
    dataclasses.replace(train, **variant.train),
  )


def _updated_otherwise(
  variant: Variant,
  model: EainConfig,
  own: str,
  given: TrainConfig,
  dataset: Dataset,
) -> str | None:
  """Why not, where --table_update=auto would choose otherwise than for EAIN.

  Penalties and the moving average follow that choice, so it is a change, too.
  `own` is what it chose for EAIN.
  """
  if given.table_update != 'auto':
    return None
  configs = changed_configs(variant, model, given)
  changed = resolve_config(dataset, 'eain', *configs).table_update
  if own == changed:
    return None
  return (
    f'its size has --table_update=auto choose {changed}, and for EAIN {own}, '
    'which is a second change: name one of them'
  )


def why_not(
  variant: Variant,
  model: EainConfig,
  train: TrainConfig,
  dataset: Dataset,
  given: TrainConfig | None = None,
) -> str | None:
  """Why a variant would not differ, or cannot be; None where it can.

  Args:
    variant: the change.
    model: what it is compared with.
    train: the same, of training, with all that was left open chosen.
    dataset: as that is trained on.
    given: `train` before what was left open was chosen; None: all was given.
  """
  for name, value in variant.needs.items():
    if getattr(model, name) != value:
      return f'--{"" if value else "no"}{name} is not what EAIN has here'
  # What `skip_above` is follows from the dataset.
  others = {k: v for k, v in variant.train.items() if k != 'skip_above'}
  if (variant.model or others) and changed_configs(variant, model, train) == (
    model,
    train,
  ):
    return 'EAIN is so already, by its flags'
  if variant.model.get('match_dim') and model.match_dim:
    return 'EAIN has a user match already'
  if 'use_context' in variant.model and not dataset.context_ids:
    return 'the dataset has no context features'
  if 'negatives_once' in variant.train and dataset.task != 'next_item':
    return f'the negatives of a {dataset.task} dataset are not sampled'
  if choice := variant.train.get('skip_above'):
    if has_skip_above(dataset) == (choice == 'on'):
      return f'Skip Above is {choice} already'
    if dataset.task != 'next_item':
      return (
        f'the negatives of a {dataset.task} dataset are not sampled, so it '
        'must be prepared otherwise'
      )
  if given is None:
    return None
  given = dataclasses.replace(given, batch_size=train.batch_size)
  return _updated_otherwise(variant, model, train.table_update, given, dataset)
