"""Requests of raw ids to the batches that a model takes.

What a user had before a time are their events of the dataset strictly before
it: of events at the very time of a request nobody knows which came first. So a
request at the time of an event of the log does not see that event.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from eain_jax.data.batches import (
  Batch,
  Requests,
  pack_requests,
  pad_rows,
  size_class,
)
from eain_jax.data.dataset import Dataset
from eain_jax.data.examples import segment_ranges
from eain_jax.data.features import (
  SECONDS_PER_DAY,
  UNKNOWN,
  gap_codes,
  time_codes,
)
from eain_jax.data.row_plan import DistinctFinder
from eain_jax.serving.lookup import (
  Categories,
  items_of,
  source_columns,
  time_ids,
  users_of,
)


def power_of_two(needed: int) -> int:
  """The static size of batches that may be small or large: 64, 128, ..."""
  return max(64, 1 << (needed - 1).bit_length())


class HighWater:
  """A static size for batches much like each other: it only grows.

  It keeps some room above what was needed, so a program is compiled once or
  twice, not for each batch. It is never 0: an exported program has no such
  size.
  """

  def __init__(self):
    self._size = 0

  def __call__(self, needed: int) -> int:
    if needed > self._size or not self._size:
      # Two threads may ask at once.
      grown = size_class(round(1.1 * needed) + 1, 128, 1 << 62)
      self._size = max(self._size, grown)
    return self._size


def first_not_before(
  times: Callable[[np.ndarray], np.ndarray],
  start: np.ndarray,
  stop: np.ndarray,
  time: np.ndarray,
) -> np.ndarray:
  """int64 [r], the first place of each range whose time is not before `time`.

  Args:
    times: of places; non-decreasing within a range.
    start: int64 [r], where the ranges begin.
    stop: int64 [r], where they end.
    time: int64 [r].
  """
  low, high = start.copy(), stop.copy()
  while (is_open := low < high).any():
    middle = np.where(is_open, (low + high) // 2, 0)
    is_before = is_open & (times(middle) < time)
    low = np.where(is_before, middle + 1, low)
    high = np.where(is_open & ~is_before, middle, high)
  return low


@dataclasses.dataclass(frozen=True)
class Histories:
  """Histories that come with the requests, in place of the dataset's.

  Attributes:
    item: int32 [n], numbers of items, -1 for unknown ones; each request's own
      one after another, the oldest first.
    timestamp: int64 [n], seconds UTC.
    end: int64 [r], where the history of each request ends.
  """

  item: np.ndarray
  timestamp: np.ndarray
  end: np.ndarray

  def rows(self, begin: int, end: int) -> 'Histories':
    """Those of some of the requests."""
    ends = self.end[begin:end]
    first = int(self.end[begin - 1]) if begin else 0
    last = int(ends[-1]) if len(ends) else first
    return Histories(
      self.item[first:last],
      self.timestamp[first:last],
      ends - first,
    )


@dataclasses.dataclass(frozen=True)
class Asked:
  """Requests in the numbers of a dataset.

  Attributes:
    user: int32 [r], -1 for an unknown one.
    item: int32 [r, C], candidates; -1 for an unknown one.
    timestamp: int64 [r], seconds UTC.
    context: by context column int32 [r], vocabulary ids.
    histories: in place of the dataset's, or None.
  """

  user: np.ndarray
  item: np.ndarray
  timestamp: np.ndarray
  context: Mapping[str, np.ndarray]
  histories: Histories | None = None

  def rows(self, begin: int, end: int) -> 'Asked':
    """Some of the requests."""
    return Asked(
      self.user[begin:end],
      self.item[begin:end],
      self.timestamp[begin:end],
      {name: ids[begin:end] for name, ids in self.context.items()},
      self.histories and self.histories.rows(begin, end),
    )


@dataclasses.dataclass(frozen=True)
class _Found:
  """Whole histories, and where they are.

  Attributes:
    start: int64 [r], the first entry of each.
    end: int64 [r], where it ends.
    events: items and times of entries.
    last: int64 [r], when the user's last event before was.
    is_first: bool [r], there was none.
  """

  start: np.ndarray
  end: np.ndarray
  events: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
  last: np.ndarray
  is_first: np.ndarray


class Encoder:
  """Makes batches of what is asked, by a dataset's vocabularies and events."""

  def __init__(self, dataset: Dataset):
    """Of the dataset that the model was trained on."""
    self.dataset = dataset
    # Reading settings takes a millisecond, as long as a small batch.
    self.history_length = dataset.config.history_length
    self.columns = source_columns(dataset)
    self.users, self.items = users_of(dataset), items_of(dataset)
    self.categories = {
      name: Categories(dataset, name)
      for name in self.columns
      if name not in ('user', 'item', 'timestamp')
    }
    self._time_ids = time_ids(dataset)
    self._find = DistinctFinder()

  def batch(
    self,
    asked: Asked,
    num_requests: int,
    size_events: Callable[[int], int] = power_of_two,
    size_items: Callable[[int], int] = power_of_two,
  ) -> Batch:
    """The batch of some requests, with weight 0 for what only fills it.

    Args:
      asked: r requests of C candidates.
      num_requests: R >= r, the static size.
      size_events: the static N for a number of events.
      size_items: the static U for a number of distinct items.
    """
    dataset, found = self.dataset, self._histories(asked)
    newest = np.maximum(found.start, found.end - self.history_length)
    entry, segment = segment_ranges(newest, found.end)
    history, timestamp = found.events(entry)
    day = asked.timestamp // SECONDS_PER_DAY
    is_known = asked.user >= 0
    user = np.full(len(is_known), UNKNOWN, np.int32)
    user[is_known] = dataset.user_ids[asked.user[is_known]]
    context = dict(asked.context)
    for name, ids in self._time_ids.items():
      codes = (
        gap_codes(
          (asked.timestamp - found.last) // SECONDS_PER_DAY, found.is_first
        )
        if name == 'gap'
        else time_codes(asked.timestamp, name)
      )
      context[name] = ids[codes]
    shape = num_requests, asked.item.shape[1]
    batch = pack_requests(
      Requests(
        self._known(asked.item),
        user,
        {name: context[name] for name in dataset.context_ids},
        self._known(history),
        segment,
        day[segment] - timestamp // SECONDS_PER_DAY,
        (found.end - found.start).astype(np.int32),
      ),
      dataset.item_ids,
      num_requests,
      size_events,
      size_items,
      self._find,
    )
    return {
      **batch,
      'row': np.arange(num_requests, dtype=np.int32),
      'label': np.zeros(shape, np.float32),
      'weight': pad_rows(np.ones_like(asked.item, np.float32), num_requests),
    }

  def had(self, asked: Asked) -> tuple[np.ndarray, np.ndarray]:
    """Which items the users had: all of their histories, however long.

    Returns:
      int64 [n], a request, and int32 [n], an item of its history.
    """
    found = self._histories(asked)
    entry, request = segment_ranges(found.start, found.end)
    return request, found.events(entry)[0]

  def events(
    self, asked: Asked, *, whole: bool = False
  ) -> tuple[np.ndarray, np.ndarray]:
    """Items and times of the histories, one by one.

    As the model sees them, their newest events; or whole.
    """
    found = self._histories(asked)
    start = found.start
    if not whole:
      start = np.maximum(start, found.end - self.history_length)
    return found.events(segment_ranges(start, found.end)[0])

  def history_lengths(self, asked: Asked) -> np.ndarray:
    """int64 [r], how many events each request's user had before."""
    found = self._histories(asked)
    return found.end - found.start

  def _known(self, item: np.ndarray) -> np.ndarray:
    """Items with the number of an unknown one in the place of -1."""
    return np.where(item < 0, self.dataset.num_items, item).astype(np.int32)

  def _histories(self, asked: Asked) -> _Found:
    if asked.histories is not None:
      given = asked.histories
      start = np.concatenate([[0], given.end[:-1]]).astype(np.int64)
      is_first = start == given.end
      last = np.zeros(len(start), np.int64)
      last[~is_first] = given.timestamp[given.end[~is_first] - 1]
      return _Found(
        start,
        given.end,
        lambda entry: (given.item[entry], given.timestamp[entry]),
        last,
        is_first,
      )
    dataset = self.dataset
    event_of = lambda place: (
      place if dataset.history_event is None else dataset.history_event[place]
    )

    start, end = self._until(
      asked,
      dataset.history_start,
      lambda place: dataset.timestamp[event_of(place)],
    )
    # The gap is to any event, one that was no positive too.
    first, stop = self._until(
      asked, dataset.user_start, lambda place: dataset.timestamp[place]
    )
    is_first = stop == first
    return _Found(
      start,
      end,
      lambda entry: (
        dataset.item[event_of(entry)],
        dataset.timestamp[event_of(entry)],
      ),
      np.where(is_first, 0, dataset.timestamp[np.maximum(stop - 1, 0)]),
      is_first,
    )

  def _until(
    self,
    asked: Asked,
    bounds: np.ndarray,
    times: Callable[[np.ndarray], np.ndarray],
  ) -> tuple[np.ndarray, np.ndarray]:
    """Where the users' places begin, and those before the requests end."""
    is_known = asked.user >= 0
    start = np.where(is_known, bounds[asked.user], 0)
    stop = np.where(is_known, bounds[asked.user + 1], 0)
    return start, first_not_before(times, start, stop, asked.timestamp)
