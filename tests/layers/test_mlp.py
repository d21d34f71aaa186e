"""The MLP, its activations and its dropout against numpy."""

import math

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from eain_jax.layers import mlp
from eain_jax.layers.mlp import MLP, Dice, PReLU, dropout

KEY = jax.random.key(11)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def dice(x, mean, variance, alpha):
  p = sigmoid((x - mean) / np.sqrt(variance + 1e-8))
  return p * x + (1 - p) * alpha * x


def dice_variables(rng, dim, count=2_000):
  return {
    'params': {'alpha': rng.normal(size=dim).astype(np.float32)},
    'stats': {
      'mean': rng.normal(size=dim).astype(np.float32),
      'variance': rng.uniform(0.5, 2, dim).astype(np.float32),
      'count': np.int32(count),
    },
  }


# After 2,000 steps, at the first, and where (1 + t) / (10 + t) is .5.
@pytest.mark.parametrize(
  ('shape', 'count', 'keep'),
  [((9, 4), 2_000, 0.99), ((5, 3, 4), 0, 0.1), ((9, 4), 8, 0.5)],
)
def test_dice_in_training_standardises_by_the_valid_rows(shape, count, keep):
  rng = np.random.default_rng(0)
  variables = dice_variables(rng, 4, count)
  x = (3 + 2 * rng.normal(size=shape)).astype(np.float32)
  valid = rng.random(shape[:-1]) < 0.6
  rows = x[valid].astype(np.float64)
  mean, variance = rows.mean(0), rows.var(0)
  found, updated = Dice().apply(variables, x, valid, True, mutable=['stats'])
  expected = dice(x, mean, variance, variables['params']['alpha'])
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  for name, value in (('mean', mean), ('variance', variance)):
    moved = keep * variables['stats'][name] + (1 - keep) * value
    np.testing.assert_allclose(updated['stats'][name], moved, rtol=1e-5)
  assert updated['stats']['count'] == count + 1


def test_dice_statistics_converge_to_those_of_the_data():
  rng = np.random.default_rng(1)
  x = rng.normal(3.0, 2.0, (500, 4)).astype(np.float32)
  valid = np.ones(500, bool)
  variables = Dice().init(KEY, x, valid, True)
  np.testing.assert_array_equal(variables['stats']['mean'], 0)
  np.testing.assert_array_equal(variables['stats']['variance'], 1)
  step = jax.jit(
    lambda v: {**v, **Dice().apply(v, x, valid, True, mutable=['stats'])[1]}
  )
  # Of the start is left 1/10 x 2/11 x 3/12 x ... after ten steps.
  for _ in range(10):
    variables = step(variables)
  left = 1 / math.comb(19, 9)
  np.testing.assert_allclose(
    variables['stats']['mean'], (1 - left) * x.mean(0), rtol=1e-4
  )
  np.testing.assert_allclose(
    variables['stats']['variance'], left + (1 - left) * x.var(0), rtol=1e-4
  )


def test_padding_does_not_leak_into_dice():
  rng = np.random.default_rng(2)
  variables = dice_variables(rng, 4)
  x = rng.normal(size=(6, 4)).astype(np.float32)
  valid = np.array([True] * 4 + [False] * 2)
  junk = x.copy()
  junk[4:] = 1e6
  apply = lambda x: Dice().apply(variables, x, valid, True, mutable=['stats'])
  (clean, clean_stats), (found, stats) = apply(x), apply(junk)
  np.testing.assert_array_equal(found[:4], clean[:4])
  jax.tree.map(np.testing.assert_array_equal, stats, clean_stats)
  grad = jax.grad(lambda x: apply(x)[0][:4].sum())(jnp.asarray(junk))
  np.testing.assert_array_equal(grad[4:], 0.0)


def test_dice_of_a_batch_without_valid_rows_is_finite():
  x = jnp.ones((3, 2))
  variables = Dice().init(KEY, x, jnp.zeros(3, bool), True)
  out, stats = Dice().apply(
    variables, x, jnp.zeros(3, bool), True, mutable=['stats']
  )
  assert np.isfinite(out).all()
  jax.tree.map(
    np.testing.assert_array_equal, stats['stats'], variables['stats']
  )


def test_dice_in_evaluation_does_not_see_its_neighbours():
  rng = np.random.default_rng(3)
  variables = dice_variables(rng, 4)
  x = rng.normal(size=(6, 4)).astype(np.float32)
  valid = np.ones(6, bool)
  expected = dice(
    x,
    variables['stats']['mean'],
    variables['stats']['variance'],
    variables['params']['alpha'],
  )
  whole = Dice().apply(variables, x, valid, False)
  np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-6)
  for i in range(6):
    alone = Dice().apply(variables, x[i : i + 1], valid[:1], False)
    np.testing.assert_array_equal(alone[0], whole[i])


