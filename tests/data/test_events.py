"""The one table: canonical order, repeats, k-core, time units."""

import collections
import dataclasses
import types
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eain_jax.data import columns, events
from eain_jax.data.events import (
  UNITS,
  Codes,
  LineNumbers,
  RawColumn,
  RawEvents,
  _canonical_order,
  check_rejected,
  clean_events,
  count_units,
  k_core,
  rejected_table,
  to_seconds,
)
from eain_jax.data.lines import ReadOptions
from eain_jax.errors import InputError

SOURCES = ({'name': 'a.csv'}, {'name': 'b.csv'})
COUNTS = {'lines': 0, 'rejected': 0}


def raw_column(values):
  """Values as codes in order of appearance, one of them never used."""
  codes, number = [], Codes()
  number('never used')
  for value in values:
    codes.append(-1 if value is None else number(value))
  return RawColumn(np.array(codes, np.int32), number.pop_values())


def raw_events(rows, *, ratings=False, requests=False, context=False):
  """RawEvents of (user, item, time, rating, request, position, device)."""
  columns = list(zip(*rows, strict=True)) if rows else [()] * 7
  return RawEvents(
    raw_column(columns[0]),
    raw_column(columns[1]),
    np.array(columns[2], np.int64),
    np.array(columns[3], np.float32) if ratings else None,
    None,
    raw_column(columns[4]) if requests else None,
    np.array(columns[5], np.int32) if requests else None,
    {'device': raw_column(columns[6])} if context else {},
  )


def clean(rows, **columns):
  raw = raw_events(rows, **columns)
  return clean_events(raw, counts=COUNTS, sources=SOURCES, notes=('n',))


def test_canonical_order_by_hand():
  log = clean(
    [
      ('v', 'B', 5, 1.0, 'q', 0, 'tv'),
      ('u', 'C', 7, 2.0, 'p', 0, None),
      ('v', 'A', 5, 3.0, 'q', 1, 'pc'),
      ('u', 'B', 3, 4.0, 'o', 0, 'pc'),
      ('u', 'A', 7, 5.0, 'p', 1, 'tv'),
      ('u', 'C', 7, 6.0, 'p', 0, 'tv'),  # A repeat of the second row.
      ('v', 'B', 4, 7.0, 'n', 0, None),
    ],
    ratings=True,
    requests=True,
    context=True,
  )
  assert log.users.to_list() == ['u', 'v']
  assert log.items.to_list() == ['A', 'B', 'C']
  assert log.user.tolist() == [0, 0, 0, 1, 1, 1]
  assert log.timestamp.tolist() == [3, 7, 7, 4, 5, 5]
  # Within a tie, as the rows came: C before A, B before A.
  assert log.item.tolist() == [1, 2, 0, 1, 1, 0]
  assert log.rating is not None
  assert log.rating.tolist() == [4, 2, 5, 7, 1, 3]
  assert log.request is not None
  assert log.request.tolist() == [0, 1, 1, 2, 3, 3]
  assert log.position is not None
  assert log.position.tolist() == [0, 0, 1, 0, 0, 1]
  device = log.context['device']
  assert device.values.to_list() == ['pc', 'tv']
  assert device.codes.tolist() == [0, -1, 1, -1, 1, 0]
  assert log.counts == {
    'lines': 0,
    'rejected': 0,
    'events': 6,
    'users': 2,
    'items': 3,
    'duplicates': 1,
  }
  assert log.notes == ('n',)
  assert log.item_attributes.shape == (0, 0)
  dtypes = [log.user, log.item, log.timestamp, log.rating, log.request]
  assert [str(a.dtype) for a in dtypes] == (
    ['int32', 'int32', 'int64', 'float32', 'int32']
  )


def test_ids_sort_by_code_point_as_text():
  ids = ['10', '9', 'é', 'Z', 'a', '\U0001f600', '\uffee']
  log = clean([(i, i, 0, 0, None, 0, None) for i in ids])
  assert log.users.to_list() == sorted(ids) == log.items.to_list()


def test_one_document_twice_in_a_request_is_no_repeat():
  rows = [('u', 'A', 1, 0, 'p', 0, None), ('u', 'A', 1, 0, 'p', 1, None)]
  assert clean(rows, requests=True).counts['duplicates'] == 0
  assert clean(rows).counts['duplicates'] == 1
  other = [('u', 'A', 1, 0, 'p', 0, None), ('u', 'A', 1, 0, 'q', 0, None)]
  assert clean(other, requests=True).counts['duplicates'] == 0


def test_no_event():
  with pytest.raises(InputError) as caught:
    clean([])
  assert str(caught.value) == 'a.csv, b.csv: not one event could be read'


