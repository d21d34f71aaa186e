"""The user's vector times the target's, against numpy, one pair at a time."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from eain_jax.layers.attention import pack_histories
from eain_jax.layers.user_match import UserMatch

R, T, C, E, X, M = 4, 5, 3, 6, 2, 3
LENGTHS = (5, 0, 1, 3)


def random_case(num_context=X):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape)
  params = {
    'hidden': {'kernel': draw(E + num_context, 2 * M), 'bias': draw(2 * M)},
    'user': {'kernel': draw(2 * M, M), 'bias': draw(M)},
    'target': {'kernel': draw(E, M)},
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
    layer = UserMatch(M, jnp.float64)
    found = layer.apply({'params': params}, *inputs)
    np.testing.assert_allclose(
      found, reference(history, target, context, params), atol=1e-12
    )
    jax.test_util.check_grads(
      lambda p, h, t: layer.apply({'params': p}, h, t, segment, inputs[3]),
      (params, *inputs[:2]),
      order=1,
      modes=['rev'],
    )


def test_in_bfloat16_the_sum_stays_float32():
  history, target, context, params = random_case()
  packed, segment = pack_histories(
    jnp.asarray(history, jnp.float32), np.ones((R, T), bool)
  )
  half = UserMatch(M, jnp.bfloat16).apply(
    {'params': params}, packed, target, segment, context
  )
  full = UserMatch(M).apply(
    {'params': params}, packed, target, segment, context
  )
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, full, rtol=0.1, atol=0.02 * abs(full).max())
