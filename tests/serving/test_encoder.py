"""Requests of raw ids against the raw log, read by hand."""

import csv
import dataclasses
import datetime
import json

import numpy as np
import pytest

from eain_jax.config import PrepareConfig
from eain_jax.data.batches import make_eval_stream
from eain_jax.data.dataset import open_dataset
from eain_jax.data.features import TIME_VALUES, UNKNOWN, bucket_days
from eain_jax.data.prepare import prepare
from eain_jax.serving.encoder import (
  Asked,
  Encoder,
  HighWater,
  Histories,
  first_not_before,
  power_of_two,
)

DAY = 86_400


@pytest.fixture(scope='module')
def encoder(dataset):
  return Encoder(dataset)


@pytest.fixture(scope='module')
def log(dataset):
  """By user their (time, item) in order, from the file itself."""
  folder = dataset.path.parent
  events: dict[str, list] = {}
  with (folder / 'events.csv').open() as file:
    for row in csv.DictReader(file):
      events.setdefault(row['user'], []).append(
        (int(row['timestamp']), row['item'])
      )
  return {user: sorted(of_user) for user, of_user in events.items()}


@pytest.fixture(scope='module')
def attributes(dataset):
  lines = (dataset.path.parent / 'items.jsonl').read_text().splitlines()
  return {record['item']: record for record in map(json.loads, lines)}


def ask(encoder, users, items, times, devices, histories=None):
  return Asked(
    encoder.users.find(users),
    np.stack([encoder.items.find(of_request) for of_request in items]),
    np.array(times),
    {'device': encoder.categories['device'].find(devices)},
    histories,
  )


def names(dataset, feature, ids):
  """Values of ids, None for padding and '?' for unknown ones."""
  ids = np.asarray(ids)
  values = dataset.values_of(feature, np.unique(ids))
  known = {0: None, UNKNOWN: '?', **values}
  return [known[i] for i in ids.tolist()]


def described(dataset, batch, request):
  """What a batch holds of a request, in raw values."""
  is_own = batch['segment'] == request
  items = lambda rows: names(dataset, 'item', batch['items']['item'][rows])
  tags = lambda row: [
    tag for tag in names(dataset, 'tags', batch['items']['tags'][row]) if tag
  ]
  target = batch['target'][request]
  return {
    'items': items(target),
    'tags': [tags(row) for row in target],
    'history': items(batch['history'][is_own]),
    'age': batch['age'][is_own].tolist(),
    'position': int(batch['position'][request]),
    'user': names(dataset, 'user', [batch['user'][request]])[0],
    **{
      name: names(dataset, name, [ids[request]])[0]
      for name, ids in batch['context'].items()
    },
  }


def gap_name(days):
  """Of TIME_VALUES['gap'], by its words."""
  for name in TIME_VALUES['gap'][1:]:
    low, _, high = name.partition('-')
    if name == '512 or more' or days <= int(high or low):
      return name
  raise AssertionError(days)


