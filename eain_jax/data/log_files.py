"""A log of the user's own, CSV, TSV, JSON lines or Parquet, with named columns.

Text files are read line by line, so that each line that cannot be used is
rejected with its number and reason. Parquet is read in `parquet_log.py`.
"""

import collections
import csv
import dataclasses
import json
import tempfile
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
import polars as pl

from eain_jax.data.events import (
  Codes,
  EventLog,
  LineNumbers,
  RawEvents,
  Reader,
  check_rejected,
  clean_events,
  rejected_table,
)
from eain_jax.data.lines import LineReader, ReadOptions, first_lines
from eain_jax.data.log_values import (
  OPTIONAL,
  REQUIRED,
  Missing,
  Refused,
  check_filled,
  check_rows,
  odd_time,
  parse_category,
  parse_identifier,
  parse_label,
  parse_position,
  parse_rating,
  parse_timestamp,
  require_columns,
  time_note,
)
from eain_jax.data.parquet_log import (
  check_all_rejected,
  check_columns,
  parquet_files,
  read_parquet,
)
from eain_jax.data.spool import RowBuffer, Spool
from eain_jax.errors import InputError

# Further than this no quoted field reaches, but a stray quote would: each one
# costs a look as far.
MAX_QUOTED_BYTES, MAX_QUOTED_LINES = 1 << 17, 1_000


