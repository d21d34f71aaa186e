"""Rows of requests that come at once, scored together on one thread."""

import asyncio
import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable

import numpy as np

from eain_jax.serving.candidates import Rows


class Overloaded(Exception):
  """More rows wait than may."""


@dataclasses.dataclass
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

  Attributes:
    waiting: rows that are not scored yet.
  """

  def __init__(
    self,
    score: Callable[[Rows], np.ndarray],
    max_rows: int,
    max_waiting: int,
    observe: Callable[[int], None] = lambda num_rows: None,
  ):
    """Of a scorer; make it inside the running loop.

    Args:
      score: of rows; runs on a thread of its own, one call at a time.
      max_rows: of a batch, where more than one request waits.
      max_waiting: rows; what comes beyond is refused.
      observe: is told of each batch how many rows it has.
    """
    self._score, self._observe = score, observe
    self._max_rows, self._max_waiting = max_rows, max_waiting
    self._queue: collections.deque[_Waiting] = collections.deque()
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'score')
    self._task: asyncio.Task[None] | None = None
    self.waiting = 0

  async def score(self, rows: Rows) -> np.ndarray:
    """float32 [n], the logits of rows.

    Raises:
      Overloaded: too many rows wait already.
    """
    # A request that comes alone is taken however large it is.
    if self.waiting and self.waiting + len(rows) > self._max_waiting:
      raise Overloaded
    future = asyncio.get_running_loop().create_future()
    self._queue.append(_Waiting(rows, future))
    self.waiting += len(rows)
    if self._task is None or self._task.done():
      self._task = asyncio.create_task(self._run())
    try:
      return await future
    finally:
      self.waiting -= len(rows)

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
      rows = join_rows([waiting.rows for waiting in batch])
      self._observe(len(rows))
      try:
        logits = await loop.run_in_executor(self._thread, self._score, rows)
      except Exception as error:
        for waiting in batch:
          if not waiting.logits.done():
            waiting.logits.set_exception(error)
        continue
      ends = np.cumsum([len(waiting.rows) for waiting in batch])
      parts = np.split(logits, ends[:-1])
      for waiting, own in zip(batch, parts, strict=True):
        # Whoever asked may have gone.
        if not waiting.logits.done():
          waiting.logits.set_result(own)

  def close(self) -> None:
    """Lets go of the thread, once it is done."""
    self._thread.shutdown()
