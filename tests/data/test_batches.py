"""Batches against a plain reading of the dataset, example by example."""

import jax
import numpy as np
import pytest

from eain_jax.data import batches


@pytest.mark.parametrize('size', [1, 2, 3, 64, 65, 1000, 4097])
def test_permutation_visits_each_index_once(size):
  order = batches.permute_index(np.arange(size), size, 12345)
  np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_permutation_is_evaluated_where_it_is_asked():
  whole = batches.permute_index(np.arange(10_000), 10_000, 7)
  some = np.int64([9_999, 0, 123])
  np.testing.assert_array_equal(
    batches.permute_index(some, 10_000, 7), whole[some]
  )
  other = batches.permute_index(np.arange(10_000), 10_000, 8)
  # Two random permutations agree in one place on average.
  assert np.sum(whole == other) < 10
  assert np.sum(whole == np.arange(10_000)) < 10


def test_size_classes_grow_by_a_quarter():
  assert batches.size_class(100, 256, 10_000) == 256
  assert batches.size_class(257, 256, 10_000) == 384
  assert batches.size_class(385, 256, 10_000) == 512
  # The most that can be needed is never exceeded.
  assert batches.size_class(257, 256, 300) == 300


def expected_rows(dataset, part, rows):
  """User, history items and position of each row, in plain Python."""
  out = []
  for row in rows:
    event = int(part.event[row])
    user = int(dataset.user[event])
    mine = np.flatnonzero(dataset.user == user)
    before = mine[mine < event]
    kept = before[-dataset.config.history_length :]
    out.append((user, dataset.item[kept].tolist(), len(before)))
  return out


def unpack(dataset, batch, row):
  """History and target item ids of a packed row, as feature ids."""
  events = batch['segment'] == row
  ids = batch['items']['item']
  return ids[batch['history'][events]], ids[batch['target'][row]]


def test_examples_of_many_steps_are_those_of_each(dataset):
  """Beyond the epoch's end nothing is read."""
  stream = batches.make_train_stream(dataset, 160, seed=3)
  last = stream.steps_per_epoch - 1
  for first, count in ((2, 5), (last - 2, 3), (last - 1, 16)):
    steps = range(first, min(first + count, last + 1))
    each = [stream.examples(step) for step in steps]
    found = stream.examples(first, num_steps=count)
    for number, values in enumerate(found):
      expected = np.concatenate([parts[number] for parts in each])
      np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize('draws_once', [False, True])
def test_negatives_are_drawn_anew_every_epoch_or_once(dataset, draws_once):
  stream = batches.make_train_stream(dataset, 160, 3, draws_once=draws_once)
  found = []
  for epoch in range(3):
    rows, items, _, _ = stream.examples(
      epoch * stream.steps_per_epoch, num_steps=stream.steps_per_epoch
    )
    found.append(items[np.argsort(rows)])
  for other in found[1:]:
    np.testing.assert_array_equal(found[0][:, 0], other[:, 0])
    assert (found[0] == other).all() == draws_once
    if not draws_once:
      assert (found[0][:, 1:] == other[:, 1:]).mean() < 0.1
  # The first epoch is the same either way.
  anew = batches.make_train_stream(dataset, 160, 3).examples(0)
  np.testing.assert_array_equal(stream.examples(0)[1], anew[1])


@pytest.mark.parametrize('step', [0, 3, 40])
def test_a_batch_holds_what_the_dataset_says(dataset, step):
  stream = batches.make_train_stream(dataset, 160, seed=3)
  part = dataset.parts['train']
  batch = stream.batch(step)
  rows, items, label, _ = stream.examples(step)
  assert batch['target'].shape == (32, 5)
  for place, (user, history, position) in enumerate(
    expected_rows(dataset, part, rows)
  ):
    packed, targets = unpack(dataset, batch, place)
    assert packed.tolist() == dataset.item_ids['item'][history].tolist()
    assert targets.tolist() == dataset.item_ids['item'][items[place]].tolist()
    assert batch['user'][place] == dataset.user_ids[user]
    assert batch['position'][place] == position
    assert items[place, 0] == dataset.item[part.event[rows[place]]]
    assert label[place].tolist() == [1, 0, 0, 0, 0]
    event = part.event[rows[place]]
    ages = batch['age'][batch['segment'] == place]
    stamps = dataset.timestamp[event - position : event][-len(ages) :]
    days = dataset.timestamp[event] // 86_400 - stamps // 86_400
    expected = [int(np.log2(d)) + 1 if d else 0 for d in days]
    assert ages.tolist() == [min(bucket, 10) for bucket in expected]
    for name, ids in dataset.context_ids.items():
      assert batch['context'][name][place] == ids[event]


def test_padding_weighs_nothing_and_points_at_row_zero(dataset):
  stream = batches.make_train_stream(dataset, 160, seed=3)
  last = stream.batch(stream.steps_per_epoch - 1)
  left = len(dataset.parts['train']) % 32
  assert left
  assert last['weight'][:left].min() == 1
  assert last['weight'][left:].max() == 0
  padding = last['segment'] == 32
  assert padding.any()
  assert not last['history'][padding].any()
  assert not last['age'][padding].any()
  for ids in last['items'].values():
    assert not ids[0].any()


def test_an_epoch_visits_each_request_once_and_the_next_in_another_order(
  dataset,
):
  stream = batches.make_train_stream(dataset, 160, seed=3)
  epoch = lambda number: np.concatenate(
    [
      stream.rows(number * stream.steps_per_epoch + step)[1]
      for step in range(stream.steps_per_epoch)
    ]
  )
  first, second = epoch(0), epoch(1)
  everything = np.arange(len(dataset.parts['train']))
  np.testing.assert_array_equal(np.sort(first), everything)
  np.testing.assert_array_equal(np.sort(second), everything)
  assert np.any(first != second)


