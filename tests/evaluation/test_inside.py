"""What EAIN looks at, against numpy and a direct look into the network."""

import json
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from eain_jax.config import PrepareConfig
from eain_jax.data.batches import make_eval_stream
from eain_jax.data.dataset import open_dataset
from eain_jax.data.prepare import prepare
from eain_jax.evaluation import inside
from eain_jax.layers.embedding import embed_batch
from eain_jax.models import make_model


class Looked(NamedTuple):
  """A random EAIN, what was found in it, and what it sows of all requests."""

  model: Any
  params: Any
  stats: Any
  found: Any
  logit_RC: np.ndarray
  sown: Any


@pytest.fixture(scope='module')
def make(dataset, small_config, state_shapes, randomized):
  """make(**settings): an EAIN of random parameters."""

  def made(**settings):
    model = make_model('eain', small_config('eain', **settings))
    batch = make_eval_stream(dataset, 'test', 64).batch(0)
    return model, *randomized(state_shapes(model, dataset, batch))

  return made


@pytest.fixture(scope='module')
def looked(dataset, make):
  model, params, stats = make()
  stream = make_eval_stream(dataset, 'test', 31 * len(dataset.parts['test']))

  read = model.reads(dataset.features)

  @jax.jit
  def apply(params, stats, batch):
    return model.apply(
      {'params': params['net'], 'stats': stats},
      embed_batch(params['tables'], batch, read),
      mutable=['intermediates'],
    )

  logit_RC, sown = apply(params, stats, stream.batch(0))
  found = inside.look_inside(dataset, model, params, stats)
  layers = sown['intermediates']
  return Looked(model, params, stats, found, np.asarray(logit_RC), layers)


def test_all_of_it_is_ready_for_json(looked):
  assert json.loads(json.dumps(looked.found, allow_nan=False)) == looked.found


def test_examples_are_the_first_of_a_fixed_order(dataset, looked):
  part = dataset.parts['test']
  rows = np.arange(len(part))
  order = np.argsort(inside.hash_bits(inside._HASH_KEY, rows))
  lengths = [
    min(
      12,
      part.history_end[r] - dataset.history_start[dataset.user[part.event[r]]],
    )
    for r in order
  ]
  expected = [
    int(row) for row, length in zip(order, lengths, strict=True) if length >= 5
  ]
  assert [one['row'] for one in looked.found['examples']] == expected[:4]
  assert expected[:4] != sorted(expected)[:4]


def test_an_example_is_told_in_the_words_of_the_source(dataset, looked):
  events = dataset.events_table()
  part = dataset.parts['test']
  for example in looked.found['examples']:
    event = int(part.event[example['row']])
    target = events.row(event, named=True)
    before = events[:event].filter(events[:event]['user'] == target['user'])
    before = before[::-1][:12]
    assert [one['item'] for one in example['history']] == before[
      'item'
    ].to_list()
    assert [one['days_before'] for one in example['history']] == pytest.approx(
      ((target['timestamp'] - before['timestamp']) / 86_400).to_list()
    )
    assert example['positive']['item'] == target['item']
    # The maker of the log: brand i % 9, tags of the taste i % 4, then i % 3.
    number = int(target['item'][1:])
    assert example['positive']['attributes'] == {
      'brand': [f'b{number % 9}'],
      'tags': [f'taste{number % 4}', *(f't{t}' for t in range(number % 3))],
    }


def test_the_negative_is_the_one_that_scores_highest(dataset, looked):
  items = dataset.raw_items(np.arange(dataset.num_items))
  for example in looked.found['examples']:
    row = example['row']
    logit_C = looked.logit_RC[row]
    best = logit_C[1:].argmax()
    taken = dataset.parts['test'].candidates[row, best]
    assert example['negative']['item'] == items[taken]
    assert example['negative']['logit'] == pytest.approx(
      logit_C[1 + best], abs=1e-4
    )
    assert example['positive']['logit'] == pytest.approx(logit_C[0], abs=1e-4)
    assert example['candidates'] == 31
    assert example['rank'] == 1 + (logit_C[1:] > logit_C[0]).sum()


def embedded(dataset, params, item):
  """[E]: an item's features side by side, by loops over its ids."""
  parts = []
  for name in ('item', 'brand', 'tags'):
    table = np.asarray(params['tables'][name], np.float64)[:, :8]
    ids = [i for i in np.atleast_1d(dataset.item_ids[name][item]) if i > 0]
    parts.append(np.mean([table[i] for i in ids], axis=0))
  return np.concatenate(parts)


def ages_of_history(dataset, row):
  """Of the events before a row's, the newest first, days in powers of two."""
  event = int(dataset.parts['test'].event[row])
  day = dataset.timestamp // 86_400
  before = np.flatnonzero(dataset.user[:event] == dataset.user[event])[::-1]
  return [
    min(10, int(np.log2(days)) + 1) if days else 0
    for days in (day[event] - day[before]).tolist()
  ]


