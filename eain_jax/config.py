"""Every name, default and help text that a user can set, in one place.

Flags are generated from these dataclasses (`experiments/cli.py`), manifests and
`config.json` hold their values, and nothing else in the project has defaults.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from eain_jax.errors import InputError


def setting(
  default: Any,
  help: str,
  *,
  choices: tuple[str, ...] | None = None,
  at_least: float | None = None,
  at_most: float | None = None,
) -> Any:
  """A dataclass field with a help text and the values that it may take."""
  metadata = {
    'help': help,
    'choices': choices,
    'at_least': at_least,
    'at_most': at_most,
  }
  return dataclasses.field(default=default, metadata=metadata)


class Settings:
  """Base of the configs: checks choices and bounds when it is made."""

  def __post_init__(self):
    for field in dataclasses.fields(typing.cast(Any, self)):
      value = getattr(self, field.name)
      choices = field.metadata.get('choices')
      if choices and value not in choices:
        raise InputError(
          f'{field.name}={value!r} is not one of {", ".join(choices)}'
        )
      low, high = field.metadata['at_least'], field.metadata['at_most']
      for number in value if isinstance(value, tuple) else (value,):
        # Bounds that NaN does not pass.
        if low is not None and not number >= low:
          raise InputError(f'{field.name}={number} must be at least {low}')
        if high is not None and not number <= high:
          raise InputError(f'{field.name}={number} must be at most {high}')

  def to_dict(self) -> dict[str, Any]:
    """The values by name, tuples as lists, ready for JSON."""
    values = dataclasses.asdict(typing.cast(Any, self))
    return {
      k: list(v) if isinstance(v, tuple) else v for k, v in values.items()
    }

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]):
    """The config that `to_dict` wrote.

    Raises:
      InputError: a name is unknown, or a value of another type.
    """
    names = {f.name for f in dataclasses.fields(typing.cast(Any, cls))}
    unknown = sorted(set(values) - names)
    if unknown:
      given = ', '.join(map(repr, unknown))
      raise InputError(
        f'{cls.__name__} has no setting {given}: the file was written by '
        'another version'
      )
    kinds = typing.get_type_hints(cls)
    given = {
      k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
    }
    for name, value in given.items():
      if not _is_of(kinds[name], value):
        raise InputError(
          f'{cls.__name__} cannot have {name}={value!r}: the file was changed, '
          'or written by another version'
        )
    return cls(**given)


def _is_of(kind: Any, value: Any) -> bool:
  """Whether a value that JSON can hold is of a setting's type."""
  if isinstance(kind, types.UnionType):
    return any(_is_of(one, value) for one in typing.get_args(kind))
  if typing.get_origin(kind) is tuple:
    [entry, _] = typing.get_args(kind)
    return isinstance(value, tuple) and all(_is_of(entry, v) for v in value)
  if kind is float:
    # NaN and infinity are beyond what is set.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < 1e300
  return type(value) is kind


# What a timestamp tells, see `data.features`.
TIME_FEATURES = ('hour', 'weekday', 'month', 'quarter', 'gap')