def test_negatives_are_drawn_anew_every_epoch(dataset):
  stream = batches.make_train_stream(dataset, 160, seed=3)

  def negatives(epoch):
    found = {}
    for step in range(stream.steps_per_epoch):
      rows, items, *_ = stream.examples(epoch * stream.steps_per_epoch + step)
      found |= dict(zip(rows.tolist(), items[:, 1:].tolist(), strict=True))
    return found

  first, second = negatives(0), negatives(1)
  same = sum(first[row] == second[row] for row in first)
  assert same < 3


@pytest.mark.parametrize('num_shards', [2, 4, 8])
def test_shards_hold_the_same_examples_as_one(dataset, num_shards):
  one = batches.make_train_stream(dataset, 165, seed=3)
  shards = batches.Shards(num_shards, range(num_shards), True)
  many = batches.make_train_stream(dataset, 165, 3, shards)
  for step in (0, one.steps_per_epoch - 1):
    whole, shards = one.batch(step), many.batch(step)
    per_shard = shards['target'].shape[1]
    assert shards['weight'].sum() == whole['weight'].sum()
    for row in range(int(whole['weight'][:, 0].sum())):
      shard, place = divmod(row, per_shard)
      piece = {
        'items': {k: v[shard] for k, v in shards['items'].items()},
        **{k: shards[k][shard] for k in ('segment', 'history', 'target')},
      }
      for a, b in zip(
        unpack(dataset, whole, row),
        unpack(dataset, piece, place),
        strict=True,
      ):
        np.testing.assert_array_equal(a, b)
      assert shards['row'][shard][place] == whole['row'][row]


@pytest.mark.parametrize('num_processes', [1, 2, 4])
def test_processes_have_the_order_of_one_and_each_example_once(
  dataset, num_processes
):
  """Two epochs of one global batch, over four shards of so many processes.

  What each request is, its candidates and its history included, is compared
  with the batches of one process that has one device.
  """
  per_process = 4 // num_processes
  one = batches.make_train_stream(dataset, 165, seed=3)
  streams = [
    batches.make_train_stream(
      dataset,
      165,
      3,
      batches.Shards(
        4, range(p * per_process, (p + 1) * per_process), True, 'none'
      ),
    )
    for p in range(num_processes)
  ]

  def requests(batch):
    """(place, candidates, history) of each request that counts, in order."""
    return [
      (
        int(batch['row'][row]),
        *(x.tolist() for x in unpack(dataset, batch, row)),
      )
      for row in np.flatnonzero(batch['weight'][:, 0])
    ]

  counted = 0
  for step in range(2 * one.steps_per_epoch):
    found = []
    for stream in streams:
      batch = stream.batch(step)
      for shard in range(per_process):
        found += requests(jax.tree.map(lambda x, s=shard: x[s], batch))
    assert found == requests(one.batch(step))
    counted += len(found)
  assert counted == 2 * len(dataset.parts['train'])


def test_shapes_are_few(dataset):
  stream = batches.make_train_stream(dataset, 160, seed=3)
  shapes = {
    (len(b['history']), len(b['items']['item']))
    for b in map(stream.batch, range(3 * stream.steps_per_epoch))
  }
  assert len(shapes) == 1


def test_evaluation_keeps_order_and_candidates(dataset):
  stream = batches.make_eval_stream(dataset, 'test', 31 * 40)
  part = dataset.parts['test']
  place = 0
  for number in range(stream.num_batches):
    batch = stream.batch(number)
    count = int(batch['weight'][:, 0].sum())
    for row in range(count):
      _, targets = unpack(dataset, batch, row)
      items = [dataset.item[part.event[place]], *part.candidates[place]]
      assert targets.tolist() == dataset.item_ids['item'][items].tolist()
      place += 1
  assert place == len(part)


def test_a_batch_smaller_than_the_devices_is_refused(dataset):
  with pytest.raises(ValueError, match='too few for 8 device'):
    batches.make_train_stream(dataset, 20, 0, batches.Shards(8, range(8)))


def test_prefetch_keeps_order_and_passes_errors_on():
  def make(number):
    if number == 7:
      raise RuntimeError('seven')
    return {'number': number}

  stream = batches.prefetch(make, range(2, 10))
  assert [next(stream)['number'] for _ in range(5)] == [2, 3, 4, 5, 6]
  with pytest.raises(RuntimeError, match='seven'):
    next(stream)


@pytest.mark.parametrize('part', ['valid', 'test'])
def test_evaluation_has_one_shape(dataset, part):
  """Its longest batch is known beforehand, so it is compiled once."""
  stream = batches.make_eval_stream(dataset, part, 900)
  shapes = set()
  for number in range(stream.num_batches):
    batch = stream.batch(number)
    shapes.add((len(batch['history']), len(batch['items']['item'])))
  assert stream.num_batches > 5
  assert len(shapes) == 1


def test_the_last_step_of_an_epoch_holds_fewer_examples(dataset):
  stream = batches.make_train_stream(dataset, 500, seed=0)
  found = [
    stream.num_examples(step) for step in range(stream.steps_per_epoch + 1)
  ]
  weights = [
    stream.batch(step)['weight'].sum()
    for step in range(stream.steps_per_epoch + 1)
  ]
  assert found == weights
  assert found[-2] < found[-1] == 500
