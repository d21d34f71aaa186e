"""The events of a source on the disk, while its files are read.

Memory holds each id once, as text, and never an event: what is kept of those
are numbers in columns that grow by pieces, in the source's own order.
"""

import array
import itertools
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from eain_jax.data.columns import (
  ColumnFiles,
  read_rows,
  release,
  row_blocks,
  written_by_polars,
)
from eain_jax.data.events import (
  UNITS,
  Codes,
  RawColumn,
  RawEvents,
  count_dates,
  count_units,
  sorting,
  to_seconds,
)
from eain_jax.errors import InputError

# The columns that hold numbers; all others hold codes of strings.
DTYPES = {
  'timestamp': np.int64,
  'rating': np.float32,
  'label': np.int8,
  'position': np.int32,
}
# Of a row that has none, and is refused for it.
NO_TIME = np.iinfo(np.int64).min
# About so many values of all pieces are merged at a time.
MERGED_AT_ONCE = 1 << 17
# How many of these are looked at to know where to part them.
SAMPLED = 64
# Rows of a piece that are read together.
BATCH_ROWS = 1 << 10
# Rows of a text file that wait in memory: a call of numpy costs nothing beside.
BUFFERED_ROWS = 1 << 16
# A string that can be looked up takes six times the memory of one that cannot.
MAX_LOOKED_UP = 1 << 18

# Of times that look like dates written as numbers; some may be for "never".
DATES_FROM = 0.99


def _inverse(order: np.ndarray) -> np.ndarray:
  """int32, the place of each in an order."""
  place = np.empty(len(order), np.int32)
  place[order] = np.arange(len(order), dtype=np.int32)
  return place


