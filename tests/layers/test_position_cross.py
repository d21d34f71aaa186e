"""Equations (7) to (12) against loops from the paper."""

import math

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from eain_jax.layers.position_cross import (
  PositionAwareInteraction,
  outer_cross,
  sinusoidal_encoding,
)

B, G, H = 3, 5, 4


def printed_encoding(t, dim):
  """(8) and (9) as printed: i is the dimension index, in exact doubles."""
  return [
    math.sin(t / 10_000 ** (2 * i / dim))
    if i % 2 == 0
    else math.cos(t / 10_000 ** (2 * i / dim))
    for i in range(dim)
  ]


@pytest.mark.parametrize('dim', [1, 2, 7, 16])
def test_sinusoidal_encoding_is_8_and_9_as_printed(dim):
  positions = np.array([0, 1, 2, 3, 10, 49, 50, 511], np.int32)
  found = sinusoidal_encoding(positions, dim)
  assert found.dtype == jnp.float32
  expected = np.array([printed_encoding(t, dim) for t in positions])
  # An angle of t is a float32: its error grows with t.
  error = np.abs(found - expected)
  assert (error < 1e-6 + 3e-7 * positions[:, None]).all()


def test_position_zero_is_sin_0_and_cos_0():
  found = sinusoidal_encoding(np.zeros(2, np.int32), 6)
  np.testing.assert_array_equal(found, [[0, 1, 0, 1, 0, 1]] * 2)


def test_large_positions_stay_on_the_circle_and_apart():
  """A user of a million events; neighbours still differ."""
  positions = np.arange(1_000_000, 1_000_064, dtype=np.int32)
  found = np.asarray(sinusoidal_encoding(positions, 16))
  assert np.isfinite(found).all()
  assert (np.abs(found) <= 1).all()
  assert (np.abs(np.diff(found, axis=0)).max(1) > 0.01).all()
  expected = [printed_encoding(t, 16)[0] for t in positions]
  np.testing.assert_allclose(found[:, 0], expected, atol=1e-5)


def naive_cross(f, kernel):
  """W vec(f outer f) with W [H, G^2]: the outer product, written out."""
  out = []
  for b in range(len(f)):
    outer = np.outer(f[b], f[b]).reshape(-1)
    out.append(kernel.reshape(len(kernel), -1) @ outer)
  return np.array(out)


@pytest.mark.parametrize(('width', 'hidden'), [(5, 4), (1, 3), (32, 32)])
def test_bilinear_form_is_the_outer_product(width, hidden):
  rng = np.random.default_rng(width)
  f = rng.normal(size=(B, width))
  kernel = rng.normal(size=(hidden, width, width))
  with jax.enable_x64():
    found = outer_cross(jnp.asarray(f), jnp.asarray(kernel))
  np.testing.assert_allclose(found, naive_cross(f, kernel), atol=1e-10, rtol=0)


def test_gradients_of_the_bilinear_form_are_the_outer_product_s():
  rng = np.random.default_rng(0)
  f, kernel = rng.normal(size=(B, G)), rng.normal(size=(H, G, G))

  def naive(f_BG, kernel_HGG):
    outer = f_BG[:, :, None] * f_BG[:, None, :]
    return outer.reshape(B, -1) @ kernel_HGG.reshape(H, -1).T

  cotangent = rng.normal(size=(B, H))
  with jax.enable_x64():
    args = jnp.asarray(f), jnp.asarray(kernel)
    ours = jax.vjp(outer_cross, *args)[1](jnp.asarray(cotangent))
    theirs = jax.vjp(naive, *args)[1](jnp.asarray(cotangent))
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-10)


def random_params(rng, num_layers, width, projected, use_norm, learned):
  params = {}
  if projected:
    params['projection'] = {
      'kernel': rng.normal(size=(G, width)),
      'bias': rng.normal(size=width),
    }
  for layer in range(num_layers):
    params[f'kernel_{layer}'] = rng.normal(size=(width,) * 3) / width
    if use_norm:
      params[f'norm_{layer}'] = {
        'scale': rng.normal(size=width),
        'bias': rng.normal(size=width),
      }
  if learned:
    params['position'] = rng.normal(size=(learned + 1, 6))
  return params


