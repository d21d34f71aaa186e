"""The one table that every source becomes: who, what, when.

Canonical order is by user, then timestamp, then source row. Amazon's reviews
carry whole days, and about 40 % of them share their day with an earlier one of
the same user, so this rule decides results.
"""

import array
import bisect
import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl

from eain_jax.data.columns import (
  BLOCK_ROWS,
  ColumnFiles,
  read_rows,
  release,
  row_blocks,
)
from eain_jax.data.lines import ReadOptions
from eain_jax.errors import InputError

MILLISECONDS_FROM = 10**11
MICROSECONDS_FROM = 10**14
UNITS = ('seconds', 'milliseconds', 'microseconds')
# What the names of context columns begin with, where they stand beside others.
CONTEXT = 'context.'
OPTIONAL = ('rating', 'label', 'request', 'position')
# Characters; no id or category is as long, and all of them are kept.
MAX_ID_LENGTH = 4_096


@dataclasses.dataclass(frozen=True)
class ContextColumn:
  """A categorical column of the log, such as device or location.

  Attributes:
    codes: int32 [N], index into `values`; -1 where the log has no value.
    values: raw values as strings, sorted and unique.
  """

  codes: np.ndarray
  values: pl.Series


@dataclasses.dataclass(frozen=True)
class EventLog:
  """N events of U users with I items, in canonical order.

  Attributes:
    user: int32 [N], row of `users`, non-decreasing.
    item: int32 [N], row of `items`.
    timestamp: int64 [N], seconds UTC (or any order that the log defines).
    users: raw user ids as strings, sorted and unique, [U].
    items: raw item ids as strings, sorted and unique, [I].
    item_attributes: one row an item, in the order of `items`; String, Float64
      or List(String) columns; null where the source has no value.
    rating: float32 [N], or None where the source has none.
    label: int8 [N] of 0 and 1, or None.
    request: int32 [N], numbered from 0 in order of appearance, or None.
    position: int32 [N], as the log has it, or None.
    context: categorical columns by name.
    counts: `lines`, `events`, `users`, `items`, `duplicates`, `rejected`, ...
    sources: per file its name, bytes, sha256 and detected format.
    notes: sentences that the user must see (what was assumed or left out).
  """

  user: np.ndarray
  item: np.ndarray
  timestamp: np.ndarray
  users: pl.Series
  items: pl.Series
  item_attributes: pl.DataFrame
  rating: np.ndarray | None = None
  label: np.ndarray | None = None
  request: np.ndarray | None = None
  position: np.ndarray | None = None
  context: Mapping[str, ContextColumn] = dataclasses.field(default_factory=dict)
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  sources: tuple[Mapping[str, object], ...] = ()
  notes: tuple[str, ...] = ()

  def columns(self) -> dict[str, np.ndarray]:
    """The columns that the log has, [N]; context columns as CONTEXT + name."""
    names = ('user', 'item', 'timestamp', *OPTIONAL)
    given = {name: getattr(self, name) for name in names}
    given |= {CONTEXT + name: c.codes for name, c in self.context.items()}
    return {
      name: column for name, column in given.items() if column is not None
    }

  def with_columns(self, columns: Mapping[str, np.ndarray]) -> 'EventLog':
    """The log with others in the place of all of `columns()`."""
    context = {
      name: ContextColumn(columns[CONTEXT + name], column.values)
      for name, column in self.context.items()
    }
    own = {n: c for n, c in columns.items() if not n.startswith(CONTEXT)}
    return dataclasses.replace(self, **own, context=context)

  def rows(self, begin: int, end: int) -> 'EventLog':
    """Some of the events, by views; users and items keep their numbers."""
    return self.with_columns(
      {name: column[begin:end] for name, column in self.columns().items()}
    )


@dataclasses.dataclass(frozen=True)
class RawColumn:
  """Strings as codes: `values[codes[i]]`; -1 for none.

  Attributes:
    codes: int32 [N].
    values: distinct strings, in any order.
  """

  codes: np.ndarray
  values: pl.Series


