"""Rows of requests that come at once, scored together on one thread."""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Callable

import numpy as np

from eain_jax.serving.candidates import Rows


@dataclasses.dataclass(eq=False)
class _Waiting:
  rows: Rows
  logits: asyncio.Future[np.ndarray]


def join_rows(parts: list[Rows]) -> Rows:
  """Rows one after another; all with histories of their own, or none."""
  first = parts[0]
  chain = lambda lists: [value for values in lists for value in values]
  histories = times = None
  if first.history is not None:
    histories = chain(p.history or [] for p in parts)
    times = chain(p.history_timestamp or [] for p in parts)
  return Rows(
    chain(p.user for p in parts),
    chain(p.item for p in parts),
    chain(p.timestamp for p in parts),
    {name: chain(p.context[name] for p in parts) for name in first.context},
    histories,
    times,
    {},
  )


class Batcher:
  """Takes what waits, up to a batch, whenever the thread is free.

  Nothing waits for company: a request that comes alone is scored alone, and
  batches grow by what comes meanwhile.
  """

  def __init__(
    self,
    score: Callable[[Rows], np.ndarray],
    max_rows: int,
    observe: Callable[[int], None] = lambda num_rows: None,
  ):
    """Of a scorer; make it inside the running loop.

    Args:
      score: of rows; runs on a thread of its own, one call at a time.
      max_rows: of a batch, where more than one request waits.
      observe: is told of each batch how many rows it has.
    """
    self._score, self._observe = score, observe
    self._max_rows = max_rows
    self._queue: collections.deque[_Waiting] = collections.deque()
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'score')
    self._task: asyncio.Task[None] | None = None

  async def score(self, rows: Rows) -> np.ndarray:
    """float32 [n], the logits of rows; raises what scoring them raises."""
    waiting = _Waiting(rows, asyncio.get_running_loop().create_future())
    self._queue.append(waiting)
    if self._task is None or self._task.done():
      self._task = asyncio.create_task(self._run())
    try:
      return await waiting.logits
    except asyncio.CancelledError:
      # Whoever asked has gone, and is counted by nobody: nor do its rows stay.
      with contextlib.suppress(ValueError):
        self._queue.remove(waiting)
      raise

  def _take(self) -> list[_Waiting]:
    """The next batch: the oldest, and those after it of its kind."""
    batch = [self._queue.popleft()]
    has_history = batch[0].rows.history is not None
    num_rows = len(batch[0].rows)
    while self._queue:
      rows = self._queue[0].rows
      is_alike = (rows.history is not None) == has_history
      num_rows += len(rows)
      if not is_alike or num_rows > self._max_rows:
        break
      batch.append(self._queue.popleft())
    return batch

  async def _run(self) -> None:
    loop = asyncio.get_running_loop()
    while self._queue:
      batch = self._take()
      # Whoever asked may have gone.
      batch = [waiting for waiting in batch if not waiting.logits.done()]
      if batch:
        parts = [waiting.rows for waiting in batch]
        answers = await loop.run_in_executor(self._thread, self._each, parts)
        for waiting, answer in zip(batch, answers, strict=True):
          if waiting.logits.done():
            continue
          if isinstance(answer, Exception):
            waiting.logits.set_exception(answer)
          else:
            waiting.logits.set_result(answer)

  def _each(self, parts: list[Rows]) -> list[np.ndarray | Exception]:
    """The logits of each part, or why it has none; on the thread."""
    try:
      rows = join_rows(parts)
      self._observe(len(rows))
      ends = np.cumsum([len(part) for part in parts])
      return [*np.split(self._score(rows), ends[:-1])]
    except Exception as error:
      if len(parts) == 1:
        return [error]
    # One of them may be at fault, and the others are not.
    return [answer for part in parts for answer in self._each([part])]

  def close(self) -> None:
    """Lets go of the thread; what it is at it ends."""
    self._thread.shutdown(wait=False, cancel_futures=True)
