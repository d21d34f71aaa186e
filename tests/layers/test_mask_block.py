"""Equation (4) and its mask against loops over pairs."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from eain_jax.layers.mask_block import MaskBlock, masked_interactions

B, F, D, H = 3, 5, 4, 6
P = F * (F - 1) // 2


def loop_pairs(num_fields):
  return [(i, j) for i in range(num_fields) for j in range(i + 1, num_fields)]


def random_case(seed=0):
  rng = np.random.default_rng(seed)
  fields = rng.normal(size=(B, F, D))
  raw = rng.normal(size=(B, F * D))
  params = {
    'aggregation': {
      'kernel': rng.normal(size=(F * D, H)),
      'bias': rng.normal(size=H),
    },
    'projection': {
      'kernel': rng.normal(size=(H, P * D)),
      'bias': rng.normal(size=P * D),
    },
    'norm': {'scale': rng.normal(size=D), 'bias': rng.normal(size=D)},
  }
  return fields, raw, params


def reference(fields, raw, params, use_norm):
  """(4) with M = W_d2 ReLU(W_d1 v + b_1) + b_2, one pair at a time."""
  out, masks = np.zeros((B, P, D)), np.zeros((B, P, D))
  for b in range(B):
    hidden = params['aggregation']['kernel'].T @ raw[b]
    hidden = np.maximum(hidden + params['aggregation']['bias'], 0)
    mask = params['projection']['kernel'].T @ hidden
    mask = mask + params['projection']['bias']
    for p, (i, j) in enumerate(loop_pairs(F)):
      masks[b, p] = mask[p * D : (p + 1) * D]
      pair = fields[b, i] * masks[b, p] * fields[b, j]
      if use_norm:
        pair = (pair - pair.mean()) / np.sqrt(pair.var() + 1e-6)
        pair = params['norm']['scale'] * pair + params['norm']['bias']
      out[b, p] = pair
  return out, masks


@pytest.mark.parametrize('num_fields', [1, 2, 3, 9])
def test_pairs_are_i_below_j_row_by_row(num_fields):
  """Fields are distinct primes, so a product tells its pair."""
  primes = jnp.array([2.0, 3, 5, 7, 11, 13, 17, 19, 23])[:num_fields]
  pairs = loop_pairs(num_fields)
  found = masked_interactions(
    primes[None, :, None], jnp.ones((1, len(pairs), 1))
  )
  expected = [float(primes[i] * primes[j]) for i, j in pairs]
  assert found[0, :, 0].tolist() == expected


def test_masked_interactions_is_equation_4():
  fields, _, _ = random_case()
  mask = np.random.default_rng(1).normal(size=(B, P, D))
  with jax.enable_x64():
    found = masked_interactions(jnp.asarray(fields), jnp.asarray(mask))
  for b in range(B):
    for p, (i, j) in enumerate(loop_pairs(F)):
      for d in range(D):
        assert found[b, p, d] == pytest.approx(
          fields[b, i, d] * mask[b, p, d] * fields[b, j, d], rel=1e-14
        )


@pytest.mark.parametrize('use_norm', [False, True])
def test_mask_block_is_the_loop(use_norm):
  fields, raw, params = random_case()
  expected, expected_mask = reference(fields, raw, params, use_norm)
  if not use_norm:
    del params['norm']
  with jax.enable_x64():
    module = MaskBlock(H, use_norm, jnp.float64)
    found, sown = module.apply(
      {'params': params},
      jnp.asarray(fields),
      jnp.asarray(raw),
      mutable=['intermediates'],
    )
  np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)
  (mask,) = sown['intermediates']['mask']
  np.testing.assert_allclose(mask, expected_mask, atol=1e-12)


def test_training_starts_near_the_plain_products_of_equation_20():
  """Of small embeddings the first mask is one, so (4) is f_i * f_j."""
  fields, raw, _ = random_case()
  fields, raw = jnp.asarray(fields, 'float32'), jnp.asarray(raw, 'float32')
  module = MaskBlock(H, use_norm=False)
  variables = module.init(jax.random.key(0), fields, raw)
  found = module.apply(variables, fields, 0 * raw)
  for p, (i, j) in enumerate(loop_pairs(F)):
    np.testing.assert_allclose(
      found[:, p], fields[:, i] * fields[:, j], rtol=1e-6
    )


@pytest.mark.parametrize('use_norm', [False, True])
def test_gradients(use_norm):
  fields, raw, params = random_case()
  if not use_norm:
    del params['norm']
  with jax.enable_x64():
    module = MaskBlock(H, use_norm, jnp.float64)
    jax.test_util.check_grads(
      jax.jit(lambda p, f, r: module.apply({'params': p}, f, r)),
      jax.tree.map(jnp.asarray, (params, fields, raw)),
      order=1,
      # Finite differences lose digits where a pair has little variance.
      atol=1e-4,
      rtol=1e-4,
    )


def test_bfloat16_stays_finite_and_near():
  fields, raw, params = random_case()
  expected, _ = reference(fields, raw, params, use_norm=True)
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  found = MaskBlock(H, compute_dtype=jnp.bfloat16).apply(
    {'params': params},
    jnp.asarray(fields, jnp.bfloat16),
    jnp.asarray(raw, jnp.bfloat16),
  )
  assert found.dtype == jnp.bfloat16
  error = np.abs(np.asarray(found, np.float64) - expected)
  assert error.mean() < 0.02 * np.abs(expected).mean()


def test_equal_fields_have_finite_gradients():
  """A constant pair has no variance; its layer norm must not blow up."""
  fields, raw = jnp.zeros((B, F, D)), jnp.zeros((B, F * D))
  module = MaskBlock(H)
  variables = jax.jit(module.init)(jax.random.key(0), fields, raw)
  total = lambda v, f: jnp.square(module.apply(v, f, raw)).sum()
  grads = jax.jit(jax.grad(total, (0, 1)))(variables, fields)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
