"""Splits, negatives and Skip Above against counts and loops by hand."""

import numpy as np
import polars as pl
import pytest

from eain_jax.data import examples
from eain_jax.data.events import EventLog
from eain_jax.errors import InputError

DAY = 86_400


def make_log(user, item, day, **columns) -> EventLog:
  user, item = np.int32(user), np.int32(item)
  return EventLog(
    user,
    item,
    np.int64(day) * DAY,
    pl.Series([f'u{i}' for i in range(user.max() + 1)]),
    pl.Series([f'i{i}' for i in range(item.max() + 1)]),
    pl.DataFrame(),
    **columns,
  )


# Three users with 4, 2 and 1 events.
USER = np.int32([0, 0, 0, 0, 1, 1, 2])
TIME = np.int64([1, 2, 2, 9, 3, 4, 5])


@pytest.mark.parametrize(
  ('split', 'expected'),
  [
    ('last_out', [0, 0, 1, 2, 1, 2, 2]),
    ('last_out_no_validation', [0, 0, 0, 2, 0, 2, 2]),
  ],
)
def test_last_out_by_hand(split, expected):
  part = examples.split_requests(np.arange(7), USER, TIME, split)
  np.testing.assert_array_equal(part, expected)


def test_time_split_never_cuts_within_a_timestamp():
  time = np.int64([1, 1, 1, 2, 2, 2, 2, 3, 4, 5])
  cuts = examples.time_cuts(time.copy(), (0.5, 0.3, 0.2))
  part = examples.split_requests(
    np.arange(10), np.arange(10), time, 'time', cuts
  )
  # The cuts fall at order[5] = 2 and order[8] = 4: earlier times stay below.
  np.testing.assert_array_equal(part, [0, 0, 0, 1, 1, 1, 1, 1, 2, 2])


def test_no_request_is_split():
  rng = np.random.default_rng(0)
  user = np.sort(rng.integers(0, 30, 400)).astype(np.int32)
  day = rng.integers(0, 20, 400)
  order = np.lexsort((day, user))
  log = make_log(user[order], rng.integers(0, 9, 400), day[order])
  request = examples.make_requests(log, 'rating')
  start = examples.request_times(request, log.timestamp)
  cuts = examples.time_cuts(start, (0.8, 0.1, 0.1))
  for split in ('last_out', 'time'):
    part = examples.split_requests(
      request, log.user, log.timestamp, split, cuts
    )
    for number in np.unique(request):
      rows = request == number
      assert len(set(part[rows])) == 1
      assert (
        len(set(zip(log.user[rows], log.timestamp[rows], strict=True))) == 1
      )


def test_requests_of_a_log_are_numbered_by_first_appearance():
  log = make_log(
    [0, 0, 0, 1], [0, 1, 2, 3], [1, 1, 1, 1], request=np.int32([7, 3, 7, 7])
  )
  # Request 7 of user 1 is not request 7 of user 0.
  np.testing.assert_array_equal(
    examples.make_requests(log, 'logged'), [0, 1, 0, 2]
  )


def test_skip_above_keeps_positives_and_the_negatives_above_the_last():
  #                   request 0          | request 1 | request 2
  request = np.int32([0, 0, 0, 0, 0, 0] + [1, 1] + [2, 2])
  label = np.int8([0, 1, 0, 1, 0, 0] + [0, 0] + [0, 1])
  position = np.int32([1, 2, 3, 4, 5, 6] + [1, 2] + [2, 1])
  np.testing.assert_array_equal(
    examples.skip_above(request, label, position),
    [True, True, True, True, False, False] + [False, False] + [False, True],
  )


def test_simulated_order_keeps_each_number_of_negatives_equally_often():
  kept = examples.simulate_kept_negatives(0, np.arange(50_000), 4)
  counts = np.bincount(kept, minlength=5)
  assert len(counts) == 5
  # Binomial: 10,000 expected, standard deviation 89.
  assert np.abs(counts - 10_000).max() < 450


def sampler_of(log, **kwargs):
  settings = {
    'sampling': 'uniform',
    'exponent': 0.75,
    'exclusion': 'had',
    'seed': 0,
  } | kwargs
  train_count = np.bincount(log.item, minlength=len(log.items))
  start = examples.user_offsets(log.user, len(log.users))
  return examples.make_sampler(log.item, start, train_count, **settings)


@pytest.fixture
def random_log():
  rng = np.random.default_rng(1)
  user = np.sort(rng.integers(0, 40, 500))
  return make_log(user, rng.integers(0, 60, 500), np.arange(500))


@pytest.mark.parametrize('exclusion', ['had', 'ever'])
def test_negatives_are_never_items_that_the_user_had(random_log, exclusion):
  log = random_log
  sampler = sampler_of(log, exclusion=exclusion)
  event = np.arange(len(log.user))
  negatives = sampler.draw(3, event, log.user, 12)
  assert negatives.shape == (500, 12)
  for row in event:
    mine = log.user == log.user[row]
    seen = mine if exclusion == 'ever' else mine & (event <= row)
    assert not set(negatives[row]) & set(log.item[seen])
    assert len(set(negatives[row])) == 12


