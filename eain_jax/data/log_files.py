"""A log of the user's own, CSV, TSV, JSON lines or Parquet, with named columns.

Text files are read line by line, so that each line that cannot be used is
rejected with its number and reason. Parquet, one file, a folder as Spark writes
it, or a glob, is read by Polars, columns at a time.
"""

import array
import csv
import dataclasses
import datetime
import glob
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
  check_rejected,
  clean_events,
  rejected_table,
  to_seconds,
)
from eain_jax.data.lines import LineReader, ReadOptions, check_file, hash_file
from eain_jax.errors import InputError

REQUIRED = ('user', 'item', 'timestamp')
OPTIONAL = ('rating', 'label', 'request', 'position')
MAX_INT32 = 2**31 - 1


class _Refused(ValueError):
  """A value that its column cannot hold; the message says why."""


def _identifier(name: str, value: Any) -> str:
  """An id or category as text."""
  if isinstance(value, str):
    text = value
  elif isinstance(value, int) and not isinstance(value, bool):
    text = str(value)
  else:
    raise _Refused(f'the {name} is {value!r}, neither text nor an integer')
  if not text:
    raise _Refused(f'the {name} is empty')
  if '\0' in text or '\ufffd' in text:
    raise _Refused(f'the {name} holds NUL or invalid UTF-8')
  return text


def _finite(name: str, value: Any) -> float:
  if isinstance(value, bool) or value is None:
    raise _Refused(f'the {name} is {value!r}')
  try:
    number = float(value)
  except (TypeError, ValueError) as error:
    raise _Refused(f'the {name} {value!r} is not a number') from error
  if not math.isfinite(number):
    raise _Refused(f'the {name} is {value}')
  return number


def _timestamp(name: str, value: Any) -> int:
  """Whole seconds (or the log's own order), or an ISO 8601 date as seconds."""
  if isinstance(value, int) and not isinstance(value, bool):
    number = value
  elif isinstance(value, str) and not _looks_numeric(value):
    try:
      time = datetime.datetime.fromisoformat(value)
    except ValueError as error:
      raise _Refused(
        f'the {name} {value!r} is neither a number nor an ISO 8601 date'
      ) from error
    if time.tzinfo is None:
      time = time.replace(tzinfo=datetime.UTC)
    return math.floor(time.timestamp())
  else:
    number = math.floor(_finite(name, value))
  if not -(2**53) < number < 2**53:
    raise _Refused(f'the {name} {value} is out of range')
  return number


def _looks_numeric(text: str) -> bool:
  """Digits with at most a sign, a point or an exponent; no date is."""
  body = text.lstrip('+-')
  return body.replace('.', '', 1).isdigit() or 'e' in body.lower()


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
      'rating': ('f', _finite),
      'label': ('b', _label),
      'position': ('i', _position),
    }
    typecode, self._parse = kinds.get(name, ('i', _identifier))
    self.values = array.array(typecode)
    if name not in kinds:
      self.codes = Codes()
    self._may_be_null = name not in REQUIRED + OPTIONAL

  def parse(self, value: Any) -> Any:
    """The value to append.

    Raises:
      _Refused: it cannot be used.
    """
    if self._may_be_null and (value is None or value == ''):
      return -1
    parsed = self._parse(self.name, value)
    return self.codes(parsed) if self.codes else parsed

  def column(self) -> RawColumn:
    assert self.codes is not None
    return self.codes.column(self.values)


def _csv_rows(reader: LineReader) -> Iterator[tuple[int, Any]]:
  """The header as (0, names), then each row as (line number, fields)."""
  place = [0]

  def text() -> Iterator[str]:
    for start, lines in reader.blocks():
      for number, line in enumerate(lines, start):
        place[0] = number
        yield line.decode('utf-8', 'replace') + '\n'

  lines = text()
  header = next((line for line in lines if line.strip()), '')
  delimiter = '\t' if '\t' in header else ','
  yield 0, next(csv.reader([header], delimiter=delimiter))
  reader.lines -= 1
  first = place[0] + 1
  rows = csv.reader(lines, delimiter=delimiter)
  while True:
    try:
      row = next(rows)
    except StopIteration:
      return
    except csv.Error as error:
      reader.reject(first, str(error), '')
      first = place[0] + 1
      continue
    if row:
      # A quoted field may hold line ends; such a row counts as one line.
      reader.lines -= max(0, place[0] - first)
      yield first, row
    first = place[0] + 1


