"""A checksum of every leaf of a state, of large ones where they lie.

Each element's 32 bits are mixed with its place in a bijection, and all are
added up modulo 2^32, twice. So one element that differs always shows, and more
of them but for a chance of 2^-64; neither the order of adding nor how the leaf
is cut over devices matters. Nothing but three numbers a leaf leaves a device.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eain_jax.errors import BadSettings

# MurmurHash3's finalizer, a bijection of 32 bits.
_FIRST_FACTOR, _SECOND_FACTOR = 0x85EBCA6B, 0xC2B2AE35
_ROW_FACTOR, _COLUMN_FACTOR = 0x9E3779B1, 0x27D4EB2F
_SEED = 0x243F6A88
HOST_BYTES = 1 << 22


def leaf_name(path: tuple[Any, ...]) -> str:
  """A leaf's name: 'opt_state/0/mu/tables/item'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _mix(xp: Any, bits: Any) -> Any:
  bits = bits ^ (bits >> xp.uint32(16))
  bits = bits * xp.uint32(_FIRST_FACTOR)
  bits = bits ^ (bits >> xp.uint32(13))
  bits = bits * xp.uint32(_SECOND_FACTOR)
  return bits ^ (bits >> xp.uint32(16))


def _leaf_sums(xp: Any, rows: Any, bits: Any, num_rows: int) -> Any:
  """uint32 [3]: two sums, and how many elements are not finite.

  Args:
    xp: numpy or jax.numpy, with the same result.
    rows: [V, W].
    bits: uint32 [V, W], its bits.
    num_rows: rows that count.
  """
  row = xp.arange(rows.shape[0], dtype=xp.uint32)[:, None]
  column = xp.arange(rows.shape[1], dtype=xp.uint32)[None, :]
  place = row * xp.uint32(_ROW_FACTOR) + column * xp.uint32(_COLUMN_FACTOR)
  key = _mix(xp, place + xp.uint32(_SEED))
  mixed = _mix(xp, bits ^ key)
  counts = row < num_rows
  add = lambda values: xp.sum(
    xp.where(counts, values, xp.uint32(0)), dtype=xp.uint32
  )
  odd = xp.uint32(0)
  if xp.issubdtype(rows.dtype, xp.floating):
    odd = add((~xp.isfinite(rows)).astype(xp.uint32))
  # An odd factor makes a bijection too.
  return xp.stack([add(mixed), add(mixed * (key | xp.uint32(1))), odd])


def _as_rows(leaf: Any) -> Any:
  """[V, W], its elements of 32 bits."""
  if leaf.dtype.itemsize != 4:
    raise ValueError(f'a leaf of {leaf.dtype} has no 32-bit elements')
  rows = leaf.shape[0] if leaf.ndim else 1
  return leaf.reshape(rows, math.prod(leaf.shape[1:]))


@functools.partial(jax.jit, static_argnums=1)
def _sums_on_device(leaf: jax.Array, num_rows: int) -> jax.Array:
  rows = _as_rows(leaf)
  bits = jax.lax.bitcast_convert_type(rows, jnp.uint32)
  return _leaf_sums(jnp, rows, bits, num_rows)


def _sums(leaf: jax.Array, num_rows: int) -> np.ndarray:
  """On the host where that is cheaper than to compile a program."""
  is_near = leaf.is_fully_addressable or leaf.is_fully_replicated
  if leaf.nbytes > HOST_BYTES or not is_near:
    return np.asarray(_sums_on_device(leaf, num_rows))
  rows = _as_rows(np.asarray(leaf))
  return _leaf_sums(np, rows, rows.view(np.uint32), num_rows)


@dataclasses.dataclass(frozen=True)
class Checksums:
  """Of a tree of arrays.

  Attributes:
    of_leaf: by name 16 hexadecimal digits.
    not_finite: names of the leaves that hold NaN or infinity.
  """

  of_leaf: dict[str, str]
  not_finite: tuple[str, ...]

  def differing(self, expected: Mapping[str, str]) -> list[str]:
    """Names of leaves that are not as expected, or not there."""
    names = [*expected, *(n for n in self.of_leaf if n not in expected)]
    return [n for n in names if self.of_leaf.get(n) != expected.get(n)]


def take_checksums(tree: Any, num_rows: Mapping[str, int]) -> Checksums:
  """Of every leaf; on a mesh a call of all processes.

  Args:
    tree: a state or parts of one by their names, tables in the order of rows.
    num_rows: by feature, of its table; rows beyond are spare, and do not count.
  """
  of_leaf, not_finite = {}, []
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    is_table = len(path) > 1 and leaf_name(path[-2:-1]) == 'tables'
    rows = leaf.shape[0] if leaf.ndim else 1
    if is_table:
      rows = num_rows[leaf_name(path[-1:])]
    first, second, odd = _sums(leaf, rows).tolist()
    of_leaf[leaf_name(path)] = f'{first:08x}{second:08x}'
    if odd:
      not_finite.append(leaf_name(path))
  return Checksums(of_leaf, tuple(not_finite))


def check_finite(checksums: Checksums, when: str) -> None:
  """Raises BadSettings where a leaf of a state is not finite; `when` it was."""
  if checksums.not_finite:
    raise not_finite_error(checksums, when)


def not_finite_error(checksums: Checksums, seen: str) -> BadSettings:
  """What was seen, and the first leaf of the state that is not finite."""
  odd = checksums.not_finite
  named = f', {odd[0]} is not finite' if odd else ''
  more = f', nor are {len(odd) - 1} more leaves' if len(odd) > 1 else ''
  return BadSettings(
    f'{seen}{named}{more}',
    'lower --learning_rate, or set --clip_norm, for a run in another '
    '--work_dir',
  )
