"""A log of the user's own, CSV, TSV, JSON lines or Parquet, with named columns.

Text files are read line by line, so that each line that cannot be used is
rejected with its number and reason. Parquet, one file, a folder as Spark writes
it, or a glob, is read by Polars, columns at a time.
"""

import array
import collections
import contextlib
import csv
import dataclasses
import datetime
import glob
import itertools
import math
import urllib.parse
from collections.abc import (
  Callable,
  Collection,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from eain_jax.data.events import (
  Codes,
  EventLog,
  RawColumn,
  RawEvents,
  Reader,
  check_rejected,
  clean_events,
  rejected_table,
  to_seconds,
)
from eain_jax.data.lines import (
  LineReader,
  ReadOptions,
  check_file,
  first_lines,
  hash_file,
)
from eain_jax.errors import InputError

REQUIRED = ('user', 'item', 'timestamp')
OPTIONAL = ('rating', 'label', 'request', 'position')
MAX_INT32 = 2**31 - 1
# Far beyond any rating; float32 holds it.
MAX_RATING = 1e30
# Exact in float64, and far beyond any time stamp in microseconds.
MAX_TIME = 2**53 - 1
# Bytes; further than this no quoted field reaches, but a stray quote would.
MAX_QUOTED = 1 << 17
# Numbers in a range so wide are always looked up in a table of the range.
MIN_TABLE = 1 << 16
# What Hive calls the folder of rows without a value.
HIVE_NULL = '__HIVE_DEFAULT_PARTITION__'


class _Refused(ValueError):
  """A value that its column cannot hold; the message says why."""


def _identifier(name: str, value: Any) -> str:
  """An id or category as text."""
  if value is None:
    raise _Refused(f'the {name} is missing')
  if isinstance(value, str):
    text = value
  elif isinstance(value, int) and not isinstance(value, bool):
    text = str(value)
  else:
    raise _Refused(f'the {name} is {value!r}, neither text nor an integer')
  if not text or text.isspace():
    raise _Refused(f'the {name} is empty')
  if '\0' in text or '\ufffd' in text:
    raise _Refused(f'the {name} holds NUL or invalid UTF-8')
  return text


def _category(name: str, value: Any) -> str:
  """The value of a context column as text."""
  return _identifier(
    name, str(value).lower() if isinstance(value, bool) else value
  )


def _finite(name: str, value: Any) -> float:
  if value is None or (isinstance(value, str) and not value.strip()):
    raise _Refused(f'the {name} is missing')
  if isinstance(value, bool):
    raise _Refused(f'the {name} is {value}')
  try:
    number = float(value)
  except (TypeError, ValueError, OverflowError) as error:
    raise _Refused(f'the {name} {value!r} is not a number') from error
  if not math.isfinite(number):
    raise _Refused(f'the {name} is {value}')
  return number


def _timestamp(name: str, value: Any) -> int:
  """Whole seconds (or the log's own order), or an ISO 8601 date as seconds."""
  if isinstance(value, str) and value.isdecimal() and len(value) < 16:
    return int(value)
  if isinstance(value, str) and value.strip() and not _looks_numeric(value):
    try:
      time = datetime.datetime.fromisoformat(value.strip())
    except ValueError as error:
      raise _Refused(
        f'the {name} {value!r} is neither a number nor an ISO 8601 date'
      ) from error
    if time.tzinfo is None:
      time = time.replace(tzinfo=datetime.UTC)
    return math.floor(time.timestamp())
  number = _finite(name, value)
  if not -MAX_TIME <= number <= MAX_TIME:
    raise _Refused(f'the {name} {value} is out of range')
  return math.floor(number)


def _looks_numeric(text: str) -> bool:
  """Digits with at most a sign, a point or an exponent; no date is."""
  body = text.strip().lstrip('+-')
  return body.replace('.', '', 1).isdigit() or 'e' in body.lower()


def _rating(name: str, value: Any) -> float:
  number = _finite(name, value)
  if abs(number) >= MAX_RATING:
    raise _Refused(f'the {name} {value} is out of range')
  return number


def _label(name: str, value: Any) -> int:
  number = float(value) if isinstance(value, bool) else _finite(name, value)
  if number not in (0.0, 1.0):
    raise _Refused(f'the {name} is {value}, not 0 or 1')
  return int(number)


def _position(name: str, value: Any) -> int:
  number = _finite(name, value)
  if number != int(number) or not 0 <= number <= MAX_INT32:
    raise _Refused(f'the {name} {value} is not a whole number from 0 up')
  return int(number)


class _Column:
  """Values of one column of the log as they are read.

  Context columns keep -1 where there is no value.
  """

  def __init__(self, name: str):
    self.name = name
    self.codes = None
    kinds: dict[str, tuple[str, Callable]] = {
      'timestamp': ('q', _timestamp),
      'rating': ('f', _rating),
      'label': ('b', _label),
      'position': ('i', _position),
    }
    self._is_context = name not in REQUIRED + OPTIONAL
    other = ('i', _category if self._is_context else _identifier)
    typecode, self._parse = kinds.get(name, other)
    self.values = array.array(typecode)
    if name not in kinds:
      self.codes = Codes()

  def parse(self, value: Any) -> Any:
    """The value to append.

    Raises:
      _Refused: it cannot be used.
    """
    # What was accepted before needs no second look.
    if (
      self.codes
      and isinstance(value, str)
      and (code := self.codes.get(value)) is not None
    ):
      return code
    if self._is_context and (
      value is None or (isinstance(value, str) and not value.strip())
    ):
      return -1
    parsed = self._parse(self.name, value)
    return self.codes(parsed) if self.codes else parsed


def _text_format(path: str | Path, options: ReadOptions) -> str:
  """json-lines, tsv or csv, from the first line.

  Raises:
    InputError: it is a JSON array.
  """
  [(number, line)] = first_lines(path, options, 1)
  if line.startswith(b'['):
    raise InputError(
      f'{path}, line {number}: a JSON array; write one object a line'
    )
  if line.startswith(b'{'):
    return 'json-lines'
  return 'tsv' if b'\t' in line else 'csv'


def _fields(text: str, delimiter: str) -> list[str] | None:
  """The fields of a row; None where a quoted one goes on after the text.

  Raises:
    csv.Error: a quoted field is followed by something.
  """
  if '"' not in text:
    return text.split(delimiter)
  try:
    return next(csv.reader([text], delimiter=delimiter, strict=True))
  except csv.Error as error:
    if str(error) == 'unexpected end of data':
      return None
    raise


def _csv_rows(
  reader: LineReader, delimiter: str, columns: Collection[str]
) -> Iterator[tuple[int, list[str], str]]:
  """Line number, fields and text of each row, the header first.

  A quoted field may hold line ends, but not in one of `columns`, which are
  ids, numbers and categories; such a row counts as one line. A quote that does
  not end, or makes a row that cannot be, is a stray one: its line is rejected,
  and those after it are read as if it were not.
  """
  lines = (
    (number, line.decode('utf-8', 'replace'))
    for start, block in reader.blocks()
    for number, line in enumerate(block, start)
  )
  again: collections.deque[tuple[int, str]] = collections.deque()
  take = lambda: again.popleft() if again else next(lines, None)
  header: list[str] = []
  is_odd = lambda row: (
    header
    and (
      len(row) != len(header)
      or any(
        '\n' in field and name.strip() in columns
        for field, name in zip(row, header, strict=True)
      )
    )
  )
  while (line := take()) is not None:
    number, text = line
    if not text:
      continue
    more: list[tuple[int, str]] = []
    size = len(text)
    try:
      row = _fields(text, delimiter)
      while row is None and size < MAX_QUOTED and (line := take()) is not None:
        more.append(line)
        size += len(line[1]) + 1
        if '"' in line[1]:
          row = _fields('\n'.join([text, *(t for _, t in more)]), delimiter)
      if row is None or (more and is_odd(row)):
        raise csv.Error('a quote is not closed')
    except csv.Error as error:
      reader.reject(number, str(error), text)
      again.extendleft(reversed(more))
      continue
    num_texts = sum(bool(text) for _, text in more)
    reader.lines -= num_texts
    reader.blank -= len(more) - num_texts
    if not header:
      header = row
      reader.lines -= 1
    yield number, row, text


def _json_rows(
  reader: LineReader,
) -> Iterator[tuple[int, dict[str, Any], bytes]]:
  """Line number, object and text; what is no object is rejected."""
  decode = msgspec.json.Decoder().decode
  for start, lines in reader.blocks():
    for number, line in enumerate(lines, start):
      if not line:
        continue
      try:
        record = decode(line)
      except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reader.reject(number, str(error), line)
        continue
      if isinstance(record, dict):
        yield number, record, line
      else:
        reader.reject(number, 'not a JSON object', line)


def _require_columns(
  path: str | Path, wanted: Mapping[str, str], found: Sequence[str], flag: str
) -> None:
  for name, column in wanted.items():
    if column not in found:
      raise InputError(
        f'{path} has no column {column!r} for {name}; it has '
        f'{", ".join(map(str, found))}: mend {flag}'
      )
    if found.count(column) > 1:
      raise InputError(f'{path} has two columns of the name {column!r}')


def _text_rows(
  reader: LineReader, format_name: str, wanted: Mapping[str, str], flag: str
) -> Iterator[tuple[int, list[Any], str | bytes]]:
  """Line number, the wanted columns' values, and text of each row.

  Raises:
    InputError: a column is not there.
  """
  if format_name == 'json-lines':
    keys = list(wanted.values())
    known: dict[str, None] = {}
    for number, record, line in _json_rows(reader):
      known.update(dict.fromkeys(record))
      yield number, [record.get(key) for key in keys], line
    if known:
      _require_columns(reader.path, wanted, list(known), flag)
    return
  delimiter = '\t' if format_name == 'tsv' else ','
  rows = _csv_rows(reader, delimiter, set(wanted.values()))
  _, header, _ = next(rows, (0, [], ''))
  header = [name.strip() for name in header]
  _require_columns(reader.path, wanted, header, flag)
  places = [header.index(column) for column in wanted.values()]
  for number, row, text in rows:
    if len(row) == len(header):
      yield number, [row[place] for place in places], text
    else:
      reader.reject(
        number, f'{len(row)} fields, the header has {len(header)}', text
      )


def _time_note(name: str, unit: str) -> list[str]:
  if unit == 'seconds':
    return []
  return [f'{name}: times in {unit} were read as seconds.']


def _odd_time(unit: str) -> str:
  return f'the time is not in {unit} as most of the file is'


def _read_text(
  path: str, columns: Mapping[str, str], options: ReadOptions
) -> tuple[RawEvents, list[Reader], list[dict[str, Any]], list[str]]:
  """The events of a text file."""
  format_name = _text_format(path, options)
  reader = LineReader(path, options)
  made = [_Column(name) for name in columns]
  lines = array.array('q')
  for number, row, text in _text_rows(
    reader, format_name, columns, '--columns'
  ):
    try:
      values = [
        column.parse(value) for column, value in zip(made, row, strict=True)
      ]
    except _Refused as error:
      reader.reject(number, str(error), text)
      continue
    for column, value in zip(made, values, strict=True):
      column.values.append(value)
    lines.append(number)
  arrays = {column.name: np.array(column.values) for column in made}
  arrays['timestamp'], unit, odd = to_seconds(arrays['timestamp'])
  for row in np.flatnonzero(odd):
    reader.reject(lines[row], _odd_time(unit), '')
  check_rejected(reader)
  codes = {
    column.name: RawColumn(arrays.pop(column.name)[~odd], column.codes.values())
    for column in made
    if column.codes
  }
  numbers = {name: values[~odd] for name, values in arrays.items()}
  return (
    _raw_events(codes, numbers, columns),
    [reader],
    [reader.source(format_name)],
    [*_time_note(reader.path.name, unit), *reader.notes()],
  )


@dataclasses.dataclass
class _ParquetFile:
  """One of the files of a Parquet source, and what stands in their way.

  Attributes:
    path: the file.
    partition: column names to values, from the folders that it lies in.
    options: how forgiving to be.
    lines: its rows.
    rejected: (row number from 1, reason, '') of each row that was refused.
  """

  path: Path
  partition: Mapping[str, str | None]
  options: ReadOptions
  lines: int = 0
  blank: int = 0
  rejected: list[tuple[int, str, str]] = dataclasses.field(default_factory=list)

  def scan(self, wanted: Mapping[str, str], flag: str) -> pl.LazyFrame:
    """The wanted columns, under the names that the file has for them.

    Raises:
      InputError: the file is damaged or a column is not there.
    """
    columns = list(dict.fromkeys(wanted.values()))
    with self._errors():
      scan = pl.scan_parquet(self.path, glob=False, hive_partitioning=False)
      names = scan.collect_schema().names()
    inherited = [name for name in self.partition if name not in names]
    _require_columns(self.path, wanted, [*names, *inherited], flag)
    return scan.with_columns(
      pl.lit(self.partition[name], pl.String).alias(name) for name in inherited
    ).select(columns)

  def read(self, scan: pl.LazyFrame) -> pl.DataFrame:
    """All rows, or those columns of them, that a scan of the file gives.

    Raises:
      InputError: the file is damaged.
    """
    with self._errors():
      frame = scan.collect()
    self.lines = frame.height
    return frame

  @contextlib.contextmanager
  def _errors(self) -> Iterator[None]:
    try:
      yield
    except (
      pl.exceptions.PolarsError,
      pl.exceptions.PanicException,
      OSError,
    ) as error:
      raise InputError(
        f'{self.path} cannot be read as Parquet: {_first_line(error)}'
      ) from error

  def reject(self, line: int, reason: str, text: bytes | str) -> None:
    """Notes a row that is not used; it has no text."""
    self.rejected.append((line, reason, ''))

  def source(self, format_name: str) -> dict[str, Any]:
    """What the manifest says of the file."""
    return {
      'name': self.path.name,
      'bytes': self.path.stat().st_size,
      'sha256': hash_file(self.path),
      'format': format_name,
      'lines': self.lines,
      'rejected': len(self.rejected),
    }


def _first_line(error: BaseException) -> str:
  return (str(error).splitlines() or ['no reason given'])[0]


def _is_hidden(path: Path) -> bool:
  """Engines leave such files and folders beside the data, as _delta_log."""
  return any(part.startswith(('.', '_')) for part in path.parts)


def _is_parquet(path: Path) -> bool:
  with path.open('rb') as file:
    return file.read(4) == b'PAR1'


def _parquet_files(path: str, options: ReadOptions) -> list[_ParquetFile]:
  """The Parquet files of a file, a folder or a glob, sorted.

  Returns:
    None of them where the path is a file of another kind.

  Raises:
    InputError: nothing is there, or what a glob names is no Parquet file.
  """
  if Path(path).is_dir():
    base, matches = Path(path), [Path(path)]
  elif Path(path).exists() or not glob.has_magic(path):
    file = check_file(path)
    return [_ParquetFile(file, {}, options)] if _is_parquet(file) else []
  else:
    parts = Path(path).parts
    base = Path(*itertools.takewhile(lambda p: not glob.has_magic(p), parts))
    matches = [Path(match) for match in glob.glob(path, recursive=True)]
  files = set()
  for match in matches:
    if match.is_dir():
      files.update(match.rglob('*.parquet'))
    elif not _is_hidden(match.relative_to(base)):
      if not _is_parquet(check_file(match)):
        raise InputError(f'{match}, which {path} names, is no Parquet file')
      files.add(match)
  found = []
  for file in sorted(files):
    inner = file.relative_to(base)
    if not _is_hidden(inner) and file.is_file():
      pairs = [part.partition('=') for part in inner.parts[:-1] if '=' in part]
      partition = {
        key: None if value == HIVE_NULL else urllib.parse.unquote(value)
        for key, _, value in pairs
      }
      found.append(_ParquetFile(file, partition, options))
  if not found:
    raise InputError(f'{path} holds no Parquet file, *.parquet')
  return found


def _check_all_rejected(path: str, files: Sequence[_ParquetFile]) -> None:
  """`check_rejected` over all files of a source: parts may be small."""
  rejected = [
    (row, f'{reason} ({file.path.name})' if len(files) > 1 else reason, text)
    for file in files
    for row, reason, text in file.rejected
  ]
  num_lines = sum(file.lines for file in files)
  whole = _ParquetFile(Path(path), {}, files[0].options, num_lines)
  whole.rejected = rejected
  check_rejected(whole)


def _parquet_time(path: str, column: pl.Series) -> pl.Series:
  """int64, null where there is no time.

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
  elif column.dtype.is_numeric() or column.dtype == pl.String:
    values = [_timestamp_or_none(value) for value in column]
    time = pl.Series(column.name, values, dtype=pl.Int64)
  else:
    raise InputError(
      f'{path}: the column {column.name!r} for timestamp is of type '
      f'{column.dtype}, neither a time nor a number nor text'
    )
  frame = pl.select(
    pl.when(time.is_between(-MAX_TIME, MAX_TIME)).then(time).alias('time')
  )
  return frame['time']


def _timestamp_or_none(value: Any) -> int | None:
  try:
    return _timestamp('timestamp', value)
  except _Refused:
    return None


def _parquet_codes(path: str, column: pl.Series) -> RawColumn:
  """Codes of a column; -1 where it has no value or one that no id can be.

  Raises:
    InputError: it is neither text nor integers.
  """
  if isinstance(column.dtype, pl.Categorical | pl.Enum):
    column = column.cast(pl.String)
  if not (column.dtype.is_integer() or column.dtype in (pl.String, pl.Boolean)):
    raise InputError(
      f'{path}: the column {column.name!r} is of type {column.dtype}; ids and '
      'categories must be text or integers'
    )
  if column.dtype.is_integer():
    wide = column.cast(pl.Int64, strict=False)
    if wide.null_count() == column.null_count():
      codes, numbers = _integer_codes(wide)
      return RawColumn(codes, pl.Series(numbers).cast(pl.String))
  column = column.cast(pl.String)
  # Categories hash each string once, where unique and a join do it thrice.
  codes, numbers = _integer_codes(
    column.cast(pl.Categorical).to_physical().cast(pl.Int64)
  )
  row = np.zeros(len(numbers) + 1, np.int64)
  row[codes] = np.arange(len(codes))
  values = column.gather(row[:-1])
  is_bad = values.str.contains('[\0\ufffd]') | ~values.str.contains(r'\S')
  if is_bad.any():
    good = np.flatnonzero(~is_bad)
    code = np.full(len(values) + 1, -1, np.int32)
    code[good] = np.arange(len(good))
    codes, values = code[codes], values.gather(good)
  return RawColumn(codes, values)


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


def _parquet_numbers(
  path: str, name: str, column: pl.Series
) -> tuple[np.ndarray, np.ndarray]:
  """Values of a rating, label or position, and where they cannot be used.

  Raises:
    InputError: the column holds no numbers.
  """
  if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
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
  dtype = {'rating': np.float32, 'label': np.int8, 'position': np.int32}[name]
  return np.where(bad, 0, value).astype(dtype), bad


def _read_parquet(
  path: str, files: Sequence[_ParquetFile], columns: Mapping[str, str]
) -> tuple[RawEvents, list[Reader], list[dict[str, Any]], list[str]]:
  """The events of Parquet files."""
  scans = [file.scan(columns, '--columns') for file in files]

  def read(column: str) -> pl.Series:
    # One column at a time: as ids it takes a fraction of the memory.
    frames = [
      file.read(scan.select(column))
      for file, scan in zip(files, scans, strict=True)
    ]
    try:
      return pl.concat(frames, how='vertical_relaxed')[column]
    except pl.exceptions.PolarsError as error:
      raise InputError(
        f'{path}: its files differ in the types of their columns: '
        f'{_first_line(error)}'
      ) from error

  reason_of_row = np.zeros(0, np.int8)
  reasons = ['']

  def refuse(rows: np.ndarray, reason: str) -> None:
    reasons.append(reason)
    reason_of_row[rows & (reason_of_row == 0)] = len(reasons) - 1

  codes, numbers = {}, {}
  unit = 'seconds'
  for name, column in columns.items():
    series = read(column)
    if not codes and not numbers:
      reason_of_row = np.zeros(len(series), np.int8)
    if name == 'timestamp':
      time = _parquet_time(path, series)
      missing = time.is_null().to_numpy()
      refuse(missing, 'the timestamp is missing or out of range')
      if not missing.any():
        numbers[name], unit, odd = to_seconds(time.to_numpy())
      else:
        numbers[name] = time.fill_null(0).to_numpy().copy()
        odd = np.zeros_like(missing)
        numbers[name][~missing], unit, odd[~missing] = to_seconds(
          numbers[name][~missing]
        )
      refuse(odd, _odd_time(unit))
    elif name in ('rating', 'label', 'position'):
      numbers[name], bad = _parquet_numbers(path, name, series)
      refuse(bad, f'the {name} is missing or not a valid number')
    else:
      codes[name] = _parquet_codes(path, series)
      if name in REQUIRED + OPTIONAL:
        refuse(codes[name].codes < 0, f'the {name} is missing')
  begin = 0
  for file in files:
    rows = reason_of_row[begin : begin + file.lines]
    begin += file.lines
    file.rejected = [
      (int(row) + 1, reasons[rows[row]], '') for row in np.flatnonzero(rows)
    ]
  _check_all_rejected(path, files)
  kept = reason_of_row == 0
  if not kept.all():
    codes = {
      name: RawColumn(column.codes[kept], column.values)
      for name, column in codes.items()
    }
    numbers = {name: column[kept] for name, column in numbers.items()}
  return (
    _raw_events(codes, numbers, columns),
    list(files),
    [file.source('parquet') for file in files],
    _time_note(Path(path).name, unit),
  )


def _raw_events(
  codes: Mapping[str, RawColumn],
  numbers: Mapping[str, np.ndarray],
  columns: Mapping[str, str],
) -> RawEvents:
  context = [name for name in columns if name not in REQUIRED + OPTIONAL]
  return RawEvents(
    codes['user'],
    codes['item'],
    numbers['timestamp'],
    numbers.get('rating'),
    numbers.get('label'),
    codes.get('request'),
    numbers.get('position'),
    {name: codes[name] for name in context},
  )


def _attribute_series(name: str, values: list[Any]) -> pl.Series:
  """Values of one attribute: lists, floats, or text for all else."""
  present = [value for value in values if value is not None]
  if any(isinstance(value, list) for value in present):
    lists = [v if isinstance(v, list) else [v] for v in values]
    texts = [
      None
      if value is None
      else [str(v) for v in entries if v not in (None, '')]
      for value, entries in zip(values, lists, strict=True)
    ]
    return pl.Series(name, texts, dtype=pl.List(pl.String))
  is_number = lambda v: isinstance(v, int | float) and not isinstance(v, bool)
  if any(isinstance(value, float) for value in present) and all(
    map(is_number, present)
  ):
    return pl.Series(
      name,
      # The largest integers are beyond float64, and NaN is below nothing.
      [None if v is None or not abs(v) < 1e300 else float(v) for v in values],
      dtype=pl.Float64,
    )
  return pl.Series(
    name,
    [None if v is None or v == '' else str(v) for v in values],
    dtype=pl.String,
  )


def _decimal(texts: list[str | None]) -> list[Any]:
  """A text column as floats, where all of it is and some have a point."""
  try:
    numbers = [None if not text else float(text) for text in texts]
  except ValueError:
    return list(texts)
  if any(text and '.' in text for text in texts):
    return numbers
  return list(texts)


def _read_items(
  path: str,
  key: str,
  attributes: Sequence[str],
  items: pl.Series,
  options: ReadOptions,
) -> tuple[
  pl.DataFrame, dict[str, int], list[Reader], list[dict[str, Any]], list[str]
]:
  """One row an item of `items`; null where the table does not have it.

  Returns:
    The table; counts; what was read; its sources; and notes.

  Raises:
    InputError: as `read_log`, or no item is in it.
  """
  wanted = {'--item_key': key, **{name: name for name in attributes}}
  row_of = {item: row for row, item in enumerate(items)}
  found: list[list[Any] | None] = [None] * len(items)
  num_repeated = 0
  notes: list[str] = []

  def take(reader: Reader, rows: Iterable[tuple[int, Sequence, Any]]) -> None:
    nonlocal num_repeated
    for number, (item, *values), text in rows:
      try:
        row = row_of.get(_identifier(key, item))
      except _Refused as error:
        reader.reject(number, str(error), text)
        continue
      if row is not None and found[row] is None:
        found[row] = values
      elif row is not None:
        num_repeated += 1

  files = _parquet_files(path, options)
  readers: list[Reader] = [*files]
  if files:
    for file in files:
      # A column may be wanted twice, as the key and as an attribute.
      frame = file.read(file.scan(wanted, '--items')).select(
        pl.col(column).alias(str(place))
        for place, column in enumerate(wanted.values())
      )
      take(file, ((n, row, '') for n, row in enumerate(frame.iter_rows(), 1)))
    _check_all_rejected(path, files)
    sources = [file.source('items-parquet') for file in files]
    is_text = False
  else:
    format_name = _text_format(path, options)
    is_text = format_name != 'json-lines'
    reader = LineReader(path, options)
    take(reader, _text_rows(reader, format_name, wanted, '--items'))
    check_rejected(reader)
    readers.append(reader)
    sources = [reader.source(f'items-{format_name}')]
    notes = reader.notes()
  num_found = sum(values is not None for values in found)
  if not num_found:
    raise InputError(
      f'{path}: not one of the {len(items)} items of the events is in its '
      f'column {key!r}'
    )
  columns = []
  for place, name in enumerate(attributes):
    values = [None if row is None else row[place] for row in found]
    columns.append(
      _attribute_series(name, _decimal(values) if is_text else values)
    )
  counts = {
    'item_lines': sum(reader.lines for reader in readers),
    'item_lines_rejected': sum(len(reader.rejected) for reader in readers),
    'item_lines_repeated': num_repeated,
    'items_with_attributes': num_found,
  }
  return pl.DataFrame(columns), counts, readers, sources, notes


def read_log(
  path: str | Path,
  columns: Mapping[str, str],
  options: ReadOptions,
  *,
  items: str | Path | None = None,
  item_key: str | None = None,
  item_attributes: Sequence[str] = (),
) -> tuple[EventLog, pl.DataFrame]:
  """Reads a log of named columns.

  Args:
    path: CSV, TSV or JSON lines (plain or gzip), or Parquet: a file, a folder
      or a glob.
    columns: our names to the source's: user, item and timestamp are required,
      rating, label, request and position known; any other is a context column.
    options: how forgiving to be.
    items: a table of item attributes, in any of these formats.
    item_key: its column of item ids.
    item_attributes: its columns to take; a list is multi-valued.

  Returns:
    The events, and the rejected lines.

  Raises:
    InputError: a file is missing or damaged, or lacks a column.
  """
  missing = [name for name in REQUIRED if name not in columns]
  if missing:
    raise InputError(
      f'--columns must name {", ".join(missing)}, as in '
      'user=user_id,item=item_id,timestamp=time'
    )
  files = _parquet_files(str(path), options)
  if files:
    raw, readers, sources, notes = _read_parquet(str(path), files, columns)
  else:
    raw, readers, sources, notes = _read_text(str(path), columns, options)
  log = clean_events(
    raw,
    counts={
      'lines': sum(reader.lines for reader in readers),
      'blank': sum(reader.blank for reader in readers),
      'rejected': sum(len(reader.rejected) for reader in readers),
    },
    sources=tuple(sources),
    notes=tuple(notes),
  )
  if items is not None:
    assert item_key is not None
    table, counts, more, more_sources, more_notes = _read_items(
      str(items), item_key, item_attributes, log.items, options
    )
    readers += more
    log = dataclasses.replace(
      log,
      item_attributes=table,
      counts={**log.counts, **counts},
      sources=(*log.sources, *more_sources),
      notes=(*log.notes, *more_notes),
    )
  return log, rejected_table(readers)