def test_attention_is_equations_1_and_2(dataset, looked):
  weights = jax.tree.map(
    lambda x: np.asarray(x, np.float64), looked.params['net']['attention']
  )
  number = {raw: i for i, raw in enumerate(dataset.raw_items(np.arange(80)))}
  for example in looked.found['examples']:
    ages = ages_of_history(dataset, example['row'])
    for name in ('positive', 'negative'):
      x = embedded(dataset, looked.params, number[example[name]['item']])
      score = []
      for rank, event in enumerate(example['history']):
        x_t = embedded(dataset, looked.params, number[event['item']])
        hidden = x_t @ weights['w1'] + x @ weights['w2']
        hidden += (x_t * x) @ weights['w3']
        hidden += weights['rank'][rank] + weights['age'][ages[rank]]
        score.append(np.tanh(hidden) @ weights['v'])
      expected = np.exp(score) / np.exp(score).sum()
      np.testing.assert_allclose(
        example[name]['attention'], expected, atol=1e-5
      )


def as_matrix(mask_PD, num_fields):
  """[F][F] by the definition: pairs i < j row by row, the mean |M| over D."""
  matrix = [[None] * num_fields for _ in range(num_fields)]
  pairs = iter(np.abs(mask_PD).mean(-1))
  for i in range(num_fields):
    for j in range(i + 1, num_fields):
      matrix[i][j] = matrix[j][i] = pytest.approx(next(pairs), abs=1e-4)
  assert next(pairs, None) is None
  return matrix


def test_gates_and_masks_are_those_of_the_network(dataset, looked):
  fields = looked.found['fields']
  item = ['item', 'brand', 'tags']
  history = [f'history {name}' for name in item]
  context = ['hour', 'weekday', 'month', 'gap', 'device']
  assert fields == ['user', *item, *history, *context]
  (gate_BF,) = looked.sown['squeeze_excitation']['gate']
  (mask_BPD,) = looked.sown['mask_block']['mask']
  gate_RCF = np.asarray(gate_BF).reshape(-1, 31, len(fields))
  mask_RCPD = np.asarray(mask_BPD).reshape(-1, 31, *mask_BPD.shape[1:])
  for example in looked.found['examples']:
    row = example['row']
    best = 1 + looked.logit_RC[row, 1:].argmax()
    for name, place in (('positive', 0), ('negative', best)):
      np.testing.assert_allclose(
        example[name]['gate'], gate_RCF[row, place], atol=1e-5
      )
      expected = as_matrix(mask_RCPD[row, place], len(fields))
      assert example[name]['mask'] == expected
  # All positives of so small a part are in the averages.
  average = looked.found['average']
  assert average['requests'] == len(dataset.parts['test'])
  assert [one['field'] for one in average['gate']] == fields
  for name, expected in (
    ('mean', gate_RCF[:, 0].mean(0)),
    ('low', np.percentile(gate_RCF[:, 0], 10, axis=0)),
    ('high', np.percentile(gate_RCF[:, 0], 90, axis=0)),
  ):
    np.testing.assert_allclose(
      [one[name] for one in average['gate']], expected, atol=1e-5
    )
  strength_PD = np.abs(mask_RCPD[:, 0]).mean(0)
  assert average['mask'] == as_matrix(strength_PD, len(fields))


def test_averages_of_attention(dataset, looked):
  """From what the network sows of all requests at once."""
  (weight_NC,) = looked.sown['attention']['attention_weight']
  part = dataset.parts['test']
  shares, relative = {}, {True: [], False: []}
  event = 0
  for row in range(len(part)):
    user = dataset.user[part.event[row]]
    begin = max(dataset.history_start[user], part.history_end[row] - 12)
    history = range(begin, part.history_end[row])
    for place, at in enumerate(history):
      weight = float(weight_NC[event, 0])
      rank = len(history) - place
      shares.setdefault(rank, []).append((weight, 1 / len(history)))
      target = dataset.item[part.event[row]]
      # Brands are the item's number modulo 9, in the order of raw ids.
      is_same = dataset.item[at] % 9 == target % 9
      if len(history) > 1:
        relative[bool(is_same)].append(weight * len(history))
      event += 1
  average = looked.found['average']
  for one in average['attention']:
    weights, even = np.mean(shares[one['rank']], axis=0)
    assert one['weight'] == pytest.approx(weights, abs=1e-5)
    assert one['even'] == pytest.approx(even)
    assert one['requests'] == len(shares[one['rank']]) >= 30
  assert [one['rank'] for one in average['attention']] == list(
    range(1, 1 + sum(len(found) >= 30 for found in shares.values()))
  )
  brand, tags = average['same']
  assert (brand['feature'], tags['feature']) == ('brand', 'tags')
  assert brand['same'] == pytest.approx(np.mean(relative[True]), abs=1e-4)
  assert brand['other'] == pytest.approx(np.mean(relative[False]), abs=1e-4)
  assert brand['events_same'] == len(relative[True])


