"""Optax transformations as the settings name them."""

import jax
import numpy as np
import optax

from eain_jax.config import TrainConfig


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


def make_optimizer(
  config: TrainConfig, num_steps: int
) -> optax.GradientTransformation:
  """The named optimizer, its schedule, and the plateau factor.

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
  return optax.chain(
    precondition,
    optax.scale_by_learning_rate(make_schedule(config, num_steps)),
    optax.inject_hyperparams(optax.scale)(step_size=1.0),
  )


def set_plateau_factor(opt_state, factor: float):
  """The state with another factor on the learning rate."""
  old = optax.tree_utils.tree_get(opt_state, 'step_size')
  new = jax.device_put(np.asarray(factor, old.dtype), old.sharding)
  return optax.tree_utils.tree_set(opt_state, step_size=new)
