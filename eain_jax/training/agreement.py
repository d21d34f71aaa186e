"""What all processes must know alike before a step, at no cost.

A program has one shape on all devices, and each process knows the sizes of its
own shards alone. So a step carries what its process needs a few steps ahead,
and returns the most of all: it is there long before that step is made, and
nothing more is sent than a few numbers within the step. The last of them says
whether a process was told to stop, so that all stop before the same step.
"""

import collections
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from eain_jax.data.batches import Batch, Sizes, sizes_of
from eain_jax.training.processes import gather

# Two steps are under way, and the one before them has returned.
AHEAD = 3


class AgreedBatches:
  """Batches of one process, of the sizes that all processes agree on.

  Attributes:
    stops: a process was told to stop before the step of the last batch.
  """

  def __init__(
    self,
    batches: Iterator[Batch],
    make: Callable[[int, Sizes], Batch],
    first_step: int,
    stop_asked: Callable[[], bool] = lambda: False,
  ):
    """Meets the other processes once, for the first steps.

    Args:
      batches: of the steps from `first_step` on, in their own sizes.
      make: makes a step's batch in larger sizes.
      first_step: of `batches`.
      stop_asked: whether this process was told to stop.
    """
    self._batches, self._make = batches, make
    self._step, self._stop_asked = first_step, stop_asked
    self.stops = False
    self._window: collections.deque[Batch] = collections.deque()
    self._fill(AHEAD)
    # Of fewer steps than that, all have the same.
    own = np.stack([self._tell(sizes_of(batch)) for batch in self._window])
    agreed = gather(own).max(axis=0)
    self._agreed: collections.deque[Any] = collections.deque(agreed)

  def _tell(self, sizes: Sizes) -> np.ndarray:
    """int32 [sizes + 1]: what this process has to say of a step."""
    return np.append(sizes.to_array(), np.int32(self._stop_asked()))

  def _fill(self, count: int) -> None:
    while len(self._window) < count:
      batch = next(self._batches, None)
      if batch is None:
        return
      self._window.append(batch)

  def __next__(self) -> Batch:
    """The next step's batch; `ahead` is int32 [own shards, sizes + 1]."""
    self._fill(AHEAD + 1)
    batch = self._window.popleft()
    own = sizes_of(batch)
    *sizes, stops = np.asarray(self._agreed.popleft())
    self.stops = bool(stops)
    agreed = own.from_array(np.array(sizes))
    if agreed != own:
      batch = self._make(self._step, agreed)
    self._step += 1
    # Beyond the last step nothing is needed.
    last = self._window[-1] if len(self._window) == AHEAD else None
    ahead = self._tell(sizes_of(last) if last else own)
    return {**batch, 'ahead': np.tile(ahead, (len(batch['row']), 1))}

  def observe(self, ahead: jax.Array) -> None:
    """Takes what the step of the last batch returned."""
    self._agreed.append(ahead)
