"""A log in Parquet: a file, a glob, or a folder as other engines write it.

Spark, BigQuery and Ray write many files to a folder, often in folders below it
that are named column=value: those give all of their rows that value. Beside
the data lies what is none: names that begin with a point or an underscore.

The rows of a source are those of its files in the order of their paths, which
are compared folder by folder. They are read a slice at a time, and ids become
numbers at once: of a slice only distinct strings are kept.
"""

import contextlib
import dataclasses
import glob
import itertools
import math
import os
import urllib.parse
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from eain_jax.data.events import (
  MAX_ID_LENGTH,
  RawEvents,
  Reader,
  check_rejected,
)
from eain_jax.data.lines import (
  JUDGED_BYTES,
  MAX_REJECTED_KEPT,
  ReadOptions,
  check_file,
  hash_file,
)
from eain_jax.data.log_values import (
  MAX_INT32,
  MAX_RATING,
  MAX_TIME,
  OPTIONAL,
  REQUIRED,
  Refused,
  check_filled,
  check_rows,
  odd_time,
  parse_timestamp,
  require_columns,
  time_note,
)
from eain_jax.data.parquet_process import Unreadable, read_rows, read_schema
from eain_jax.data.spool import DTYPES, NO_TIME, Spool
from eain_jax.errors import InputError

ROWS_AT_ONCE = 1 << 20
# Numbers in a range so wide are always looked up in a table of the range.
MIN_TABLE = 1 << 16
# What Hive calls the folder of rows without a value.
HIVE_NULL = '__HIVE_DEFAULT_PARTITION__'
MAGIC = b'PAR1'
# Of user, item and time.
EVENT_BYTES = 16
NUMBERS = ('rating', 'label', 'position')
# No reason to refuse a row.
NO_REASON = 255