ROWS = st.lists(
  st.tuples(
    st.sampled_from('uvwxyz'),
    st.sampled_from('ABCDE'),
    st.integers(-2, 3),
    st.integers(0, 100),
    st.sampled_from('opq'),
    st.integers(0, 2),
    st.sampled_from(['tv', 'pc', None]),
  ),
  min_size=1,
  max_size=40,
)


def plain_clean(rows, requests):
  """The same by a loop over rows: first of each key, then a stable sort."""
  seen, kept = set(), []
  for row in rows:
    key = (row[:3], row[4:6]) if requests else row[:3]
    if key not in seen:
      seen.add(key)
      kept.append(row)
  return sorted(kept, key=lambda row: (row[0], row[2]))


def as_rows(log, requests):
  device = log.context['device']
  return [
    (
      log.users[int(log.user[n])],
      log.items[int(log.item[n])],
      int(log.timestamp[n]),
      int(log.rating[n]),
      int(log.position[n]) if requests else None,
      device.values[int(device.codes[n])] if device.codes[n] >= 0 else None,
    )
    for n in range(len(log.user))
  ]


@settings(deadline=None)
@given(ROWS, st.booleans())
def test_cleaning_equals_a_loop_over_rows(rows, requests):
  log = clean(rows, ratings=True, requests=requests, context=True)
  expected = plain_clean(rows, requests)
  assert as_rows(log, requests) == [
    (*row[:4], row[5] if requests else None, row[6]) for row in expected
  ]
  assert log.counts['events'] + log.counts['duplicates'] == len(rows)
  if requests:
    first_seen = list(dict.fromkeys(row[4] for row in expected))
    assert log.request.tolist() == [first_seen.index(r[4]) for r in expected]


@settings(deadline=None)
@given(ROWS, st.data(), st.integers(1, 9))
def test_refused_rows_are_as_if_they_were_not(rows, data, rows_at_once):
  refused = data.draw(st.sets(st.integers(0, len(rows) - 1)))
  raw = raw_events(rows, ratings=True, requests=True, context=True)
  raw = dataclasses.replace(raw, refused=np.array(sorted(refused), np.int64))
  others = [row for n, row in enumerate(rows) if n not in refused]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(columns, 'BLOCK_ROWS', rows_at_once)
    patch.setattr(events, 'BLOCK_ROWS', rows_at_once)
    if not others:
      with pytest.raises(InputError, match='not one event could be read'):
        clean_events(raw, counts=COUNTS, sources=SOURCES, notes=('n',))
      return
    log = clean_events(raw, counts=COUNTS, sources=SOURCES, notes=('n',))
    core = k_core(log, 1)
  expected = plain_clean(others, True)
  assert as_rows(log, True) == [(*row[:4], *row[5:]) for row in expected]
  assert as_rows(core, True) == as_rows(log, True)
  assert log.users.to_list() == sorted({row[0] for row in expected})
  assert log.counts['duplicates'] == len(others) - len(expected)
  assert log.request.tolist() == core.request.tolist()


@settings(deadline=None)
@given(
  st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3)), min_size=1),
  # The last is beyond what a user and a time have room for in 64 bits.
  st.sampled_from([1, 86_400, 2**40, 2**61]),
)
def test_canonical_order_equals_a_sort(rows, unit):
  user, time = np.array(rows, np.int64).T
  order = _canonical_order(user.astype(np.int32), time * unit)
  assert order.tolist() == sorted(range(len(rows)), key=lambda n: rows[n])


def test_codes_number_what_they_accept():
  codes = Codes(lambda text: text != 'no')
  assert codes.of(['a', 'no', 'b', 'a', 'no']).tolist() == [0, -1, 1, 0, -1]
  assert (codes('c'), codes('no'), codes.get('b'), codes.get('d')) == (
    (2, -1, 1, None)
  )
  assert codes.pop_values().to_list() == ['a', 'b', 'c']


@settings(deadline=None)
@given(ROWS, st.integers(2, 3))
def test_k_core_equals_a_loop(rows, k):
  log = clean(rows, ratings=True, requests=True, context=True)
  left = plain_clean(rows, True)
  num_left = len(rows) + 1
  while len(left) < num_left:
    num_left = len(left)
    users = collections.Counter(row[0] for row in left)
    items = collections.Counter(row[1] for row in left)
    left = [row for row in left if min(users[row[0]], items[row[1]]) >= k]
  if not left:
    with pytest.raises(InputError, match=f'no user and item have {k} events'):
      k_core(log, k)
    return
  core = k_core(log, k)
  assert as_rows(core, True) == [(*row[:4], row[5], row[6]) for row in left]
  assert core.users.to_list() == sorted({row[0] for row in left})
  assert core.items.to_list() == sorted({row[1] for row in left})
  assert core.counts['k_core_dropped'] == len(log.user) - len(left)
  assert core.counts['events'] == len(left)
  requests = list(dict.fromkeys(row[4] for row in left))
  assert core.request.tolist() == [requests.index(row[4]) for row in left]