def _json_rows(reader: LineReader) -> Iterator[tuple[int, Any]]:
  """Each object as (line number, dict); what is none is rejected."""
  decoder = msgspec.json.Decoder()
  for start, lines in reader.blocks():
    for number, line in enumerate(lines, start):
      if not line:
        continue
      try:
        record = decoder.decode(line)
      except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reader.reject(number, str(error) or 'nested too deep', line)
        continue
      if isinstance(record, dict):
        yield number, record
      else:
        reader.reject(number, 'not a JSON object', line)


def _is_json(path: Path, options: ReadOptions) -> bool:
  reader = LineReader(path, dataclasses.replace(options, allow_truncated=True))
  for _, lines in reader.blocks():
    for line in lines:
      if line:
        return line.startswith(b'{')
  raise InputError(f'{path} is empty: it holds no line')


def _require_columns(
  path: str | Path, wanted: Mapping[str, str], found: Sequence[str], flag: str
) -> None:
  for name, column in wanted.items():
    if column not in found:
      raise InputError(
        f'{path} has no column {column!r} for {name}; it has '
        f'{", ".join(map(str, found))}: mend {flag}'
      )


def _read_text(
  path: Path, columns: Mapping[str, str], options: ReadOptions
) -> tuple[dict[str, _Column], LineReader, str]:
  """Every column of a text file, and the reader with its rejected lines."""
  is_json = _is_json(path, options)
  reader = LineReader(path, options)
  made = {name: _Column(name) for name in columns}
  lines = array.array('q')
  if is_json:
    rows, format_name = _json_rows(reader), 'json-lines'
    keys: dict[str, Any] = dict(columns)
    get = lambda row, key: row.get(key)
    width = None
    known: set[str] = set()
  else:
    rows = _csv_rows(reader)
    _, header = next(rows)
    header = [name.strip() for name in header]
    repeated = {name for name in header if header.count(name) > 1}
    if repeated & set(columns.values()):
      raise InputError(
        f'{path}: its header names {", ".join(sorted(repeated))} twice'
      )
    _require_columns(path, columns, header, '--columns')
    keys = {name: header.index(column) for name, column in columns.items()}
    get = lambda row, key: row[key]
    width, format_name, known = len(header), 'text-table', set()
  parsed: dict[str, Any] = {}
  for number, row in rows:
    if width is not None and len(row) != width:
      reader.reject(
        number, f'{len(row)} fields, the header has {width}', str(row)
      )
      continue
    if width is None:
      known.update(row)
    try:
      for name, column in made.items():
        parsed[name] = column.parse(get(row, keys[name]))
    except _Refused as error:
      reader.reject(number, str(error), str(row))
      continue
    for name, column in made.items():
      column.values.append(parsed[name])
    lines.append(number)
  if is_json and known:
    _require_columns(path, columns, sorted(known), '--columns')
  time = np.array(made['timestamp'].values, np.int64)
  _, unit, odd = to_seconds(time)
  for row in np.flatnonzero(odd):
    reader.reject(
      lines[row],
      f'the time {time[row]} is not in {unit} as most of the file is',
      '',
    )
  check_rejected(reader)
  return made, reader, format_name


def _parquet_files(path: str) -> list[Path]:
  """The Parquet files of a file, a folder or a glob, sorted; or none."""
  if Path(path).is_dir():
    # Engines leave hidden files and markers such as _SUCCESS beside the parts.
    return sorted(
      file
      for file in Path(path).rglob('*.parquet')
      if not file.name.startswith(('.', '_'))
    )
  matches = sorted(map(Path, glob.glob(path, recursive=True)))
  if not matches and not glob.has_magic(path):
    check_file(path)
  return [m for m in matches if m.is_file() and _is_parquet(m)]