@dataclasses.dataclass(frozen=True)
class PrepareConfig(Settings):
  """How raw files become a prepared dataset."""

  reviews: tuple[str, ...] = setting(
    (), 'Amazon review or rating files; the format is detected and said.'
  )
  metadata: tuple[str, ...] = setting((), 'Amazon metadata files.')
  events: str = setting(
    '', 'An event log of your own: CSV, TSV, JSON lines, Parquet file/folder.'
  )
  columns: tuple[str, ...] = setting(
    (),
    'For --events: user=..,item=..,timestamp=.. and rating=, label=, request=, '
    'position=; any other name is a context feature, as device=device_type.',
  )
  items: str = setting('', 'For --events: a table of item attributes.')
  item_key: str = setting('', "For --items: the column of the item's id.")
  item_attributes: tuple[str, ...] = setting(
    (),
    'For --items: attribute columns; a list column is multi-valued. For '
    '--metadata: some of category, category_path, brand, price; unset: all.',
  )
  synthetic: bool = setting(False, 'Make the synthetic world.')
  num_events: int = setting(
    20_000, 'For --synthetic: how many events.', at_least=1_000
  )
  task: str = setting(
    'auto',
    'next_item: each event against sampled negatives. rating: is the rating '
    'at least --rating_threshold. logged: labels as the log has them. auto: '
    'logged where there is a label column, else next_item.',
    choices=('auto', 'next_item', 'rating', 'logged'),
  )
  split: str = setting(
    'auto',
    "last_out: each user's last event (or request) is test, the one before "
    'it validation. last_out_no_validation: validation is the test set, as '
    'DIN and BARS do: for comparing with published numbers only. time: by '
    '--time_fractions. auto: time for logged, else last_out.',
    choices=('auto', 'last_out', 'last_out_no_validation', 'time'),
  )
  time_fractions: tuple[float, ...] = setting(
    (0.8, 0.1, 0.1), 'Shares of train, validation, test for --split=time.'
  )
  negatives: int = setting(4, 'Negatives a training positive.', at_least=1)
  eval_negatives: int = setting(
    99, 'Negatives an evaluation positive, drawn once.', at_least=1
  )
  negative_sampling: str = setting(
    'uniform',
    'uniform over the items, or popularity^--popularity_exponent.',
    choices=('uniform', 'popularity'),
  )
  popularity_exponent: float = setting(0.75, 'The exponent of popularity.')
  negative_exclusion: str = setting(
    'had',
    "had: never an item of the user's events so far, the target's included. "
    "ever: nor any of the user's later events (DIN's recipe; it looks ahead).",
    choices=('had', 'ever'),
  )
  skip_above: bool = setting(
    False,
    'Keep the positives and the negatives above the last positive of each '
    'request (16-17). For next_item the order is simulated; of other tasks the '
    'log must have positions.',
  )
  rating_threshold: float = setting(
    4.0, 'For --task=rating: the lowest rating that counts as positive.'
  )
  history_length: int = setting(
    50, 'The most recent events before the target that are used.', at_least=1
  )
  min_history: int = setting(
    -1,
    'Earlier events that an example needs; -1: 1, or 0 for --task=logged.',
    at_least=-1,
  )
  min_count: int = setting(
    1,
    'Training events that a value needs for a vocabulary entry of its own; '
    'rarer values share id 1, unknown.',
    at_least=1,
  )
  k_core: int = setting(
    0, 'Keep users and items with at least so many events; 0: all.', at_least=0
  )
  context: tuple[str, ...] = setting(
    TIME_FEATURES,
    "Context features of the target's time; quarter: of which year, for what "
    'is in demand changes; it is left out of --split=time, whose test quarters '
    "training has not seen. gap: days since the user's last event. One that is "
    'constant in the data is left out. Both are said.',
    choices=None,
  )
  allow_truncated: bool = setting(
    False, 'Keep the complete lines of a gzip file that ends early.'
  )
  max_rejected: float = setting(
    0.001,
    "Share of a file's lines that may be rejected before the run stops.",
    at_least=0,
    at_most=1,
  )
  max_inflation: float = setting(
    200.0,
    'Bytes that may come out of a gzip file for each of its own; logs reach '
    '3 to 50, and what is made to fill a memory 1,000.',
    at_least=1,
  )
  max_inflated_gb: float = setting(
    1_000.0, 'GB that may come out of a gzip file.', at_least=0
  )
  seed: int = setting(
    0, 'Seed of negatives, candidates, the synthetic world.', at_least=0
  )

  def __post_init__(self):
    super().__post_init__()
    if len(self.time_fractions) != 3 or not all(
      0 < share < math.inf for share in self.time_fractions
    ):
      raise InputError(
        f'time_fractions={self.time_fractions} must be three positive shares'
      )
    unknown = set(self.context) - set(TIME_FEATURES)
    if unknown:
      raise InputError(
        f'context={",".join(sorted(unknown))} is unknown: '
        f'{", ".join(TIME_FEATURES)}; name further columns of a log in '
        '--columns'
      )


