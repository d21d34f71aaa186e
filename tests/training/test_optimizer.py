"""Schedules and updates by formula and by hand."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eain_jax.config import TrainConfig
from eain_jax.training.optimizer import (
  evaluated_params,
  make_optimizer,
  make_schedule,
  set_plateau_factor,
)
from eain_jax.training.state import TrainState

PARAMS = {'w': jnp.array([1.0, -2.0, 0.5]), 'b': jnp.array(3.0)}
GRADS = {'w': jnp.array([0.3, -0.1, 0.0]), 'b': jnp.array(2.0)}


def updates_of(config, num_steps, factors=None):
  """What each of the first `num_steps` steps adds to PARAMS, always GRADS."""
  optimizer = make_optimizer(config, 100)
  state, updates = optimizer.init(PARAMS), []
  for step in range(num_steps):
    if factors:
      state = set_plateau_factor(state, factors[step])
    update, state = optimizer.update(GRADS, state, PARAMS)
    updates.append(jax.tree.map(np.asarray, update))
  return updates


@pytest.mark.parametrize('warmup', [0, 10])
@pytest.mark.parametrize('schedule', ['constant', 'cosine', 'linear'])
def test_schedules(schedule, warmup):
  config = TrainConfig(
    learning_rate=0.2, schedule=schedule, warmup_steps=warmup
  )
  rate = make_schedule(config, 110)
  length = 110 - warmup
  for step in range(0, 111):
    if step < warmup:
      expected = 0.2 / warmup + (0.2 - 0.2 / warmup) * step / warmup
    else:
      done = (step - warmup) / length
      expected = (
        0.2
        * {
          'constant': 1.0,
          'linear': 1 - done,
          'cosine': 0.5 * (1 + math.cos(math.pi * done)),
        }[schedule]
      )
    assert float(rate(step)) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_warmup_longer_than_the_run():
  config = TrainConfig(learning_rate=0.2, warmup_steps=50, schedule='cosine')
  rates = [float(make_schedule(config, 20)(step)) for step in range(20)]
  assert all(0 < a < b <= 0.2 for a, b in itertools.pairwise(rates))


def test_sgd_steps_against_the_gradient():
  config = TrainConfig(optimizer='sgd', learning_rate=0.5, clip_norm=0)
  (update,) = updates_of(config, 1)
  np.testing.assert_allclose(update['w'], [-0.15, 0.05, 0], rtol=1e-6)
  assert update['b'] == pytest.approx(-1.0)


def test_adam_by_hand():
  config = TrainConfig(optimizer='adam', learning_rate=0.5, clip_norm=0)
  first, second = 0.0, 0.0
  for step, update in enumerate(updates_of(config, 5), 1):
    first = 0.9 * first + 0.1 * 2.0
    second = 0.999 * second + 0.001 * 4.0
    corrected = first / (1 - 0.9**step), second / (1 - 0.999**step)
    expected = -0.5 * corrected[0] / (math.sqrt(corrected[1]) + 1e-8)
    assert update['b'] == pytest.approx(expected, rel=1e-4)
    assert update['w'][2] == 0.0


def test_adagrad_by_hand():
  config = TrainConfig(optimizer='adagrad', learning_rate=0.5, clip_norm=0)
  total = 0.1
  for update in updates_of(config, 4):
    total += 4.0
    assert update['b'] == pytest.approx(-0.5 * 2 / math.sqrt(total), rel=1e-5)
    assert update['w'][2] == 0.0


def test_adamw_decays_what_adam_leaves():
  adam, adamw = (
    updates_of(TrainConfig(optimizer=name, learning_rate=0.5), 1)[0]
    for name in ('adam', 'adamw')
  )
  np.testing.assert_allclose(
    adamw['w'] - adam['w'], -0.5 * 1e-4 * PARAMS['w'], atol=1e-7
  )


def test_the_average_by_hand():
  """It changes no update, and is of the parameters after each step."""
  config = TrainConfig(
    optimizer='sgd', learning_rate=0.5, clip_norm=0, ema_decay=0.2
  )
  optimizer = make_optimizer(config, 100)
  params, expected = PARAMS, dict(PARAMS)
  state = TrainState(jnp.zeros([]), params, {}, optimizer.init(params))
  for step in range(5):
    updates, opt_state = optimizer.update(GRADS, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    keep = min(0.2, (1 + step) / (10 + step))
    for name in params:
      moved = PARAMS[name] - 0.5 * (step + 1) * GRADS[name]
      np.testing.assert_allclose(params[name], moved, rtol=1e-6)
      expected[name] = keep * expected[name] + (1 - keep) * moved
    state = TrainState(state.step + 1, params, {}, opt_state)
    for name, found in evaluated_params(state).items():
      np.testing.assert_allclose(found, expected[name], rtol=1e-6)


def test_features_may_have_the_names_of_what_the_optimizer_keeps():
  tables = {name: np.ones(3, np.float32) for name in ('average', 'step_size')}
  for config in (TrainConfig(ema_decay=0.5), TrainConfig(optimizer='adagrad')):
    optimizer = make_optimizer(config, 100)
    opt_state = optimizer.init({'tables': tables})
    state = TrainState(jnp.zeros([]), {'tables': tables}, {}, opt_state)
    found = evaluated_params(state)
    jax.tree.map(np.testing.assert_array_equal, found, {'tables': tables})
    changed = set_plateau_factor(opt_state, 0.25)
    differing = [
      float(new)
      for old, new in zip(
        jax.tree.leaves(opt_state), jax.tree.leaves(changed), strict=True
      )
      if not np.array_equal(old, new)
    ]
    assert differing == [0.25]


def test_without_an_average_the_parameters_are_evaluated():
  optimizer = make_optimizer(TrainConfig(), 100)
  state = TrainState(jnp.zeros([]), PARAMS, {}, optimizer.init(PARAMS))
  assert evaluated_params(state) is PARAMS


@pytest.mark.parametrize('name', ['adam', 'adamw', 'adagrad', 'sgd'])
def test_the_plateau_factor_scales_updates_and_nothing_else(name):
  """Moments go on as they were; the schedule keeps counting."""
  config = TrainConfig(optimizer=name, schedule='linear', learning_rate=0.1)
  factors = [1.0, 1.0, 0.1, 0.1, 0.01, 1.0]
  plain = updates_of(config, 6)
  scaled = updates_of(config, 6, factors)
  for factor, a, b in zip(factors, plain, scaled, strict=True):
    jax.tree.map(
      lambda x, y, factor=factor: np.testing.assert_allclose(
        y, factor * x, rtol=1e-6
      ),
      a,
      b,
    )


def test_the_plateau_factor_is_a_leaf_of_the_state():
  """So it is saved with it, and a new one compiles no new step."""
  optimizer = make_optimizer(TrainConfig(), 100)
  old = optimizer.init(PARAMS)
  new = set_plateau_factor(old, 0.25)
  assert optax.tree_utils.tree_get(old, 'step_size') == 1.0
  assert optax.tree_utils.tree_get(new, 'step_size') == 0.25
  assert jax.tree.structure(old) == jax.tree.structure(new)
  shapes = lambda state: jax.tree.map(lambda x: (x.shape, x.dtype), state)
  assert shapes(old) == shapes(new)
  changed = [
    a is not b
    for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
  ]
  assert sum(changed) == 1