def test_k_core_keeps_the_attributes_of_its_items():
  rows = [(u, i, 0, 0, None, 0, None) for u in 'uv' for i in 'ac']
  log = clean([*rows, ('w', 'b', 0, 0, None, 0, None)])
  object.__setattr__(
    log, 'item_attributes', pl.DataFrame({'brand': ['x', 'y', 'z']})
  )
  core = k_core(log, 2)
  assert core.items.to_list() == ['a', 'c']
  assert core.item_attributes['brand'].to_list() == ['x', 'z']


@pytest.mark.parametrize(
  ('times', 'seconds', 'unit', 'odd'),
  [
    ([], [], 'seconds', []),
    ([0, -5, 10**11 - 1], [0, -5, 10**11 - 1], 'seconds', [0, 0, 0]),
    # 2018-05-02 to the millisecond; the unit is said by most values.
    ([1525219200999, 1525219200000, 7], [1525219200] * 2, 'milliseconds', 2),
    ([10**11, 10**14 - 1], [10**8, 10**11 - 1], 'milliseconds', [0, 0]),
    ([10**14, 1525219200999999], [10**8, 1525219200], 'microseconds', [0, 0]),
    ([1, 2, 1525219200999], [1, 2], 'seconds', 2),
  ],
)
def test_time_units(times, seconds, unit, odd):
  times = np.array(times, np.int64)
  common = int(np.argmax(count_units(times)))
  assert UNITS[common] == unit
  found, other = to_seconds(times, common)
  # A number stands for the one row that is of another unit.
  expected = [n == odd for n in range(len(times))] if odd == 2 else odd
  assert other.tolist() == [bool(o) for o in expected]
  assert found[~other].tolist() == seconds


def stand_in(name, lines, rejected, max_rejected=0.1):
  return types.SimpleNamespace(
    path=Path(name),
    name=name,
    options=ReadOptions(max_rejected=max_rejected),
    lines=lines,
    rejected=rejected,
  )


def test_share_of_rejected_lines():
  bad = [(9, 'nine', ''), (4, 'four', 'x')]
  check_rejected(stand_in('a', 20, bad))
  check_rejected(stand_in('a', 3, bad, 1.0))
  reason = '2 of 19 lines were rejected, the first in line 4: four; mend'
  with pytest.raises(InputError, match=reason):
    check_rejected(stand_in('a', 19, bad))
  with pytest.raises(InputError, match='holds no line of data'):
    check_rejected(stand_in('a', 0, []))
  # All of them are never allowed.
  reason = 'all of its lines, 2, were rejected, the first in line 4: four; this'
  with pytest.raises(InputError, match=reason):
    check_rejected(stand_in('a', 2, bad, 1.0))


def test_rejected_table_is_in_order_of_lines():
  table = rejected_table(
    [stand_in('b', 9, [(7, 'x', 't'), (2, 'y', '')]), stand_in('a', 9, [])]
  )
  assert table.rows() == [('b', 2, 'y', ''), ('b', 7, 'x', 't')]
  assert table.schema == {
    'file': pl.String,
    'line': pl.Int64,
    'reason': pl.String,
    'text': pl.String,
  }
  assert rejected_table([]).schema == table.schema


@pytest.mark.parametrize('rows_at_once', [1, 2, 7])
def test_the_order_does_not_depend_on_blocks(monkeypatch, rows_at_once):
  rng = np.random.default_rng(0)
  rows = [
    (f'u{user}', f'i{item}', time, row, f'r{row % 2}', 0, 'd')
    for row, (user, item, time) in enumerate(rng.integers(0, 4, (200, 3)))
  ]
  monkeypatch.setattr(columns, 'BLOCK_ROWS', rows_at_once)
  monkeypatch.setattr(events, 'BLOCK_ROWS', rows_at_once)
  log = clean(rows, ratings=True, requests=True)
  seen, expected = set(), []
  # By user and time, rows of the source in their order, the first of repeats.
  for user, item, time, row, request, *_ in sorted(
    rows, key=lambda row: (row[0], row[2], row[3])
  ):
    if (user, item, time, request) not in seen:
      expected.append(row)
    seen.add((user, item, time, request))
  assert log.rating is not None
  assert log.rating.tolist() == expected
  assert log.counts['duplicates'] == 200 - len(expected) > 0


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), max_size=9))
def test_lines_of_rows(gaps):
  numbers, expected, line = LineNumbers(), [], 0
  for gap, num in gaps:
    line += gap
    numbers.add(line, num)
    expected += range(line, line + num)
    line += num - 1
  assert [numbers.of(row) for row in range(len(expected))] == expected