def _is_parquet(path: Path) -> bool:
  with path.open('rb') as file:
    return file.read(4) == b'PAR1'


def _collect(path: str, scan: pl.LazyFrame) -> pl.DataFrame:
  """Runs a query; whatever Polars raises becomes one sentence."""
  try:
    return scan.collect()
  except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
    first = str(error).splitlines()[0]
    raise InputError(f'{path} cannot be read as Parquet: {first}') from error


def _scan_parquet(path: str, files: list[Path]) -> pl.LazyFrame:
  partitioned = Path(path).is_dir()
  return pl.scan_parquet(
    [str(file) for file in files], hive_partitioning=partitioned
  )


def _schema_names(path: str, scan: pl.LazyFrame) -> list[str]:
  try:
    return scan.collect_schema().names()
  except (
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    OSError,
  ) as error:
    first = str(error).splitlines()[0]
    raise InputError(f'{path} cannot be read as Parquet: {first}') from error


def _parquet_time(column: pl.Series) -> pl.Series:
  """int64, null where there is no time."""
  if column.dtype == pl.Date:
    return column.cast(pl.Datetime('ms')).dt.epoch('s')
  if isinstance(column.dtype, pl.Datetime):
    return column.dt.epoch('s')
  if column.dtype.is_integer():
    return column.cast(pl.Int64, strict=False)
  if column.dtype.is_float():
    return column.fill_nan(None).floor().cast(pl.Int64, strict=False)
  return pl.Series(
    column.name,
    [_timestamp_or_none(value) for value in column],
    dtype=pl.Int64,
  )


def _timestamp_or_none(value: Any) -> int | None:
  try:
    return _timestamp('timestamp', value)
  except _Refused:
    return None


def _parquet_codes(column: pl.Series) -> RawColumn:
  """Codes of a Parquet column; null and the empty text are -1."""
  if not (column.dtype.is_integer() or column.dtype in (pl.String, pl.Boolean)):
    if isinstance(column.dtype, pl.Categorical | pl.Enum):
      column = column.cast(pl.String)
    else:
      raise InputError(
        f'the column {column.name!r} is of type {column.dtype}: ids and '
        'categories must be text or integers'
      )
  values = column.unique().drop_nulls()
  if column.dtype == pl.String:
    values = values.filter(values != '')
  numbered = pl.DataFrame(
    {'value': values, 'code': np.arange(len(values), dtype=np.int32)}
  )
  codes = pl.DataFrame({'value': column}).join(
    numbered, on='value', how='left', maintain_order='left'
  )['code']
  return RawColumn(codes.fill_null(-1).to_numpy(), values.cast(pl.String))


@dataclasses.dataclass
class _TableReader:
  """Stands for a Parquet source where a LineReader stands for a text file."""

  path: Path
  options: ReadOptions
  lines: int
  rejected: list[tuple[int, str, str]]


