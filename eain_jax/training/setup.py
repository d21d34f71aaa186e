"""What a run is made of, from its settings: batches, state, compiled steps."""

import dataclasses
import math

import jax

from eain_jax.config import ModelConfig, TrainConfig
from eain_jax.data.batches import TrainStream, make_train_stream
from eain_jax.data.dataset import Dataset
from eain_jax.errors import InputError
from eain_jax.models import Model, make_model
from eain_jax.training import parallel
from eain_jax.training.optimizer import make_optimizer
from eain_jax.training.state import TrainState, init_state
from eain_jax.training.step import (
  ScoreFn,
  StepFn,
  make_score_step,
  make_train_step,
)

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
  """

  config: TrainConfig
  model: Model
  stream: TrainStream
  num_steps: int
  state: TrainState
  train_step: StepFn
  score_step: ScoreFn


def resolve_config(config: TrainConfig, dataset: Dataset) -> TrainConfig:
  """The config with its batch size chosen, where that is left open."""
  if config.batch_size:
    return config
  examples = dataset.manifest['counts']['train']['examples']
  power = int(math.log2(max(1, examples / MIN_STEPS_PER_EPOCH)))
  low, high = BATCH_SIZE_RANGE
  return dataclasses.replace(config, batch_size=min(max(2**power, low), high))


def set_up(
  dataset: Dataset,
  model_name: str,
  model_config: ModelConfig,
  config: TrainConfig,
) -> Setup:
  """Makes the batches, the state of step 0 and the compiled steps.

  Raises:
    InputError: the batch does not suit the devices.
  """
  config = resolve_config(config, dataset)
  model = make_model(
    model_name, model_config, parallel.axis_name(config.parallelism)
  )
  try:
    stream = make_train_stream(
      dataset,
      config.batch_size,
      config.seed,
      parallel.num_shards(config.parallelism),
    )
  except ValueError as error:
    raise InputError(str(error)) from error
  features = dataset.features
  num_steps = stream.steps_per_epoch * config.epochs
  optimizer = make_optimizer(config, num_steps)
  first_batch = parallel.shard_of(stream.batch(0), config.parallelism)
  state = init_state(model, features, optimizer, first_batch, config.seed)
  return Setup(
    config,
    model,
    stream,
    num_steps,
    state,
    parallel.compile_train_step(
      make_train_step(model, features, optimizer, config), config.parallelism
    ),
    jax.jit(make_score_step(model, features)),
  )
