"""Events to examples: tasks, splits, negatives, Skip Above (3.6.2, 3.7.1).

An example is (user, target item, end of history); a request is the examples
that are ranked together. All random draws are functions of (seed, epoch,
request, slot) through a counter-based hash, so they depend on neither batch
size nor device count.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from eain_jax.data.columns import release, row_blocks
from eain_jax.data.events import EventLog
from eain_jax.data.features import SECONDS_PER_DAY
from eain_jax.errors import InputError

PARTS = ('train', 'valid', 'test')
MAX_DRAWS = 1_000
DRAWS_AT_ONCE = 1 << 17


@dataclasses.dataclass(frozen=True)
class Part:
  """One part of the data: R rows, each with one target event.

  For `next_item` a row is a request: its positive, and sampled negatives. For
  `rating` and `logged` a row is one example of a request.

  Attributes:
    event: int64 [R], the target's row in the events.
    history_end: int64 [R], one past the last history entry of the row.
    request: int32 [R], number of the row's request, non-decreasing.
    label: int8 [R]; all ones for `next_item`.
    candidates: int32 [R, K], items drawn once as negatives, or None.
    kept_negatives: int16 [R], how many of a training row's sampled negatives
      stand above the positive in the simulated order, or None without
      Skip Above.
    truth: float32 [R, 1 + K], the true preference for the positive and its
      candidates, where the world is known, or None.
  """

  event: np.ndarray
  history_end: np.ndarray
  request: np.ndarray
  label: np.ndarray
  candidates: np.ndarray | None = None
  kept_negatives: np.ndarray | None = None
  truth: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.event)


def _mix(x: np.ndarray) -> np.ndarray:
  """The splitmix64 finalizer: a bijection of uint64 that looks random."""
  x = x ^ (x >> np.uint64(30))
  x *= np.uint64(0xBF58476D1CE4E5B9)
  x ^= x >> np.uint64(27)
  x *= np.uint64(0x94D049BB133111EB)
  x ^= x >> np.uint64(31)
  return x


def hash_bits(*counters: np.ndarray | int) -> np.ndarray:
  """uint64, random-looking, a function of its integer counters (broadcast)."""
  with np.errstate(over='ignore'):
    state = np.full((), 0x9E3779B97F4A7C15, np.uint64)
    for counter in counters:
      word = np.asarray(counter).astype(np.uint64)
      state = _mix(state + word * np.uint64(0x9E3779B97F4A7C15))
      state += np.uint64(0xD1B54A32D192ED03)
    return _mix(np.asarray(state))


def hash_uniform(*counters: np.ndarray | int) -> np.ndarray:
  """float64 in [0, 1), a function of its integer counters (broadcast)."""
  return (hash_bits(*counters) >> np.uint64(11)) * 2.0**-53


def segment_ranges(
  start: np.ndarray, stop: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Concatenated ranges [start_i, stop_i) and the index i of each entry."""
  lengths = stop - start
  owner = np.repeat(np.arange(len(start)), lengths)
  offset = np.cumsum(lengths) - lengths
  return np.arange(len(owner)) - offset[owner] + start[owner], owner