class _Pieces:
  """Distinct values of pieces of a column, sorted, on the disk.

  They are merged a range of values after the other, so that memory holds no
  more than a range of all pieces, and what comes out.
  """

  def __init__(self, folder: Path, name: str):
    self._folder = folder
    self._name = name
    # Of each value its place in the sorted piece.
    self._place = ColumnFiles(folder)
    self._sizes: list[int] = []
    self._dtypes: list[pl.DataType] = []

  def __len__(self) -> int:
    return len(self._sizes)

  def append(self, values: pl.Series) -> None:
    """Adds the values of a piece, String or Int64."""
    order = sorting(values)
    self._place.append(f'{self._name}.place', _inverse(order))
    self._sizes.append(len(values))
    self._dtypes.append(values.dtype)
    self._write(len(self) - 1, values.gather(order))

  def _path(self, piece: int) -> Path:
    return self._folder / f'{self._name}.{piece}.arrow'

  def _write(self, piece: int, values: pl.Series) -> None:
    # To read a slice takes all of each batch that it touches.
    table = pl.DataFrame({'value': values})
    with written_by_polars():
      table.write_ipc(self._path(piece), record_batch_size=BATCH_ROWS)

  def _read(self, piece: int, begin: int, end: int) -> pl.Series:
    table = pl.scan_ipc(self._path(piece), glob=False).slice(begin, end - begin)
    return table.collect()['value']

  def _as_text(self) -> dict[int, np.ndarray]:
    """Makes all pieces strings, where some are; how that moves values."""
    filled = {d for d, n in zip(self._dtypes, self._sizes, strict=True) if n}
    moved = {}
    for piece, dtype in enumerate(self._dtypes):
      if dtype != pl.String and len(filled) > 1:
        values = self._read(piece, 0, self._sizes[piece]).cast(pl.String)
        order = sorting(values)
        self._write(piece, values.gather(order))
        moved[piece] = _inverse(order)
    return moved

  def _bounds(self) -> np.ndarray:
    """int64 [pieces, ranges + 1], where ranges of values begin in pieces."""
    every = max(1, MERGED_AT_ONCE // SAMPLED)
    filled = [piece for piece, size in enumerate(self._sizes) if size]
    read = lambda piece: self._read(piece, 0, self._sizes[piece])
    samples = pl.concat([read(piece).gather_every(every) for piece in filled])
    splitters = samples.sort().gather_every(SAMPLED)[1:].unique().sort()
    bounds = np.zeros((len(self), len(splitters) + 2), np.int64)
    for piece in filled:
      bounds[piece, 1:-1] = read(piece).search_sorted(splitters)
      bounds[piece, -1] = self._sizes[piece]
    return bounds

  def merge(self) -> tuple[pl.Series, Iterator[np.ndarray]]:
    """Merges the pieces.

    Returns:
      Their distinct values, sorted; and of each piece, for each of its values
      the place among those, int32.
    """
    if not any(self._sizes):
      return pl.Series(dtype=pl.String), itertools.repeat(np.zeros(0, np.int32))
    moved = self._as_text()
    bounds = self._bounds()
    sizes = np.diff(bounds, axis=1)
    codes = ColumnFiles(self._folder)
    merged, num_merged = [], 0
    for part in np.flatnonzero(sizes.any(axis=0)):
      values = pl.concat(
        [
          self._read(piece, begin, end)
          for piece, (begin, end) in enumerate(bounds[:, part : part + 2])
          if begin < end
        ]
      )
      order = sorting(values)
      values = values.gather(order)
      is_new = (values != values.shift(1)).fill_null(True)
      code = np.empty(len(values), np.int32)
      code[order] = np.cumsum(is_new.to_numpy()) + (num_merged - 1)
      codes.append(f'{self._name}.code', code)
      values = values.filter(is_new)
      if values.dtype == pl.String:
        # Else polars keeps the text of all that were merged.
        values = values + ''
      merged.append(values)
      num_merged += len(values)
    return pl.concat(merged), self._codes(codes, sizes, moved)

  def _codes(
    self,
    files: ColumnFiles,
    sizes: np.ndarray,
    moved: Mapping[int, np.ndarray],
  ) -> Iterator[np.ndarray]:
    code = files.map(f'{self._name}.code')
    place = self._place.map(f'{self._name}.place')
    # The codes of a range stand together, piece after piece.
    ends = np.cumsum(sizes.T.ravel()).reshape(sizes.T.shape).T
    begin = 0
    for piece, size in enumerate(self._sizes):
      own = np.concatenate(
        [
          read_rows(code, end - num, end)
          for end, num in zip(ends[piece], sizes[piece], strict=True)
        ]
      )
      if piece in moved:
        own = own[moved[piece]]
      yield own[read_rows(place, begin, begin + size)]
      begin += size


class _GrowingCodes:
  """Codes of a column, each piece of it with distinct values of its own."""

  def __init__(self, folder: Path, name: str):
    self._files = ColumnFiles(folder)
    self._name = name
    self._num_rows = 0
    self._ends: list[int] = []
    # The values of the last piece; most columns have one, which stays here.
    self._values: pl.Series | None = None
    self._pieces = _Pieces(folder, name)

  def append(self, codes: np.ndarray) -> None:
    """Adds rows of a piece; they index into the values that will end it."""
    self._files.append(self._name, codes)
    self._num_rows += len(codes)

  def end_piece(self, values: pl.Series) -> None:
    """Ends the piece whose rows were added."""
    if self._values is not None:
      self._pieces.append(self._values)
    self._values = values
    self._ends.append(self._num_rows)

  def finish(self) -> RawColumn:
    """The codes of all rows; there must be a piece, and it must have ended."""
    assert self._values is not None
    codes = self._files.map(self._name)
    if not len(self._pieces):
      return RawColumn(codes, self._values.cast(pl.String))
    self._pieces.append(self._values)
    self._values = None
    values, new_codes = self._pieces.merge()
    merged = f'{self._name}.merged'
    self._files.append(merged, np.zeros(0, np.int32))
    for begin, end, new in zip(
      [0, *self._ends], self._ends, new_codes, strict=False
    ):
      # The last place is that of -1.
      new = np.append(new, np.int32(-1))
      for rows in row_blocks(end - begin):
        block = codes[begin + rows.start : begin + rows.stop]
        self._files.append(merged, new[block])
        release(codes)
    self._files.remove(self._name)
    return RawColumn(self._files.map(merged), values.cast(pl.String))


class Spool:
  """Rows of a source, in its order, until all are read.

  Attributes:
    num_rows: so far.
  """

  def __init__(self, folder: Path):
    self.num_rows = 0
    self._folder = folder
    self._files = ColumnFiles(folder)
    self._codes: dict[str, _GrowingCodes] = {}
    self._numbers: Collection[str] = ()
    self._refused: list[np.ndarray] = []
    # Of the file that is read.
    self._begin = 0
    self._num_of_unit = np.zeros(3, np.int64)
    self._num_dates = 0

  def append(self, columns: Mapping[str, np.ndarray]) -> None:
    """Adds rows.

    Args:
      columns: by name all columns of some rows: those of `DTYPES`, and int32
        codes of strings, -1 for none; `end_piece` brings the strings.
    """
    self._numbers = columns.keys() & DTYPES.keys()
    for name, rows in columns.items():
      if name == 'timestamp':
        known = rows[rows != NO_TIME]
        self._num_of_unit += count_units(known)
        self._num_dates += count_dates(known)
        self._files.append('time', rows)
      elif name in DTYPES:
        self._files.append(name, rows)
      else:
        self._growing(name).append(rows)
    self.num_rows += len(columns['timestamp'])

  def end_piece(self, name: str, values: pl.Series) -> None:
    """The strings, or Int64, that codes since the last call index into."""
    self._growing(name).end_piece(values)

  def _growing(self, name: str) -> _GrowingCodes:
    if name not in self._codes:
      # A log may name a column as no file can be named.
      file = f'codes{len(self._codes)}'
      self._codes[name] = _GrowingCodes(self._folder, file)
    return self._codes[name]

  def refuse(self, rows: np.ndarray) -> None:
    """Rows, int64, ascending over all calls, that were added and are none."""
    self._refused.append(rows)

  def end_file(
    self, path: str | Path = ''
  ) -> tuple[str, np.ndarray, np.ndarray]:
    """Turns the times of rows since the last call to seconds.

    Args:
      path: of a log whose times may be anything; they must not be dates.

    Returns:
      Their unit, that of most; and the rows that have a time of another one,
      int64, with those times.

    Raises:
      InputError: nearly all of them are dates as YYYYMMDD or longer.
    """
    if path and self._num_dates > DATES_FROM * self._num_of_unit.sum():
      raise InputError(
        f'{path}: the timestamps are dates written as numbers, such as '
        '20230115: write 2023-01-15, or seconds'
      )
    odd_rows = [np.zeros(0, np.int64)]
    odd_times = [np.zeros(0, np.int64)]
    common = int(np.argmax(self._num_of_unit))
    if self.num_rows > self._begin:
      times = self._files.map('time')
      for rows in row_blocks(len(times)):
        time = times[rows]
        seconds, odd = to_seconds(time, common)
        self._files.append('timestamp', seconds)
        odd = np.flatnonzero(odd & (time != NO_TIME))
        odd_rows.append(odd + (self._begin + rows.start))
        odd_times.append(time[odd])
        release(times)
      self._files.remove('time')
    self._begin = self.num_rows
    self._num_of_unit[:] = 0
    self._num_dates = 0
    return UNITS[common], np.concatenate(odd_rows), np.concatenate(odd_times)

  def finish(self) -> RawEvents:
    """The events of all files; every piece and every file has ended."""
    codes = {name: column.finish() for name, column in self._codes.items()}
    numbers = {name: self._files.map(name) for name in self._numbers}
    return RawEvents(
      codes.pop('user'),
      codes.pop('item'),
      numbers['timestamp'],
      numbers.get('rating'),
      numbers.get('label'),
      codes.pop('request', None),
      numbers.get('position'),
      codes,
      np.concatenate(self._refused or [np.zeros(0, np.int64)]),
    )


class RowBuffer:
  """Rows of text files, one by one, on their way to a spool.

  Attributes:
    columns: by name the values that wait; a row is appended to all of them.
    filled: names of the columns of codes that have had one.
  """

  def __init__(self, spool: Spool, codes: Mapping[str, Codes | None]):
    """`codes` has all columns, and what numbers the strings of some."""
    self.columns = {
      name: array.array(np.dtype(DTYPES.get(name, np.int32)).char)
      for name in codes
    }
    self.filled: set[str] = set()
    self._spool = spool
    self._codes = {name: made for name, made in codes.items() if made}

  def make_room(self) -> None:
    """To be called every few rows: lets go of rows where many wait."""
    if len(self.columns['timestamp']) >= BUFFERED_ROWS:
      self.flush()

  def flush(self) -> None:
    """Adds all rows to the spool."""
    rows = {name: np.array(column) for name, column in self.columns.items()}
    self._spool.append(rows)
    for name, column in self.columns.items():
      if name in self._codes and rows[name].max(initial=-1) >= 0:
        self.filled.add(name)
      del column[:]
    for name, codes in self._codes.items():
      if codes.num_values > MAX_LOOKED_UP:
        self._spool.end_piece(name, codes.pop_values())

  def finish(self) -> RawEvents:
    """The events, when all rows are there and their files have ended."""
    for name, codes in self._codes.items():
      self._spool.end_piece(name, codes.pop_values())
    return self._spool.finish()
