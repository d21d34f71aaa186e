"""Equations (13) and (14) against scikit-learn and sums by hand."""

import math

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
import sklearn.metrics

from eain_jax.training.objective import (
  binary_cross_entropy,
  penalty,
  squared_norm,
)


def test_the_mean_is_the_log_loss_of_scikit_learn():
  rng = np.random.default_rng(0)
  logit = rng.normal(scale=3, size=1_000)
  label = (rng.random(1_000) < 0.3).astype(np.float64)
  weight = rng.random(1_000)
  with jax.enable_x64():
    loss = np.asarray(
      binary_cross_entropy(jnp.asarray(logit), jnp.asarray(label))
    )
  probability = 1 / (1 + np.exp(-logit))
  assert loss.mean() == pytest.approx(
    sklearn.metrics.log_loss(label, probability), rel=1e-12
  )
  assert np.average(loss, weights=weight) == pytest.approx(
    sklearn.metrics.log_loss(label, probability, sample_weight=weight),
    rel=1e-12,
  )


def test_each_example_is_equation_13():
  logit = np.linspace(-15, 15, 61)
  for y in (0.0, 1.0):
    with jax.enable_x64():
      found = binary_cross_entropy(jnp.asarray(logit), jnp.full(61, y))
    for x, loss in zip(logit, found, strict=True):
      p = 1 / (1 + math.exp(-x))
      expected = -(y * math.log(p) + (1 - y) * math.log(1 - p))
      assert float(loss) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
  ('logit', 'label', 'loss', 'slope'),
  [
    (100.0, 1, 0.0, 0.0),
    (100.0, 0, 100.0, 1.0),
    (-100.0, 0, 0.0, 0.0),
    (-100.0, 1, 100.0, -1.0),
    (1e30, 0, 1e30, 1.0),
    (-1e30, 0, 0.0, 0.0),
    (3e38, 1, 0.0, 0.0),
    (-3e38, 1, 3e38, -1.0),
    (0.0, 1, math.log(2), -0.5),
    (0.0, 0, math.log(2), 0.5),
  ],
)
def test_extreme_logits(logit, label, loss, slope):
  """Where a sigmoid first would give log(0): the loss and its gradient."""
  label = jnp.float32(label)
  found, grad = jax.value_and_grad(binary_cross_entropy)(
    jnp.float32(logit), label
  )
  assert float(found) == pytest.approx(loss, rel=1e-6, abs=1e-30)
  assert float(grad) == pytest.approx(slope, abs=1e-30)


def test_the_gradient_is_probability_minus_label():
  logit = np.linspace(-30, 30, 121).astype(np.float32)
  for y in (0.0, 1.0):
    grad = jax.vmap(jax.grad(binary_cross_entropy), (0, None))(
      jnp.asarray(logit), jnp.float32(y)
    )
    expected = 1 / (1 + np.exp(-logit.astype(np.float64))) - y
    np.testing.assert_allclose(grad, expected, rtol=1e-6, atol=1e-7)


PARAMS = {
  'tables': {'a': jnp.array([[1.0, 2], [0, 3]]), 'b': jnp.array([[2.0]])},
  'net': {'w': jnp.array([1.0, -1, 4]), 'bias': jnp.array(0.5)},
}


def test_squared_norm_by_hand():
  # 1 + 4 + 9 = 14 and 4; 1 + 1 + 16 = 18 and .25.
  assert float(squared_norm(PARAMS['tables'])) == 18.0
  assert float(squared_norm(PARAMS)) == 36.25
  assert float(squared_norm({})) == 0.0


@pytest.mark.parametrize(
  ('l2', 'table_l2', 'expected'),
  [
    (0.0, 0.0, 0.0),
    (0.1, 0.0, 3.625),
    (0.0, 0.1, 1.8),
    (0.1, 0.2, 3.625 + 3.6),
  ],
)
def test_penalty_by_hand(l2, table_l2, expected):
  assert float(penalty(PARAMS, l2, table_l2)) == pytest.approx(expected)


def test_gradient_of_the_penalty_is_two_lambda_theta():
  grads = jax.grad(penalty)(PARAMS, 0.1, 0.2)
  np.testing.assert_allclose(
    grads['net']['w'], 0.2 * np.array([1, -1, 4]), rtol=1e-6
  )
  np.testing.assert_allclose(
    grads['tables']['a'], 0.6 * np.array([[1, 2], [0, 3]]), rtol=1e-6
  )