@dataclasses.dataclass(frozen=True)
class NegativeSampler:
  """Draws items that a user has not had.

  Attributes:
    item: int32 [N], the events' items in canonical order.
    num_items: I.
    cumulative: float64 [I], distribution function over items, or None for
      uniform.
    user_start: int64 [U + 1], first event of each user.
    look_ahead: reject all of the user's items, later ones too.
    seed: of the draws.
  """

  item: np.ndarray
  num_items: int
  cumulative: np.ndarray | None
  user_start: np.ndarray
  look_ahead: bool
  seed: int

  def _draw(self, stream, request, slot, attempt) -> np.ndarray:
    uniform = hash_uniform(self.seed, stream, request, slot, attempt)
    if self.cumulative is None:
      return (uniform * self.num_items).astype(np.int32)
    drawn = np.searchsorted(self.cumulative, uniform, side='right')
    return np.minimum(drawn, self.num_items - 1).astype(np.int32)

  def log_probability(
    self, item: np.ndarray, event: np.ndarray, user: np.ndarray
  ) -> np.ndarray:
    """Log of the probability that one draw gives an item.

    Args:
      item: [R, C].
      event: int64 [R], the positives' event rows.
      user: int32 [R], their users.

    Returns:
      float64 [R, C], but for a constant; -10,000 for an item that is never
      drawn: a positive, for sure. Uniform draws have 0, for what users have
      had is little of all items, as later events are, which `look_ahead`
      leaves out too.
    """
    if self.cumulative is None:
      return np.zeros(item.shape)
    q = np.diff(self.cumulative, prepend=0.0)
    entry, owner = segment_ranges(self.user_start[user], event)
    had = np.bincount(owner, q[self.item[entry]], minlength=len(event))
    with np.errstate(divide='ignore'):
      log_q = np.maximum(np.log(q), -10_000.0)
    return log_q[item] - np.log1p(-np.minimum(had, 0.999))[:, None]

  def draw(
    self,
    stream: int,
    event: np.ndarray,
    user: np.ndarray,
    num_negatives: int,
  ) -> np.ndarray:
    """Negatives for R positives.

    Args:
      stream: distinguishes independent draws, such as epochs.
      event: int64 [R], the positives' event rows.
      user: int32 [R], their users.
      num_negatives: K.

    Returns:
      int32 [R, K], distinct within a row; never an item of the user's events
      up to and including the positive (with `look_ahead`, of any of them).

    Raises:
      InputError: a user has had so many items that no K others are found.
    """
    num_rows = len(event)
    slots = np.arange(num_negatives)
    negatives = self._draw(stream, event[:, None], slots, 0)
    stop = self.user_start[user + 1] if self.look_ahead else event + 1
    entry, owner = segment_ranges(self.user_start[user], stop)
    # One sorted key a (row, item) pair makes membership one binary search.
    had = np.sort(owner * self.num_items + self.item[entry])
    pending = np.arange(num_rows)
    if negatives.size > len(had):
      # Few of many are had: it is cheaper to look for those in the others.
      pending = np.flatnonzero(self._may_be_rejected(negatives, had))
    for attempt in range(1, MAX_DRAWS):
      rejected = self._rejected(negatives[pending], pending, had)
      row, slot = np.nonzero(rejected)
      if not len(row):
        return negatives
      negatives[pending[row], slot] = self._draw(
        stream, event[pending[row]], slot, attempt
      )
      pending = pending[np.unique(row)]
    raise InputError(
      f'user number {user[pending[0]]} has had nearly all of the '
      f'{self.num_items} items, so {num_negatives} negatives cannot be drawn: '
      'lower --negatives or --eval_negatives'
    )

  def _may_be_rejected(self, negatives, had) -> np.ndarray:
    """bool [R], the rows that hold an item twice, or one of `had`."""
    ordered = np.sort(negatives, axis=1)
    found = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    num_rows, num_negatives = ordered.shape
    key = (np.arange(num_rows)[:, None] * self.num_items + ordered).ravel()
    at = np.minimum(np.searchsorted(key, had), len(key) - 1)
    found[at[key[at] == had] // num_negatives] = True
    return found

  def _rejected(self, negatives, rows, had) -> np.ndarray:
    """bool [R, K], the negatives that are to be drawn again."""
    key = rows[:, None] * self.num_items + negatives
    at = np.minimum(np.searchsorted(had, key), len(had) - 1)
    rejected = had[at] == key if len(had) else np.zeros(key.shape, bool)
    # Of equal items in a row the first, in slot order, stays.
    order = np.argsort(negatives, axis=1, kind='stable')
    ordered = np.take_along_axis(negatives, order, axis=1)
    again = np.zeros(negatives.shape, bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeated = np.zeros(negatives.shape, bool)
    np.put_along_axis(repeated, order, again, axis=1)
    return rejected | repeated


def make_sampler(
  item: np.ndarray,
  user_start: np.ndarray,
  train_count: np.ndarray,
  *,
  sampling: str,
  exponent: float,
  exclusion: str,
  seed: int,
) -> NegativeSampler:
  """The sampler that a PrepareConfig describes.

  `train_count`, int64 [I], holds each item's events in the training part: the
  popularity that `sampling='popularity'` raises to `exponent`.
  """
  cumulative = None
  if sampling == 'popularity':
    weight = train_count.astype(np.float64) ** exponent
    weight[train_count == 0] = 0.0
    cumulative = np.cumsum(weight / weight.sum())
  return NegativeSampler(
    item,
    len(train_count),
    cumulative,
    user_start,
    exclusion == 'ever',
    seed,
  )


def user_offsets(user: np.ndarray, num_users: int) -> np.ndarray:
  """int64 [U + 1]: where each user's events begin; `user` non-decreasing."""
  start = np.zeros(num_users + 1, np.int64)
  for rows in row_blocks(len(user)):
    first, last = user[rows.start], user[rows.stop - 1]
    count = np.bincount(user[rows] - first)
    start[first + 1 : last + 2] += count
    release(user)
  return np.cumsum(start, out=start)


def make_requests(log: EventLog, task: str) -> np.ndarray:
  """int32 [N]: the request of each event, by the first event it holds.

  `next_item`: each event is its own. `rating`: a user's same-day events.
  `logged`: as the log has them, else a user's events at one timestamp.
  """
  num_events = len(log.user)
  if task == 'next_item':
    return np.arange(num_events, dtype=np.int32)
  if task == 'logged' and log.request is not None:
    key = log.request.astype(np.int64)
    _, first, inverse = np.unique(
      log.user.astype(np.int64) * (key.max(initial=0) + 1) + key,
      return_index=True,
      return_inverse=True,
    )
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first, kind='stable')] = np.arange(len(first))
    return rank[inverse]
  time = log.timestamp
  if task == 'rating':
    time = time // SECONDS_PER_DAY
  new = np.ones(num_events, bool)
  new[1:] = (log.user[1:] != log.user[:-1]) | (time[1:] != time[:-1])
  return np.cumsum(new, dtype=np.int32) - 1


