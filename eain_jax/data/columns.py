"""Columns on the disk, written and read a piece at a time.

Neither side holds a column in memory: a writer appends to a plain file, and a
reader maps the file and lets its pages go when it is done with a block. Pages
that stay mapped count as memory of the process, though the disk backs them.
"""

import contextlib
import math
import mmap
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl

from eain_jax.errors import InputError

# Rows that are worked on at a time: they fit the caches of a core with what is
# made of them, and a call of numpy costs nothing beside them.
BLOCK_ROWS = 1 << 19
_READ_BYTES = 1 << 20


class ColumnWriter:
  """A .npy file that grows; the bytes are those of `np.save` of the whole."""

  def __init__(self, path: Path, dtype: np.dtype, row_shape: tuple[int, ...]):
    self.path = path
    self.num_rows = 0
    self._checksum = 0
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
    rows = np.ascontiguousarray(rows)
    self._file.write(rows.data)
    self._checksum = zlib.crc32(rows.data, self._checksum)
    self.num_rows += len(rows)

  def close(self) -> None:
    """States the number of rows, closes the file, and reads it again.

    Raises:
      OSError: the disk is full.
      InputError: the file does not hold what was written to it.
    """
    if self._file.closed:
      return
    self._file.seek(0)
    self._write_header()
    begin = self._file.tell()
    self._file.close()
    checksum = 0
    with self.path.open('rb') as file:
      file.seek(begin)
      while block := file.read(_READ_BYTES):
        checksum = zlib.crc32(block, checksum)
      num_bytes = file.tell() - begin
    expected = self.num_rows * self._row_bytes
    if (num_bytes, checksum) != (expected, self._checksum):
      raise InputError(
        f'{self.path} does not hold the {expected} bytes that were just '
        'written to it: its disk fails'
      )

  def abandon(self) -> None:
    """Closes the file as it is; what cannot be written is lost."""
    with contextlib.suppress(OSError):
      self._file.close()


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
  """Shape and type of the array of a .npy file, up to where its values begin.

  Raises:
    InputError: it is none that `ColumnWriter` makes.
  """
  version = np.lib.format.read_magic(file)
  # Others have headers of up to 4 GB.
  if version != (1, 0):
    raise InputError(f'it is of format {version}, not (1, 0)')
  shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
  # A Python object in a file is a program.
  if by_columns or dtype.kind not in 'if' or not dtype.isnative:
    order = ', column by column' * by_columns
    raise InputError(f'it holds {ascii(str(dtype))[1:-1]}{order}')
  if min(shape, default=-1) < 0:
    raise InputError(f'it holds an array of {list(shape)}')
  return shape, dtype


def map_column(path: Path) -> np.memmap:
  """The column, read-only; nothing of it is read before it is looked at.

  Raises:
    InputError: the file is no column, or not as long as its header says.
  """
  with path.open('rb') as file:
    try:
      shape, dtype = _read_header(file)
    except InputError as error:
      raise InputError(f'{path} is no column: {error}') from error
    # The header is a text that numpy parses as Python's literals, and what a
    # hostile one makes of that is not for us to list.
    except Exception as error:
      raise InputError(
        f'{path} is no column: its header cannot be read'
      ) from error
    begin = file.tell()
    num_bytes = path.stat().st_size - begin
  expected = math.prod(shape) * dtype.itemsize
  if num_bytes != expected:
    raise InputError(
      f'{path} states {list(shape)} of {dtype}, {expected} bytes, and has '
      f'{num_bytes}'
    )
  return np.memmap(path, dtype, 'r', begin, shape)


def read_rows(column: np.memmap, begin: int, end: int) -> np.ndarray:
  """A copy of rows of a mapped column; its file must still be there.

  A touched page brings neighbours into memory, far more than a few rows here
  and there need.
  """
  num = (end - begin) * math.prod(column.shape[1:])
  offset = column.offset + begin * column.strides[0]
  rows = np.fromfile(str(column.filename), column.dtype, num, offset=offset)
  return rows.reshape(-1, *column.shape[1:])


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


class ColumnFiles:
  """The columns of one folder; each grows by pieces and is mapped at its end.

  Attributes:
    folder: where they are written.
  """

  def __init__(self, folder: Path):
    self.folder = folder
    self._writers: dict[str, ColumnWriter] = {}
    self._mapped: dict[str, np.memmap] = {}

  def append(self, name: str, rows: np.ndarray) -> None:
    """Adds rows [n, ...] to a column, which the first ones begin."""
    writer = self._writers.get(name)
    if writer is None:
      path = self.folder / f'{name}.npy'
      writer = ColumnWriter(path, rows.dtype, rows.shape[1:])
      self._writers[name] = writer
    writer.append(rows)

  def map(self, name: str) -> np.memmap:
    """A column, complete now, to read; `release` lets go of what was read."""
    writer = self._writers[name]
    writer.close()
    column = self._mapped[name] = map_column(writer.path)
    return column

  def remove(self, name: str) -> None:
    """Forgets a column; a map of it stays good as long as it is held."""
    writer = self._writers.pop(name)
    writer.abandon()
    writer.path.unlink()
    self._mapped.pop(name, None)

  def release(self) -> None:
    """Takes what was read of the columns out of the process's memory."""
    release(*self._mapped.values())

  def finish(self) -> None:
    """Completes all columns, and lets go of their maps."""
    for writer in self._writers.values():
      writer.close()
    self._mapped.clear()

  def close(self) -> None:
    """Lets go of files, also of columns that were not finished."""
    for writer in self._writers.values():
      writer.abandon()


@contextlib.contextmanager
def written_by_polars() -> Iterator[None]:
  """Turns what polars raises where it cannot write to an OSError with a number.

  It says that in several ways, and the number is in the text alone.
  """
  try:
    yield
  except (OSError, pl.exceptions.PolarsError) as error:
    number = re.search(r'os error (\d+)', str(error))
    if number is None:
      raise
    raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def row_blocks(num_rows: int) -> Iterator[slice]:
  """Slices of `BLOCK_ROWS` rows, the last of what is left."""
  for begin in range(0, num_rows, BLOCK_ROWS):
    yield slice(begin, min(begin + BLOCK_ROWS, num_rows))