@dataclasses.dataclass(frozen=True)
class DownloadConfig(Settings):
  """What is fetched of Amazon's published data, and how patiently."""

  reviews: str = setting(
    '5core',
    '5core: of users and items with at least five events, what papers use. '
    'all: every review. ratings: every rating, without texts.',
    choices=('5core', 'all', 'ratings'),
  )
  metadata: bool = setting(True, "Fetch the items' metadata too.")
  mirror: str = setting(
    '',
    'Address of a copy, in place of what stands in --list before the folders '
    'categoryFiles, categoryFilesSmall, metaFiles2, benchmark and raw.',
  )
  refresh: bool = setting(
    False, 'Take what the server has now where it differs from what is here.'
  )
  timeout: int = setting(
    60, 'Seconds that a server may be silent.', at_least=1, at_most=86_400
  )
  attempts: int = setting(
    5,
    'Failures in a row after which it gives up; it waits for 1, 2, 4, .. '
    'seconds between them.',
    at_least=1,
  )


@dataclasses.dataclass(frozen=True)
class WorkloadConfig(Settings):
  """The shape of the data that a benchmark runs on."""

  users: int = setting(192_403, "Rows of the users' table.", at_least=1)
  items: int = setting(
    63_001,
    "Rows of the items' table.",
    at_least=100,
    at_most=2_000_000_000,  # ids are int32
  )
  history_length: int = setting(50, 'The longest history.', at_least=1)
  mean_length: float = setting(
    10.2, 'Mean length of a history; the median is lower.', at_least=1
  )
  negatives: int = setting(
    0,
    'Sampled negatives a request, which share its history; 0: labelled '
    'examples, each with a history of its own.',
    at_least=0,
  )
  sequences: int = setting(
    200_000, 'Histories, each of one labelled example.', at_least=1
  )
  seed: int = setting(0, 'Of the data.', at_least=0)

  def __post_init__(self):
    super().__post_init__()
    if self.mean_length > self.history_length:
      raise InputError(
        f'mean_length={self.mean_length} must not exceed '
        f'history_length={self.history_length}'
      )


TABLE_L2_HELP = (
  'A lambda as in (14) on the embedding tables alone, beside --l2. Models '
  'differ in how much they bear.'
)


@dataclasses.dataclass(frozen=True)
class ModelConfig(Settings):
  """What every model has."""

  table_l2: float = setting(1e-3, TABLE_L2_HELP, at_least=0)
  table_stddev: float = setting(
    0.05, 'Standard deviation of the initial embeddings.', at_least=0
  )
  use_user: bool = setting(
    False,
    "Use the user's own id as a feature; MF always does. Measured, it costs "
    'deep models about .1 to .3 points of GAUC.',
  )


@dataclasses.dataclass(frozen=True)
class LogisticRegressionConfig(ModelConfig):
  """lr: a weight a feature value."""

  table_l2: float = setting(1e-6, TABLE_L2_HELP, at_least=0)


@dataclasses.dataclass(frozen=True)
class EmbeddingConfig(ModelConfig):
  """Models with embeddings of more than one column."""

  embedding_dim: int = setting(32, "D, a field's embedding.", at_least=1)


@dataclasses.dataclass(frozen=True)
class MatrixFactorizationConfig(EmbeddingConfig):
  """mf: biases, and the product of user and item factors."""

  table_l2: float = setting(1e-5, TABLE_L2_HELP, at_least=0)


@dataclasses.dataclass(frozen=True)
class DeepConfig(EmbeddingConfig):
  """Models with an MLP."""

  mlp: tuple[int, ...] = setting(
    (200, 80), 'Hidden widths of the MLP.', at_least=1
  )
  activation: str = setting(
    'relu',
    "Of the MLP's hidden layers.",
    choices=('relu', 'dice', 'prelu', 'sigmoid'),
  )
  dropout: float = setting(
    0.2,
    'Probability that a hidden unit is zeroed in training.',
    at_least=0,
    at_most=0.99,
  )
  compute_dtype: str = setting(
    'float32',
    'Of matrix products; tables, softmax and loss stay float32.',
    choices=('float32', 'bfloat16'),
  )


@dataclasses.dataclass(frozen=True)
class DnnConfig(DeepConfig):
  """dnn: an MLP over the fields, the history as its mean."""


@dataclasses.dataclass(frozen=True)
class DeepFMConfig(DeepConfig):
  """deepfm: a factorization machine and an MLP on shared embeddings."""


