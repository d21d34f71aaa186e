"""Vocabularies, item attributes and context, by hand."""

import datetime

import numpy as np
import polars as pl

from eain_jax.data import features
from eain_jax.data.events import ContextColumn, EventLog

DAY = 86_400


def make_log(**columns) -> EventLog:
  day = np.int64([0, 1, 4, 100, 0, 700])
  return EventLog(
    np.int32([0, 0, 0, 0, 1, 1]),
    np.int32([2, 0, 2, 1, 3, 0]),
    day * DAY,
    pl.Series(['a', 'b']),
    pl.Series(['p', 'q', 'r', 's']),
    **{'item_attributes': pl.DataFrame()} | columns,
  )


ALL = np.ones(6, bool)


def encode_items(log, train=ALL):
  train_count = np.bincount(log.item[train], minlength=4)
  return features.encode_items(log.items, log.item_attributes, train_count, 1)


def test_ids_follow_falling_count_then_value():
  vocabulary, ids = features.build_vocabulary(
    np.int64([2, 5, 0, 2]), pl.Series(['a', 'b', 'c', 'd']), 1
  )
  assert vocabulary.values.to_list() == ['b', 'a', 'd']
  assert vocabulary.num_rows == 5
  # a, b, c (never seen in training), d, and code -1.
  np.testing.assert_array_equal(ids, [3, 2, 1, 4, 1])
  assert vocabulary.table()['id'].to_list() == [2, 3, 4]


def test_min_count_sends_rare_values_to_unknown():
  vocabulary, ids = features.build_vocabulary(
    np.int64([2, 5, 1]), pl.Series(['a', 'b', 'c']), 2
  )
  assert vocabulary.values.to_list() == ['b', 'a']
  np.testing.assert_array_equal(ids, [3, 2, 1, 1])


def test_items_seen_only_outside_the_training_part_are_unknown():
  train = np.bool_([1, 1, 1, 0, 0, 0])
  ids, (feature,), vocabularies = encode_items(make_log(), train)
  # Training events: r twice, p once; q and s only later.
  np.testing.assert_array_equal(ids['item'], [3, 1, 2, 1])
  assert vocabularies['item'].counts.tolist() == [2, 1]
  assert feature.num_rows == 4


def test_attributes_single_and_multi_valued():
  log = make_log(
    item_attributes=pl.DataFrame(
      {
        'brand': pl.Series(['x', None, 'x', 'y'], dtype=pl.String),
        'tags': pl.Series(
          [['k', 'l'], [], None, ['l']], dtype=pl.List(pl.String)
        ),
      }
    )
  )
  ids, found, _ = encode_items(log)
  # Events an item: p 2, q 1, r 2, s 1; so x has 4 and y 1; l 3 and k 2.
  np.testing.assert_array_equal(ids['brand'], [2, 1, 2, 3])
  np.testing.assert_array_equal(ids['tags'], [[3, 2], [0, 0], [0, 0], [2, 0]])
  assert [(f.name, f.max_values, f.multi_valued) for f in found] == [
    ('item', 1, False),
    ('brand', 1, False),
    ('tags', 2, True),
  ]


def test_prices_fall_into_buckets_of_equal_weight():
  price = pl.Series('price', [float(i) for i in range(100)] + [None])
  bucket = features.price_buckets(price, np.ones(101, np.int64))
  sizes = bucket.drop_nulls().value_counts()['count'].to_list()
  assert len(sizes) == 10
  assert sum(sizes) == 100
  assert max(sizes) <= 11
  assert bucket[100] is None


def test_prices_without_one_known_leave_the_feature_out():
  log = make_log(
    item_attributes=pl.DataFrame(
      {'price': pl.Series([None] * 4, dtype=pl.Float64)}
    )
  )
  ids, found, _ = encode_items(log)
  assert list(ids) == ['item']
  assert len(found) == 1