def test_dice_over_devices_takes_the_statistics_of_the_whole_batch():
  rng = np.random.default_rng(4)
  variables = dice_variables(rng, 3)
  x = rng.normal(2.0, 3.0, (4, 5, 3)).astype(np.float32)
  valid = rng.random((4, 5)) < 0.5
  valid[2] = False  # a device of padding alone
  whole, whole_stats = Dice().apply(
    variables, x.reshape(20, 3), valid.reshape(20), True, mutable=['stats']
  )
  sharded, stats = jax.pmap(
    lambda x, valid: Dice('data').apply(
      variables, x, valid, True, mutable=['stats']
    ),
    axis_name='data',
  )(x, valid)
  np.testing.assert_allclose(
    np.reshape(sharded, (20, 3)), whole, rtol=1e-5, atol=1e-5
  )
  for name in ('mean', 'variance'):
    for device in range(4):
      np.testing.assert_allclose(
        stats['stats'][name][device], whole_stats['stats'][name], rtol=1e-6
      )


@pytest.mark.parametrize('train', [False, True])
def test_dice_gradients(train):
  rng = np.random.default_rng(5)
  variables = dice_variables(rng, 3)
  x = rng.normal(size=(7, 3)).astype(np.float32)
  valid = np.array([True, True, False, True, True, False, True])
  jax.test_util.check_grads(
    jax.jit(
      lambda params, x: Dice().apply(
        {**variables, 'params': params}, x, valid, train, mutable=['stats']
      )[0]
    ),
    (jax.tree.map(jnp.asarray, variables['params']), jnp.asarray(x)),
    order=1,
    modes=['rev'],
    # float32 differences: eps^(1/3) of precision at best.
    atol=2e-2,
    rtol=2e-2,
    eps=1e-2,
  )


def test_prelu():
  x = jnp.array([[-2.0, -2, 3], [0, 4, -1]])
  alpha = jnp.array([0.25, 0.5, -1])
  found = PReLU().apply({'params': {'alpha': alpha}}, x)
  np.testing.assert_array_equal(found, [[-0.5, -1, 3], [0, 4, 1]])
  initial = PReLU().init(KEY, x)['params']['alpha']
  np.testing.assert_array_equal(initial, 0.25)


@pytest.mark.parametrize('activation', mlp.ACTIVATIONS)
def test_mlp_against_numpy(activation):
  rng = np.random.default_rng(6)
  x = rng.normal(size=(5, 4)).astype(np.float32)
  row, valid = np.arange(5, dtype=np.int32), np.ones(5, bool)
  module = MLP((6, 3), activation)
  variables = module.init(KEY, x, row, valid)
  variables = jax.tree.map(
    lambda v: rng.uniform(0.2, 1, v.shape).astype('f4') * rng.choice([1, -1]),
    variables,
  )
  params, stats = variables['params'], variables.get('stats', {})
  for statistic in stats.values():
    statistic['variance'] = np.abs(statistic['variance'])
  hidden = x.astype(np.float64)
  for number in range(2):
    dense = params[f'dense_{number}']
    hidden = hidden @ dense['kernel'] + dense['bias']
    name = f'activation_{number}'
    if activation == 'relu':
      hidden = np.maximum(hidden, 0)
    elif activation == 'sigmoid':
      hidden = sigmoid(hidden)
    elif activation == 'prelu':
      hidden = np.where(hidden > 0, hidden, params[name]['alpha'] * hidden)
    else:
      hidden = dice(
        hidden,
        stats[name]['mean'],
        stats[name]['variance'],
        params[name]['alpha'],
      )
  expected = hidden @ params['logit']['kernel'] + params['logit']['bias']
  found = module.apply(variables, x, row, valid)
  assert found.shape == (5,)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected[:, 0], rtol=1e-5, atol=1e-5)


def test_unknown_activation():
  with pytest.raises(ValueError, match="'gelu' is not one of"):
    MLP((2,), 'gelu').init(
      KEY, jnp.ones((1, 2)), jnp.zeros(1, jnp.int32), jnp.ones(1, bool)
    )


def rows(start, stop):
  return jnp.arange(start, stop, dtype=jnp.int32)


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(rate):
  """Over a million units, within five standard errors; kept units scale up."""
  x = jnp.ones((4_000, 250))
  out = np.asarray(dropout(x, rate, KEY, rows(0, 4_000)))
  np.testing.assert_allclose(np.unique(out), [0, 1 / (1 - rate)], rtol=1e-6)
  error = np.sqrt(rate / (1 - rate) / out.size)
  assert abs(out.mean() - 1) < 5 * error
  # No example and no unit is dropped more often than chance has it.
  dropped = out == 0
  for axis in (0, 1):
    share = dropped.mean(axis)
    deviation = np.sqrt(rate * (1 - rate) / out.shape[axis])
    assert share.std() == pytest.approx(deviation, rel=0.2)
    assert np.abs(share - rate).max() < 5.5 * deviation