def drawn_one_by_one(sampler, had, event, num_negatives):
  """One row of candidates by the rule: draw again what may not stand."""
  draw = lambda slot, attempt: int(
    sampler._draw(examples.EVALUATION_STREAM, event, slot, attempt)
  )
  row = [draw(slot, 0) for slot in range(num_negatives)]
  for attempt in range(1, examples.MAX_DRAWS):
    again = [
      slot for slot in range(num_negatives)
      if row[slot] in had or row[slot] in row[:slot]
    ]  # fmt: skip
    if not again:
      return row
    for slot in again:
      row[slot] = draw(slot, attempt)


# Few candidates a row and many, in one block and in many.
@pytest.mark.parametrize('num_negatives', [1, 3, 25])
@pytest.mark.parametrize('draws_at_once', [1, 100, 1 << 17])
@pytest.mark.parametrize('sampling', ['uniform', 'popularity'])
def test_candidates_equal_a_loop_over_rows(
  random_log, monkeypatch, num_negatives, draws_at_once, sampling
):
  log = random_log
  monkeypatch.setattr(examples, 'DRAWS_AT_ONCE', draws_at_once)
  sampler = sampler_of(log, sampling=sampling)
  rows = np.arange(3, 500, 7)
  candidates = examples._draw_in_blocks(
    sampler, rows, log.user[rows], num_negatives
  )
  for row, found in zip(rows, candidates.tolist(), strict=True):
    mine = (log.user == log.user[row]) & (np.arange(500) <= row)
    had = set(log.item[mine].tolist())
    assert found == drawn_one_by_one(sampler, had, row, num_negatives)


def test_an_item_that_comes_later_may_be_a_negative(random_log):
  log = random_log
  negatives = sampler_of(log).draw(0, np.arange(500), log.user, 12)
  later = sum(
    item in log.item[row + 1 :][log.user[row + 1 :] == log.user[row]]
    for row in range(500)
    for item in negatives[row]
  )
  assert later > 0


def test_negatives_depend_on_the_example_alone(random_log):
  log, sampler = random_log, sampler_of(random_log)
  event = np.arange(500)
  whole = sampler.draw(5, event, log.user, 4)
  order = np.random.default_rng(2).permutation(500)
  np.testing.assert_array_equal(
    sampler.draw(5, event[order], log.user[order], 4), whole[order]
  )
  np.testing.assert_array_equal(
    sampler.draw(5, event[:7], log.user[:7], 4), whole[:7]
  )
  assert np.any(sampler.draw(6, event, log.user, 4) != whole)


def test_uniform_negatives_are_uniform():
  log = make_log(np.arange(4000), np.zeros(4000), np.zeros(4000))
  log = EventLog(
    log.user,
    log.item,
    log.timestamp,
    log.users,
    pl.Series([f'i{i}' for i in range(51)]),
    pl.DataFrame(),
  )
  negatives = sampler_of(log).draw(0, np.arange(4000), log.user, 5)
  counts = np.bincount(negatives.reshape(-1), minlength=51)
  # Item 0 is everybody's own; the others get 400 each, deviation 20.
  assert counts[0] == 0
  assert np.abs(counts[1:] - 400).max() < 110


def test_popularity_negatives_follow_the_power_of_the_count():
  item = np.repeat([0, 1, 2], [100, 800, 2700])
  log = make_log(np.arange(3600), item, np.zeros(3600))
  sampler = sampler_of(log, sampling='popularity', exponent=0.5)
  drawn = sampler.draw(0, np.arange(3600), log.user, 1)[:, 0]
  # For owners of item 0: weights of 1 and 2 are 800^.5 and 2700^.5.
  expected = 2700**0.5 / (800**0.5 + 2700**0.5)
  assert abs(np.mean(drawn[:100] == 2) - expected) < 0.15
  # For owners of item 2: of 0 and 1.
  expected = 800**0.5 / (100**0.5 + 800**0.5)
  assert abs(np.mean(drawn[900:] == 1) - expected) < 0.03


def test_too_few_items_is_one_sentence():
  log = make_log([0] * 5, [0, 1, 2, 3, 4], range(5))
  with pytest.raises(InputError, match='has had nearly all of the 5 items'):
    sampler_of(log).draw(0, np.int64([3]), np.int32([0]), 2)


def test_segment_ranges_by_hand():
  entry, owner = examples.segment_ranges(
    np.int64([5, 9, 2]), np.int64([7, 9, 5])
  )
  np.testing.assert_array_equal(entry, [5, 6, 2, 3, 4])
  np.testing.assert_array_equal(owner, [0, 0, 2, 2, 2])
