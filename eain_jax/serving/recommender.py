"""The best items of the whole catalogue for each user, exactly.

Every item is scored for every user; nothing is left out by guess. Of items of
one score the earlier one in the catalogue comes first.
"""

import dataclasses
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eain_jax.data.batches import Batch, prefetch
from eain_jax.errors import InputError
from eain_jax.serving.encoder import Asked, Encoder, HighWater
from eain_jax.training.step import ScoreFn

NO_ITEM = -1


@dataclasses.dataclass(frozen=True)
class Best:
  """Of each request the k best items, the best first.

  Attributes:
    item: int32 [r, k], numbers of items; `NO_ITEM` where no more were left.
    logit: float32 [r, k].
  """

  item: np.ndarray
  logit: np.ndarray


def keep_best(
  best: tuple[jax.Array, jax.Array],
  logit_RC: jax.Array,
  is_out_RC: jax.Array,
  first: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """The k best of those so far and of the items from `first` on.

  Args:
    best: logits float32 [R, k], descending, and items int32 [R, k].
    logit_RC: of C items.
    is_out_RC: bool, which of them do not count.
    first: int32, the number of the first of them.
  """
  best_logit, best_item = best
  count = logit_RC.shape[1]
  item_C = first + jnp.arange(count, dtype=jnp.int32)
  logit = jnp.concatenate(
    [best_logit, jnp.where(is_out_RC, -jnp.inf, logit_RC)], axis=1
  )
  item = jnp.concatenate(
    [best_item, jnp.broadcast_to(item_C, logit_RC.shape)], axis=1
  )
  # Of equal ones top_k takes the first, and earlier items stand before.
  logit, place = jax.lax.top_k(logit, best_logit.shape[1])
  return logit, jnp.take_along_axis(item, place, axis=1)


class Recommender:
  """Ranks the catalogue by the model of a run."""

  def __init__(
    self,
    encoder: Encoder,
    score_step: ScoreFn,
    params: Any,
    stats: Any,
    num_best: int,
    leave_out_had: bool = True,
    num_slots: int = 8_192,
    num_candidates: int = 512,
  ):
    """By a model.

    Args:
      encoder: of the dataset that it was trained on.
      score_step: of `make_score_step`.
      params: of the model.
      stats: of the model.
      num_best: k.
      leave_out_had: items that a user had before the time of the request.
      num_slots: scores of a call, R * C.
      num_candidates: C, items of a call.
    """
    self._encoder, self._params, self._stats = encoder, params, stats
    self._num_best, self._leave_out_had = num_best, leave_out_had
    num_items = encoder.dataset.num_items
    self._num_candidates = min(num_candidates, num_items, num_slots)
    self._num_requests = max(1, num_slots // self._num_candidates)
    self._events, self._items = HighWater(), HighWater()

    def step(params, stats, batch, best, is_out_RC, first, diverged):
      logit_RC = score_step(params, stats, batch)
      odd = jnp.any(~jnp.isfinite(logit_RC))
      return keep_best(best, logit_RC, is_out_RC, first), diverged | odd

    self._step = jax.jit(step)

  def rank(self, asked: Iterable[Asked]) -> Generator[Best]:
    """The best items of each request; `item` of what is asked is not read.

    Raises:
      InputError: a score is no number.
    """
    batches = prefetch(self._make, self._stretches(asked))
    best, diverged, parts = None, False, []
    for requests, is_last, first, batch, is_out in batches:
      if first == 0:
        shape = self._num_requests, self._num_best
        best = (
          jnp.full(shape, -jnp.inf, jnp.float32),
          jnp.full(shape, NO_ITEM, jnp.int32),
        )
        diverged = jnp.array(False)
      best, diverged = self._step(
        self._params,
        self._stats,
        batch,
        best,
        is_out,
        np.int32(first),
        diverged,
      )
      if first + self._num_candidates < self._encoder.dataset.num_items:
        continue
      logit, item = (np.asarray(values)[:requests] for values in best)
      if np.asarray(diverged):
        raise InputError('a score is no number: the model has diverged')
      parts.append((logit, np.where(np.isneginf(logit), NO_ITEM, item)))
      if is_last:
        logits, items = zip(*parts, strict=True)
        yield Best(np.concatenate(items), np.concatenate(logits))
        parts = []

  def _stretches(
    self, asked: Iterable[Asked]
  ) -> Iterator[tuple[Asked, bool, int]]:
    """Requests, whether they end what was asked together, and a first item."""
    for one in asked:
      size, total = self._num_requests, len(one.user)
      for begin in range(0, total, size):
        requests = one.rows(begin, begin + size)
        for first in range(
          0, self._encoder.dataset.num_items, self._num_candidates
        ):
          yield requests, begin + size >= total, first

  def _make(
    self, stretch: tuple[Asked, bool, int]
  ) -> tuple[int, bool, int, Batch, np.ndarray]:
    requests, is_last, first = stretch
    num_items = self._encoder.dataset.num_items
    count = len(requests.user)
    items = first + np.arange(self._num_candidates, dtype=np.int32)
    is_beyond = items >= num_items
    asked = dataclasses.replace(
      requests,
      item=np.broadcast_to(
        np.minimum(items, num_items - 1), (count, len(items))
      ),
    )
    is_out = np.zeros((self._num_requests, len(items)), bool)
    is_out[:, is_beyond] = True
    if self._leave_out_had:
      request, had = self._encoder.had(requests)
      is_here = (had >= first) & (had < first + len(items))
      is_out[request[is_here], had[is_here] - first] = True
    batch = self._encoder.batch(
      asked, self._num_requests, self._events, self._items
    )
    return count, is_last, first, batch, is_out
