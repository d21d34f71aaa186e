"""A table that is cut over D devices, and its rows in their order.

On a mesh row r lies with owner r mod D, at place r // D: an array [D * L, W],
of which device d holds [d * L, (d + 1) * L). On disk rows are in their order,
so a checkpoint does not depend on D. In between stand blocks: row r at place r
of an array [D * D * m, W] that is cut evenly; an all-to-all brings one to the
other, and no device ever holds more than its share.

Call these inside of one jit for all tables: programs that each wait for other
devices must not run beside each other.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from eain_jax.data.row_plan import owned_rows


def canonical_rows(num_rows: int, num_owners: int) -> int:
  """Rows of a table in blocks, the spare ones included."""
  owned = owned_rows(num_rows, num_owners)
  return num_owners * num_owners * -(-owned // num_owners)


def _on_shards(mesh: Mesh, act: Callable) -> Callable:
  cut = PartitionSpec(*mesh.axis_names)
  return jax.shard_map(
    act, mesh=mesh, in_specs=cut, out_specs=cut, check_vma=False
  )


def _exchange(x: jax.Array, mesh: Mesh) -> jax.Array:
  return jax.lax.all_to_all(x, mesh.axis_names[0], 0, 0)


def to_blocks(table: jax.Array, mesh: Mesh) -> jax.Array:
  """[D * D * m, ...], rows in their order, from [D * L, ...] by owners."""
  owners = mesh.size
  owned = len(table) // owners
  places = -(-owned // owners)

  def gather(own):
    rest = own.shape[1:]
    spare = [(0, owners * places - owned)] + [(0, 0)] * len(rest)
    by_block = jnp.pad(own, spare).reshape(owners, places, *rest)
    return _exchange(by_block, mesh).swapaxes(0, 1).reshape(-1, *rest)

  return _on_shards(mesh, gather)(table)


def to_owners(blocks: jax.Array, mesh: Mesh, num_rows: int) -> jax.Array:
  """[D * L, ...] by owners, from blocks of `canonical_rows(num_rows, D)`."""
  owners = mesh.size
  owned = owned_rows(num_rows, owners)
  places = -(-owned // owners)

  def scatter(block):
    # Row i * D + j of a block is owner j's.
    rest = block.shape[1:]
    by_owner = block.reshape(places, owners, *rest).swapaxes(0, 1)
    sent = _exchange(by_owner, mesh)
    return sent.reshape(owners * places, *rest)[:owned]

  return _on_shards(mesh, scatter)(blocks)