@dataclasses.dataclass(frozen=True)
class RawEvents:
  """N events in source order, before cleaning; see EventLog for the columns.

  Attributes:
    refused: int64, ascending: rows that are none.
  """

  user: RawColumn
  item: RawColumn
  timestamp: np.ndarray
  rating: np.ndarray | None = None
  label: np.ndarray | None = None
  request: RawColumn | None = None
  position: np.ndarray | None = None
  context: Mapping[str, RawColumn] = dataclasses.field(default_factory=dict)
  refused: np.ndarray = dataclasses.field(
    default_factory=lambda: np.zeros(0, np.int64)
  )

  def coded(self) -> dict[str, RawColumn]:
    """The columns of strings, by name; context columns as CONTEXT + name."""
    given = {'user': self.user, 'item': self.item, 'request': self.request}
    given |= {CONTEXT + name: c for name, c in self.context.items()}
    return {name: column for name, column in given.items() if column}

  def columns(self) -> dict[str, np.ndarray]:
    """All columns, by name; codes of those of strings."""
    names = ('timestamp', 'rating', 'label', 'position')
    given = {name: getattr(self, name) for name in names}
    given |= {name: column.codes for name, column in self.coded().items()}
    return {
      name: column for name, column in given.items() if column is not None
    }

  def blocks(self) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """By some rows at a time: takes those of a column that are not refused."""
    for rows in row_blocks(len(self.timestamp)):
      begin, end = np.searchsorted(self.refused, [rows.start, rows.stop])
      yield functools.partial(
        _take, rows=rows, refused=self.refused[begin:end] - rows.start
      )


def _take(column: np.ndarray, rows: slice, refused: np.ndarray) -> np.ndarray:
  return np.delete(column[rows], refused) if len(refused) else column[rows]


def _sort_values(
  values: pl.Series, used: np.ndarray
) -> tuple[pl.Series, np.ndarray]:
  """The values that are used, sorted.

  Args:
    values: [V].
    used: bool [V + 1]; the last place is that of code -1.

  Returns:
    Those values; and int32 [V + 1], the new code of each, -1 for others.
  """
  kept = np.flatnonzero(used[:-1])
  if len(kept) < len(values):
    values = values.gather(kept)
  rank = np.full(len(used), -1, np.int32)
  if values.is_sorted():
    # A merge of pieces leaves them so, and to take them again is much memory.
    rank[kept] = np.arange(len(kept), dtype=np.int32)
    return values, rank
  order = sorting(values)
  rank[kept[order]] = np.arange(len(kept), dtype=np.int32)
  return values.gather(order), rank


def sorting(values: pl.Series) -> np.ndarray:
  """The order that sorts values."""
  # One thread: polars sorts strings on several at twice the work.
  by_value = pl.arg_sort_by('value', multithreaded=False)
  table = pl.DataFrame({'value': values}).select(by_value)
  return table.to_series().to_numpy()


def _canonical_order(user: np.ndarray, timestamp: np.ndarray) -> np.ndarray:
  """int64 [N], the rows by user, then timestamp, then row."""
  begin = int(timestamp.min())
  num_bits = (int(timestamp.max()) - begin).bit_length()
  if int(user.max()).bit_length() + num_bits > 63:
    return np.lexsort((timestamp, user))
  # Far faster than lexsort, but rows of one key come in any order.
  key = user.astype(np.int64)
  key <<= num_bits
  key |= timestamp - begin
  order = np.argsort(key)
  run, place = _runs(key[order])
  run <<= 32
  run |= order[place]
  run.sort()
  order[place] = run & (2**32 - 1)
  return order


