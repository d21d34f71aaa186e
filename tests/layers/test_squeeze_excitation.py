"""Equations (5) and (6) against numpy, one example at a time."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from eain_jax.layers.squeeze_excitation import (
  SqueezeExcitation,
  excite,
  squeeze,
)

B, F, D, H = 4, 7, 3, 2  # 7 fields by a reduction of 3 leave 2 units


def random_case(seed=0):
  rng = np.random.default_rng(seed)
  params = {
    'fc1': {'kernel': rng.normal(size=(F, H)), 'bias': rng.normal(size=H)},
    'fc2': {'kernel': rng.normal(size=(H, F)), 'bias': rng.normal(size=F)},
  }
  return rng.normal(size=(B, F, D)), params


def reference(fields, params):
  out, gates = np.zeros_like(fields), np.zeros((B, F))
  for b in range(B):
    z = np.array([sum(fields[b, f]) / D for f in range(F)])
    z = params['fc1']['kernel'].T @ z + params['fc1']['bias']
    z = params['fc2']['kernel'].T @ np.maximum(z, 0) + params['fc2']['bias']
    gates[b] = 1 / (1 + np.exp(-z))
    for f in range(F):
      out[b, f] = gates[b, f] * fields[b, f]
  return out, gates


def test_squeeze_and_excite():
  fields, _ = random_case()
  gate = np.random.default_rng(1).random((B, F))
  with jax.enable_x64():
    squeezed = squeeze(jnp.asarray(fields))
    excited = excite(jnp.asarray(fields), jnp.asarray(gate))
  for b in range(B):
    for f in range(F):
      assert squeezed[b, f] == pytest.approx(sum(fields[b, f]) / D, rel=1e-14)
      np.testing.assert_allclose(excited[b, f], gate[b, f] * fields[b, f])


def test_module_is_equations_5_and_6():
  fields, params = random_case()
  expected, expected_gate = reference(fields, params)
  with jax.enable_x64():
    found, sown = SqueezeExcitation(3, jnp.float64).apply(
      {'params': params}, jnp.asarray(fields), mutable=['intermediates']
    )
  np.testing.assert_allclose(found, expected, atol=1e-12)
  (gate,) = sown['intermediates']['gate']
  np.testing.assert_allclose(gate, expected_gate, atol=1e-12)
  gate = np.asarray(gate)
  assert (gate > 0).all()
  assert (gate < 1).all()


@pytest.mark.parametrize(
  ('num_fields', 'reduction', 'hidden'), [(7, 3, 2), (2, 3, 1), (9, 1, 9)]
)
def test_reduction_leaves_at_least_one_unit(num_fields, reduction, hidden):
  fields = jnp.ones((1, num_fields, D))
  variables = SqueezeExcitation(reduction).init(jax.random.key(0), fields)
  assert variables['params']['fc1']['kernel'].shape == (num_fields, hidden)


def test_a_gate_can_always_open_again():
  """Unlike a ReLU gate: the gradient of a shut gate is small, not zero."""
  fields, params = random_case()
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  fields = jnp.asarray(fields, jnp.float32)
  params['fc2']['bias'] = jnp.full(F, -20.0)
  grads = jax.jit(
    jax.grad(lambda p: SqueezeExcitation().apply({'params': p}, fields).sum())
  )(params)
  assert (grads['fc2']['bias'] != 0).all()


def test_gradients():
  fields, params = random_case()
  with jax.enable_x64():
    jax.test_util.check_grads(
      jax.jit(
        lambda p, f: SqueezeExcitation(3, jnp.float64).apply({'params': p}, f)
      ),
      jax.tree.map(jnp.asarray, (params, fields)),
      order=1,
      atol=1e-6,
      rtol=1e-6,
    )


def test_bfloat16_stays_finite_and_near():
  fields, params = random_case()
  expected, _ = reference(fields, params)
  found = SqueezeExcitation(3, jnp.bfloat16).apply(
    {'params': jax.tree.map(lambda x: jnp.asarray(x, 'float32'), params)},
    jnp.asarray(fields, jnp.bfloat16),
  )
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    np.asarray(found, np.float64), expected, atol=0.03 * np.abs(expected).max()
  )
