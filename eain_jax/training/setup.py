"""What a run is made of, from its settings: batches, state, compiled steps."""

import dataclasses
import math
from importlib.metadata import version

import jax

from eain_jax.config import ModelConfig, TrainConfig
from eain_jax.data.batches import TrainStream, make_train_stream
from eain_jax.data.dataset import Dataset
from eain_jax.errors import InputError
from eain_jax.models import Model, make_model
from eain_jax.training import parallel
from eain_jax.training.device_data import DeviceRunner, make_device_runner
from eain_jax.training.memory import release_freed_memory
from eain_jax.training.optimizer import make_optimizer
from eain_jax.training.state import TrainState, init_state
from eain_jax.training.step import (
  ScoreFn,
  StepFn,
  make_score_step,
  make_train_step,
)
from eain_jax.training.table_update import TableUpdate, measure_update

MIN_STEPS_PER_EPOCH, BATCH_SIZE_RANGE = 128, (256, 4096)


@dataclasses.dataclass(frozen=True)
class Setup:
  """What the loop and the benchmark run.

  Attributes:
    config: with everything resolved that was left open.
    model: the network and its table width.
    stream: the batches.
    num_steps: of all epochs.
    state: of step 0, not yet placed on the devices; see
      `parallel.place_state`.
    train_step: compiled, `(state, batch) -> (state, metrics)`; donates the
      state.
    score_step: compiled, `(params, stats, batch) -> logits`.
    device_runner: runs many steps in one call, where the data is placed on
      the device.
    notes: lines for a person about what was chosen.
  """

  config: TrainConfig
  model: Model
  stream: TrainStream
  num_steps: int
  state: TrainState
  train_step: StepFn
  score_step: ScoreFn
  device_runner: DeviceRunner | None
  notes: tuple[str, ...]


def _batch_size(dataset: Dataset) -> int:
  """The largest power of two that leaves an epoch enough steps."""
  examples = dataset.manifest['counts']['train']['examples']
  power = int(math.log2(max(1, examples / MIN_STEPS_PER_EPOCH)))
  low, high = BATCH_SIZE_RANGE
  return min(max(2**power, low), high)


def _open_stream(
  dataset: Dataset, config: TrainConfig, num_shards: int
) -> TrainStream:
  try:
    return make_train_stream(
      dataset, config.batch_size, config.seed, num_shards
    )
  except ValueError as error:
    raise InputError(str(error)) from error


def _resolve(
  dataset: Dataset,
  model_name: str,
  model_config: ModelConfig,
  config: TrainConfig,
) -> tuple[TrainConfig, TableUpdate, TrainStream]:
  """`resolve_config`, what it rests on, and the batches for one device."""
  if not config.batch_size:
    config = dataclasses.replace(config, batch_size=_batch_size(dataset))
  stream = _open_stream(dataset, config, 1)
  update = measure_update(
    dataset.features,
    stream.planned(),
    make_model(model_name, model_config).table_width,
    bool(config.l2 or model_config.table_l2 or config.optimizer == 'adamw'),
  )
  if config.table_update == 'auto':
    config = dataclasses.replace(config, table_update=update.choice)
  return config, update, stream


def resolve_config(
  dataset: Dataset,
  model_name: str,
  model_config: ModelConfig,
  config: TrainConfig,
) -> TrainConfig:
  """The config with all that is left open chosen, from data and model alone.

  Nothing is timed, so a run and its continuation, on any machine, choose the
  same.

  Raises:
    InputError: the batch does not suit the devices.
  """
  return _resolve(dataset, model_name, model_config, config)[0]


def set_up(
  dataset: Dataset,
  model_name: str,
  model_config: ModelConfig,
  config: TrainConfig,
) -> Setup:
  """Makes the batches, the state of step 0 and the compiled steps.

  Raises:
    InputError: the batch or the placement does not suit the devices.
  """
  if config.data_placement == 'device' and config.parallelism != 'none':
    raise InputError(
      '--data_placement=device runs on one device: use --parallelism=none, or '
      '--data_placement=host'
    )
  config, update, stream = _resolve(dataset, model_name, model_config, config)
  model = make_model(
    model_name, model_config, parallel.axis_name(config.parallelism)
  )
  num_shards = parallel.num_shards(config.parallelism)
  if num_shards > 1:
    stream = _open_stream(dataset, config, num_shards)
  stream = dataclasses.replace(
    stream, with_rows=config.table_update == 'rowwise'
  )
  features = dataset.features
  num_steps = stream.steps_per_epoch * config.epochs
  optimizer = make_optimizer(config, num_steps)
  first_batch = parallel.shard_of(stream.batch(0), config.parallelism)
  state = init_state(model, features, optimizer, first_batch, config.seed)
  release_freed_memory()
  train_step = make_train_step(model, features, optimizer, config)
  device_runner = None
  if config.data_placement == 'device':
    device_runner = make_device_runner(stream, train_step)
  return Setup(
    config,
    model,
    stream,
    num_steps,
    state,
    parallel.compile_train_step(train_step, config.parallelism),
    jax.jit(make_score_step(model, features)),
    device_runner,
    (
      update.describe(config.table_update),
      *parallel.device_notes(jax.default_backend(), version('jaxlib')),
    ),
  )