def test_dropped_units_do_not_correlate():
  kept = np.asarray(dropout(jnp.ones((4_096, 64)), 0.5, KEY, rows(0, 4_096)))
  signs = kept - 1.0
  by_unit = signs.T @ signs / 4_096
  by_row = signs @ signs.T / 64
  for correlation, size in ((by_unit, 4_096), (by_row, 64)):
    off = correlation[~np.eye(len(correlation), dtype=bool)]
    assert off.std() == pytest.approx(1 / np.sqrt(size), rel=0.1)
    # Seven standard errors, over at most 17 million pairs.
    assert np.abs(off).max() < 7 / np.sqrt(size)


def test_dropout_is_a_function_of_the_row_not_of_the_batch():
  dropout = jax.jit(mlp.dropout, static_argnums=1)
  x = jax.random.normal(KEY, (12, 16))
  whole = dropout(x, 0.5, KEY, rows(100, 112))
  for begin, end in ((0, 3), (3, 4), (4, 12)):
    part = dropout(x[begin:end], 0.5, KEY, rows(100 + begin, 100 + end))
    np.testing.assert_array_equal(part, whole[begin:end])
  order = np.random.default_rng(0).permutation(12)
  np.testing.assert_array_equal(
    dropout(x[order], 0.5, KEY, rows(100, 112)[order]), whole[order]
  )


def test_dropout_is_the_same_over_devices():
  x = jax.random.normal(KEY, (8, 16))
  whole = dropout(x, 0.5, KEY, rows(0, 8))
  sharded = jax.pmap(lambda x, row: dropout(x, 0.5, KEY, row))(
    x.reshape(4, 2, 16), rows(0, 8).reshape(4, 2)
  )
  np.testing.assert_array_equal(np.reshape(sharded, (8, 16)), whole)


def test_dropout_differs_by_step_and_by_layer():
  x, row, valid = jnp.ones((64, 32)), rows(0, 64), jnp.ones(64, bool)
  masks = [
    np.asarray(dropout(x, 0.5, jax.random.fold_in(KEY, step), row)) == 0
    for step in range(3)
  ]
  for a, b in ((0, 1), (0, 2), (1, 2)):
    assert (masks[a] == masks[b]).mean() == pytest.approx(0.5, abs=0.06)
  # Identity layers hand the input on, so the product of two masks is seen.
  module = MLP((32, 32), dropout_rate=0.5)
  params = {
    f'dense_{n}': {'kernel': jnp.eye(32), 'bias': jnp.zeros(32)}
    for n in range(2)
  } | {'logit': {'kernel': jnp.ones((32, 1)), 'bias': jnp.zeros(1)}}
  logit = module.apply(
    {'params': params}, x, row, valid, True, rngs={'dropout': KEY}
  )
  # Equal masks would keep half of the units, scaled by four: a mean of 64.
  assert float(logit.mean()) == pytest.approx(32, abs=4)


def test_dropout_stops_outside_of_training():
  x, row, valid = jnp.ones((4, 3)), rows(0, 4), jnp.ones(4, bool)
  module = MLP((8,), dropout_rate=0.9)
  variables = module.init(KEY, x, row, valid)
  np.testing.assert_array_equal(
    module.apply(variables, x, row, valid),
    MLP((8,)).apply(variables, x, row, valid),
  )


def test_bfloat16_stays_finite_and_near():
  rng = np.random.default_rng(8)
  x, row = jnp.asarray(rng.normal(size=(6, 9)), jnp.float32), rows(0, 6)
  valid = jnp.ones(6, bool)
  for activation in mlp.ACTIVATIONS:
    module = MLP((16, 8), activation, dropout_rate=0.5)
    variables = jax.jit(module.init)(KEY, x, row, valid)
    rounded = module.clone(compute_dtype=jnp.bfloat16)
    exact = jax.jit(module.apply)(variables, x, row, valid)
    found = jax.jit(rounded.apply)(
      variables, x.astype(jnp.bfloat16), row, valid
    )
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, atol=0.05)
    trained, _ = jax.jit(
      lambda variables, x, rounded=rounded: rounded.apply(
        variables,
        x,
        row,
        valid,
        True,
        rngs={'dropout': KEY},
        mutable=['stats'],
      )
    )(variables, x.astype(jnp.bfloat16))
    assert np.isfinite(trained).all()


def test_parts_stand_for_their_concatenation():
  rng = np.random.default_rng(9)
  parts = [
    rng.normal(size=(5, width)).astype(np.float32) for width in (3, 1, 4)
  ]
  row, valid = rows(0, 5), jnp.ones(5, bool)
  module = MLP((6, 3))
  whole = jnp.concatenate([jnp.asarray(part) for part in parts], axis=1)
  variables = module.init(KEY, whole, row, valid)
  assert jax.tree.all(
    jax.tree.map(
      lambda a, b: (a == b).all(),
      variables,
      module.init(KEY, parts, row, valid),
    )
  )
  np.testing.assert_allclose(
    module.apply(variables, parts, row, valid),
    module.apply(variables, whole, row, valid),
    rtol=1e-5,
  )