@dataclasses.dataclass
class ParquetFile:
  """One of the files of a Parquet source, and what stands in their way.

  Attributes:
    path: the file.
    name: its path from the source's folder on.
    partition: column names to values, from the folders that it lies in.
    options: how forgiving to be.
    schema: its own columns.
    lines: its rows.
    blank: none, in Parquet.
    rejected: (row number from 1, reason, '') of each row that was refused.
  """

  path: Path
  name: str
  partition: Mapping[str, str | None]
  options: ReadOptions
  schema: Mapping[str, pl.DataType] = dataclasses.field(default_factory=dict)
  lines: int = 0
  blank: int = 0
  rejected: list[tuple[int, str, str]] = dataclasses.field(default_factory=list)

  def open(self) -> None:
    """Reads the schema and the number of rows.

    Raises:
      InputError: the file is no Parquet file, or damaged.
    """
    with self._errors():
      self._check_ends()
      self.schema, self.lines = read_schema(str(self.path))
    self._check_inflation()

  def _check_inflation(self) -> None:
    num_bytes = self.path.stat().st_size
    inflated = EVENT_BYTES * self.lines
    if inflated > max(JUDGED_BYTES, self.options.max_inflation * num_bytes):
      raise InputError(
        f'{self.path} says that its {num_bytes:,} bytes hold {self.lines:,} '
        'rows; no log packs so many, and if this one does, raise '
        '--max_inflation'
      )

  def _check_ends(self) -> None:
    with self.path.open('rb') as file:
      head = file.read(len(MAGIC))
      file.seek(max(len(MAGIC), file.seek(0, os.SEEK_END) - len(MAGIC)))
      tail = file.read()
    if head != MAGIC:
      raise self._unreadable(f'it begins with {head!r}, not with {MAGIC!r}')
    if tail != MAGIC:
      raise self._unreadable('it is truncated: its last bytes are no footer')

  def _unreadable(self, reason: str) -> InputError:
    return InputError(
      f'{self.path} cannot be read as Parquet: {reason}; copy or write it '
      'again, or leave it out'
    )

  @contextlib.contextmanager
  def _errors(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise self._unreadable(error.strerror or str(error)) from error
    except Unreadable as error:
      raise self._unreadable(str(error)) from error

  def slices(
    self, columns: Sequence[str]
  ) -> Iterator[tuple[int, pl.DataFrame]]:
    """The first row, from 0, and the columns of each slice of the rows.

    A column that the file does not have is its folder's, or null.

    Raises:
      InputError: the file is damaged, or its folder says another value of a
        column than the file does.
    """
    inside = [column for column in columns if column in self.schema]
    for first in range(0, self.lines, ROWS_AT_ONCE):
      size = min(ROWS_AT_ONCE, self.lines - first)
      with self._errors():
        # It may have none of them, where folders say everything.
        frame = pl.DataFrame()
        if inside:
          frame = read_rows(str(self.path), inside, first, size)
      for column in self.partition.keys() & set(inside):
        self._check_partition(first, frame[column], self.partition[column])
      given = {
        column: pl.Series(
          column, [self.partition.get(column)], dtype=pl.String
        ).new_from_index(0, size)
        for column in columns
        if column not in inside
      }
      yield (
        first,
        pl.DataFrame(
          [
            given[column] if column in given else frame[column]
            for column in columns
          ]
        ),
      )

  def _check_partition(
    self, first: int, column: pl.Series, value: str | None
  ) -> None:
    if value is None:
      differs = column.is_not_null()
    elif column.dtype.is_numeric():
      # As text a folder's 07 would not be the 7 of a file.
      given = pl.Series([value]).cast(column.dtype, strict=False)
      differs = column.ne_missing(given.new_from_index(0, len(column)))
      differs |= given.is_null().item()
    elif column.dtype == pl.Boolean:
      differs = column.cast(pl.String).ne_missing(value.lower())
    elif isinstance(column.dtype, pl.Datetime):
      text = column.dt.strftime('%Y-%m-%d %H:%M:%S')
      differs = text.ne_missing(value.replace('T', ' ')[:19])
    elif column.dtype.is_nested() or column.dtype == pl.Binary:
      return  # No column of a log can be of such a type.
    else:
      differs = column.cast(pl.String).ne_missing(value)
    if differs.any():
      row = int(differs.arg_max() or 0)
      holds = 'null' if column[row] is None else column[row]
      says = HIVE_NULL if value is None else value
      raise InputError(
        f'{self.path}: the column {column.name!r} is {holds} in row '
        f'{first + row + 1}, but its folder says {column.name}={says}: rename '
        'one of the two, or leave the column out of the file'
      )

  def reject(self, line: int, reason: str, text: bytes | str) -> None:
    """Notes a row that is not used; it has no text.

    Raises:
      InputError: so many that this must be the wrong file.
    """
    self.rejected.append((line, reason, ''))
    allowed = max(self.options.max_rejected, 0.5) * self.lines
    if len(self.rejected) > max(MAX_REJECTED_KEPT, allowed):
      first, why, _ = self.rejected[0]
      raise InputError(
        f'{self.path}: {len(self.rejected)} of {self.lines} rows were '
        f'rejected, the first, row {first}: {why}; this is not the file that '
        'it should be'
      )

  def source(self, format_name: str) -> dict[str, Any]:
    """What the manifest says of the file."""
    return {
      'name': self.name,
      'bytes': self.path.stat().st_size,
      'sha256': hash_file(self.path),
      'format': format_name,
      'lines': self.lines,
      'rejected': len(self.rejected),
    }


def _is_hidden(name: str) -> bool:
  """Engines leave such files and folders beside the data, as _delta_log."""
  # A column's name may begin with an underscore.
  return name.startswith('.') or (name.startswith('_') and '=' not in name)


def _is_parquet(path: Path) -> bool:
  with path.open('rb') as file:
    return file.read(len(MAGIC)) == MAGIC


def _walk(folder: Path) -> Iterator[Path]:
  """All files of a folder and those below it that are not hidden.

  Raises:
    InputError: a folder cannot be read.
  """

  def fail(error: OSError) -> None:
    raise InputError(
      f'{error.filename} cannot be read: {error.strerror}'
    ) from error

  for parent, folders, files in os.walk(folder, onerror=fail):
    folders[:] = [name for name in folders if not _is_hidden(name)]
    yield from (Path(parent, name) for name in files if not _is_hidden(name))


def _partition(folders: Sequence[str]) -> dict[str, str | None]:
  """Columns that the names of folders give."""
  pairs = [name.partition('=') for name in folders if '=' in name]
  return {
    urllib.parse.unquote(key): None
    if value == HIVE_NULL
    else urllib.parse.unquote(value)
    for key, _, value in pairs
  }


def parquet_files(path: str, options: ReadOptions) -> list[ParquetFile]:
  """The Parquet files of a file, a folder or a glob, sorted, and opened.

  Returns:
    None of them where the path is a file of another kind.

  Raises:
    InputError: nothing is there, what a glob names is no Parquet file, or a
      file is damaged.
  """
  if Path(path).is_dir():
    base, matches = Path(path), [Path(path)]
  elif Path(path).exists() or not glob.has_magic(path):
    file = check_file(path)
    if not _is_parquet(file):
      return []
    base, matches = file.parent, [file]
  else:
    parts = Path(path).parts
    base = Path(*itertools.takewhile(lambda p: not glob.has_magic(p), parts))
    matches = [Path(match) for match in glob.glob(path, recursive=True)]
  is_one = matches == [Path(path)] and not Path(path).is_dir()
  files, others = set(), set()
  for match in matches:
    if not is_one and any(map(_is_hidden, match.relative_to(base).parts)):
      continue
    if match.is_dir():
      for file in _walk(match):
        (files if file.suffix == '.parquet' else others).add(file)
    elif not _is_parquet(check_file(match)):
      raise InputError(f'{match}, which {path} names, is no Parquet file')
    else:
      files.add(match)
  if not files:
    held = f'; it holds {min(others).relative_to(base)}' if others else ''
    raise InputError(
      f'{path} holds no Parquet file, *.parquet{held}: name a folder of those, '
      'or one file'
    )
  found = []
  for file in sorted(files):
    inner = file.relative_to(base)
    partition = {} if is_one else _partition(inner.parts[:-1])
    found.append(ParquetFile(file, inner.as_posix(), partition, options))
    found[-1].open()
  return found


def check_all_rejected(path: str, files: Sequence[ParquetFile]) -> None:
  """`check_rejected` over all files of a source: parts may be small."""
  rejected = [
    (row, f'{reason} ({file.name})' if len(files) > 1 else reason, text)
    for file in files
    for row, reason, text in file.rejected
  ]
  num_lines = sum(file.lines for file in files)
  whole = ParquetFile(Path(path), path, {}, files[0].options, lines=num_lines)
  whole.rejected = rejected
  check_rejected(whole)


def check_columns(
  files: Sequence[ParquetFile],
  wanted: Mapping[str, str],
  flag: str,
  optional: Collection[str] = (),
) -> list[str]:
  """Looks for columns in all files that have a row.

  Args:
    files: of a source.
    wanted: our names to the source's.
    flag: the flag that names them.
    optional: our names of those that not every file needs to have.

  Returns:
    A note on each column that some of the files do not have.

  Raises:
    InputError: a column is not there.
  """
  filled = [file for file in files if file.lines]
  notes = []
  for name, column in wanted.items():
    without = [
      file
      for file in filled
      if column not in file.schema and column not in file.partition
    ]
    if without and (name not in optional or len(without) == len(filled)):
      file = without[0]
      held = dict.fromkeys([*file.schema, *file.partition])
      require_columns(file.path, {name: column}, list(held), flag)
    if without:
      notes.append(
        f'{len(without)} of {len(filled)} files, the first {without[0].name}, '
        f'have no column {column!r}: their events have no {name}.'
      )
  return notes


def _kind(name: str, dtype: pl.DataType) -> str | None:
  """What values of one column must share in all files; None fits with any."""
  if dtype == pl.Null:
    return None
  if dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum):
    return 'text'
  if isinstance(dtype, pl.Date | pl.Datetime):
    return 'time'
  if name in NUMBERS or name == 'timestamp':
    if dtype.is_numeric() or dtype == pl.Boolean:
      return 'number'
  elif dtype.is_integer():
    return 'integer'
  return str(dtype)


