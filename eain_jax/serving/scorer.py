"""Scores of rows of raw ids, by the model of a run."""

import collections
import dataclasses
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import numpy as np

from eain_jax.data.batches import Batch, prefetch
from eain_jax.data.examples import segment_ranges
from eain_jax.errors import InputError
from eain_jax.serving.candidates import Rows
from eain_jax.serving.encoder import Asked, Encoder, HighWater, Histories
from eain_jax.serving.grouping import choose_candidates, cut_runs, run_starts


@dataclasses.dataclass(frozen=True)
class Counts:
  """What was met in rows that were scored.

  Attributes:
    rows: all of them.
    unknown_users: rows whose user is not in the dataset.
    unknown_items: rows whose item is not in the dataset.
    without_history: rows whose user had nothing before.
  """

  rows: int = 0
  unknown_users: int = 0
  unknown_items: int = 0
  without_history: int = 0

  def __add__(self, other: 'Counts') -> 'Counts':
    own, more = dataclasses.astuple(self), dataclasses.astuple(other)
    return Counts(*(a + b for a, b in zip(own, more, strict=True)))


@dataclasses.dataclass(frozen=True)
class _Planned:
  """Rows as requests.

  Attributes:
    rows: as they were read.
    asked: the requests.
    place: int64 [r, C], the row of each candidate; -1 for one that fills up.
    counts: of the rows.
  """

  rows: Rows
  asked: Asked
  place: np.ndarray
  counts: Counts


@dataclasses.dataclass(frozen=True)
class _Stretch:
  """The requests of one batch."""

  planned: _Planned
  begin: int
  end: int

  @property
  def place(self) -> np.ndarray:
    return self.planned.place[self.begin : self.end]

  @property
  def is_last(self) -> bool:
    return self.end >= len(self.planned.place)


class Scorer:
  """Scores rows by batches of few shapes, so that little is compiled."""

  def __init__(
    self,
    encoder: Encoder,
    score: Callable[[Batch], Any],
    num_slots: int = 4096,
  ):
    """By a model.

    Args:
      encoder: of the dataset that it was trained on.
      score: logits [R, C] of a batch.
      num_slots: candidates of a batch, those that only fill it among them.
    """
    self._encoder, self._score, self._num_slots = encoder, score, num_slots
    # By C, sizes of events and of items. Each is a program, so rows of one kind
    # share one.
    self._widths: dict[int, tuple[HighWater, HighWater]] = {}

  def score(
    self, blocks: Iterable[Rows]
  ) -> Generator[tuple[Rows, np.ndarray, Counts]]:
    """Blocks of rows with their logits, float32, in their order.

    What follows is read and packed while the device is at work.

    Raises:
      InputError: a score is no number.
    """
    logits = np.zeros(0, np.float32)
    pending: collections.deque[tuple[_Stretch, Any]] = collections.deque()
    for stretch, batch in prefetch(self._make, self._stretches(blocks)):
      pending.append((stretch, self._score(batch)))
      if len(pending) > 1:
        logits, done = self._take(logits, *pending.popleft())
        if done:
          yield done.rows, logits, done.counts
    for stretch, scores in pending:
      logits, done = self._take(logits, stretch, scores)
      if done:
        yield done.rows, logits, done.counts

  def count(self, rows: Rows) -> Counts:
    """What is met in rows that need no score."""
    return self._plan(rows).counts

  def _take(
    self, logits: np.ndarray, stretch: _Stretch, scores: Any
  ) -> tuple[np.ndarray, _Planned | None]:
    """Puts the scores of a batch in their places; the rows, once all have."""
    if stretch.begin == 0:
      logits = np.full(len(stretch.planned.rows), np.nan, np.float32)
    is_real = stretch.place >= 0
    logits[stretch.place[is_real]] = np.asarray(scores)[: len(is_real)][is_real]
    if not stretch.is_last:
      return logits, None
    if not np.isfinite(logits).all():
      row = int(np.argmin(np.isfinite(logits)))
      rows = stretch.planned.rows
      raise InputError(
        f'the score of user {rows.user[row]!r} and item {rows.item[row]!r} is '
        f'{logits[row]}: the model has diverged, train it again'
      )
    return logits, stretch.planned

  def _stretches(self, blocks: Iterable[Rows]) -> Generator[_Stretch]:
    for rows in blocks:
      planned = self._plan(rows)
      size = self._num_requests(planned)
      for begin in range(0, len(planned.place), size):
        yield _Stretch(planned, begin, begin + size)

  def _num_requests(self, planned: _Planned) -> int:
    return max(1, self._num_slots // planned.place.shape[1])

  def _make(self, stretch: _Stretch) -> tuple[_Stretch, Batch]:
    batch = self._encoder.batch(
      stretch.planned.asked.rows(stretch.begin, stretch.end),
      self._num_requests(stretch.planned),
      *self._widths[stretch.place.shape[1]],
    )
    return stretch, batch

  def _plan(self, rows: Rows) -> _Planned:
    each = ask_rows(self._encoder, rows)
    if each.histories is None:
      keys = {'user': each.user, 'timestamp': each.timestamp, **each.context}
      starts = run_starts(keys)
    else:
      starts = np.arange(len(rows))
    num_candidates = choose_candidates(starts, len(rows), self._widths)
    self._widths.setdefault(num_candidates, (HighWater(), HighWater()))
    first, count = cut_runs(starts, len(rows), num_candidates)
    slot = np.arange(num_candidates)
    place = np.where(slot < count[:, None], first[:, None] + slot, -1)
    asked = Asked(
      each.user[first],
      # What fills up is scored, too, and dropped.
      each.item[np.maximum(place, first[:, None]), 0],
      each.timestamp[first],
      {name: ids[first] for name, ids in each.context.items()},
      each.histories,
    )
    length = self._encoder.history_lengths(asked)
    counts = Counts(
      len(rows),
      int(np.sum(each.user < 0)),
      int(np.sum(each.item < 0)),
      int(np.sum(count[length == 0])),
    )
    return _Planned(rows, asked, place, counts)


def ask_rows(encoder: Encoder, rows: Rows) -> Asked:
  """A request a row, of its item alone, or of none where rows have no item."""
  histories = None
  if rows.history is not None and rows.history_timestamp is not None:
    histories = _histories(encoder, rows.history, rows.history_timestamp)
  return Asked(
    encoder.users.find(rows.user),
    encoder.items.find(rows.item).reshape(len(rows), -1),
    np.array(rows.timestamp, np.int64),
    {
      name: categories.find(rows.context.get(name) or [None] * len(rows))
      for name, categories in encoder.categories.items()
    },
    histories,
  )


def _histories(
  encoder: Encoder, items: Sequence[list[str]], times: Sequence[list[int]]
) -> Histories:
  """Histories of raw ids; those that rows share are looked up once."""
  key_of = [(id(i), id(t)) for i, t in zip(items, times, strict=True)]
  row_of = {key: row for row, key in enumerate(key_of)}
  own = list(row_of.values())
  place_of = {key: place for place, key in enumerate(row_of)}
  lengths = np.array([len(items[row]) for row in own], np.int64)
  ends = np.cumsum(lengths)
  place = np.array([place_of[key] for key in key_of], np.int64)
  entry, _ = segment_ranges((ends - lengths)[place], ends[place])
  found = encoder.items.find([item for row in own for item in items[row]])
  seconds = np.array([t for row in own for t in times[row]], np.int64)
  return Histories(found[entry], seconds[entry], np.cumsum(lengths[place]))
