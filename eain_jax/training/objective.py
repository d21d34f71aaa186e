"""The loss, (13) and (14): BCE from logits plus lambda ||Theta||^2."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Total = Callable[[jax.Array], jax.Array]


def binary_cross_entropy(logit: jax.Array, label: jax.Array) -> jax.Array:
  """Equation (13) for each example, from logits: finite for any logit.

  -log s(x) = softplus(-x), and -log(1 - s(x)) = softplus(x).

  Args:
    logit: float32, any shape.
    label: 0 or 1, the same shape.

  Returns:
    float32, the same shape.
  """
  # Written with max(x, 0) and |x|, autodiff has a wrong slope at x = 0.
  return label * jax.nn.softplus(-logit) + (1 - label) * jax.nn.softplus(logit)


def squared_norm(params: Any) -> jax.Array:
  """||Theta||^2: the sum of squares of all leaves, float32."""
  leaves = jax.tree.leaves(params)
  return sum((jnp.vdot(leaf, leaf) for leaf in leaves), jnp.zeros(()))


def penalty(
  params: Any, l2: float, table_l2: float, total: Total = lambda x: x
) -> jax.Array:
  """The second term of (14), over whole tables and all other parameters.

  Args:
    params: {'tables': ..., 'net': ...}.
    l2: lambda of (14), on every parameter.
    table_l2: a further lambda on the tables alone.
    total: sums a number over the devices that hold parts of the tables.
  """
  value = jnp.zeros(())
  if l2:
    value += l2 * squared_norm(params['net'])
  if l2 or table_l2:
    value += (l2 + table_l2) * total(squared_norm(params['tables']))
  return value


def add_penalty_gradient(grads, params, l2: float, table_l2: float):
  """The gradients with that of `penalty`, 2 lambda Theta, added."""

  def added(name: str, weight: float):
    if not weight:
      return grads[name]
    return jax.tree.map(
      lambda grad, leaf: grad + 2 * weight * leaf, grads[name], params[name]
    )

  return {'tables': added('tables', l2 + table_l2), 'net': added('net', l2)}
