"""What a run is made of, from its settings: batches, state, compiled steps."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

import jax
import numpy as np
import optax

from eain_jax.config import ModelConfig, TrainConfig
from eain_jax.data.batches import Shards, TrainStream, make_train_stream
from eain_jax.data.dataset import Dataset
from eain_jax.data.features import Feature
from eain_jax.errors import InputError
from eain_jax.models import Model, make_model
from eain_jax.training.device_data import DeviceRunner, make_device_runner
from eain_jax.training.device_memory import bytes_of_run
from eain_jax.training.memory import release_freed_memory
from eain_jax.training.optimizer import make_optimizer
from eain_jax.training.parallel import (
  AXIS,
  Placement,
  device_notes,
  make_placement,
)
from eain_jax.training.state import TrainState, init_state
from eain_jax.training.step import (
  ScoreFn,
  StepFn,
  make_score_step,
  make_train_step,
)
from eain_jax.training.table_update import TableUpdate, measure_update

# Measured for EAIN on Beauty: .005 of validation AUC above none.
EMA_DECAY = 0.995
MIN_STEPS_PER_EPOCH, BATCH_SIZE_RANGE = 128, (256, 4096)


@dataclasses.dataclass(frozen=True)
class Setup:
  """What the loop and the benchmark run.

  Attributes:
    config: with everything resolved that was left open.
    model: the network, what it reads, and the width of its tables.
    stream: the batches.
    num_steps: of all epochs.
    placement: the devices, and what lies where.
    state_of_key: the state of step 0 from the bits of a key, made where it is
      to lie.
    state_shapes: of the state.
    train_step: compiled, `(state, batch) -> (state, metrics)`; donates the
      state. Batches are placed by `placement.place_batch`.
    score_step: compiled, `(params, stats, batch) -> logits`; batches are
      placed by `placement.place_eval_batch`.
    device_runner: runs many steps in one call, where the data lies on the
      device; None elsewhere.
    notes: lines for a person about what was chosen.
  """

  config: TrainConfig
  model: Model
  stream: TrainStream
  num_steps: int
  placement: Placement
  state_of_key: Callable[[np.ndarray], TrainState]
  state_shapes: TrainState
  train_step: StepFn
  score_step: ScoreFn
  device_runner: DeviceRunner | None
  notes: tuple[str, ...]

  @property
  def num_parameters(self) -> int:
    """Scalars of the model, without the spare rows of cut tables."""
    params = self.state_shapes.params
    rows = sum(f.num_rows for f in self.stream.packer.features)
    net = sum(leaf.size for leaf in jax.tree.leaves(params['net']))
    return net + rows * self.model.table_width

  def make_state(self) -> TrainState:
    """The state of step 0, made where it is to lie."""
    return self.state_of_key(self.stream.key)

  def with_seed(self, seed: int) -> 'Setup':
    """The run of another seed, by the same programs and the same data."""
    config = dataclasses.replace(self.config, seed=seed)
    packer = self.stream.packer
    stream = _open_stream(
      packer.dataset, config, self.stream.shards, packer.features
    )
    runner = self.device_runner
    if runner is not None:
      runner = dataclasses.replace(runner, stream=stream)
    return dataclasses.replace(
      self, config=config, stream=stream, device_runner=runner
    )


def _batch_size(dataset: Dataset) -> int:
  """The largest power of two that leaves an epoch enough steps."""
  examples = dataset.manifest['counts']['train']['examples']
  power = int(math.log2(max(1, examples / MIN_STEPS_PER_EPOCH)))
  low, high = BATCH_SIZE_RANGE
  return min(max(2**power, low), high)


def _open_stream(
  dataset: Dataset,
  config: TrainConfig,
  shards: Shards,
  features: Sequence[Feature],
) -> TrainStream:
  try:
    return make_train_stream(
      dataset,
      config.batch_size,
      config.seed,
      shards,
      features,
      config.negatives_once,
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
  if config.negatives_once and dataset.task != 'next_item':
    raise InputError(
      f'negatives_once: the negatives of a {dataset.task} dataset are not '
      'sampled, so there is nothing to draw'
    )
  if not config.batch_size:
    config = dataclasses.replace(config, batch_size=_batch_size(dataset))
  model = make_model(model_name, model_config)
  read = model.reads(dataset.features)
  stream = _open_stream(dataset, config, Shards(), read)
  an_epoch = len(stream.packer.part) * stream.num_candidates
  if config.batch_size > max(an_epoch, BATCH_SIZE_RANGE[1]):
    raise InputError(
      f'batch_size {config.batch_size} is more than the {an_epoch} examples of '
      'an epoch: the rest of it would be padding'
    )
  update = measure_update(
    read,
    stream.planned(),
    model.table_width,
    bool(config.l2 or model_config.table_l2 or config.optimizer == 'adamw'),
  )
  is_auto = config.table_update == 'auto'
  if is_auto:
    config = dataclasses.replace(config, table_update=update.choice)
  if config.ema_decay < 0:
    decay = EMA_DECAY if config.table_update == 'dense' else 0.0
    config = dataclasses.replace(config, ema_decay=decay)
  elif is_auto and config.table_update != 'dense':
    # A row's average moves when the row does, so that of a rare one would stay
    # near its initial values, and settings found on small tables come to large.
    config = dataclasses.replace(config, ema_decay=0.0)
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


def choose_placement(dataset: Dataset, config: TrainConfig) -> Placement:
  """The devices that the settings ask for; see `parallel.make_placement`."""
  return make_placement(
    config.parallelism,
    {feature.name: feature.num_rows for feature in dataset.features},
    config.num_devices,
  )


def _is_accelerator(placement: Placement) -> bool:
  """One device, which is no CPU: there each call of it costs time."""
  return placement.parallelism == 'none' and jax.default_backend() != 'cpu'


def set_up(
  dataset: Dataset,
  model_name: str,
  model_config: ModelConfig,
  config: TrainConfig,
) -> Setup:
  """The batches, the steps, and what makes the state of step 0.

  No state is allocated yet.

  Raises:
    InputError: the batch or the placement does not suit the devices.
  """
  if config.data_placement == 'device' and config.parallelism != 'none':
    raise InputError(
      '--data_placement=device runs on one device: use --parallelism=none, or '
      '--data_placement=host'
    )
  placement = choose_placement(dataset, config)
  asked = config.ema_decay
  config, update, stream = _resolve(dataset, model_name, model_config, config)
  average_notes = ()
  if asked > 0 and not config.ema_decay:
    average_notes = (
      f'no moving average, though --ema_decay={asked:g}: tables are updated by '
      'rows, and that of a rare row would lag behind',
    )
  model = make_model(model_name, model_config, placement.axis_name)
  shards = placement.train_shards(config.table_update)
  if shards != stream.shards:
    stream = _open_stream(dataset, config, shards, stream.packer.features)
  features = dataset.features
  num_steps = stream.steps_per_epoch * config.epochs
  optimizer = make_optimizer(config, num_steps)
  initialize = functools.partial(
    _initialize, model, features, optimizer, stream.batch(0), placement
  )
  state_shapes = jax.eval_shape(initialize, stream.key)

  def state_of_key(key: np.ndarray) -> TrainState:
    state = placement.make_state(initialize, key)
    release_freed_memory()
    return state

  train_step = make_train_step(
    model,
    features,
    optimizer,
    config,
    tables_are_cut=placement.cuts_tables,
  )
  score_step = make_score_step(
    model, features, axis_name=AXIS if placement.cuts_tables else None
  )
  device_runner, data_notes = None, ()
  choice = config.data_placement
  if choice == 'device' or (choice == 'auto' and _is_accelerator(placement)):
    # What must fit in any case is not given up for data that could stay away.
    spare = 0
    if choice == 'auto':
      spare = bytes_of_run(state_shapes, placement, saves=True)
    try:
      device_runner = make_device_runner(stream, train_step, spare)
      data_notes = ('the data lies on the device',)
    except InputError as error:
      if choice == 'device':
        raise
      data_notes = (f'the data stays on the host: {error}',)
  placed = 'host' if device_runner is None else 'device'
  config = dataclasses.replace(config, data_placement=placed)
  return Setup(
    config,
    model,
    stream,
    num_steps,
    placement,
    state_of_key,
    state_shapes,
    placement.compile_train_step(train_step, state_shapes),
    placement.compile_score_step(score_step, state_shapes),
    device_runner,
    (
      update.describe(config.table_update),
      *average_notes,
      *data_notes,
      *placement.describe(),
      *device_notes(jax.default_backend(), version('jaxlib')),
    ),
  )


def _initialize(
  model: Model,
  features: Sequence[Feature],
  optimizer: optax.GradientTransformation,
  batch: Mapping,
  placement: Placement,
  key_data: jax.Array,
) -> TrainState:
  """The state of step 0 from the bits of a key."""
  if placement.parallelism != 'none':
    batch = jax.tree.map(lambda x: x[0], batch)
  return init_state(
    model,
    features,
    optimizer,
    batch,
    jax.random.wrap_key_data(key_data, impl='threefry2x32'),
    num_owners=placement.num_owners,
    place_table=placement.table_from_draw,
  )