def _check_kinds(
  path: str, files: Sequence[ParquetFile], columns: Mapping[str, str]
) -> None:
  """Raises InputError where files differ in what a column holds.

  To read 7 in one file as the text '7' of another would be a guess.
  """
  for name, column in columns.items():
    first: tuple[str, pl.DataType, ParquetFile] | None = None
    for file in files:
      dtype = file.schema.get(column)
      if dtype is None and column in file.partition:
        dtype = pl.String()
      kind = _kind(name, dtype) if dtype is not None and file.lines else None
      if dtype is None or kind is None:
        continue
      if first is None:
        first = (kind, dtype, file)
      elif kind != first[0]:
        raise InputError(
          f'{path}: its files differ in the types of their columns: '
          f'{column!r} for {name} is {first[1]} in {first[2].name} and '
          f'{dtype} in {file.name}; write them with one type'
        )


def _times(path: Path, column: pl.Series) -> np.ndarray:
  """int64, NO_TIME where there is none.

  Raises:
    InputError: the column can hold none.
  """
  if column.dtype == pl.Date:
    time = column.cast(pl.Datetime('ms')).dt.epoch('s')
  elif isinstance(column.dtype, pl.Datetime):
    time = column.dt.epoch('s')
  elif column.dtype.is_integer():
    time = column.cast(pl.Int64, strict=False)
  elif column.dtype.is_float():
    time = column.fill_nan(None).floor().cast(pl.Int64, strict=False)
  elif column.dtype.is_numeric() or column.dtype in (pl.String, pl.Null):
    texts = column.to_list()
    parsed = {text: _timestamp_or_none(text) for text in set(texts)}
    values = [parsed[text] for text in texts]
    time = pl.Series(column.name, values, dtype=pl.Int64)
  else:
    raise InputError(
      f'{path}: the column {column.name!r} for timestamp is of type '
      f'{column.dtype}, neither a time nor a number nor text'
    )
  frame = pl.select(
    pl.when(time.is_between(-MAX_TIME, MAX_TIME))
    .then(time)
    .otherwise(int(NO_TIME))
    .alias('time')
  )
  return frame['time'].to_numpy()


