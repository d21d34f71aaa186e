"""Rows of tables out of a state, and updated rows back into it.

A table's rows are whatever stands in leaves of its shape: its own parameters
and the leaves that the optimizer keeps for it (`optax.tree_utils` knows which
those are), so any Optax optimizer works that treats rows alike.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from eain_jax.errors import InputError

# Stands for a leaf that is no table; None would be no leaf at all.
_WHOLE = object()


def gather_rows(leaf: jax.Array, rows_Q: jax.Array) -> jax.Array:
  """[Q, ...]: rows of a leaf; zeros for rows beyond its end."""
  return leaf.at[rows_Q].get(
    mode='fill',
    fill_value=0,
    unique_indices=True,
    indices_are_sorted=True,
  )


def scatter_rows(
  leaf: jax.Array, rows_Q: jax.Array, new: jax.Array
) -> jax.Array:
  """The leaf with those rows replaced; rows beyond its end are dropped."""
  return leaf.at[rows_Q].set(
    new, mode='drop', unique_indices=True, indices_are_sorted=True
  )


def _map_params(rows: Mapping, f: Callable, params: Any, *others: Any):
  """`f(leaf, *others, rows_Q)` on tables; of the rest, the last of others."""
  last = lambda leaf, *rest: rest[-1] if rest else leaf
  tables = {
    name: f(table, *(other['tables'][name] for other in others), rows[name])
    for name, table in params['tables'].items()
  }
  net = jax.tree.map(last, params['net'], *(other['net'] for other in others))
  return {'tables': tables, 'net': net}


def rows_of_params(params: Any, rows: Mapping) -> Any:
  """The parameters with each [V, W] table cut to its planned [Q, W] rows."""
  return _map_params(rows, gather_rows, params)


def updated_params(params: Any, rows: Mapping, new: Any) -> Any:
  """The parameters with the planned rows, and all of the net, from `new`."""
  return _map_params(
    rows, lambda leaf, new, rows_Q: scatter_rows(leaf, rows_Q, new), params, new
  )


def _tagged(params: Any, rows: Mapping) -> Any:
  """The structure of the parameters: row numbers, or the mark of the rest."""
  return {
    'tables': {name: rows[name] for name in params['tables']},
    'net': jax.tree.map(lambda _: _WHOLE, params['net']),
  }


def _check_rows(leaf: jax.Array, num_rows: int) -> None:
  if leaf.ndim == 0 or leaf.shape[0] != num_rows:
    raise InputError(
      f'the optimizer keeps an array of shape {leaf.shape} for a table of '
      f'{num_rows} rows, so rows cannot be updated alone: use '
      '--table_update=dense'
    )


def rows_of_opt_state(
  optimizer: optax.GradientTransformation,
  opt_state: Any,
  params: Any,
  rows: Mapping,
) -> Any:
  """The optimizer's state with each table's leaves cut to planned rows.

  Raises:
    InputError: the optimizer keeps something for a table that has not its
      rows.
  """

  def cut(leaf, rows_Q, num_rows):
    if rows_Q is _WHOLE:
      return leaf
    _check_rows(leaf, num_rows)
    return gather_rows(leaf, rows_Q)

  sizes = jax.tree.map(lambda leaf: leaf.shape[0] if leaf.ndim else 0, params)
  return optax.tree_utils.tree_map_params(
    optimizer, cut, opt_state, _tagged(params, rows), sizes
  )


def updated_opt_state(
  optimizer: optax.GradientTransformation,
  opt_state: Any,
  params: Any,
  rows: Mapping,
  new: Any,
) -> Any:
  """The optimizer's state with planned rows, and all else, from `new`."""
  # What belongs to no parameter, such as counts, is new as it stands.
  tags = optax.tree_utils.tree_map_params(
    optimizer,
    lambda leaf, rows_Q: rows_Q,
    opt_state,
    _tagged(params, rows),
    transform_non_params=lambda leaf: _WHOLE,
  )
  return jax.tree.map(
    lambda leaf, tag, new: (
      new if tag is _WHOLE else scatter_rows(leaf, tag, new)
    ),
    opt_state,
    tags,
    new,
  )