def _runs(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Where columns, [N], stay as they are in the row before, all of them.

  Returns:
    int64 [M], numbers of such runs of two rows or more, non-decreasing, and
    int64 [M], their places.
  """
  same = np.ones(len(columns[0]) + 1, bool)
  same[[0, -1]] = False
  for column in columns:
    same[1:-1] &= column[1:] == column[:-1]
  place = np.flatnonzero(same[1:] | same[:-1])
  return np.cumsum(~same[place]), place


def _first_of_repeats(
  user: np.ndarray,
  timestamp: np.ndarray,
  others: list[np.ndarray],
  label: np.ndarray | None = None,
) -> np.ndarray:
  """bool [N]: False for a row that repeats an earlier one.

  Args:
    user: int32 [N], in canonical order as all columns.
    timestamp: int64 [N].
    others: columns that a repeat shares beside those; the first holds items.
    label: int8 [N]; where repeats differ in it, as what was shown and then
      clicked, the first with 1 stays.
  """
  kept = np.ones(len(user), bool)
  # Repeats stand within runs of user and timestamp.
  run, place = _runs(user, timestamp)
  item = others[0][place].astype(np.int64)
  key = np.sort(run << 32 | item)
  suspect = key[1:][key[1:] == key[:-1]] >> 32
  at = np.flatnonzero(np.isin(run, suspect))
  run, place = run[at], place[at]
  keys = [run, *(column[place] for column in others)]
  # lexsort is stable and rows of a run stand in source order.
  last = [] if label is None else [-label[place]]
  by_key = np.lexsort([*last, *keys[::-1]])
  repeated = np.ones(max(len(run) - 1, 0), bool)
  for column in keys:
    repeated &= column[by_key[1:]] == column[by_key[:-1]]
  kept[place[by_key[1:][repeated]]] = False
  return kept


def _clean_block(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Columns of some users' events in canonical order, without repeats."""
  order = _canonical_order(columns['user'], columns['timestamp'])
  columns = {name: column[order] for name, column in columns.items()}
  others = [c for c in ('item', 'request', 'position') if c in columns]
  kept = _first_of_repeats(
    columns['user'],
    columns['timestamp'],
    [columns[name] for name in others],
    columns.get('label'),
  )
  if kept.all():
    return columns
  return {name: column[kept] for name, column in columns.items()}


class _SortedBlocks:
  """Raw events on the disk, blocks of them sorted by user each.

  The events of some users can be taken from these together, so no more than a
  block is ever sorted in memory; or what one user has, where that is more.
  """

  def __init__(
    self, raw: RawEvents, rank: Mapping[str, np.ndarray], folder: Path
  ):
    """`rank` holds by name the final number of each code of a column."""
    files = ColumnFiles(folder)
    name_of = {name: f'sorted{i}' for i, name in enumerate(raw.columns())}
    self._begins = [0]
    # Of each user, the number of events; made to be where they begin.
    start = np.zeros(int(rank['user'].max()) + 2, np.int64)
    for take in raw.blocks():
      user = rank['user'][take(raw.user.codes)]
      # Far faster than a stable argsort.
      order = user.astype(np.int64) << 32 | np.arange(len(user))
      order.sort()
      order &= 2**32 - 1
      for name, column in raw.columns().items():
        rows = take(column)
        if name in rank:
          rows = rank[name][rows]
        files.append(name_of[name], rows[order])
      users, counts = np.unique(user, return_counts=True)
      start[users + 1] += counts
      self._begins.append(self._begins[-1] + len(user))
      release(*raw.columns().values())
    self._user_start = np.cumsum(start, out=start)
    self._columns = {name: files.map(file) for name, file in name_of.items()}

  def by_users(self) -> Iterator[dict[str, np.ndarray]]:
    """The columns of some users' events, in source order; then of the next."""
    wanted = [*range(0, self._begins[-1], BLOCK_ROWS), self._begins[-1]]
    bounds = np.unique(np.searchsorted(self._user_start, wanted))
    bounds_in_block = []
    for begin, end in itertools.pairwise(self._begins):
      user = read_rows(self._columns['user'], begin, end)
      bounds_in_block.append(begin + np.searchsorted(user, bounds))
    for i in range(len(bounds) - 1):
      yield {
        name: np.concatenate(
          [read_rows(column, b[i], b[i + 1]) for b in bounds_in_block]
        )
        for name, column in self._columns.items()
      }


class _LogColumns:
  """Columns of a log that come some rows at a time, in canonical order."""

  def __init__(self, folder: Path):
    self._files = ColumnFiles(folder)
    self._name_of: dict[str, str] = {}
    # Of each code of a request, its number in order of first appearance.
    self._request_of = np.zeros(0, np.int32)
    self._num_requests = 0

  def append(self, columns: Mapping[str, np.ndarray]) -> None:
    """Adds rows; their requests are numbered anew."""
    for name, rows in columns.items():
      if name == 'request':
        rows = self._number_requests(rows)
      file = self._name_of.setdefault(name, f'log{len(self._name_of)}')
      self._files.append(file, rows)

  def _number_requests(self, codes: np.ndarray) -> np.ndarray:
    missing = int(codes.max(initial=-1)) + 1 - len(self._request_of)
    if missing > 0:
      size = max(missing, len(self._request_of))
      self._request_of = np.append(
        self._request_of, np.full(size, -1, np.int32)
      )
    is_new = self._request_of[codes] < 0
    new, first = np.unique(codes[is_new], return_index=True)
    numbers = np.arange(len(new), dtype=np.int32) + self._num_requests
    self._request_of[new[np.argsort(first)]] = numbers
    self._num_requests += len(new)
    return self._request_of[codes]

  def finish(self) -> dict[str, np.ndarray]:
    """All columns, mapped; their files need not stay."""
    return {n: self._files.map(file) for n, file in self._name_of.items()}


def clean_events(
  raw: RawEvents,
  *,
  folder: Path | None = None,
  counts: Mapping[str, int],
  sources: tuple[Mapping[str, object], ...],
  notes: tuple[str, ...],
) -> EventLog:
  """Raw events in canonical order, without exact repeats.

  A repeat has the user, item and timestamp of an earlier row, and its request
  and position where the log has those: a list may show an item twice. The
  first source row stays, or the first of label 1 where labels differ.

  Args:
    raw: events in source order.
    folder: where columns are written, and gone from when this returns; their
      disk has its room back when the log is let go. None is the system's own
      for such.
    counts: 'lines' and 'rejected', at least.
    sources: where they came from.
    notes: what the user must see.

  Returns:
    The log, its columns mapped; its item_attributes have no columns yet.

  Raises:
    InputError: there is no event.
  """
  num_rows = len(raw.timestamp) - len(raw.refused)
  if not num_rows:
    names = ', '.join(str(source['name']) for source in sources)
    raise InputError(f'{names}: not one event could be read')
  values, rank = {}, {}
  for name, column in raw.coded().items():
    used = np.zeros(len(column.values) + 1, bool)
    for take in raw.blocks():
      used[take(column.codes)] = True
      release(column.codes)
    values[name], rank[name] = _sort_values(column.values, used)
  with tempfile.TemporaryDirectory(dir=folder) as made:
    blocks = _SortedBlocks(raw, rank, Path(made))
    writer = _LogColumns(Path(made))
    for block in blocks.by_users():
      writer.append(_clean_block(block))
    columns = writer.finish()
  num_events = len(columns['user'])
  log = EventLog(
    columns['user'],
    columns['item'],
    columns['timestamp'],
    values['user'].rename('user'),
    values['item'].rename('item'),
    pl.DataFrame(),
    context={
      name: ContextColumn(columns[CONTEXT + name], values[CONTEXT + name])
      for name in raw.context
    },
    counts={
      **counts,
      'events': num_events,
      'users': len(values['user']),
      'items': len(values['item']),
      'duplicates': num_rows - num_events,
    },
    sources=sources,
    notes=notes,
  )
  return log.with_columns(columns)


def _k_core_rows(log: EventLog, k: int) -> np.ndarray:
  """bool [N], the events of the largest part where each user and item has k."""
  num_events, num_users = len(log.user), len(log.users)
  kept = np.ones(num_events, bool)
  dropped = True
  while dropped:
    of_user = np.zeros(num_users, np.int64)
    of_item = np.zeros(len(log.items), np.int64)
    for rows in row_blocks(num_events):
      at = kept[rows]
      of_user += np.bincount(log.user[rows][at], minlength=num_users)
      of_item += np.bincount(log.item[rows][at], minlength=len(log.items))
    few_user, few_item = of_user < k, of_item < k
    dropped = False
    for rows in row_blocks(num_events):
      few = few_user[log.user[rows]] | few_item[log.item[rows]]
      dropped |= bool((kept[rows] & few).any())
      kept[rows] &= ~few
      release(log.user, log.item)
  return kept


def k_core(log: EventLog, k: int, folder: Path | None = None) -> EventLog:
  """The largest part of a log where every user and item has k events.

  Counts what it drops as `k_core_dropped`; `folder` is that of `clean_events`.

  Raises:
    InputError: nothing is left.
  """
  num_events, kept = len(log.user), _k_core_rows(log, k)
  if not kept.any():
    raise InputError(f'no user and item have {k} events: lower --k_core')
  columns = log.columns()
  values = {'user': log.users, 'item': log.items}
  values |= {CONTEXT + name: c.values for name, c in log.context.items()}
  attributes = log.item_attributes
  rank = {}
  for name in values:
    used = np.zeros(len(values[name]) + 1, bool)
    for rows in row_blocks(num_events):
      used[columns[name][rows][kept[rows]]] = True
      release(columns[name])
    values[name], rank[name] = _sort_values(values[name], used)
    if name == 'item' and attributes.width:
      attributes = attributes.filter(pl.Series(used[:-1]))
  with tempfile.TemporaryDirectory(dir=folder) as made:
    writer = _LogColumns(Path(made))
    for rows in row_blocks(num_events):
      block = {
        name: column[rows][kept[rows]] for name, column in columns.items()
      }
      writer.append(
        {n: rank[n][rows] if n in rank else rows for n, rows in block.items()}
      )
      release(*columns.values())
    columns = writer.finish()
  num_kept = len(columns['user'])
  return dataclasses.replace(
    log,
    users=values['user'],
    items=values['item'],
    item_attributes=attributes,
    context={
      name: ContextColumn(column.codes, values[CONTEXT + name])
      for name, column in log.context.items()
    },
    counts={
      **log.counts,
      'events': num_kept,
      'users': len(values['user']),
      'items': len(values['item']),
      'k_core_dropped': num_events - num_kept,
    },
  ).with_columns(columns)


def count_units(timestamp: np.ndarray) -> np.ndarray:
  """int64 [3], how many timestamps look like each of UNITS."""
  num_micro = np.count_nonzero(timestamp >= MICROSECONDS_FROM)
  num_milli = np.count_nonzero(timestamp >= MILLISECONDS_FROM) - num_micro
  return np.array(
    [len(timestamp) - num_micro - num_milli, num_milli, num_micro]
  )


def count_dates(timestamp: np.ndarray) -> int:
  """How many are YYYYMMDD, with hhmm or hhmmss or without, of 1990 to 2100.

  As seconds the first are of August 1970, as milliseconds the others of 1976
  and 2600.
  """
  day = np.where(timestamp >= 10**11, timestamp // 10**4, timestamp)
  day = np.where(timestamp >= 10**13, timestamp // 10**6, day)
  year, month = day // 10_000, day // 100 % 100
  is_date = (year >= 1990) & (year <= 2100) & (month >= 1) & (month <= 12)
  return int(np.count_nonzero(is_date & (day % 100 >= 1) & (day % 100 <= 31)))


def to_seconds(
  timestamp: np.ndarray, unit: int
) -> tuple[np.ndarray, np.ndarray]:
  """Timestamps of one file as seconds.

  From 1e14 up they look like microseconds, from 1e11 up like milliseconds, else
  like seconds (or any order that the log defines).

  Args:
    timestamp: int64 [N].
    unit: index in UNITS of that which most of the file looks like.

  Returns:
    int64 [N] seconds; and bool [N], True where a value is of another magnitude
    than most and so cannot be trusted.
  """
  looks = (timestamp >= MILLISECONDS_FROM).astype(np.int8)
  looks += timestamp >= MICROSECONDS_FROM
  return timestamp // 1000**unit if unit else timestamp, looks != unit


class Reader(Protocol):
  """What a LineReader, or what stands for it, knows after reading."""

  path: Path
  options: ReadOptions
  lines: int
  blank: int
  rejected: list[tuple[int, str, str]]

  @property
  def name(self) -> str: ...

  def reject(self, line: int, reason: str, text: bytes | str) -> None: ...


def check_rejected(reader: Reader) -> None:
  """Raises InputError where more lines were rejected than allowed, or all."""
  num = len(reader.rejected)
  if num and num == reader.lines:
    line, reason, _ = min(reader.rejected)
    raise InputError(
      f'{reader.path}: all of its lines, {num}, were rejected, the first in '
      f'line {line}: {reason}; this is not the file that it should be'
    )
  if num > reader.options.max_rejected * reader.lines:
    line, reason, _ = min(reader.rejected)
    raise InputError(
      f'{reader.path}: {len(reader.rejected)} of {reader.lines} lines were '
      f'rejected, the first in line {line}: {reason}; mend the file, or allow '
      'a larger share with --max_rejected'
    )
  if not reader.lines:
    raise InputError(f'{reader.path} holds no line of data')


def rejected_table(readers: Iterable[Reader]) -> pl.DataFrame:
  """file, line, reason and text of every rejected line."""
  rows = [
    (reader.name, *rejected)
    for reader in readers
    for rejected in sorted(reader.rejected)
  ]
  schema = {
    'file': pl.String,
    'line': pl.Int64,
    'reason': pl.String,
    'text': pl.String,
  }
  return pl.DataFrame(rows, schema=schema, orient='row')


class LineNumbers:
  """The lines that rows stood in, ascending: runs of them, not one by one."""

  def __init__(self):
    self._rows, self._lines = array.array('q'), array.array('q')
    self._num_rows, self._next_line = 0, -1

  def add(self, line: int, num: int = 1) -> None:
    """Adds `num` rows, of this line and those that follow it."""
    if line != self._next_line:
      self._rows.append(self._num_rows)
      self._lines.append(line)
    self._num_rows += num
    self._next_line = line + num

  def of(self, row: int) -> int:
    """The line of a row, from 0."""
    run = bisect.bisect_right(self._rows, row) - 1
    return self._lines[run] + row - self._rows[run]


class _Numbers(dict[str, int]):
  """Numbers a string when it is first looked up, if `accepts` lets it."""

  def __init__(self, accepts: Callable[[str], bool] | None):
    self._accepts = accepts

  def __missing__(self, value: str) -> int:
    if self._accepts is not None and not self._accepts(value):
      return -1
    number = self[value] = len(self)
    return number


class Codes:
  """Numbers strings in order of appearance.

  A string that `accepts` does not let pass has no number, but -1.
  """

  def __init__(self, accepts: Callable[[str], bool] | None = None):
    self._number = _Numbers(accepts)

  def __call__(self, value: str) -> int:
    return self._number[value]

  def of(self, values: Sequence[str]) -> np.ndarray:
    """int32, the numbers of many strings."""
    # One call of C for all: this is done for each event of a source.
    numbers = map(self._number.__getitem__, values)
    return np.fromiter(numbers, np.int32, len(values))

  @property
  def num_values(self) -> int:
    return len(self._number)

  def get(self, value: str) -> int | None:
    """The number of a string that has one."""
    return self._number.get(value)

  def pop_values(self) -> pl.Series:
    """The strings, in the order of their numbers, which are forgotten.

    They are most of what a reader keeps, and are not to be there twice.
    """
    values = pl.Series(list(self._number), dtype=pl.String)
    self._number.clear()
    return values