def test_what_a_batch_holds_is_what_the_log_says(
  dataset, encoder, log, attributes
):
  asked, expected = [], []
  for number, user in enumerate(['u000', 'u123', 'u005', 'u077']):
    # Between two events, and long after the last one.
    for time in (log[user][2][0] + 1, log[user][-1][0] + 40 * DAY + 7):
      items = [f'i{number:02}', 'i79']
      asked.append((user, items, time, 'phone'))
      before = [(t, i) for t, i in log[user] if t < time]
      kept = before[-12:]
      moment = datetime.datetime.fromtimestamp(time, datetime.UTC)
      expected.append(
        {
          'items': items,
          'tags': [attributes[item]['tags'] for item in items],
          'history': [item for _, item in kept],
          'age': bucket_days(
            np.array([time // DAY - t // DAY for t, _ in kept])
          ).tolist(),
          'position': len(before),
          'user': user,
          'hour': str(moment.hour),
          'weekday': moment.strftime('%a'),
          'month': str(moment.month),
          'gap': gap_name((time - before[-1][0]) // DAY),
          'device': 'phone',
        }
      )
  batch = encoder.batch(ask(encoder, *zip(*asked, strict=True)), 16)
  for request, of_request in enumerate(expected):
    found = described(dataset, batch, request)
    for name in ('hour', 'weekday', 'month', 'gap'):
      # Training may not have seen the value.
      if found[name] == '?':
        found[name] = of_request[name]
    # Nor every item.
    assert found == of_request
  assert batch['weight'].sum() == 2 * len(asked)
  assert not batch['user'][len(asked) :].any()


def test_an_event_at_the_time_of_the_request_is_not_seen(encoder, log):
  [(first, _), (second, item), *_] = log['u010']
  batch = encoder.batch(
    ask(
      encoder,
      ['u010'] * 3,
      [[item]] * 3,
      [first, second, second + 1],
      ['phone'] * 3,
    ),
    4,
  )
  assert batch['position'][:3].tolist() == [0, 1, 2]


def test_the_test_part_is_asked_as_it_is_evaluated(dataset, encoder):
  stream = make_eval_stream(dataset, 'test', 1 << 20)
  expected, part = stream.batch(0), dataset.parts['test']
  count = len(part)
  items = dataset.item[part.event][:, None]
  asked = Asked(
    dataset.user[part.event],
    np.concatenate([items, part.candidates], axis=1),
    dataset.timestamp[part.event],
    {'device': dataset.context_ids['device'][part.event]},
  )
  found = encoder.batch(asked, count)
  size = int(np.sum(expected['segment'] < count))
  for name in ('segment', 'age'):
    assert np.array_equal(found[name][:size], expected[name][:size])
  for name in ('user', 'position', 'label', 'weight'):
    if name != 'label':
      assert np.array_equal(found[name], expected[name])
  for name, ids in expected['context'].items():
    assert np.array_equal(found['context'][name], ids)
  for name, ids in expected['items'].items():
    for place in ('target', 'history'):
      own, other = found[place], expected[place]
      if place == 'history':
        own, other = own[:size], other[:size]
      assert np.array_equal(found['items'][name][own], ids[other])


def test_unknown_users_and_items_have_the_unknown_rows(dataset, encoder):
  asked = ask(
    encoder,
    ['nobody', 'u000'],
    [['i00'], ['nothing']],
    [10**9, 2 * 10**9],
    ['tv', None],
  )
  batch = encoder.batch(asked, 2)
  first, second = (described(dataset, batch, n) for n in (0, 1))
  assert (first['user'], first['history'], first['position']) == ('?', [], 0)
  assert first['gap'] == 'first event'
  assert first['device'] == second['device'] == '?'
  assert second['items'] == ['?']
  assert second['tags'] == [['?']]
  assert encoder.history_lengths(asked)[0] == 0
  assert encoder.history_lengths(asked)[1] > 0


def test_a_history_that_is_given_stands_for_that_of_the_log(
  dataset, encoder, log
):
  users, times = ['u000', 'nobody', 'u001'], [1_500_000_000] * 3
  own = ask(encoder, users, [['i03']] * 3, times, ['phone'] * 3)
  flat = [event for user in ('u000', 'u001') for event in log[user]]
  ends = np.cumsum([len(log['u000']), 0, len(log['u001'])])
  histories = Histories(
    encoder.items.find([item for _, item in flat]),
    np.array([time for time, _ in flat]),
    ends,
  )
  given = ask(encoder, users, [['i03']] * 3, times, ['phone'] * 3, histories)
  own, batch = (encoder.batch(asked, 3) for asked in (own, given))
  for request in range(3):
    assert described(dataset, batch, request) == described(
      dataset, own, request
    )
  # Of a stretch of the requests, too.
  last = encoder.batch(given.rows(1, 3), 2)
  assert described(dataset, last, 1) == described(dataset, own, 2)
  assert described(dataset, last, 0)['history'] == []


def test_positives_alone_are_history_and_the_gap_is_to_any_event(tmp_path):
  lines = ['user,item,timestamp,label']
  for user in range(12):
    for place in range(10):
      label = int(place in (0, 3, 6, 8, 9))
      lines.append(f'u{user},i{place},{place * DAY + 1000},{label}')
  (tmp_path / 'log.csv').write_text('\n'.join(lines) + '\n')
  prepare(
    PrepareConfig(
      events=str(tmp_path / 'log.csv'),
      columns=(
        'user=user',
        'item=item',
        'timestamp=timestamp',
        'label=label',
      ),
      split='last_out',
      context=('gap',),
    ),
    tmp_path / 'dataset',
  )
  encoder = Encoder(open_dataset(tmp_path / 'dataset'))
  asked = Asked(
    encoder.users.find(['u3']),
    encoder.items.find(['i9'])[:, None],
    np.array([7 * DAY + 1500]),
    {},
  )
  batch = encoder.batch(asked, 1)
  is_own = batch['segment'] == 0
  history = batch['items']['item'][batch['history'][is_own]]
  # Items 0, 3, 6 were positives by then; item 7 was seen 500 seconds before.
  assert names(encoder.dataset, 'item', history) == ['i0', 'i3', 'i6']
  assert batch['position'].tolist() == [3]
  # No training event has one so short.
  assert batch['context']['gap'].tolist() == [UNKNOWN]
  later = dataclasses.replace(asked, timestamp=np.array([8 * DAY + 1000]))
  gap = encoder.batch(later, 1)['context']['gap']
  assert names(encoder.dataset, 'gap', gap) == ['1']


def test_halving_finds_what_counting_finds():
  rng = np.random.default_rng(0)
  time = np.concatenate([np.sort(rng.integers(0, 9, n)) for n in (0, 1, 7, 30)])
  start, stop = np.array([0, 0, 1, 8, 8]), np.array([0, 1, 8, 38, 8])
  for moment in range(-1, 11):
    found = first_not_before(
      lambda place: time[place], start, stop, np.full(5, moment)
    )
    expected = [
      first + int(np.sum(time[first:last] < moment))
      for first, last in zip(start, stop, strict=True)
    ]
    assert found.tolist() == expected


def test_sizes_are_few():
  assert [power_of_two(n) for n in (1, 64, 65, 128, 1000)] == [
    64,
    64,
    128,
    128,
    1024,
  ]
  size = HighWater()
  first = size(1000)
  assert first >= 1000
  assert {size(n) for n in (1, 900, first)} == {first}
  assert size(first + 1) > first
  assert size(1) == size(first + 1)
