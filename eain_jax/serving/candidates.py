"""A file of candidates, (user, item, time, context), as blocks of its rows.

CSV, TSV, JSON lines, plain or gzip, or Parquet: a file, a folder or a glob. A
block is all that is in memory. A row that cannot be used is rejected with its
number and reason, as in preparation; one whose user or item is unknown can be.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from eain_jax.artifacts import hash_values
from eain_jax.data.events import (
  MICROSECONDS_FROM,
  MILLISECONDS_FROM,
  check_rejected,
  rejected_table,
)
from eain_jax.data.lines import LineReader, ReadOptions
from eain_jax.data.log_files import text_format, text_rows
from eain_jax.data.log_values import (
  Refused,
  parse_category,
  parse_identifier,
  parse_timestamp,
)
from eain_jax.data.parquet_log import (
  check_all_rejected,
  check_columns,
  parquet_files,
)
from eain_jax.errors import InputError

# Between the items of a history in a field of CSV or TSV.
SEPARATOR = '|'
HISTORY = ('history', 'history_timestamp')
_KEPT = 'kept.'


@dataclasses.dataclass
class Rows:
  """Rows of a file that can be used, in its order.

  Attributes:
    user: raw ids.
    item: raw ids; none where the file has no such column.
    timestamp: int64 seconds UTC.
    context: by our name raw values, None for none.
    history: of each row raw ids, the oldest first; None without such a column.
    history_timestamp: of each row int64 seconds; None without.
    kept: by the source's name, what passes through as it is.
  """

  user: list[str]
  item: list[str]
  timestamp: list[int]
  context: dict[str, list[str | None]]
  history: list[list[str]] | None
  history_timestamp: list[list[int]] | None
  kept: dict[str, list[Any]]

  def __len__(self) -> int:
    return len(self.user)

  def take(self, num: int) -> 'Rows':
    """Takes the first `num` rows out."""
    lists = [self.user, self.item, self.timestamp]
    lists += [*self.context.values(), *self.kept.values()]
    if self.history is not None and self.history_timestamp is not None:
      lists += [self.history, self.history_timestamp]
    cut = iter([values[:num] for values in lists])
    for values in lists:
      del values[:num]
    return Rows(
      next(cut),
      next(cut),
      next(cut),
      {name: next(cut) for name in self.context},
      kept={name: next(cut) for name in self.kept},
      history=next(cut, None),
      history_timestamp=next(cut, None),
    )


# The file, number, values and text of a row.
_RawRow = tuple[Any, int, Sequence[Any], Any]
# Few enough to lie in the processor's cache: twice as fast as thousands.
_CHUNK_ROWS = 256
_MAX_PARSED = 1 << 18


def _chunks(rows: Iterable[_RawRow], size: int) -> Iterator[list[_RawRow]]:
  rows = iter(rows)
  while chunk := list(itertools.islice(rows, size)):
    yield chunk


def category(name: str, value: Any) -> str | None:
  """A raw value of a context column as text; None for none."""
  if value is None or (isinstance(value, str) and not value.strip()):
    return None
  return parse_category(name, value)


def seconds(name: str, value: Any) -> int:
  """A time as seconds; one in milli- or microseconds is told by its size."""
  time = parse_timestamp(name, _plain_time(value))
  if abs(time) >= MICROSECONDS_FROM:
    return time // 1_000_000
  return time // 1_000 if abs(time) >= MILLISECONDS_FROM else time


def _plain_time(value: Any) -> Any:
  """Dates of Parquet as text that `parse_timestamp` reads."""
  return value.isoformat() if hasattr(value, 'isoformat') else value


def _entries(value: Any) -> list[Any]:
  """A history of any format as a list."""
  if value is None or value == '':
    return []
  return value.split(SEPARATOR) if isinstance(value, str) else list(value)


def _parse_history(
  items: Any, times: Any, before: int
) -> tuple[list[str], list[int]]:
  """The events of a history before a time, the oldest first.

  Raises:
    Refused: it is none, or its times are not those of its items.
  """
  if not isinstance(items, str | list | None):
    raise Refused(f'the history is {items!r}, no list')
  raw = [parse_identifier('history', item) for item in _entries(items)]
  if not isinstance(times, str | list | None):
    raise Refused(f'the history_timestamp is {times!r}, no list')
  moments = [seconds('history_timestamp', time) for time in _entries(times)]
  if len(raw) != len(moments):
    raise Refused(
      f'the history has {len(raw)} items, and history_timestamp {len(moments)}'
    )
  # Of events at one time the first stays the first.
  order = sorted(
    (place for place, time in enumerate(moments) if time < before),
    key=moments.__getitem__,
  )
  return [raw[i] for i in order], [moments[i] for i in order]


class CandidateFile:
  """Reads candidates once, from the first row to the last.

  Attributes:
    kept: by the source's name of each column that passes through its type;
      None where values are those of JSON.
  """

  def __init__(
    self,
    path: str | Path,
    columns: Mapping[str, str],
    keep: Sequence[str],
    options: ReadOptions,
    time: int | None = None,
  ):
    """Opens a file; nothing but its format and columns is looked at.

    Args:
      path: of the file, the folder, or a glob of Parquet files.
      columns: our names to the source's: user, item (or not, where users are
        asked of alone), timestamp (but with `time`), context columns, and
        history and history_timestamp or neither.
      keep: columns of the source that pass through.
      options: how forgiving to be.
      time: seconds, of all rows, in place of a column.

    Raises:
      InputError: it is not there, or of none of the formats, or lacks a column.
    """
    self._path, self._options, self._time = str(path), options, time
    self._columns = dict(columns)
    if time is not None:
      self._columns.pop('timestamp', None)
    wanted = {f'{_KEPT}{name}': name for name in keep}
    self._wanted = {**self._columns, **wanted}
    self._files = parquet_files(self._path, options)
    self._readers: list[Any] = list(self._files)
    # By column and kind of value what was read before.
    self._parsed: dict[tuple, dict[Any, Any]] = {}
    self.kept: dict[str, pl.DataType | None] = {}
    if self._files:
      self._format = 'parquet'
      check_columns(self._files, self._wanted, '--columns')
      for name in keep:
        types = [f.schema.get(name, pl.String()) for f in self._files]
        known = [dtype for dtype in types if dtype != pl.Null]
        self.kept[name] = known[0] if known else pl.Null()
      return
    self._format = text_format(path, options)
    is_json = self._format == 'json-lines'
    self.kept = dict.fromkeys(keep, None if is_json else pl.String())

  def blocks(self, num_rows: int) -> Iterator[Rows]:
    """The rows that can be used, `num_rows` at a time, the last ones fewer.

    Raises:
      InputError: the file is damaged, or too many rows are rejected.
    """
    rows = self._empty()
    for chunk in _chunks(self._raw_rows(), _CHUNK_ROWS):
      if not self._add_plain(rows, chunk):
        for reader, number, values, text in chunk:
          try:
            self._add(rows, values)
          except Refused as error:
            reader.reject(number, str(error), text)
      while len(rows) >= num_rows:
        yield rows.take(num_rows)
    if len(rows):
      yield rows
    if self._files:
      check_all_rejected(self._path, self._files)
    else:
      check_rejected(self._readers[0])

  def identity(self) -> str:
    """A hash of the names, sizes and dates of the files."""
    paths = [file.path for file in self._files] or [Path(self._path)]
    stats = [(str(path), path.stat()) for path in paths]
    return hash_values(
      {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats}
    )

  def check_kept(self, format_name: str, own: Sequence[str]) -> None:
    """Looks whether what passes through can stand in an output.

    Args:
      format_name: of the output, see `parts.FORMATS`.
      own: names of the output's own columns.

    Raises:
      InputError: a column has a name of those, or is of a type that the format
        cannot hold.
    """
    for name, dtype in self.kept.items():
      if name in own:
        raise InputError(
          f'the column {name!r} of {self._path} has a name of the output, '
          f'{", ".join(own)}: rename it, or leave it out'
        )
      if dtype is None:
        continue
      is_text = format_name in ('csv', 'tsv')
      if (is_text and (dtype.is_nested() or dtype == pl.Duration)) or (
        dtype == pl.Binary and format_name != 'parquet'
      ):
        raise InputError(
          f'the column {name!r} of {self._path} is {dtype}, which '
          f'{format_name} cannot hold: write .parquet, or leave it out'
        )

  def sources(self) -> list[dict[str, Any]]:
    """Name, size, sha256 and rows of each file, once all were read."""
    return [reader.source(self._format) for reader in self._readers]

  def rejected(self) -> pl.DataFrame:
    """file, line, reason and text of each row that was rejected."""
    return rejected_table(self._readers)

  def _empty(self) -> Rows:
    names = [n for n in self._columns if n not in (*HISTORY, *_REQUEST)]
    has_history = 'history' in self._columns
    return Rows(
      [],
      [],
      [],
      {name: [] for name in names},
      [] if has_history else None,
      [] if has_history else None,
      {name: [] for name in self.kept},
    )

  def _add_plain(self, rows: Rows, chunk: Sequence[_RawRow]) -> bool:
    """Adds all of a chunk, or none of it: False where it takes a closer look.

    Most rows are plain, and to look at each distinct value once is many times
    faster than to look at each row.
    """
    if rows.history is not None:
      return False
    columns = dict(
      zip(
        self._wanted, zip(*(row[2] for row in chunk), strict=True), strict=True
      )
    )
    made: dict[str, list[Any]] = {}
    parsers = {
      'user': parse_identifier,
      'item': parse_identifier,
      'timestamp': seconds,
      **dict.fromkeys(rows.context, category),
    }
    for name, parse in parsers.items():
      if name not in columns:
        if name == 'timestamp':
          made[name] = [self._time] * len(chunk)
        continue
      values = columns[name]
      kinds = set(map(type, values)) - {type(None)}
      # Of two kinds values may be equal, as True and 1, and mean two things.
      if len(kinds) > 1 or not kinds <= {str, int, float}:
        return False
      parsed = self._parsed.setdefault((name, *kinds), {})
      if len(parsed) > _MAX_PARSED:
        parsed.clear()
      try:
        for value in set(values):
          if value not in parsed:
            parsed[value] = parse(name, value)
      except Refused:
        return False
      made[name] = list(map(parsed.__getitem__, values))
    rows.user += made['user']
    rows.item += made.get('item', [])
    rows.timestamp += made['timestamp']
    for name, values in rows.context.items():
      values += made[name]
    for name, kept in rows.kept.items():
      kept += columns[f'{_KEPT}{name}']
    return True

  def _add(self, rows: Rows, values: Sequence[Any]) -> None:
    """Adds a row, whole or not at all.

    Raises:
      Refused: a value cannot be used.
    """
    by_name = dict(zip(self._wanted, values, strict=True))
    user = parse_identifier('user', by_name['user'])
    item = None
    if 'item' in self._columns:
      item = parse_identifier('item', by_name['item'])
    time = self._time
    if time is None:
      time = seconds('timestamp', by_name['timestamp'])
    context = {name: category(name, by_name[name]) for name in rows.context}
    if rows.history is not None and rows.history_timestamp is not None:
      items, times = _parse_history(
        by_name['history'], by_name['history_timestamp'], time
      )
      rows.history.append(items)
      rows.history_timestamp.append(times)
    rows.user.append(user)
    if item is not None:
      rows.item.append(item)
    rows.timestamp.append(time)
    for name, value in context.items():
      rows.context[name].append(value)
    for name, kept in rows.kept.items():
      kept.append(by_name[f'{_KEPT}{name}'])

  def _raw_rows(self) -> Iterator[_RawRow]:
    """The file, number, values and text of each row."""
    if not self._files:
      reader = LineReader(self._path, self._options)
      self._readers = [reader]
      for number, values, text in text_rows(
        reader,
        self._format,
        self._wanted,
        '--columns or --keep',
        within_line=self._columns.values(),
      ):
        yield reader, number, values, text
      return
    columns = list(dict.fromkeys(self._wanted.values()))
    for file in self._files:
      for first, frame in file.slices(columns):
        # Python's times have no nanoseconds: what passes through does not
        # become one.
        table = pl.DataFrame(
          [
            (
              frame[column].to_physical()
              if name.startswith(_KEPT) and frame[column].dtype.is_temporal()
              else frame[column]
            ).alias(name)
            for name, column in self._wanted.items()
          ]
        )
        for number, row in enumerate(table.iter_rows(), first + 1):
          yield file, number, row, ''


_REQUEST = ('user', 'item', 'timestamp')


def as_series(name: str, values: list[Any], dtype: pl.DataType | None):
  """A kept column; values of JSON that are no text become their JSON.

  Raises:
    InputError: the files of a source have columns of one name and two types.
  """
  if dtype is None:
    texts = [
      value
      if value is None or isinstance(value, str)
      else msgspec.json.encode(value).decode()
      for value in values
    ]
    return pl.Series(name, texts, pl.String)
  try:
    if dtype.is_temporal():
      return pl.Series(name, values, pl.Int64, strict=True).cast(dtype)
    return pl.Series(name, values, dtype, strict=True)
  except (TypeError, pl.exceptions.PolarsError) as error:
    raise InputError(
      f'the column {name!r} is not {dtype} in all files: write them with one '
      'type, or leave it out of --keep'
    ) from error