def test_time_features_against_the_calendar():
  rng = np.random.default_rng(0)
  stamps = np.sort(rng.integers(0, 2**31, 300))
  log = EventLog(
    np.zeros(300, np.int32),
    np.zeros(300, np.int32),
    stamps,
    pl.Series(['u']),
    pl.Series(['i']),
    pl.DataFrame(),
  )
  days = ['Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat', 'Sun']
  for name in ('hour', 'weekday', 'month', 'quarter'):
    codes, values = (
      features.context_codes(log, name),
      features.TIME_VALUES[name],
    )
    for stamp, code in zip(stamps, codes, strict=True):
      time = datetime.datetime.fromtimestamp(int(stamp), datetime.UTC)
      expected = {
        'hour': str(time.hour),
        'weekday': days[time.weekday()],
        'month': str(time.month),
        'quarter': f'{time.year} Q{(time.month + 2) // 3}',
      }[name]
      assert values[code] == expected


def test_a_quarter_without_a_name_is_none():
  """Of 1969 and of 2100; a log's times may be any numbers."""
  stamps = np.array([-DAY, 0, 4_102_444_799, 4_102_444_800, 2**40])
  log = EventLog(
    np.zeros(5, np.int32),
    np.zeros(5, np.int32),
    stamps,
    pl.Series(['u']),
    pl.Series(['i']),
    pl.DataFrame(),
  )
  codes = features.context_codes(log, 'quarter')
  assert codes.tolist() == [-1, 0, 519, -1, -1]
  names = features.TIME_VALUES['quarter']
  assert (names[0], names[519]) == ('1970 Q1', '2099 Q4')


def test_gaps_by_hand():
  codes = features.context_codes(make_log(), 'gap')
  names = features.TIME_VALUES['gap']
  assert [names[code] for code in codes] == [
    'first event',
    '1',
    '2-3',
    '64-127',
    'first event',
    '512 or more',
  ]


def test_a_gap_is_that_of_the_whole_request():
  """Where a row stands in its request would tell which was taken."""
  day = np.array([0, 0, 2, 2, 2, 2, 9, 1, 1]) * DAY
  log = EventLog(
    np.int32([0, 0, 0, 0, 0, 0, 0, 1, 1]),
    np.zeros(9, np.int32),
    day,
    pl.Series(['u', 'v']),
    pl.Series(['i']),
    pl.DataFrame(),
  )
  # The log lists the rows of requests 1 and 2 in turn.
  request = np.int32([0, 0, 1, 2, 1, 2, 3, 4, 4])
  codes = features.context_codes(log, 'gap', features.begins(request))
  names = features.TIME_VALUES['gap']
  first = 'first event'
  assert [names[code] for code in codes] == [
    *(first, first),
    *('2-3', '0', '2-3', '0'),
    '4-7',
    *(first, first),
  ]


def test_a_gap_of_each_length_has_the_bucket_that_holds_it():
  days = np.arange(0, 700)
  log = EventLog(
    np.repeat(np.arange(700), 2).astype(np.int32),
    np.zeros(1400, np.int32),
    np.stack([np.zeros(700, np.int64), days * DAY], 1).reshape(-1),
    pl.Series([f'{i:04}' for i in range(700)]),
    pl.Series(['i']),
    pl.DataFrame(),
  )
  codes = features.context_codes(log, 'gap')
  names = features.TIME_VALUES['gap']
  for day, code in zip(days, codes[1::2], strict=True):
    low, _, high = names[code].replace(' or more', '-100000').partition('-')
    assert int(low) <= day <= int(high or low)


def test_a_constant_context_column_is_left_out_and_named():
  log = make_log(
    context={
      'device': ContextColumn(
        np.int32([0, 1, -1, 0, 0, 1]), pl.Series(['app', 'web'])
      ),
      'country': ContextColumn(np.zeros(6, np.int32), pl.Series(['de'])),
    }
  )
  values = features.context_values(log, ('hour', 'month'))
  count = {
    name: np.bincount(
      features.context_codes(log, name) + 1, minlength=len(values[name]) + 1
    )
    for name in values
  }
  ids, found, _, constant = features.encode_context(values, count, count, 1)
  assert constant == ['hour', 'country']
  assert [feature.name for feature in found] == ['month', 'device']
  # app, web, and code -1.
  np.testing.assert_array_equal(ids['device'], [2, 3, 1])