@dataclasses.dataclass(frozen=True)
class DinConfig(DeepConfig):
  """din: the MLP with target attention over the history."""

  attention: tuple[int, ...] = setting(
    (80, 40), 'Hidden widths of the activation unit.', at_least=1
  )
  attention_activation: str = setting(
    'dice',
    'Of the activation unit.',
    choices=('relu', 'dice', 'prelu', 'sigmoid'),
  )
  attention_softmax: bool = setting(
    True,
    "Normalise the attention over the history. DIN's paper does not; "
    'measured, it is worth about a point of AUC.',
  )

  def __post_init__(self):
    super().__post_init__()
    if not self.attention:
      raise InputError('attention= names no hidden width, and needs one')


@dataclasses.dataclass(frozen=True)
class EainConfig(DeepConfig):
  """eain: attention, SE gates, masked pairs and PAIM in one network."""

  table_l2: float = setting(2e-3, TABLE_L2_HELP, at_least=0)
  use_attention: bool = setting(
    True, 'Attention (1-3); else h_u is the mean of the history.'
  )
  use_softmax: bool = setting(
    True, 'Softmax over the history (1); else the scores (2) weigh as they are.'
  )
  attention_dim: int = setting(64, 'H, rows of W_1 and W_2 in (2).', at_least=1)
  attention_product: bool = setting(
    True,
    'Add W_3 (x_t * x*) inside the tanh of (2); not in the paper.',
  )
  attention_recency: str = setting(
    'rank_and_age',
    'Add learned vectors inside the tanh of (2) of how far back an event lies: '
    'its rank from the newest, its age in days; not in the paper, whose '
    'attention does not know the order of a history.',
    choices=('none', 'rank', 'age', 'rank_and_age'),
  )
  use_se: bool = setting(True, 'Squeeze-and-excitation gates (5-6).')
  se_reduction: int = setting(3, 'FC_1 has fields / this units.', at_least=1)
  use_mask_block: bool = setting(True, 'Masked pairs (4).')
  mask_hidden_dim: int = setting(
    128, 'Width of the aggregation layer that generates the mask.', at_least=1
  )
  mask_norm: bool = setting(
    True, 'Layer norm on the masked pairs; not in the paper.'
  )
  use_paim: bool = setting(True, 'Position-aware crosses (7-12).')
  paim_layers: int = setting(2, 'L of (10-11).', at_least=1)
  paim_dim: int = setting(
    32,
    'Width of f^(0), to which h_u is projected; 0: h_u itself, as printed.',
    at_least=0,
  )
  paim_input: str = setting(
    'history',
    'f^(0) from h_u alone, as printed, or from h_u and the target.',
    choices=('history', 'history_and_target'),
  )
  paim_norm: bool = setting(
    True, 'Layer norm after each cross layer; not in the paper.'
  )
  position: str = setting(
    'sinusoidal',
    'The encoding p_t of (7).',
    choices=('sinusoidal', 'learned', 'none'),
  )
  position_dim: int = setting(16, 'C of (8-9).', at_least=1)
  use_context: bool = setting(
    True, 'Context features (19), such as hour and gap.'
  )
  use_linear: bool = setting(
    True, 'Add a weight a feature value to the logit; not in the paper.'
  )
  match_dim: int = setting(
    0,
    "Add to the logit the product of a user's vector, made of the whole "
    "history and the context, with the target's, both this wide; 0: none, as "
    'printed.',
    at_least=0,
  )


MODEL_CONFIGS: dict[str, type[ModelConfig]] = {
  'lr': LogisticRegressionConfig,
  'mf': MatrixFactorizationConfig,
  'dnn': DnnConfig,
  'din': DinConfig,
  'deepfm': DeepFMConfig,
  'eain': EainConfig,
}