def test_ranks_by_hand(monkeypatch):
  monkeypatch.setattr(inside, 'MIN_REQUESTS', 2)
  attention = [np.array(w) for w in ([0.2, 0.3, 0.5], [0.25, 0.75], [1.0], [])]
  assert inside.attention_by_rank(attention, is_share=True) == [
    {
      'rank': 1,
      'weight': 0.75,
      'even': pytest.approx(11 / 18),
      'requests': 3,
    },
    # The third rank has one request.
    {
      'rank': 2,
      'weight': pytest.approx(0.275),
      'even': pytest.approx(5 / 12),
      'requests': 2,
    },
  ]
  (one, _) = inside.attention_by_rank(attention, is_share=False)
  assert one['even'] is None


def test_likeness_by_hand(monkeypatch):
  # Padding is 0 and unknown 1: nobody shares them.
  here = np.array([[2, 3, 0], [1, 0, 0], [4, 5, 0], [0, 0, 0]])
  there = np.array([[3, 0, 0], [1, 0, 0], [6, 7, 8], [0, 0, 0]])
  expected = [True, False, False, False]
  assert inside.shares_value(here, there).tolist() == expected
  assert inside.shares_value(there, here).tolist() == expected
  assert inside.shares_value(
    np.array([2, 1, 3]), np.array([2, 1, 4])
  ).tolist() == [True, False, False]
  monkeypatch.setattr(inside, 'MIN_REQUESTS', 2)
  found = inside.attention_to_same(
    np.array([2.0, 0.5, 1.5]), np.array([True, False, False])
  )
  assert found == {
    'same': None,
    'events_same': 1,
    'other': 1.0,
    'events_other': 2,
  }


def test_pairs_are_cut_into_batches(dataset, looked, monkeypatch):
  state = looked.model, looked.params, looked.stats
  monkeypatch.setattr(inside, '_PAIRS_A_BATCH', 7)
  monkeypatch.setattr(inside, 'NUM_AVERAGED', 40)
  in_parts = inside.look_inside(dataset, *state)
  monkeypatch.setattr(inside, '_PAIRS_A_BATCH', 512)
  at_once = inside.look_inside(dataset, *state)
  assert in_parts['average']['requests'] == 40
  for name in ('attention', 'gate', 'mask'):
    first, second = (
      jax.tree.leaves(one['average'][name]) for one in (in_parts, at_once)
    )
    assert first == pytest.approx(second, abs=1e-5)


def test_a_layer_that_is_not_there_is_left_out(dataset, make):
  bare = inside.look_inside(
    dataset, *make(use_attention=False, use_se=False, use_mask_block=False)
  )
  for one in (bare['average'], bare['examples'][0]['positive']):
    assert (one['attention'], one['gate'], one['mask']) == (None, None, None)
  scores = inside.look_inside(
    dataset, *make(use_softmax=False, use_user=False, use_context=False)
  )
  assert not scores['weights_are_shares']
  assert scores['average']['same'] is None
  assert scores['average']['attention'][0]['even'] is None
  assert len(scores['fields']) == len(scores['average']['gate']) == 6
  weights = scores['examples'][0]['positive']['attention']
  assert sum(weights) != pytest.approx(1, abs=0.1)


def test_negatives_of_a_log_are_those_of_its_request(
  tmp_path, small_config, state_shapes, randomized
):
  lines = ['user,item,timestamp,label,request']
  for user in range(12):
    for time in range(10):
      for place in range(3):
        item = (user + 3 * time + place) % 17
        lines.append(
          f'u{user},i{item},{time},{int(place == time % 3)},r{user}-{time}'
        )
  (tmp_path / 'log.csv').write_text('\n'.join(lines) + '\n')
  names = ('user', 'item', 'timestamp', 'label', 'request')
  config = PrepareConfig(
    events=str(tmp_path / 'log.csv'),
    columns=tuple(f'{name}={name}' for name in names),
    context=(),
  )
  prepare(config, tmp_path / 'dataset')
  dataset = open_dataset(tmp_path / 'dataset')
  assert dataset.task == 'logged'
  model = make_model('eain', small_config('eain'))
  batch = make_eval_stream(dataset, 'test', 64).batch(0)
  state = randomized(state_shapes(model, dataset, batch))
  found = inside.look_inside(dataset, model, *state)
  events = dataset.events_table()
  part = dataset.parts['test']
  assert len(found['examples']) == 4
  for example in found['examples']:
    event = events.row(int(part.event[example['row']]), named=True)
    user, time = int(event['user'][1:]), event['timestamp']
    shown = [f'i{(user + 3 * time + place) % 17}' for place in range(3)]
    assert example['candidates'] == 3
    assert example['positive']['item'] == shown.pop(time % 3) == event['item']
    assert example['negative']['item'] in shown
    # A log's timestamp may be any order.
    assert {one['days_before'] for one in example['history']} == {None}
