"""How a step reads embedding tables and updates them, by where they lie.

Whole tables (dense): each device sees its copy; gradients are summed.

A batch's rows (row-wise), tables on every device: a device sees the rows of its
shard. Where devices are many, rows and gradients of all shards are gathered,
and every device makes the same update.

Tables cut over the devices: row r lies with owner r mod D, for ids follow
frequency and blocks of them would load one owner alone. A device asks the
owners for the distinct rows of its shard, and sends their gradients back to
them; each owner adds up what it is sent and updates what it owns. What crosses
the network does not grow with the tables, nor, for a device, with the number of
devices:

  ids      [D, C]     to the owners, C places a pair of devices
  rows     [D, C, W]  back
  grads    [D, C, W]  to the owners
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from eain_jax.training.distinct import distinct_ids
from eain_jax.training.row_update import gather_rows

Tables = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class TableAccess:
  """One batch's view of the tables.

  Attributes:
    seen: {feature: [X, W]}, what the batch's ids point into.
    rows: {feature: int32 [T]}, the rows to update, sorted and distinct, with
      numbers beyond the table in places that are not needed; None: all rows.
    collect: gradients of `seen`, of all devices, added up: [T, W] or whole.
    total: sums a number over the devices that hold parts of the tables.
  """

  seen: Tables
  rows: Mapping[str, jax.Array] | None
  collect: Callable[[Tables], Tables]
  total: Callable[[jax.Array], jax.Array]


def _gather(table_VW: jax.Array, rows_X: jax.Array) -> jax.Array:
  return table_VW.at[rows_X].get(mode='fill', fill_value=0)


def _planned(num_rows: int, num_ids: int) -> int:
  """Places for all distinct ids; one may be the number that is no row."""
  return min(num_rows + 1, num_ids)


def _distinct_rows(
  tables: Tables, ids: Mapping[str, jax.Array]
) -> tuple[dict[str, jax.Array], Callable[[Tables], Tables]]:
  """Distinct rows of ids that several devices sent, and the sum over them.

  Returns:
    {feature: int32 [T]}, and a function from {feature: [X, W]}, a gradient
    for each id, to {feature: [T, W]}.
  """
  rows, places = {}, {}
  for name, ids_X in ids.items():
    num_rows = len(tables[name])
    rows[name], places[name] = distinct_ids(
      jnp.minimum(ids_X, num_rows), num_rows, _planned(num_rows, ids_X.size)
    )

  def add(grads: Tables) -> Tables:
    return {
      name: jnp.zeros((len(rows[name]), grad_XW.shape[1]), grad_XW.dtype)
      .at[places[name]]
      .add(grad_XW)
      for name, grad_XW in grads.items()
    }

  return rows, add


def _alone(x: jax.Array) -> jax.Array:
  return x


def whole_tables(tables: Tables, axis_name: str | None) -> TableAccess:
  """Tables that every device has, seen and updated as a whole."""
  add = lambda grads: jax.lax.psum(grads, axis_name) if axis_name else grads
  return TableAccess(tables, None, add, _alone)


def rows_of_tables(
  tables: Tables, rows: Mapping[str, jax.Array], axis_name: str | None
) -> TableAccess:
  """Tables that every device has, of which the batch's rows are updated.

  Args:
    tables: {feature: [V, W]}.
    rows: {feature: int32 [Q]}, of `data.row_plan`, of this shard.
    axis_name: mapped axis of the devices, or None.
  """
  seen = {
    name: gather_rows(tables[name], rows_Q) for name, rows_Q in rows.items()
  }
  if axis_name is None:
    return TableAccess(seen, rows, lambda grads: grads, _alone)
  gather = functools.partial(
    jax.lax.all_gather, axis_name=axis_name, tiled=True
  )
  touched, add = _distinct_rows(tables, {n: gather(r) for n, r in rows.items()})
  collect = lambda grads: add({name: gather(g) for name, g in grads.items()})
  return TableAccess(seen, touched, collect, _alone)


def exchanged_rows(
  tables: Tables,
  requests: Mapping[str, jax.Array],
  axis_name: str,
  is_rowwise: bool,
) -> TableAccess:
  """Tables that are cut over the devices of an axis.

  All tables share one exchange, so there are three collectives a step however
  many tables there are.

  Args:
    tables: {feature: [L, W]}, the rows that this device owns.
    requests: {feature: int32 [D, C]}, of `data.row_plan`: for each owner the
      rows that this shard needs, as places in what the owner holds.
    axis_name: of the D devices.
    is_rowwise: update only rows that a shard asked for; else all.
  """
  names = list(requests)
  sizes = [requests[name].shape[1] for name in names]
  ends = [sum(sizes[: n + 1]) for n in range(len(sizes))][:-1]
  exchange = lambda x: jax.lax.all_to_all(x, axis_name, 0, 0)

  def split(x_DSX: jax.Array) -> dict[str, jax.Array]:
    """{feature: [D * C, ...]}."""
    parts = jnp.split(x_DSX, ends, axis=1)
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    return {n: flat(part) for n, part in zip(names, parts, strict=True)}

  def join(parts: Tables) -> jax.Array:
    """[D, S, W]."""
    return jnp.concatenate(
      [
        parts[name].reshape(-1, size, parts[name].shape[-1])
        for name, size in zip(names, sizes, strict=True)
      ],
      axis=1,
    )

  asked = split(exchange(jnp.concatenate([requests[n] for n in names], axis=1)))
  answers = {
    name: _gather(tables[name], ids_X) for name, ids_X in asked.items()
  }
  seen = split(exchange(join(answers)))
  total = lambda x: jax.lax.psum(x, axis_name)
  if is_rowwise:
    rows, add = _distinct_rows(tables, asked)
    return TableAccess(
      seen, rows, lambda g: add(split(exchange(join(g)))), total
    )

  def collect(grads: Tables) -> Tables:
    return {
      name: jnp.zeros_like(tables[name]).at[asked[name]].add(grad, mode='drop')
      for name, grad in split(exchange(join(grads))).items()
    }

  return TableAccess(seen, None, collect, total)


def open_tables(
  tables: Tables,
  batch: Mapping,
  axis_name: str | None,
  *,
  are_cut: bool,
  is_rowwise: bool,
) -> TableAccess:
  """The tables as one shard's batch needs them.

  Args:
    tables: what this device holds.
    batch: of one shard; `rows` is its plan.
    axis_name: mapped axis of the devices, or None.
    are_cut: the tables are cut over the devices.
    is_rowwise: a batch with a plan updates its rows alone.
  """
  if are_cut:
    assert axis_name is not None
    return exchanged_rows(tables, batch['rows'], axis_name, is_rowwise)
  if 'rows' in batch:
    return rows_of_tables(tables, batch['rows'], axis_name)
  return whole_tables(tables, axis_name)