@dataclasses.dataclass(frozen=True)
class TrainConfig(Settings):
  """How a model is trained and evaluated."""

  batch_size: int = setting(
    0,
    'Examples a step, over all devices. 0: the largest power of two from 256 '
    'to 4096 that leaves at least 128 steps an epoch. More than 4096 must not '
    'be more than an epoch.',
    at_least=0,
  )
  epochs: int = setting(20, 'Most passes over the training part.', at_least=1)
  optimizer: str = setting(
    'adam', 'Of Optax.', choices=('adam', 'adamw', 'adagrad', 'sgd')
  )
  learning_rate: float = setting(1e-3, 'At the start.', at_least=0)
  schedule: str = setting(
    'constant',
    'Of the learning rate over all epochs, beside the plateau rule.',
    choices=('constant', 'cosine', 'linear'),
  )
  warmup_steps: int = setting(
    0, 'Steps over which the learning rate rises from 0.', at_least=0
  )
  l2: float = setting(
    0.0, 'lambda of (14), on the square norm of all parameters.', at_least=0
  )
  clip_norm: float = setting(
    10.0, 'Clip the global norm of the gradient; 0: never.', at_least=0
  )
  ema_decay: float = setting(
    -1.0,
    'Decay a step of a moving average of the parameters, which is what is '
    'evaluated and kept. 0: the parameters themselves. -1: .995, but 0 where '
    'tables are updated row by row, for it is a copy of them. Where '
    '--table_update=auto chooses rows it is 0 in any case.',
    at_least=-1,
    at_most=0.99999,
  )
  plateau_factor: float = setting(
    0.1,
    'The learning rate falls by this when validation GAUC stops rising; AUC '
    'where fewer than 100 users have examples of both classes.',
    at_least=0,
    at_most=1,
  )
  plateau_patience: int = setting(
    1, 'Evaluations without a better one before it falls.', at_least=1
  )
  early_stopping: int = setting(
    2, 'Evaluations without a better one before the run ends.', at_least=1
  )
  valid_negatives: int = setting(
    20,
    'Candidates a validation request that are used while training; the '
    'final evaluation uses all.',
    at_least=1,
  )
  parallelism: str = setting(
    'none',
    'none: one device. pmap: parameters replicated on all devices. mesh: '
    'embedding tables cut over all devices by rows, the rest replicated.',
    choices=('none', 'pmap', 'mesh'),
  )
  num_devices: int = setting(
    0,
    'Devices that take part in pmap and mesh; 0: all, of all processes.',
    at_least=0,
  )
  table_update: str = setting(
    'auto',
    'dense: the optimizer sees whole embedding tables. rowwise: the rows of '
    "the batch alone, penalties too, so a step's cost does not grow with the "
    'tables. auto: the cheaper one, but dense where a penalty acts on '
    'tables of up to 33 million values; the sizes are printed.',
    choices=('auto', 'dense', 'rowwise'),
  )
  data_placement: str = setting(
    'auto',
    'host: batches are made beside the training and sent. device: columns and '
    'histories live on the device, and many steps run in one call. auto: '
    'device on one accelerator that they fit into.',
    choices=('auto', 'host', 'device'),
  )
  skip_above: str = setting(
    'dataset',
    'Skip Above (16-17) on the negatives that training samples, in a '
    'simulated order. dataset: as it was prepared. on and off: as if it had '
    'been prepared with or without --skip_above.',
    choices=('dataset', 'on', 'off'),
  )
  negatives_once: bool = setting(
    False,
    'Draw the negatives of training once, as DIN and BARS do, and not anew '
    'every epoch. For comparing with published numbers: there is less to '
    'learn from.',
  )
  shuffle_labels: bool = setting(
    False,
    'Train on labels shuffled within the batch: a test AUC beyond .5 would '
    'mean a leak.',
  )
  log_every: int = setting(
    50, 'Steps between two training records.', at_least=1
  )
  save_every: int = setting(
    500,
    'Steps that a kill loses at most; the state is saved twice as often. On an '
    'accelerator saves of one process take a tenth of the time at most, and a '
    'kill may lose what was done in about ten times as long as one takes.',
    at_least=1,
  )
  input_timeout: int = setting(
    600, 'Seconds to wait for a batch before the run is given up.', at_least=1
  )
  seed: int = setting(
    0,
    'Of parameters, order, negatives, dropout.',
    at_least=0,
    at_most=2**32 - 1,
  )

  @property
  def save_period(self) -> int:
    """Steps between two saves within an epoch.

    A save may still be written when the next one is due, and no longer.
    """
    return max(1, self.save_every // 2)


@dataclasses.dataclass(frozen=True)
class TimingConfig(Settings):
  """How long steps are timed."""

  steps: int = setting(
    40,
    'Timed calls, of each kind: a step, or many with --data_placement=device.',
    at_least=1,
  )
  warmup: int = setting(10, 'Untimed steps before them.', at_least=1)
  repeats: int = setting(
    8, 'Windows that the timed steps are cut into.', at_least=1
  )
  batches: int = setting(
    16, 'Batches that are made beforehand, and cycled.', at_least=1
  )
  threads: int = setting(
    0, 'CPU cores that the process may use (Linux); 0: all.', at_least=0
  )

  def __post_init__(self):
    super().__post_init__()
    if self.repeats > self.steps:
      raise InputError(
        f'repeats={self.repeats} windows need as many steps, steps={self.steps}'
      )


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig(TimingConfig):
  """What is measured, and for how long."""

  model: tuple[str, ...] = setting(
    ('din',), 'Models: lr, mf, dnn, din, deepfm, eain.'
  )
  modes: tuple[str, ...] = setting(
    ('train', 'score'), 'train: the training step. score: scoring alone.'
  )
  sweep: str = setting(
    'none',
    'Repeats everything over values of a setting, and draws it.',
    choices=('none', 'items', 'batch_size'),
  )
  sweep_values: tuple[int, ...] = setting(
    (),
    'Of --sweep; by default 10_000 to 10_000_000 items, or batches of 256 to '
    '16_384.',
    at_least=1,
  )
  ceilings: bool = setting(
    True, "Measure the machine's matrix product and memory bandwidth, too."
  )
  profile: bool = setting(
    False, 'Trace 5 steps of each row, and list the longest operations.'
  )
  prepare: bool = setting(
    False, 'Measure the preparation of synthetic Amazon files as well.'
  )
  prepare_reviews: int = setting(
    100_000, 'Reviews in those files.', at_least=1_000
  )

  def __post_init__(self):
    super().__post_init__()
    if not self.modes and not self.prepare:
      raise InputError('modes= and noprepare leave nothing to measure')
    for name, known in (
      ('model', tuple(MODEL_CONFIGS)),
      ('modes', ('train', 'score')),
    ):
      for value in getattr(self, name):
        if value not in known:
          raise InputError(f'{name}={value} is unknown: {", ".join(known)}')
    if self.modes and not self.model:
      raise InputError('model= names no model')
    if self.sweep_values and self.sweep == 'none':
      raise InputError('sweep_values needs sweep=items or sweep=batch_size')


@dataclasses.dataclass(frozen=True)
class ScalingConfig(TimingConfig):
  """How training scales over devices."""

  model: str = setting('din', 'The model.', choices=tuple(MODEL_CONFIGS))
  devices: tuple[int, ...] = setting(
    (1, 2, 4, 8),
    'Numbers of devices; 1, to which the others are compared, is added. A CPU '
    'is cut into as many virtual devices as the largest.',
    at_least=1,
  )
  scaling: tuple[str, ...] = setting(
    ('strong', 'weak'),
    'strong: --batch_size examples a step over all devices. weak: so many on '
    'each device.',
  )
  parallelism: str = setting(
    'mesh',
    'Of more devices than one. mesh: embedding tables cut over all devices by '
    'rows, the rest replicated. pmap: parameters replicated on all devices.',
    choices=('mesh', 'pmap'),
  )
  topology: str = setting(
    '',
    'A slice of TPUs, such as v5e:16x16, v6e:8x8, v4:4x4x8 or v5p:8x8x8: the '
    'step is compiled for it here, where no TPU is needed, and predicted; '
    "nothing is measured. Needs pip install -e '.[tpu]'.",
  )

  def __post_init__(self):
    super().__post_init__()
    if not self.devices or not self.scaling:
      raise InputError('devices= or scaling= leaves nothing to measure')
    for name in ('devices', 'scaling'):
      values = getattr(self, name)
      if len(set(values)) < len(values):
        listed = ','.join(str(value) for value in values)
        raise InputError(f'{name}={listed} names a value twice')
    for value in self.scaling:
      if value not in ('strong', 'weak'):
        raise InputError(f'scaling={value} is unknown: strong, weak')

  @property
  def counts(self) -> tuple[int, ...]:
    """Numbers of devices, ascending, 1 among them."""
    return tuple(sorted({1, *self.devices}))