def _timestamp_or_none(value: Any) -> int | None:
  try:
    return parse_timestamp('timestamp', value)
  except Refused:
    return None


def _codes(path: Path, column: pl.Series) -> tuple[np.ndarray, pl.Series]:
  """Codes of a slice, and the distinct values that they index into.

  Returns:
    int32 [N], -1 where there is no value or one that no id can be; and Int64
    or String [W].

  Raises:
    InputError: the column is neither text nor integers.
  """
  if isinstance(column.dtype, pl.Categorical | pl.Enum | pl.Null):
    column = column.cast(pl.String)
  if not (column.dtype.is_integer() or column.dtype in (pl.String, pl.Boolean)):
    raise InputError(
      f'{path}: the column {column.name!r} is of type {column.dtype}; ids and '
      'categories must be text or integers'
    )
  if column.dtype.is_integer():
    wide = column.cast(pl.Int64, strict=False)
    if wide.null_count() == column.null_count():
      return _distinct(wide)
  codes, values = _distinct(column.cast(pl.String))
  is_bad = values.str.contains('[\0\ufffd]') | ~values.str.contains(r'\S')
  is_bad |= values.str.len_chars() > MAX_ID_LENGTH
  if is_bad.any():
    good = np.flatnonzero(~is_bad)
    code = np.full(len(values) + 1, -1, np.int32)
    code[good] = np.arange(len(good))
    codes, values = code[codes], values.gather(good)
  return codes, values


def _distinct(column: pl.Series) -> tuple[np.ndarray, pl.Series]:
  """int32 codes (-1 for null) and distinct values of Int64 or String."""
  if column.dtype == pl.Int64:
    codes, numbers = _integer_codes(column)
    return codes, pl.Series(numbers)
  # Categories hash each string once, where unique and a join do it thrice.
  codes, numbers = _integer_codes(
    column.cast(pl.Categorical).to_physical().cast(pl.Int64)
  )
  row = np.zeros(len(numbers) + 1, np.int64)
  row[codes] = np.arange(len(codes))
  return codes, column.gather(row[:-1])


def _integer_codes(column: pl.Series) -> tuple[np.ndarray, np.ndarray]:
  """int32 codes (-1 for null) of an int64 column; its distinct numbers."""
  value = column.drop_nulls().to_numpy()
  if not len(value):
    return np.full(len(column), -1, np.int32), value
  low = int(value.min())
  size = int(value.max()) - low + 1
  if size <= 2 * len(value) + MIN_TABLE:
    place = value - low
    is_there = np.zeros(size, bool)
    is_there[place] = True
    codes = (np.cumsum(is_there, dtype=np.int32) - 1)[place]
    numbers = np.flatnonzero(is_there) + low
  else:
    numbers, codes = np.unique(value, return_inverse=True)
    codes = codes.astype(np.int32)
  if len(value) < len(column):
    given = codes
    codes = np.full(len(column), -1, np.int32)
    codes[column.is_not_null().to_numpy()] = given
  return codes, numbers


def _numbers(
  path: Path, name: str, column: pl.Series
) -> tuple[np.ndarray, np.ndarray]:
  """Values of a rating, label or position, and where they cannot be used.

  Raises:
    InputError: it holds no numbers.
  """
  if not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)):
    raise InputError(
      f'{path}: the column {column.name!r} for {name} is of type '
      f'{column.dtype}, not a number'
    )
  value = column.cast(pl.Float64).fill_null(math.nan).to_numpy()
  bad = ~(np.abs(value) < MAX_RATING)
  if name == 'label':
    bad |= (value != 0) & (value != 1)
  elif name == 'position':
    bad |= (value != np.floor(value)) | (value < 0) | (value > MAX_INT32)
  return np.where(bad, 0, value).astype(DTYPES[name]), bad


