"""The user's vector times the target's, against numpy, one pair at a time."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from eain_jax.layers.attention import (
  mean_history,
  pack_histories,
  scaled_history,
)
from eain_jax.layers.user_match import UserMatch

R, T, C, E, X, Z = 4, 5, 3, 6, 2, 3
LENGTHS = (5, 0, 1, 3)


def random_case(num_context=X):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape)
  params = {
    'hidden': {'kernel': draw(E + num_context, 2 * Z), 'bias': draw(2 * Z)},
    'user': {'kernel': draw(2 * Z, Z), 'bias': draw(Z)},
    'target': {'kernel': draw(E, Z)},
  }
  return draw(R, T, E), draw(R, C, E), draw(R, num_context), params


def reference(history, target, context, params):
  out = np.zeros((R, C))
  for r, length in enumerate(LENGTHS):
    q = np.zeros(E)
    for t in range(length):
      q += history[r, t] / length**0.5
    x = 4 * np.concatenate([q, context[r]])
    x = x @ params['hidden']['kernel'] + params['hidden']['bias']
    u = np.maximum(x, 0) @ params['user']['kernel'] + params['user']['bias']
    for c in range(C):
      out[r, c] = 3 * sum(u * (target[r, c] @ params['target']['kernel']))
  return out


@pytest.mark.parametrize('num_context', [X, 0])
def test_every_pair_is_the_product_of_its_two_vectors(num_context):
  history, target, context, params = random_case(num_context)
  with jax.enable_x64():
    mask = np.arange(T) < np.array(LENGTHS)[:, None]
    packed, segment = pack_histories(jnp.asarray(history), mask)
    inputs = (packed, jnp.asarray(target), segment, jnp.asarray(context))
    layer = UserMatch(Z, jnp.float64)
    found = layer.apply({'params': params}, *inputs)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(
      found, reference(history, target, context, params), rtol=0, atol=1e-12
    )
    jax.test_util.check_grads(
      lambda p, h, t: layer.apply({'params': p}, h, t, segment, inputs[3]),
      (params, *inputs[:2]),
      order=1,
      modes=['rev'],
    )


def test_of_bfloat16_the_sums_are_float32():
  history, target, context, params = random_case()
  mask = np.arange(T) < np.array(LENGTHS)[:, None]

  def scores(dtype):
    inputs = [jnp.asarray(x, dtype) for x in (history, target, context)]
    packed, segment = pack_histories(inputs[0], mask)
    return UserMatch(Z, dtype).apply(
      {'params': params}, packed, inputs[1], segment, inputs[2]
    )

  half, full = scores(jnp.bfloat16), scores(jnp.float32)
  assert half.dtype == full.dtype == jnp.float32
  np.testing.assert_allclose(half, full, rtol=0, atol=0.03 * abs(full).max())


def test_a_history_of_bfloat16_is_counted_past_256():
  history_NE = jnp.ones((400, 2), jnp.bfloat16)
  segment_N = jnp.zeros(400, jnp.int32)
  assert mean_history(history_NE, segment_N, 1)[0, 0] == 1
  assert scaled_history(history_NE, segment_N, 1)[0, 0] == 20
