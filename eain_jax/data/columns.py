"""Columns on the disk, written and read a piece at a time.

Neither side holds a column in memory: a writer appends to a plain file, and a
reader maps the file and lets its pages go when it is done with a block. Pages
that stay mapped count as memory of the process, though the disk backs them.
"""

import contextlib
import math
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from eain_jax.errors import InputError

# Rows that are worked on at a time: they fit the caches of a core with what is
# made of them, and a call of numpy costs nothing beside them.
BLOCK_ROWS = 1 << 19


class ColumnWriter:
  """A .npy file that grows; the bytes are those of `np.save` of the whole."""

  def __init__(self, path: Path, dtype: np.dtype, row_shape: tuple[int, ...]):
    self.path = path
    self.num_rows = 0
    self._dtype = np.dtype(dtype)
    self._row_shape = row_shape
    self._row_bytes = self._dtype.itemsize * math.prod(row_shape)
    self._file = path.open('wb')
    self._write_header()

  def _write_header(self) -> None:
    # numpy leaves room in it, so it is as long for any number of rows.
    np.lib.format.write_array_header_1_0(
      self._file,
      {
        'descr': np.lib.format.dtype_to_descr(self._dtype),
        'fortran_order': False,
        'shape': (self.num_rows, *self._row_shape),
      },
    )

  def append(self, rows: np.ndarray) -> None:
    """Writes rows after those that are there."""
    if rows.dtype != self._dtype or rows.shape[1:] != self._row_shape:
      raise ValueError(
        f'{self.path} holds {self._dtype} {list(self._row_shape)}, not '
        f'{rows.dtype} {list(rows.shape[1:])}'
      )
    self._file.write(np.ascontiguousarray(rows).data)
    self.num_rows += len(rows)

  def close(self) -> None:
    """States the number of rows, closes the file, and checks its size.

    Raises:
      OSError: the disk is full.
      InputError: the file is not as long as what was written to it.
    """
    if self._file.closed:
      return
    self._file.seek(0)
    self._write_header()
    expected = self._file.tell() + self.num_rows * self._row_bytes
    self._file.close()
    num_bytes = self.path.stat().st_size
    if num_bytes != expected:
      raise InputError(
        f'{self.path} has {num_bytes} bytes of {expected} that were just '
        'written: its disk fails'
      )

  def abandon(self) -> None:
    """Closes the file as it is; what cannot be written is lost."""
    with contextlib.suppress(OSError):
      self._file.close()


def map_column(path: Path) -> np.ndarray:
  """The column, read-only; nothing of it is read before it is looked at."""
  return np.load(path, mmap_mode='r', allow_pickle=False)


def release(*columns: np.ndarray) -> None:
  """Takes what was read of mapped columns out of the process's memory.

  They can be read again, from the system's cache or the disk. An array that is
  not mapped stays as it is.
  """
  for column in columns:
    base = column
    while isinstance(base, np.ndarray):
      base = base.base
    # A writable map could lose what was written to it.
    if isinstance(base, mmap.mmap) and not column.flags.writeable:
      base.madvise(mmap.MADV_DONTNEED)


def row_blocks(num_rows: int) -> Iterator[slice]:
  """Slices of `BLOCK_ROWS` rows, the last of what is left."""
  for begin in range(0, num_rows, BLOCK_ROWS):
    yield slice(begin, min(begin + BLOCK_ROWS, num_rows))
