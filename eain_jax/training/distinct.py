"""Distinct ids on the device, with static sizes."""

import jax
import jax.numpy as jnp

# Measured on a CPU: sorting 46,000 ids takes as long as marking 1.5 M rows.
MAX_ROWS_AN_ID = 32


def distinct_ids(
  ids_X: jax.Array, num_rows: int, planned: int
) -> tuple[jax.Array, jax.Array]:
  """The distinct ids, sorted, and the place of each id among them.

  Args:
    ids_X: int32 [X], in [0, num_rows]; `num_rows` itself stands for nothing.
    num_rows: of the table.
    planned: static number of places, for all ids that are rows.

  Returns:
    int32 [planned] and int32 [X]. Places that are not needed hold numbers
    beyond the table, in rising order; the place of an id that stands for
    nothing is any.
  """
  beyond_Q = num_rows + jnp.arange(planned, dtype=jnp.int32)
  if num_rows > MAX_ROWS_AN_ID * ids_X.size:
    distinct_Q, place_X = jnp.unique(
      ids_X, size=planned, fill_value=num_rows, return_inverse=True
    )
    distinct_Q = jnp.where(distinct_Q >= num_rows, beyond_Q, distinct_Q)
    return distinct_Q, place_X.reshape(ids_X.shape).astype(jnp.int32)
  # Marking the rows of a table that is not much larger beats sorting the ids.
  is_used_V = jnp.zeros(num_rows, jnp.int32).at[ids_X].set(1, mode='drop')
  place_V = jnp.cumsum(is_used_V) - 1
  row_V = jnp.arange(num_rows, dtype=jnp.int32)
  at_V = jnp.where(is_used_V > 0, place_V, planned)
  distinct_Q = beyond_Q.at[at_V].set(row_V, mode='drop')
  return distinct_Q, place_V.at[ids_X].get(mode='clip')