def _first_rows(request: np.ndarray) -> np.ndarray:
  """int64, the first row of each request, by the request's number."""
  change = np.diff(request)
  if (change < 0).any():
    return np.unique(request, return_index=True)[1]
  is_first = np.ones(len(request), bool)
  is_first[1:] = change > 0
  return np.flatnonzero(is_first)


def request_times(request: np.ndarray, timestamp: np.ndarray) -> np.ndarray:
  """int64, the time of the first event of each request, by its number."""
  return timestamp[_first_rows(request)]


def time_cuts(
  start: np.ndarray, fractions: tuple[float, ...]
) -> tuple[int, int]:
  """The times from which requests are validation, and from which test.

  Args:
    start: int64, the time of each request; it is put into another order.
    fractions: of training, validation and test.
  """
  train, valid, _ = np.cumsum(fractions) / np.sum(fractions)
  at = [
    min(int(share * len(start)), len(start) - 1) for share in (train, valid)
  ]
  start.partition(at)
  return int(start[at[0]]), int(start[at[1]])


def split_requests(
  request: np.ndarray,
  user: np.ndarray,
  timestamp: np.ndarray,
  split: str,
  cuts: tuple[int, int] | None = None,
) -> np.ndarray:
  """int8 [N]: the part (index in PARTS) of each event; no request is split.

  `last_out`: of each user's requests the last is test, the one before it
  validation. `last_out_no_validation`: the last is test, all others train.
  `time`: requests by the time of their first event; the cuts, of `time_cuts`,
  fall between two timestamps, never within one.

  Events of some users, whole, can be split alone: `request` counts from 0.
  """
  first = _first_rows(request)
  of_user, start = user[first], timestamp[first]
  part = np.zeros(len(first), np.int8)
  if split == 'time':
    assert cuts is not None
    cut_valid, cut_test = cuts
    part[start >= cut_valid] = 1
    part[start >= cut_test] = 2
  else:
    last = np.ones(len(first), bool)
    last[:-1] = of_user[1:] != of_user[:-1]
    part[last] = 2
    if split == 'last_out':
      before = np.zeros(len(first), bool)
      before[:-1] = last[1:] & (of_user[1:] == of_user[:-1])
      part[before] = 1
  return part[request]


def skip_above(
  request: np.ndarray, label: np.ndarray, position: np.ndarray
) -> np.ndarray:
  """bool [N]: the rows that Skip Above keeps, equations (16) and (17).

  Positives, and negatives above their request's last positive; a request
  without a positive keeps nothing, for it has no last positive.
  """
  last = np.full(int(request.max(initial=-1)) + 1, np.iinfo(np.int64).min)
  positive = label == 1
  np.maximum.at(last, request[positive], position[positive].astype(np.int64))
  return positive | (position <= last[request])


def simulate_kept_negatives(
  seed: int, event: np.ndarray, num_negatives: int
) -> np.ndarray:
  """int16 [R]: negatives above the positive in a uniformly random order.

  Amazon has no positions, so Skip Above is simulated: the positive stands at
  a uniform place among its negatives, and those below it are dropped.
  """
  place = hash_uniform(seed, 0x5A, event) * (num_negatives + 1)
  return place.astype(np.int16)


@dataclasses.dataclass(frozen=True)
class Block:
  """The events of some users, whole, and what their examples are made of.

  No request and no history reaches beyond a user, so a dataset can be made
  block by block.

  Attributes:
    first: row of the block's first event in the whole log.
    log: the block's events alone, [n].
    request: int32 [n], each event's request, numbered from 0 in the block.
    label: int8 [n].
    part: int8 [n], index in PARTS.
    history_end: int64 [n], where the history before each event ends.
    has_history: bool [n], whether that is as long as an example needs.
  """

  first: int
  log: EventLog
  request: np.ndarray
  label: np.ndarray
  part: np.ndarray
  history_end: np.ndarray
  has_history: np.ndarray


