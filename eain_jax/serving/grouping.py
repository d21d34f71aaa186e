"""Rows that follow each other and ask of one user at one time, put together.

Their history is then looked up, sent and projected once. A request has C
candidates, a static number, so one with fewer is filled up: C is what costs
least over the rows at hand.
"""

from collections.abc import Collection, Mapping

import numpy as np

# What a request costs beside its candidates, in candidates: its history.
REQUEST_COST = 2.0
# Of the least cost, for which no other program is compiled.
ENOUGH = 1.5
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
MAX_SIZE = 128


def run_starts(keys: Mapping[str, np.ndarray]) -> np.ndarray:
  """int64, the first row of each run of rows that agree in all keys."""
  columns = list(keys.values())
  differs = np.zeros(len(columns[0]), bool)
  differs[:1] = True
  for column in columns:
    differs[1:] |= column[1:] != column[:-1]
  return np.flatnonzero(differs)


def choose_candidates(
  starts: np.ndarray, num_rows: int, known: Collection[int] = ()
) -> int:
  """C for runs that begin at `starts`; one that is `known` if it serves."""
  lengths = np.diff(starts, append=num_rows)
  cost = lambda size: (-(-lengths // size)).sum() * (size + REQUEST_COST)
  # Logs often have as many candidates a request everywhere, as 100.
  usual = int(np.median(lengths)) if len(lengths) else 1
  pieces = -(-usual // MAX_SIZE)
  best = min((*SIZES, -(-usual // pieces)), key=cost)
  nearest = min(known, key=cost, default=best)
  return nearest if cost(nearest) <= ENOUGH * cost(best) else best


def cut_runs(
  starts: np.ndarray, num_rows: int, num_candidates: int
) -> tuple[np.ndarray, np.ndarray]:
  """Requests of at most C candidates each.

  Args:
    starts: int64, where runs begin.
    num_rows: of all runs.
    num_candidates: C.

  Returns:
    int64 [R], the first row of each request, and its number of candidates.
  """
  lengths = np.diff(starts, append=num_rows)
  pieces = -(-lengths // num_candidates)
  run = np.repeat(np.arange(len(starts)), pieces)
  number = np.arange(len(run)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
  first = starts[run] + number * num_candidates
  return first, np.minimum(
    lengths[run] - number * num_candidates, num_candidates
  )