class _Column:
  """Values of one column of the log as they are read.

  Context columns keep -1 where there is no value.
  """

  def __init__(self, name: str):
    self.name = name
    self.codes = None
    numbers: dict[str, Callable] = {
      'timestamp': parse_timestamp,
      'rating': parse_rating,
      'label': parse_label,
      'position': parse_position,
    }
    self._is_context = name not in REQUIRED + OPTIONAL
    text = parse_category if self._is_context else parse_identifier
    self._parse = numbers.get(name, text)
    if name not in numbers:
      self.codes = Codes()

  def parse(self, value: Any) -> Any:
    """The value to append.

    Raises:
      Refused: it cannot be used.
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


def text_format(path: str | Path, options: ReadOptions) -> str:
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


def _fields(
  text: str,
  delimiter: str,
  take: Callable[[], tuple[int, str] | None],
  more: list[tuple[int, str]],
) -> list[str]:
  """The fields of a row.

  Where a quoted field goes on, the lines after the row's first are taken and
  added to `more`.

  Raises:
    csv.Error: a quoted field is followed by something, or does not end.
  """
  if '"' not in text:
    return text.split(delimiter)

  def feed() -> Iterator[str]:
    yield text
    size = len(text)
    while (
      size < MAX_QUOTED_BYTES
      and len(more) < MAX_QUOTED_LINES
      and (line := take()) is not None
    ):
      more.append(line)
      size += len(line[1]) + 1
      yield f'\n{line[1]}'

  return next(csv.reader(feed(), delimiter=delimiter, strict=True))


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
    try:
      row = _fields(text, delimiter, take, more)
      if more and is_odd(row):
        raise csv.Error('a quote is not closed')
    except csv.Error as error:
      reason = str(error)
      if reason == 'unexpected end of data':
        reason = 'a quote is not closed'
      reader.reject(number, reason, text)
      again.extendleft(reversed(more))
      continue
    num_texts = sum(bool(text) for _, text in more)
    reader.lines -= num_texts
    reader.blank -= len(more) - num_texts
    if not header:
      header = row
      reader.lines -= 1
    yield number, row, text


def _repeated_key(line: bytes, keys: Collection[str]) -> str | None:
  """A key of the object of a line that stands there with two values."""
  objects = json.loads(line, object_pairs_hook=list)
  first: dict[str, Any] = {}
  for key, value in objects:
    # By text, for True equals 1.
    if key in keys and repr(first.setdefault(key, value)) != repr(value):
      return key
  return None


def _json_rows(
  reader: LineReader, keys: Collection[str]
) -> Iterator[tuple[int, dict[str, Any], bytes]]:
  """Line number, object and text of each line.

  What is no object is rejected, or has one of `keys` with two values: which
  one is meant cannot be known.
  """
  decode = msgspec.json.Decoder().decode
  quoted = [msgspec.json.encode(key) for key in keys]
  for start, lines in reader.blocks():
    for number, line in enumerate(lines, start):
      if not line:
        continue
      try:
        record = decode(line)
      except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reader.reject(number, str(error), line)
        continue
      if not isinstance(record, dict):
        reader.reject(number, 'not a JSON object', line)
      # Each key has a colon, so most objects are seen to have each key once.
      elif (
        line.count(b':') != len(record)
        and any(line.count(key) > 1 for key in quoted)
        and (key := _repeated_key(line, keys)) is not None
      ):
        reader.reject(number, f'the key {key!r} twice, with two values', line)
      else:
        yield number, record, line


def text_rows(
  reader: LineReader,
  format_name: str,
  wanted: Mapping[str, str],
  flag: str,
  within_line: Iterable[str] | None = None,
) -> Iterator[tuple[int, list[Any], str | bytes]]:
  """Line number, the wanted columns' values, and text of each row.

  Args:
    reader: of the file.
    format_name: of `text_format`.
    wanted: our names to the source's.
    flag: the flag that names them.
    within_line: the source's columns that hold no line end; all of `wanted`.

  Raises:
    InputError: a column is not there.
  """
  if format_name == 'json-lines':
    keys = list(wanted.values())
    known: dict[str, None] = {}
    for number, record, line in _json_rows(reader, keys):
      known.update(dict.fromkeys(record))
      yield number, [record.get(key) for key in keys], line
    if known:
      require_columns(reader.path, wanted, list(known), flag)
    return
  delimiter = '\t' if format_name == 'tsv' else ','
  single = set(wanted.values() if within_line is None else within_line)
  rows = _csv_rows(reader, delimiter, single)
  _, header, _ = next(rows, (0, [], ''))
  header = [name.strip() for name in header]
  require_columns(reader.path, wanted, header, flag)
  places = [header.index(column) for column in wanted.values()]
  for number, row, text in rows:
    if len(row) == len(header):
      yield number, [row[place] for place in places], text
    else:
      reader.reject(
        number, f'{len(row)} fields, the header has {len(header)}', text
      )


def _read_text(
  path: str, columns: Mapping[str, str], options: ReadOptions, folder: Path
) -> tuple[RawEvents, list[Reader], list[dict[str, Any]], list[str]]:
  """The events of a text file."""
  format_name = text_format(path, options)
  reader = LineReader(path, options)
  made = [_Column(name) for name in columns]
  spool = Spool(folder)
  kept = RowBuffer(spool, {column.name: column.codes for column in made})
  lines = LineNumbers()
  num_rows, missing = 0, collections.Counter()
  for number, row, text in text_rows(reader, format_name, columns, '--columns'):
    num_rows += 1
    values = []
    try:
      for column, value in zip(made, row, strict=True):
        values.append(column.parse(value))
    except Refused as error:
      missing[made[len(values)].name] += isinstance(error, Missing)
      reader.reject(number, str(error), text)
      continue
    for column, value in zip(kept.columns.values(), values, strict=True):
      column.append(value)
    lines.add(number)
    kept.make_room()
  kept.flush()
  check_rows(path, reader.lines, columns.values())
  # What a row lacks is told of its first column alone; a context column may
  # lack it.
  empty = {name for name, count in missing.items() if count == num_rows}
  if spool.num_rows:
    empty |= {column.name for column in made if column.codes} - kept.filled
  check_filled(path, columns, columns.keys() - empty)
  unit, rows, _ = spool.end_file(path)
  spool.refuse(rows)
  for row in rows.tolist():
    reader.reject(lines.of(row), odd_time(unit), '')
  check_rejected(reader)
  return (
    kept.finish(),
    [reader],
    [reader.source(format_name)],
    [*time_note(reader.path.name, unit), *reader.notes()],
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
  num_rows = num_missing = num_repeated = 0
  notes: list[str] = []

  def take(reader: Reader, rows: Iterable[tuple[int, Sequence, Any]]) -> None:
    nonlocal num_rows, num_missing, num_repeated
    for number, (item, *values), text in rows:
      num_rows += 1
      try:
        row = row_of.get(parse_identifier(key, item))
      except Refused as error:
        num_missing += isinstance(error, Missing)
        reader.reject(number, str(error), text)
        continue
      if row is not None and found[row] is None:
        found[row] = values
      elif row is not None:
        num_repeated += 1

  def check_keys(readers: Iterable[Reader]) -> None:
    check_rows(path, sum(reader.lines for reader in readers), wanted.values())
    if num_rows and num_missing == num_rows:
      check_filled(path, {'--item_key': key}, ())

  files = parquet_files(path, options)
  readers: list[Reader] = [*files]
  if files:
    check_columns(files, wanted, '--items')
    for file in files:
      for first, frame in file.slices(list(dict.fromkeys(wanted.values()))):
        # A column may be wanted twice, as the key and as an attribute.
        frame = frame.select(
          pl.col(column).alias(str(place))
          for place, column in enumerate(wanted.values())
        )
        rows = enumerate(frame.iter_rows(), first + 1)
        take(file, ((number, row, '') for number, row in rows))
    check_keys(files)
    check_all_rejected(path, files)
    sources = [file.source('items-parquet') for file in files]
    is_text = False
  else:
    format_name = text_format(path, options)
    is_text = format_name != 'json-lines'
    reader = LineReader(path, options)
    take(reader, text_rows(reader, format_name, wanted, '--items'))
    check_keys([reader])
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
  # A list may be empty.
  leaves = [c.explode() if c.dtype == pl.List else c for c in columns]
  check_filled(
    f'{path}, of the {num_found} items that the events have',
    {name: name for name in attributes},
    {leaf.name for leaf in leaves if leaf.null_count() < len(leaf)},
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
  folder: Path | None = None,
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
    folder: where events are kept while they are read; see `clean_events`.

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
  files = parquet_files(str(path), options)
  with tempfile.TemporaryDirectory(dir=folder) as made:
    if files:
      raw, readers, sources, notes = read_parquet(
        str(path), files, columns, Path(made)
      )
    else:
      raw, readers, sources, notes = _read_text(
        str(path), columns, options, Path(made)
      )
    log = clean_events(
      raw,
      folder=folder,
      counts={
        'lines': sum(reader.lines for reader in readers),
        'blank': sum(reader.blank for reader in readers),
        'rejected': sum(len(reader.rejected) for reader in readers),
      },
      sources=tuple(sources),
      notes=tuple(notes),
    )
    del raw
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
