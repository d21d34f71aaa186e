"""Rows put together, by hand."""

import numpy as np
import pytest

from eain_jax.serving.grouping import choose_candidates, cut_runs, run_starts


def test_a_run_ends_where_any_key_changes():
  keys = {
    'user': np.array([1, 1, 1, 2, 2, 1]),
    'time': np.array([5, 5, 6, 6, 6, 6]),
  }
  assert run_starts(keys).tolist() == [0, 2, 3, 5]
  assert run_starts({'user': np.array([], int)}).tolist() == []


def test_runs_are_cut_where_they_are_too_long():
  # Runs of 2, 1, 5 rows.
  first, count = cut_runs(np.array([0, 2, 3]), 8, 2)
  assert first.tolist() == [0, 2, 3, 5, 7]
  assert count.tolist() == [2, 1, 2, 2, 1]
  first, count = cut_runs(np.array([0, 2, 3]), 8, 1)
  assert first.tolist() == list(range(8))
  assert set(count.tolist()) == {1}


@pytest.mark.parametrize(
  ('lengths', 'size'),
  [
    # One each: 3 a row, where 2 would cost 4.
    ([1, 1, 1], 1),
    # The usual length fits without waste: 102, where 7 of 16 cost 126.
    ([100], 100),
    # 300: in three.
    ([300], 100),
    # 1 + 1 + 1 + 13 of 8 cost 160; of 4 168, of 16 180, of the usual 3 180.
    ([3, 3, 3, 97], 8),
    ([3, 3], 3),
  ],
)
def test_the_size_that_costs_least(lengths, size):
  starts = np.cumsum([0, *lengths[:-1]])
  assert choose_candidates(starts, sum(lengths)) == size


def test_a_known_size_serves_where_it_costs_little_more():
  """Runs of 100 cost 102 a hundred; of 64 2 x 66, 1.3 times as much."""
  starts = np.arange(0, 400, 100)
  assert choose_candidates(starts, 400, (64,)) == 64
  # One by one they cost 300 a hundred.
  assert choose_candidates(starts, 400, (1,)) == 100
  assert choose_candidates(starts, 400, (1, 64, 100)) == 100
