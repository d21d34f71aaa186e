"""Optax transformations as the settings name them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eain_jax.config import TrainConfig
from eain_jax.layers.moving_average import share_kept
from eain_jax.training.state import TrainState


def make_schedule(config: TrainConfig, num_steps: int) -> optax.Schedule:
  """The learning rate by step; the plateau rule multiplies it.

  Args:
    config: names the schedule.
    num_steps: steps of all epochs, over which it decays.
  """
  rate, warmup = config.learning_rate, config.warmup_steps
  remaining = max(1, num_steps - warmup)
  decay = {
    'constant': lambda: optax.constant_schedule(rate),
    'cosine': lambda: optax.cosine_decay_schedule(rate, remaining),
    'linear': lambda: optax.linear_schedule(rate, 0.0, remaining),
  }[config.schedule]()
  if not warmup:
    return decay
  rise = optax.linear_schedule(rate / warmup, rate, warmup)
  return optax.join_schedules([rise, decay], [warmup])


class AveragedState(NamedTuple):
  """Of `track_average`.

  Attributes:
    count: int32, steps.
    average: of the parameters.
  """

  count: jax.Array
  average: Any


def track_average(decay: float) -> optax.GradientTransformation:
  """Keeps an exponential moving average of the parameters after each step.

  It stands last, where updates are what is added, and changes none. Early steps
  count less back, see `share_kept`. Updated row by row, a row's average moves
  when the row does.
  """

  def init(params):
    return AveragedState(
      jnp.zeros([], jnp.int32), jax.tree.map(jnp.copy, params)
    )

  def update(updates, state, params=None):
    assert params is not None
    keep = share_kept(decay, state.count)
    average = jax.tree.map(
      lambda old, param, change: keep * old + (1 - keep) * (param + change),
      state.average,
      params,
      updates,
    )
    return updates, AveragedState(state.count + 1, average)

  return optax.GradientTransformation(init, update)


def evaluated_params(state: TrainState) -> Any:
  """The parameters that are evaluated and kept: their average, if there is."""
  return optax.tree_utils.tree_get(
    state.opt_state,
    'average',
    state.params,
    # A feature may have that name, and then its table.
    lambda path, _: getattr(path[-1], 'tuple_name', '') == 'AveragedState',
  )


def make_optimizer(
  config: TrainConfig, num_steps: int
) -> optax.GradientTransformation:
  """The named optimizer, its schedule, the plateau factor, the average.

  Clipping is the step's: the norm is that of whole gradients, and a device may
  hold a part of them.

  The plateau factor is a leaf of the optimizer's state, so it is saved and
  restored with it; `set_plateau_factor` changes it between steps.
  """
  precondition = {
    'adam': optax.scale_by_adam,
    'adamw': lambda: optax.chain(
      optax.scale_by_adam(), optax.add_decayed_weights(1e-4)
    ),
    'adagrad': lambda: optax.scale_by_rss(initial_accumulator_value=0.1),
    'sgd': optax.identity,
  }[config.optimizer]()
  chain = [
    precondition,
    optax.scale_by_learning_rate(make_schedule(config, num_steps)),
    optax.inject_hyperparams(optax.scale)(step_size=1.0),
  ]
  if config.ema_decay > 0:
    chain.append(track_average(config.ema_decay))
  return optax.chain(*chain)


def set_plateau_factor(opt_state, factor: float):
  """The state with another factor on the learning rate."""
  find = lambda path, _: getattr(path[-2], 'name', '') == 'hyperparams'
  old = optax.tree_utils.tree_get(opt_state, 'step_size', None, find)
  new = jax.device_put(np.asarray(factor, old.dtype), old.sharding)
  return optax.tree_utils.tree_set(opt_state, find, step_size=new)