@pytest.mark.parametrize('num_layers', [1, 3])
@pytest.mark.parametrize('projected', [False, True])
@pytest.mark.parametrize('use_norm', [False, True])
def test_module_is_equations_10_to_12(num_layers, projected, use_norm):
  rng = np.random.default_rng(5)
  width = 4 if projected else G
  params = random_params(rng, num_layers, width, projected, use_norm, 0)
  h_u, positions = rng.normal(size=(B, G)), np.array([0, 3, 40], np.int32)

  expected = []
  for b in range(B):
    f = h_u[b]
    if projected:
      f = params['projection']['kernel'].T @ f + params['projection']['bias']
    for layer in range(num_layers):
      f = np.maximum(naive_cross(f[None], params[f'kernel_{layer}'])[0], 0)
      if use_norm:
        norm = params[f'norm_{layer}']
        f = (f - f.mean()) / np.sqrt(f.var() + 1e-6)
        f = f * norm['scale'] + norm['bias']
    expected.append([*f, *printed_encoding(positions[b], 6)])

  with jax.enable_x64():
    module = PositionAwareInteraction(
      num_layers,
      width if projected else 0,
      position_dim=6,
      use_norm=use_norm,
      compute_dtype=jnp.float64,
    )
    found = jax.jit(module.apply)({'params': params}, h_u, positions)
  expected = np.array(expected)
  np.testing.assert_allclose(
    found[:, :-6], expected[:, :-6], rtol=1e-9, atol=1e-10
  )
  np.testing.assert_allclose(found[:, -6:], expected[:, -6:], atol=2e-5)


def test_learned_positions_are_rows_and_later_ones_share_the_last():
  rng = np.random.default_rng(5)
  params = random_params(rng, 1, G, False, False, learned=9)
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  module = PositionAwareInteraction(
    1, position='learned', position_dim=6, max_position=9
  )
  positions = np.array([0, 1, 9, 10, 1_000_000], np.int32)
  found = module.apply({'params': params}, jnp.ones((5, G)), positions)
  np.testing.assert_array_equal(
    found[:, -6:], params['position'][np.array([0, 1, 9, 9, 9])]
  )


def test_without_position_h_final_is_h_interaction():
  rng = np.random.default_rng(5)
  params = random_params(rng, 2, G, False, False, 0)
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  h_u, positions = jnp.ones((B, G)), jnp.array([0, 5, 9])
  with_position = PositionAwareInteraction(2).apply(
    {'params': params}, h_u, positions
  )
  without = PositionAwareInteraction(2, position='none').apply(
    {'params': params}, h_u, positions
  )
  assert without.shape == (B, G)
  np.testing.assert_array_equal(with_position[:, :G], without)


def test_gradients():
  rng = np.random.default_rng(6)
  params = random_params(rng, 2, 4, True, False, 0)
  with jax.enable_x64():
    module = PositionAwareInteraction(2, 4, compute_dtype=jnp.float64)
    jax.test_util.check_grads(
      jax.jit(lambda p, h: module.apply({'params': p}, h, np.array([0, 1, 2]))),
      jax.tree.map(jnp.asarray, (params, rng.normal(size=(B, G)))),
      order=1,
      atol=1e-5,
      rtol=1e-5,
    )


def test_an_empty_history_has_finite_gradients():
  """h_u = 0 makes f^(1) = 0, of no variance, under the layer norm."""
  module = PositionAwareInteraction(2, use_norm=True)
  h_u, positions = jnp.zeros((B, G)), jnp.zeros(B, jnp.int32)
  variables = jax.jit(module.init)(jax.random.key(0), h_u, positions)
  total = lambda v, h: jnp.square(module.apply(v, h, positions)).sum()
  grads = jax.jit(jax.grad(total, (0, 1)))(variables, h_u)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_bfloat16_stays_finite_and_near():
  rng = np.random.default_rng(7)
  module = PositionAwareInteraction(2, 8)
  h_u = jnp.asarray(rng.normal(size=(B, G)), jnp.float32)
  positions = jnp.array([0, 7, 49])
  variables = module.init(jax.random.key(0), h_u, positions)
  exact = module.apply(variables, h_u, positions)
  found = module.clone(compute_dtype=jnp.bfloat16).apply(
    variables, h_u.astype(jnp.bfloat16), positions
  )
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    found.astype(jnp.float32), exact, atol=0.05 * np.abs(exact).max()
  )
