"""How much of a moving average stays at a step."""

import jax
import jax.numpy as jnp


def share_kept(decay: float, count: jax.Array) -> jax.Array:
  """min(decay, (1 + t) / (10 + t)): early steps count less back.

  Else the average would be that of the initial values for long.

  Args:
    decay: of late steps.
    count: int32, t, steps that the average has seen.

  Returns:
    float32.
  """
  step = count.astype(jnp.float32)
  return jnp.minimum(decay, (1 + step) / (10 + step))
