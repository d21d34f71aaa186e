"""A first pass over the events: what must be known before any example is made.

The second pass makes the dataset, some users at a time. Beside arrays of users
and of items one byte an event is kept between the two, and its request's number
where a request may hold several events.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from eain_jax.data import examples, features
from eain_jax.data.columns import BLOCK_ROWS, release
from eain_jax.data.events import EventLog


@dataclasses.dataclass(frozen=True)
class UserBlock:
  """Some users, as a slice of all, the rows of their events, and those."""

  users: slice
  rows: slice
  log: EventLog


def user_blocks(log: EventLog, user_start: np.ndarray) -> Iterator[UserBlock]:
  """All users, so many at a time as have about `BLOCK_ROWS` events.

  What a block has read of mapped columns is let go of after it.
  """
  wanted = [*range(0, len(log.user), BLOCK_ROWS), len(log.user)]
  bounds = np.unique(np.searchsorted(user_start, wanted)).tolist()
  for first, last in itertools.pairwise(bounds):
    begin, end = user_start[[first, last]].tolist()
    yield UserBlock(slice(first, last), slice(begin, end), log.rows(begin, end))
    release(*log.columns().values())


@dataclasses.dataclass(frozen=True)
class Survey:
  """What all of the events together say.

  Attributes:
    user_start: int64 [U + 1], first event of each user.
    request: int32 [N], each event's request, numbered from 0 in its block of
      users; None for `next_item`, where each event is one.
    part: int8 [N], index in PARTS of each event's part.
    user_count: int64 [U], each user's training events.
    item_count: int64 [I], each item's training events.
    context_seen: by name int64 [W + 1], events with each code from -1 on.
    context_count: the same, of training events alone.
    first_timestamp: of all events.
    last_timestamp: of all events.
  """

  user_start: np.ndarray
  request: np.ndarray | None
  part: np.ndarray
  user_count: np.ndarray
  item_count: np.ndarray
  context_seen: dict[str, np.ndarray]
  context_count: dict[str, np.ndarray]
  first_timestamp: int
  last_timestamp: int

  def requests(self, rows: slice) -> np.ndarray:
    """int32 [n], those of a block's events, numbered from 0 in it."""
    return _requests(self.request, rows)


def _requests(request: np.ndarray | None, rows: slice) -> np.ndarray:
  if request is None:
    return np.arange(rows.stop - rows.start, dtype=np.int32)
  return request[rows]


def survey_events(
  log: EventLog,
  *,
  task: str,
  split: str,
  time_fractions: tuple[float, ...],
  context: Mapping[str, list[str]],
) -> Survey:
  """Splits the events, and counts what vocabularies are made of.

  Args:
    log: the events.
    task: next_item, rating or logged.
    split: last_out, last_out_no_validation or time.
    time_fractions: of the parts, for `time`.
    context: by name a context feature's values; see `context_values`.
  """
  user_start = examples.user_offsets(log.user, len(log.users))
  request = None
  if task != 'next_item':
    request = np.empty(len(log.user), np.int32)
    for block in user_blocks(log, user_start):
      request[block.rows] = examples.make_requests(block.log, task)
  cuts = None
  if split == 'time':
    times = [
      examples.request_times(
        _requests(request, block.rows), block.log.timestamp
      )
      for block in user_blocks(log, user_start)
    ]
    cuts = examples.time_cuts(np.concatenate(times), time_fractions)
    del times
  part = np.empty(len(log.user), np.int8)
  user_count = np.empty(len(log.users), np.int64)
  item_count = np.zeros(len(log.items), np.int64)
  zeros = lambda values: np.zeros(len(values) + 1, np.int64)
  seen = {name: zeros(values) for name, values in context.items()}
  count = {name: zeros(values) for name, values in context.items()}
  bounds = []
  for block in user_blocks(log, user_start):
    events, users = block.log, block.users
    asked = _requests(request, block.rows)
    part[block.rows] = examples.split_requests(
      asked,
      events.user,
      events.timestamp,
      split,
      cuts,
    )
    is_train = part[block.rows] == 0
    user_count[users] = np.bincount(
      events.user[is_train] - users.start, minlength=users.stop - users.start
    )
    item_count += np.bincount(events.item[is_train], minlength=len(log.items))
    begin = None if request is None else features.begins(asked)
    for name, values in context.items():
      code = features.context_codes(events, name, begin) + 1
      seen[name] += np.bincount(code, minlength=len(values) + 1)
      count[name] += np.bincount(code[is_train], minlength=len(values) + 1)
    bounds += [int(events.timestamp.min()), int(events.timestamp.max())]
  return Survey(
    user_start,
    request,
    part,
    user_count,
    item_count,
    seen,
    count,
    min(bounds),
    max(bounds),
  )
