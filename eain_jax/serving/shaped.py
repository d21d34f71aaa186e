"""Scores of few rows at a time, by programs that were compiled beforehand.

A server must not compile while somebody waits. So batches have few sizes, which
follow from the number of rows and the length of histories alone; all of them
are made once at its start.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from eain_jax.data.batches import Batch
from eain_jax.errors import InputError
from eain_jax.serving.candidates import Rows
from eain_jax.serving.encoder import Asked, Encoder, Histories
from eain_jax.serving.scorer import ask_rows

# Rows of a batch, and the shares of the longest histories that it has room for.
ROWS, SHARES = (8, 64, 512), (0.25, 1.0)


class ShapedScorer:
  """Scores rows; see the module.

  Attributes:
    encoder: makes the batches.
    max_rows: of one batch.
  """

  def __init__(
    self,
    encoder: Encoder,
    score: Callable[[Batch], Any],
    sizes: tuple[int, ...] = ROWS,
  ):
    """By a model.

    Args:
      encoder: of the model's data.
      score: logits [R, 1] of a batch of one candidate a row.
      sizes: rows of a batch, rising.
    """
    self.encoder, self._score, self._sizes = encoder, score, sizes
    self.max_rows = sizes[-1]

  def warm_up(self) -> None:
    """Compiles all that will be run."""
    length = self.encoder.history_length
    for size in self._sizes:
      for share in SHARES:
        num_events = int(length * share)
        asked = Asked(
          np.full(size, -1, np.int32),
          np.full((size, 1), -1, np.int32),
          np.zeros(size, np.int64),
          {
            name: categories.find([None] * size)
            for name, categories in self.encoder.categories.items()
          },
          Histories(
            np.full(size * num_events, -1, np.int32),
            np.full(size * num_events, -1, np.int64),
            num_events * np.arange(1, size + 1),
          ),
        )
        self._logits(asked)

  def score(self, rows: Rows) -> np.ndarray:
    """float32 [n], the logit of each row; takes the rows out.

    Raises:
      InputError: a score is no number.
    """
    parts = [np.zeros(0, np.float32)]
    while len(rows):
      asked = ask_rows(self.encoder, rows.take(self.max_rows))
      parts.append(self._logits(asked))
    logits = np.concatenate(parts)
    if not np.isfinite(logits).all():
      raise InputError('a score is no number: the model has diverged')
    return logits

  def _logits(self, asked: Asked) -> np.ndarray:
    num_rows = len(asked.user)
    size = next(size for size in self._sizes if size >= num_rows)
    length = self.encoder.history_length

    def size_events(needed: int) -> int:
      rooms: Iterator[int] = (max(1, int(size * length * s)) for s in SHARES)
      return next(room for room in rooms if room >= needed)

    # One for padding, one a row, and one an event.
    most = lambda _: 1 + size + size_events(num_events)
    lengths = self.encoder.history_lengths(asked)
    num_events = int(np.minimum(lengths, length).sum())
    batch = self.encoder.batch(asked, size, size_events, most)
    return np.asarray(self._score(batch))[:num_rows, 0]
