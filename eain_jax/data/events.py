"""The one table that every source becomes: who, what, when.

Canonical order is by user, then timestamp, then source row. Amazon's reviews
carry whole days, and about 40 % of them share their day with an earlier one of
the same user, so this rule decides results.
"""

import array
import bisect
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl

from eain_jax.data.columns import row_blocks
from eain_jax.data.lines import ReadOptions
from eain_jax.errors import InputError

MILLISECONDS_FROM = 10**11
MICROSECONDS_FROM = 10**14
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

  def rows(self, begin: int, end: int) -> 'EventLog':
    """Some of the events, by views; users and items keep their numbers."""
    take = lambda column: None if column is None else column[begin:end]
    return dataclasses.replace(
      self,
      user=self.user[begin:end],
      item=self.item[begin:end],
      timestamp=self.timestamp[begin:end],
      rating=take(self.rating),
      label=take(self.label),
      request=take(self.request),
      position=take(self.position),
      context={
        name: ContextColumn(column.codes[begin:end], column.values)
        for name, column in self.context.items()
      },
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
  """Events in source order, before cleaning; see EventLog for the columns."""

  user: RawColumn
  item: RawColumn
  timestamp: np.ndarray
  rating: np.ndarray | None = None
  label: np.ndarray | None = None
  request: RawColumn | None = None
  position: np.ndarray | None = None
  context: Mapping[str, RawColumn] = dataclasses.field(default_factory=dict)


def _sort_values(column: RawColumn) -> pl.Series:
  """The sorted values that an event has; codes are made to index into them."""
  # The last place is that of -1.
  used = np.zeros(len(column.values) + 1, bool)
  used[column.codes] = True
  kept = np.flatnonzero(used[:-1])
  values = column.values.gather(kept)
  # One thread: polars sorts strings on several at twice the work.
  by_value = pl.arg_sort_by('value', multithreaded=False)
  order = pl.DataFrame({'value': values}).select(by_value)['value'].to_numpy()
  rank = np.full(len(column.values) + 1, -1, np.int32)
  rank[kept[order]] = np.arange(len(kept), dtype=np.int32)
  for rows in row_blocks(len(column.codes)):
    column.codes[rows] = rank[column.codes[rows]]
  return values.gather(order)


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
  run, place = _runs(len(key), lambda rows: (key[order[rows]],))
  run <<= 32
  run |= order[place]
  run.sort()
  order[place] = run & (2**32 - 1)
  return order


def _runs(
  num_rows: int, columns: Callable[[slice], tuple[np.ndarray, ...]]
) -> tuple[np.ndarray, np.ndarray]:
  """Where columns stay as they are in the row before, all of them.

  Args:
    num_rows: their length.
    columns: some rows of them.

  Returns:
    int64 [M], numbers of such runs of two rows or more, non-decreasing, and
    int64 [M], their places.
  """
  same = np.ones(num_rows + 1, bool)
  same[[0, -1]] = False
  for rows in row_blocks(num_rows - 1):
    for column in columns(slice(rows.start, rows.stop + 1)):
      same[rows.start + 1 : rows.stop + 1] &= column[1:] == column[:-1]
  place = np.flatnonzero(same[1:] | same[:-1])
  return np.cumsum(~same[place]), place


def _first_of_repeats(
  user: np.ndarray,
  timestamp: np.ndarray,
  order: np.ndarray,
  others: list[np.ndarray],
) -> np.ndarray:
  """bool [N], along `order`: False for a row that repeats an earlier one.

  Args:
    user: int32 [N] in canonical order.
    timestamp: int64 [N] in canonical order.
    order: int64 [N], the canonical order.
    others: columns in source order that a repeat shares beside those; the
      first holds items.
  """
  kept = np.ones(len(order), bool)
  # Repeats stand within runs of user and timestamp.
  run, place = _runs(len(order), lambda rows: (user[rows], timestamp[rows]))
  item = others[0][order[place]].astype(np.int64)
  key = np.sort(run << 32 | item)
  suspect = key[1:][key[1:] == key[:-1]] >> 32
  at = np.flatnonzero(np.isin(run, suspect))
  run, place = run[at], place[at]
  keys = [run, *(column[order[place]] for column in others)]
  # lexsort is stable and rows of a run stand in source order.
  by_key = np.lexsort(keys[::-1])
  repeated = np.ones(max(len(run) - 1, 0), bool)
  for column in keys:
    repeated &= column[by_key[1:]] == column[by_key[:-1]]
  kept[place[by_key[1:][repeated]]] = False
  return kept


def _by_appearance(codes: np.ndarray) -> np.ndarray:
  """int32 [N], `codes` numbered from 0 in order of their first appearance."""
  _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
  number = np.empty(len(first), np.int32)
  number[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
  return number[inverse]


def clean_events(
  raw: RawEvents,
  *,
  counts: Mapping[str, int],
  sources: tuple[Mapping[str, object], ...],
  notes: tuple[str, ...],
) -> EventLog:
  """Raw events in canonical order, without exact repeats.

  A repeat has the user, item and timestamp of an earlier row, and its request
  and position where the log has those: a list may show an item twice. The
  first source row stays.

  Args:
    raw: events in source order; it is used up: its arrays become the log's.
    counts: 'lines' and 'rejected', at least.
    sources: where they came from.
    notes: what the user must see.

  Returns:
    The log; its item_attributes have no columns yet.

  Raises:
    InputError: there is no event.
  """
  if not len(raw.timestamp):
    names = ', '.join(str(source['name']) for source in sources)
    raise InputError(f'{names}: not one event could be read')
  user, users = raw.user.codes, _sort_values(raw.user)
  item, items = raw.item.codes, _sort_values(raw.item)
  order = _canonical_order(user, raw.timestamp)

  def take(column: np.ndarray) -> np.ndarray:
    """The column in order, in its own place: a second one is much memory."""
    column[: len(order)] = column[order]
    return column[: len(order)]

  user, timestamp = take(user), take(raw.timestamp)
  others = [item]
  if raw.request is not None:
    others.append(raw.request.codes)
  if raw.position is not None:
    others.append(raw.position)
  kept = _first_of_repeats(user, timestamp, order, others)
  num_repeated = len(kept) - int(np.sum(kept))
  if num_repeated:
    order, user, timestamp = order[kept], user[kept], timestamp[kept]
  del kept
  take_given = lambda column: None if column is None else take(column)
  request = None
  if raw.request is not None:
    request = _by_appearance(take(raw.request.codes))
  context = {}
  for name, column in raw.context.items():
    values = _sort_values(column)
    context[name] = ContextColumn(take(column.codes), values)
  return EventLog(
    user,
    take(item),
    timestamp,
    users.rename('user'),
    items.rename('item'),
    pl.DataFrame(),
    take_given(raw.rating),
    take_given(raw.label),
    request,
    take_given(raw.position),
    context,
    {
      **counts,
      'events': len(order),
      'users': len(users),
      'items': len(items),
      'duplicates': num_repeated,
    },
    sources,
    notes,
  )


def k_core(log: EventLog, k: int) -> EventLog:
  """The largest part of a log where every user and item has k events.

  Counts what it drops as `k_core_dropped`.

  Raises:
    InputError: nothing is left.
  """
  kept = np.ones(len(log.user), bool)
  while True:
    few_user = np.bincount(log.user[kept], minlength=len(log.users)) < k
    few_item = np.bincount(log.item[kept], minlength=len(log.items)) < k
    drop = kept & (few_user[log.user] | few_item[log.item])
    if not drop.any():
      break
    kept &= ~drop
  if not kept.any():
    raise InputError(f'no user and item have {k} events: lower --k_core')

  def left(
    codes: np.ndarray, values: pl.Series
  ) -> tuple[np.ndarray, pl.Series]:
    column = RawColumn(codes[kept], values)
    values = _sort_values(column)
    return column.codes, values

  take = lambda column: None if column is None else column[kept]
  user, users = left(log.user, log.users)
  item, items = left(log.item, log.items)
  has_item = np.bincount(log.item[kept], minlength=len(log.items)) > 0
  attributes = log.item_attributes
  if attributes.width:
    attributes = attributes.filter(pl.Series(has_item))
  request = take(log.request)
  if request is not None:
    request = _by_appearance(request)
  context = {
    name: ContextColumn(*left(column.codes, column.values))
    for name, column in log.context.items()
  }
  return dataclasses.replace(
    log,
    user=user,
    item=item,
    timestamp=log.timestamp[kept],
    users=users,
    items=items,
    item_attributes=attributes,
    rating=take(log.rating),
    label=take(log.label),
    request=request,
    position=take(log.position),
    context=context,
    counts={
      **log.counts,
      'events': int(kept.sum()),
      'users': len(users),
      'items': len(items),
      'k_core_dropped': int(np.sum(~kept)),
    },
  )


def to_seconds(timestamp: np.ndarray) -> tuple[np.ndarray, str, np.ndarray]:
  """Timestamps of one file as seconds.

  The unit is that of most values: from 1e14 up microseconds, from 1e11 up
  milliseconds, else seconds (or any order that the log defines).

  Returns:
    int64 [N] seconds; the unit; bool [N], True where a value is of another
    magnitude than most and so cannot be trusted.
  """
  is_micro = timestamp >= MICROSECONDS_FROM
  is_milli = (timestamp >= MILLISECONDS_FROM) & ~is_micro
  units = [~(is_micro | is_milli), is_milli, is_micro]
  common = int(np.argmax([np.count_nonzero(is_unit) for is_unit in units]))
  name = ('seconds', 'milliseconds', 'microseconds')[common]
  seconds = timestamp // 1000**common if common else timestamp
  return seconds, name, ~units[common]


def kept_rows(column: array.array, odd: np.ndarray) -> np.ndarray:
  """A column that was read, without odd rows; of all rows it is a view."""
  rows = np.frombuffer(column, column.typecode)
  return rows[~odd] if odd.any() else rows


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