@dataclasses.dataclass(frozen=True)
class ExampleCounts:
  """What became of one part: its size, and what it lost on the way."""

  positives: int = 0
  examples: int = 0
  requests: int = 0
  dropped_short_history: int = 0
  dropped_by_skip_above: int = 0
  requests_without_positive: int = 0

  def to_dict(self) -> dict[str, int]:
    return dataclasses.asdict(self)

  def __add__(self, other: 'ExampleCounts') -> 'ExampleCounts':
    mine, others = self.to_dict(), other.to_dict()
    return ExampleCounts(**{name: mine[name] + others[name] for name in mine})


def make_part(
  block: Block,
  number: int,
  *,
  task: str,
  use_skip_above: bool,
  num_negatives: int,
  sampler: NegativeSampler | None,
  seed: int,
  true_preference: Callable[[np.ndarray, np.ndarray], np.ndarray] | None,
) -> tuple[Part, ExampleCounts]:
  """The examples of one part that a block has.

  Args:
    block: some users' events.
    number: of the part, index in PARTS.
    task: next_item, rating or logged.
    use_skip_above: apply (16-17); of `next_item` training alone can have it.
    num_negatives: K, for `next_item`.
    sampler: draws evaluation candidates, for `next_item`; the negatives of
      training are drawn as it goes, not here.
    seed: of the simulated order.
    true_preference: maps (event [R], items [R, 1 + K]) to the true score
      against uniform negatives.

  Returns:
    The part, its requests numbered from 0 in the block, and its counts.
  """
  in_part = block.part == number
  is_kept = in_part & block.has_history
  rows = np.flatnonzero(is_kept)
  short = int(np.sum(in_part)) - len(rows)
  lost = 0
  request, label = block.request, block.label
  if use_skip_above and task != 'next_item':
    position = block.log.position
    assert position is not None, 'prepare asks for them'
    kept = skip_above(request[rows], label[rows], position[rows])
    lost = int(np.sum(~kept))
    rows = rows[kept]
  if task == 'logged':
    # A log may list a request's rows apart; ranked lists stand together.
    rows = rows[np.argsort(request[rows], kind='stable')]
  is_new = np.diff(request[rows], prepend=-1) > 0
  numbered = np.cumsum(is_new, dtype=np.int32) - np.int32(1)
  event = rows + block.first
  part = Part(event, block.history_end[rows], numbered, label[rows])
  num_requests = int(np.sum(is_new))
  positives = int(np.sum(part.label))
  examples = len(rows)
  if task == 'next_item':
    if number == 0:
      if use_skip_above:
        kept = simulate_kept_negatives(seed, event, num_negatives)
        part = dataclasses.replace(part, kept_negatives=kept)
        examples += int(kept.sum())
        lost = len(rows) * num_negatives - int(kept.sum())
      else:
        examples *= 1 + num_negatives
    else:
      assert sampler is not None
      user = block.log.user[rows]
      candidates = _draw_in_blocks(sampler, event, user, num_negatives)
      part = dataclasses.replace(part, candidates=candidates)
      examples *= 1 + num_negatives
      if true_preference is not None:
        own = block.log.item[rows][:, None]
        shown = np.concatenate([own, candidates], axis=1)
        # What is drawn often as a negative says less for being one.
        truth = true_preference(event, shown)
        truth -= sampler.log_probability(shown, event, user)
        part = dataclasses.replace(part, truth=truth.astype(np.float32))
  has_positive = np.zeros(num_requests, bool)
  has_positive[numbered[part.label == 1]] = True
  counts = ExampleCounts(
    positives,
    examples,
    num_requests,
    short,
    lost,
    num_requests - int(np.sum(has_positive)),
  )
  return part, counts


def _draw_in_blocks(sampler, event, user, num_negatives) -> np.ndarray:
  """Candidates for all rows, so many at a time as stay in the cache."""
  out = np.empty((len(event), num_negatives), np.int32)
  step = max(1, DRAWS_AT_ONCE // num_negatives)
  for begin in range(0, len(event), step):
    rows = slice(begin, begin + step)
    out[rows] = sampler.draw(
      EVALUATION_STREAM, event[rows], user[rows], num_negatives
    )
  return out


# Training epochs are streams 0, 1, 2, ...; evaluation has one of its own.
EVALUATION_STREAM = 2**32 - 1
