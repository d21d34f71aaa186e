"""Row-wise updates against dense ones: equal where they must be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eain_jax.config import TrainConfig
from eain_jax.data.batches import Shards, make_train_stream
from eain_jax.errors import InputError
from eain_jax.models import make_model
from eain_jax.training import row_update
from eain_jax.training.optimizer import track_average
from eain_jax.training.step import make_train_step

BATCH_SIZE = 500


def streams(dataset, model):
  """The same batches without and with a plan."""
  read = model.reads(dataset.features)
  return [
    make_train_stream(dataset, BATCH_SIZE, 0, Shards(plan=plan), read)
    for plan in ('none', 'rows')
  ]


def assert_close(a, b, atol):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), a, b
  )


# The last ones have no tables of users, of context, or of attributes.
@pytest.mark.parametrize(
  ('name', 'settings'),
  [
    *((name, {}) for name in ('lr', 'deepfm', 'din', 'eain', 'mf')),
    ('lr', {'use_user': False}),
    ('eain', {'use_user': False, 'use_context': False}),
  ],
)
def test_sgd_is_the_same_either_way(
  dataset, small_config, random_state, name, settings
):
  """Without a penalty a row outside of the batch has no gradient."""
  config = TrainConfig(optimizer='sgd', learning_rate=0.1)
  model = make_model(name, small_config(name, table_l2=0.0, **settings))
  optimizer = optax.sgd(0.1)
  states, metrics = [], []
  for stream in streams(dataset, model):
    state = random_state(model, dataset, stream.batch(0), optimizer)
    step = jax.jit(make_train_step(model, dataset.features, optimizer, config))
    # The last step is the epoch's uneven one.
    for number in (0, 1, stream.steps_per_epoch - 1):
      state, found = step(state, stream.batch(number))
    states.append(state)
    metrics.append(found)
  assert_close(states[0].params, states[1].params, 1e-6)
  assert_close(metrics[0], metrics[1], 1e-5)


def test_rows_by_hand():
  """Gather, then scatter, with places beyond the end."""
  table = jnp.arange(10.0).reshape(5, 2)
  rows = jnp.array([0, 3, 5, 6], jnp.int32)
  found = row_update.gather_rows(table, rows)
  np.testing.assert_array_equal(found, [[0, 1], [6, 7], [0, 0], [0, 0]])
  new = row_update.scatter_rows(table, rows, found + 100)
  np.testing.assert_array_equal(
    new, [[100, 101], [2, 3], [4, 5], [106, 107], [8, 9]]
  )


OPTIMIZERS = {
  'adam': lambda: optax.adam(0.05),
  'adagrad': lambda: optax.adagrad(0.1),
  'momentum': lambda: optax.sgd(0.1, momentum=0.9),
  'lamb_parts': lambda: optax.chain(
    optax.clip_by_global_norm(0.01), optax.scale_by_adam(), optax.scale(-0.1)
  ),
  'averaged': lambda: optax.chain(optax.sgd(0.1), track_average(0.7)),
  'injected': lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
}


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_rows_in_every_batch_move_as_if_the_table_were_dense(name):
  """Six rows, of which four are always planned: the other two stay."""
  rng = np.random.default_rng(0)
  optimizer = OPTIMIZERS[name]()
  rows = {'t': jnp.array([0, 1, 3, 5, 6, 7], jnp.int32)}
  start = {
    'tables': {'t': jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)},
    'net': {'w': jnp.ones(3)},
  }
  state = optimizer.init(start)
  params, opt_state = start, state
  dense, dense_state = start, state
  for _ in range(4):
    grads = {
      'tables': {'t': jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)},
      'net': {'w': jnp.asarray(rng.normal(size=3), jnp.float32)},
    }
    grads['tables']['t'] = grads['tables']['t'].at[jnp.array([2, 4])].set(0.0)
    cut = row_update.rows_of_params(grads, rows)
    local = row_update.rows_of_params(params, rows)
    local_state = row_update.rows_of_opt_state(
      optimizer, opt_state, params, rows
    )
    updates, local_state = optimizer.update(cut, local_state, local)
    opt_state = row_update.updated_opt_state(
      optimizer, opt_state, params, rows, local_state
    )
    params = row_update.updated_params(
      params, rows, optax.apply_updates(local, updates)
    )
    updates, dense_state = optimizer.update(grads, dense_state, dense)
    dense = optax.apply_updates(dense, updates)
  assert_close(params, dense, 1e-6)
  assert_close(opt_state, dense_state, 1e-6)
  untouched = np.array([2, 4])
  np.testing.assert_array_equal(
    params['tables']['t'][untouched], start['tables']['t'][untouched]
  )


def test_adam_leaves_rows_outside_of_the_batch_alone(
  dataset, small_config, random_state
):
  """Parameters and moments; a dense Adam moves them on."""
  optimizer = optax.adam(0.01)
  model = make_model('deepfm', small_config('deepfm', table_l2=0.0))
  step = jax.jit(
    make_train_step(model, dataset.features, optimizer, TrainConfig())
  )
  _, stream = streams(dataset, model)
  state = random_state(model, dataset, stream.batch(0), optimizer)
  first, _ = step(state, stream.batch(0))
  batch = stream.batch(1)
  second, _ = step(first, batch)
  moments = lambda state: state.opt_state[0].mu['tables']['user']
  touched = np.isin(np.arange(len(moments(first))), batch['rows']['user'])
  assert (~touched).sum() > 20
  np.testing.assert_array_equal(
    moments(first)[~touched], moments(second)[~touched]
  )
  np.testing.assert_array_equal(
    first.params['tables']['user'][~touched],
    second.params['tables']['user'][~touched],
  )
  # The padding row is planned too, and has no gradient.
  np.testing.assert_array_equal(
    second.params['tables']['user'][0], state.params['tables']['user'][0]
  )


def test_the_penalty_is_that_of_the_rows(dataset, small_config, random_state):
  optimizer = optax.sgd(0.1)
  model = make_model('lr', small_config('lr', table_l2=0.5))
  step = jax.jit(
    make_train_step(model, dataset.features, optimizer, TrainConfig())
  )
  _, stream = streams(dataset, model)
  batch = stream.batch(0)
  state = random_state(model, dataset, batch, optimizer)
  squares = 0.0
  for name, rows in batch['rows'].items():
    table = np.asarray(state.params['tables'][name], np.float64)
    squares += np.square(table[rows[rows < len(table)]]).sum()
  _, found = step(state, batch)
  difference = float(found['total_loss']) - float(found['loss'])
  assert difference == pytest.approx(0.5 * squares, rel=1e-5)


def test_an_optimizer_without_rows_is_refused():
  params = {'tables': {'t': jnp.ones((300, 200))}, 'net': {}}
  optimizer = optax.adafactor(0.1)
  rows = {'t': jnp.arange(4)}
  with pytest.raises(InputError, match='use --table_update=dense'):
    row_update.rows_of_opt_state(
      optimizer, optimizer.init(params), params, rows
    )