def _batches(
  files: Sequence[ParquetFile], columns: Sequence[str]
) -> Iterator[tuple[ParquetFile, pl.DataFrame]]:
  """The rows of all files, small slices of like types together.

  Polars takes a millisecond for what it does with a column of any length, and
  engines write files of a few rows by the thousand.
  """
  first, waiting, size = files[0], [], 0
  for file in files:
    for _, frame in file.slices(columns):
      is_like = not waiting or frame.schema == waiting[0].schema
      if not is_like or size + frame.height > ROWS_AT_ONCE:
        yield first, pl.concat(waiting)
        waiting, size = [], 0
      if not waiting:
        first = file
      waiting.append(frame)
      size += frame.height
  if waiting:
    yield first, pl.concat(waiting)


def read_parquet(
  path: str,
  files: Sequence[ParquetFile],
  columns: Mapping[str, str],
  folder: Path,
) -> tuple[RawEvents, list[Reader], list[dict[str, Any]], list[str]]:
  """The events of Parquet files.

  Args:
    path: the source, as the user named it.
    files: of `parquet_files`.
    columns: our names to the source's.
    folder: where events are kept until they are cleaned.

  Returns:
    The events; what was read; its sources; and notes.

  Raises:
    InputError: a column is not there or of a wrong type, or too many rows
      were refused.
  """
  context = [name for name in columns if name not in REQUIRED + OPTIONAL]
  num_rows = sum(file.lines for file in files)
  check_rows(path, num_rows, columns.values())
  notes = check_columns(files, columns, '--columns', context)
  _check_kinds(path, files, columns)
  reasons = _reasons(columns)
  number_of = {name: number for number, name in enumerate(reasons)}
  spool, filled = Spool(folder), set()
  refused_rows, refused_for = [], []
  for file, frame in _batches(files, list(dict.fromkeys(columns.values()))):
    made: dict[str, np.ndarray] = {}
    reason = np.full(frame.height, NO_REASON, np.uint8)

    def refuse(refused: np.ndarray, name: str, reason=reason) -> None:
      # Of several reasons the one of the first column stands.
      reason[refused] = np.minimum(reason[refused], number_of[name])

    pieces = {}
    for name, column in columns.items():
      series = frame[column]
      is_filled = series.null_count() < len(series)
      if name == 'timestamp':
        made[name] = _times(file.path, series)
        refuse(made[name] == NO_TIME, name)
      elif name in DTYPES:
        made[name], bad = _numbers(file.path, name, series)
        refuse(bad, name)
      else:
        made[name], pieces[name] = _codes(file.path, series)
        is_filled = len(pieces[name]) > 0
        if name not in context:
          refuse(made[name] < 0, name)
      if is_filled:
        filled.add(name)
    rows = np.flatnonzero(reason != NO_REASON)
    refused_rows.append(rows + spool.num_rows)
    refused_for.append(reason[rows])
    spool.append(made)
    for name, values in pieces.items():
      spool.end_piece(name, values)
  check_filled(path, columns, filled)
  unit, odd, _ = spool.end_file(path)
  texts = [*reasons.values()]
  texts[number_of['unit']] = odd_time(unit)
  rows = np.concatenate([*refused_rows, odd])
  reason = np.concatenate(
    [*refused_for, np.full(len(odd), number_of['unit'], np.uint8)]
  )
  # A row's first reason comes first.
  order = np.lexsort((reason, rows))
  rows, first = np.unique(rows[order], return_index=True)
  reason = reason[order][first]
  begins = np.cumsum([0, *(file.lines for file in files)])
  for file, begin, end in zip(files, begins, begins[1:], strict=False):
    of_file = slice(*np.searchsorted(rows, [begin, end]))
    file.rejected = [
      (row - int(begin) + 1, texts[number], '')
      for row, number in zip(
        rows[of_file].tolist(), reason[of_file].tolist(), strict=True
      )
    ]
  check_all_rejected(path, files)
  spool.refuse(rows)
  return (
    spool.finish(),
    list(files),
    [file.source('parquet') for file in files],
    [*time_note(Path(path).name, unit), *notes],
  )


def _reasons(columns: Mapping[str, str]) -> dict[str, str]:
  """Why a row may be refused, in the order of the columns; 'unit' is open."""
  reasons = {}
  for name in columns:
    if name == 'timestamp':
      reasons[name] = 'the timestamp is missing or out of range'
      reasons['unit'] = ''
    elif name in DTYPES:
      reasons[name] = f'the {name} is missing or not a valid number'
    elif name in REQUIRED + OPTIONAL:
      reasons[name] = f'the {name} is missing'
  return reasons
