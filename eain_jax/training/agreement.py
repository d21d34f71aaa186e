"""Static sizes that the shards of all processes share, at no cost.

A program has one shape on all devices, and each process knows the sizes of its
own shards alone. So a step carries what its process needs a few steps ahead,
and returns the most of all: it is there long before that step is made, and
nothing more is sent than a few numbers within the step.
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
  """Batches of one process, of the sizes that all processes agree on."""

  def __init__(
    self,
    batches: Iterator[Batch],
    make: Callable[[int, Sizes], Batch],
    first_step: int,
  ):
    """Meets the other processes once, for the first steps.

    Args:
      batches: of the steps from `first_step` on, in their own sizes.
      make: makes a step's batch in larger sizes.
      first_step: of `batches`.
    """
    self._batches, self._make = batches, make
    self._step = first_step
    self._window: collections.deque[Batch] = collections.deque()
    self._fill(AHEAD)
    # Of fewer steps than that, all have the same.
    own = np.stack([sizes_of(batch).to_array() for batch in self._window])
    agreed = gather(own).max(axis=0)
    self._agreed: collections.deque[Any] = collections.deque(agreed)

  def _fill(self, count: int) -> None:
    while len(self._window) < count:
      batch = next(self._batches, None)
      if batch is None:
        return
      self._window.append(batch)

  def __next__(self) -> Batch:
    """The next step's batch; `sizes_ahead` is int32 [own shards, sizes]."""
    self._fill(AHEAD + 1)
    batch = self._window.popleft()
    own = sizes_of(batch)
    agreed = own.from_array(np.asarray(self._agreed.popleft()))
    if agreed != own:
      batch = self._make(self._step, agreed)
    self._step += 1
    ahead = np.zeros_like(own.to_array())
    if len(self._window) == AHEAD:
      ahead = sizes_of(self._window[-1]).to_array()
    shards = len(batch['row'])
    return {**batch, 'sizes_ahead': np.tile(ahead, (shards, 1))}

  def observe(self, sizes_ahead: jax.Array) -> None:
    """Takes what the step of the last batch returned."""
    self._agreed.append(sizes_ahead)