def _read_parquet(
  path: str, columns: Mapping[str, str], options: ReadOptions
) -> tuple[RawEvents, Any, list[dict[str, Any]], list[str]]:
  files = _parquet_files(path)
  scan = _scan_parquet(path, files)
  _require_columns(path, columns, _schema_names(path, scan), '--columns')
  frame = _collect(path, scan.select(list(dict.fromkeys(columns.values()))))
  reader = _TableReader(Path(path), options, frame.height, [])
  reasons = np.zeros(frame.height, np.int8)
  texts = ['']

  def refuse(rows: np.ndarray, reason: str) -> None:
    texts.append(reason)
    reasons[rows & (reasons == 0)] = len(texts) - 1

  codes, numbers = {}, {}
  for name, column in columns.items():
    series = frame[column]
    if name == 'timestamp':
      time = _parquet_time(series)
      refuse(time.is_null().to_numpy(), 'the timestamp is missing')
      seconds, unit, odd = to_seconds(time.fill_null(0).to_numpy())
      refuse(odd, f'the time is not in {unit} as most of the file is')
      numbers[name] = seconds
    elif name in ('rating', 'label', 'position'):
      if not (series.dtype.is_numeric() or series.dtype == pl.Boolean):
        raise InputError(
          f'{path}: the column {column!r} for {name} is of type '
          f'{series.dtype}, not a number'
        )
      value = series.cast(pl.Float64).fill_null(math.nan).to_numpy()
      bad = ~np.isfinite(value)
      if name == 'label':
        bad |= (value != 0) & (value != 1)
      elif name == 'position':
        bad |= (value != np.floor(value)) | (value < 0) | (value > MAX_INT32)
      refuse(bad, f'the {name} is missing or not a valid number')
      dtype = {'rating': np.float32, 'label': np.int8, 'position': np.int32}
      numbers[name] = np.where(bad, 0, value).astype(dtype[name])
    else:
      codes[name] = _parquet_codes(series)
      if name in REQUIRED + OPTIONAL:
        refuse(codes[name].codes < 0, f'the {name} is missing')
  reader.rejected = [
    (int(row) + 1, texts[reasons[row]], '') for row in np.flatnonzero(reasons)
  ]
  check_rejected(reader)  # type: ignore[arg-type]
  kept = reasons == 0
  left = {
    name: RawColumn(column.codes[kept], column.values)
    for name, column in codes.items()
  }
  values = {name: column[kept] for name, column in numbers.items()}
  notes = []
  if unit != 'seconds':
    notes.append(f'{Path(path).name}: times in {unit} were read as seconds.')
  sources = [
    {
      'name': file.name,
      'bytes': file.stat().st_size,
      'sha256': hash_file(file),
      'format': 'parquet',
    }
    for file in files
  ]
  sources[0] |= {'lines': reader.lines, 'rejected': len(reader.rejected)}
  return _raw_events(left, values, columns), reader, sources, notes


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


def _read_text_events(
  path: Path, columns: Mapping[str, str], options: ReadOptions
) -> tuple[RawEvents, LineReader, list[dict[str, Any]], list[str]]:
  made, reader, format_name = _read_text(path, columns, options)
  time = np.array(made['timestamp'].values, np.int64)
  seconds, unit, odd = to_seconds(time)
  kept = ~odd
  notes = []
  if unit != 'seconds':
    notes.append(f'{path.name}: times in {unit} were read as seconds.')
  if reader.truncated:
    notes.append(
      f'{path.name}: a truncated gzip file; its {reader.lines} complete lines '
      'were kept.'
    )
  codes = {
    name: RawColumn(column.column().codes[kept], column.column().values)
    for name, column in made.items()
    if column.codes
  }
  dtypes = {'rating': np.float32, 'label': np.int8, 'position': np.int32}
  numbers = {
    name: np.array(column.values, dtypes[name])[kept]
    for name, column in made.items()
    if name in dtypes
  }
  numbers['timestamp'] = seconds[kept]
  source = {
    'name': path.name,
    'bytes': reader.num_bytes,
    'sha256': reader.sha256,
    'format': format_name,
    'lines': reader.lines,
    'blank': reader.blank,
    'rejected': len(reader.rejected),
  }
  return _raw_events(codes, numbers, columns), reader, [source], notes


def _attribute_series(name: str, values: list[Any]) -> pl.Series:
  """Values of one attribute: lists, floats, or text for all else."""
  present = [value for value in values if value is not None]
  if any(isinstance(value, list) for value in present):
    as_list = lambda v: (
      None if v is None else v if isinstance(v, list) else [v]
    )
    texts = [
      None
      if value is None
      else [str(entry) for entry in as_list(value) if entry not in (None, '')]
      for value in values
    ]
    return pl.Series(name, texts, dtype=pl.List(pl.String))
  is_number = lambda v: isinstance(v, int | float) and not isinstance(v, bool)
  if any(isinstance(value, float) for value in present) and all(
    map(is_number, present)
  ):
    return pl.Series(
      name,
      [None if v is None or not math.isfinite(v) else float(v) for v in values],
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
) -> tuple[pl.DataFrame, dict[str, int], Any, dict[str, Any]]:
  """One row an item of `items`; null where the table does not have it."""
  wanted = {'item': key, **{name: name for name in attributes}}
  row_of = {item: row for row, item in enumerate(items)}
  rows: list[list[Any] | None] = [None] * len(items)
  repeated = found = 0

  def take(item: str, values: list[Any]) -> None:
    nonlocal repeated, found
    row = row_of.get(item)
    if row is None:
      return
    if rows[row] is None:
      rows[row], found = values, found + 1
    else:
      repeated += 1

  is_text = False
  if Path(path).is_dir() or glob.has_magic(path) or _is_parquet(check_file(path)):
    files = _parquet_files(path)
    if not files:
      raise InputError(f'{path} holds no Parquet file')
    scan = _scan_parquet(path, files)
    _require_columns(path, wanted, _schema_names(path, scan), '--items')
    frame = _collect(path, scan.select(list(dict.fromkeys(wanted.values()))))
    reader: Any = _TableReader(Path(path), options, frame.height, [])
    for number, row in enumerate(frame.iter_rows(named=True), 1):
      if row[key] is None:
        reader.rejected.append((number, 'the key is null', ''))
      else:
        take(str(row[key]), [row[name] for name in attributes])
    source = {
      'bytes': sum(file.stat().st_size for file in files),
      'sha256': hash_file(files[0]),
      'format': 'items-parquet',
    }
  else:
    reader = LineReader(path, options)
    if _is_json(Path(path), options):
      known: set[str] = set()
      for number, row in _json_rows(reader):
        known.update(row)
        try:
          item = _identifier(key, row.get(key))
        except _Refused as error:
          reader.reject(number, str(error), str(row))
          continue
        take(item, [row.get(name) for name in attributes])
      if known:
        _require_columns(path, wanted, sorted(known), '--items')
    else:
      is_text = True
      table = _csv_rows(reader)
      _, header = next(table)
      _require_columns(path, wanted, header, '--items')
      places = [header.index(name) for name in attributes]
      place = header.index(key)
      for number, row in table:
        if len(row) != len(header) or not row[place]:
          reader.reject(number, 'fields are missing', str(row))
          continue
        take(row[place], [row[i] for i in places])
    source = {
      'bytes': reader.num_bytes,
      'sha256': reader.sha256,
      'format': 'items-text' if is_text else 'items-json-lines',
    }
  check_rejected(reader)
  if not found:
    raise InputError(
      f'{path}: not one of the {len(items)} items of the events is in its '
      f'column {key!r}'
    )
  columns = []
  for place, name in enumerate(attributes):
    values = [None if row is None else row[place] for row in rows]
    columns.append(
      _attribute_series(name, _decimal(values) if is_text else values)
    )
  counts = {'item_lines': reader.lines, 'items_with_attributes': found}
  if repeated:
    counts['item_lines_repeated'] = repeated
  source = {'name': Path(path).name, **source, 'lines': reader.lines}
  return pl.DataFrame(columns), counts, reader, source


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
  text = str(path)
  is_table = Path(text).is_dir() or glob.has_magic(text)
  if not is_table:
    is_table = _is_parquet(check_file(text))
  elif not _parquet_files(text):
    raise InputError(f'{path} holds no Parquet file')
  if is_table:
    raw, reader, sources, notes = _read_parquet(text, columns, options)
  else:
    raw, reader, sources, notes = _read_text_events(
      Path(text), columns, options
    )
  readers = [reader]
  log = clean_events(
    raw,
    counts={'lines': reader.lines, 'rejected': len(reader.rejected)},
    sources=tuple(sources),
    notes=tuple(notes),
  )
  if items is not None:
    assert item_key is not None
    table, counts, item_reader, source = _read_items(
      str(items), item_key, item_attributes, log.items, options
    )
    readers.append(item_reader)
    log = dataclasses.replace(
      log,
      item_attributes=table,
      counts={**log.counts, **counts},
      sources=(*log.sources, source),
    )
  return log, rejected_table(readers)
