"""Plans of rows: distinct, sorted, and pointed to."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eain_jax.data.batches import Shards, make_train_stream
from eain_jax.data.features import Feature
from eain_jax.data.row_plan import (
  DistinctFinder,
  find_rows,
  most_of_an_owner,
  owned_rows,
  plan_exchange,
)

FIND = DistinctFinder()


@given(st.lists(st.integers(0, 60), max_size=80), st.integers(61, 200))
def test_distinct_values_are_those_of_numpy(values, num_values):
  """One finder for all draws: what earlier ones left behind is harmless."""
  values = np.array(values, np.int32)
  distinct, place = FIND(values, num_values)
  expected, inverse = np.unique(values, return_inverse=True)
  np.testing.assert_array_equal(distinct, expected)
  np.testing.assert_array_equal(place, inverse)
  assert distinct.dtype == place.dtype == np.int32


def test_of_very_many_possible_values_none_has_a_place():
  values = np.array([[2**30, 5], [5, 0]], np.int32)
  distinct, place = FIND(values, 2**31)
  np.testing.assert_array_equal(distinct, [0, 5, 2**30])
  np.testing.assert_array_equal(place, [[2, 1], [1, 0]])
  assert place.dtype == np.int32


def ids_of(batch):
  return {'user': batch['user'], **batch['items'], **batch['context']}


@pytest.mark.parametrize('num_shards', [1, 3])
def test_local_ids_point_at_the_ids_of_the_batch(dataset, num_shards):
  plain, planned = (
    make_train_stream(
      dataset, 500, 0, Shards(num_shards, range(num_shards), True, plan)
    )
    for plan in ('none', 'rows')
  )
  # The last step of the epoch has padding.
  for step in (0, plain.steps_per_epoch - 1):
    batch, found = plain.batch(step), planned.batch(step)
    ids, local = ids_of(batch), ids_of(found)
    assert ids.keys() == local.keys() == found['rows'].keys()
    for feature, shard in itertools.product(
      dataset.features, range(num_shards)
    ):
      name = feature.name
      rows = found['rows'][name][shard]
      assert rows[0] == 0
      assert (np.diff(rows) > 0).all()
      np.testing.assert_array_equal(rows[local[name][shard]], ids[name][shard])
      # What is planned and in the table is padding, or in the batch.
      used = rows[rows < feature.num_rows]
      np.testing.assert_array_equal(
        used, np.union1d([0], ids[name][shard].ravel())
      )
    for key in (
      'target',
      'history',
      'segment',
      'age',
      'label',
      'weight',
      'row',
    ):
      np.testing.assert_array_equal(batch[key], found[key])


def test_an_exchange_by_hand():
  """Ten rows over three owners: 0 3 6 9, 1 4 7 and 2 5 8."""
  features = [Feature('user', 'user', 10)]
  batch = {
    'user': np.array([7, 0, 3, 7, 5], np.int32),
    'items': {},
    'context': {},
  }
  found = find_rows(batch, features, FIND)
  assert most_of_an_owner(found, 3) == {'user': 2}
  planned = plan_exchange(batch, features, found, 3, {'user': 3})
  # Places with the owners; four, of as many that an owner holds, is none.
  np.testing.assert_array_equal(
    planned['rows']['user'], [[0, 1, 4], [2, 4, 4], [1, 4, 4]]
  )
  np.testing.assert_array_equal(planned['user'], [3, 0, 1, 3, 6])


@pytest.mark.parametrize('num_owners', [1, 2, 5, 8])
def test_what_is_asked_of_the_owners_is_what_the_batch_holds(
  dataset, num_owners
):
  plain, planned = (
    make_train_stream(
      dataset, 500, 0, Shards(num_owners, range(num_owners), True, plan)
    )
    for plan in ('none', 'exchange')
  )
  for step in (0, plain.steps_per_epoch - 1):
    batch, found = plain.batch(step), planned.batch(step)
    ids, local = ids_of(batch), ids_of(found)
    for feature in dataset.features:
      name = feature.name
      owned = owned_rows(feature.num_rows, num_owners)
      asked = found['rows'][name]
      owner = np.arange(num_owners)[None, :, None]
      row = asked * num_owners + owner
      assert (row[asked < owned] < feature.num_rows).all()
      for shard in range(num_owners):
        np.testing.assert_array_equal(
          row[shard].reshape(-1)[local[name][shard]], ids[name][shard]
        )
        wanted = row[shard][asked[shard] < owned]
        assert len(set(wanted)) == len(wanted)
        assert set(wanted) == {0, *ids[name][shard].ravel()}
        # The place that stands for padding.
        assert row[shard].reshape(-1)[0] == 0


def test_planned_sizes_are_those_of_the_batches(dataset):
  stream = make_train_stream(dataset, 500, 0, Shards(plan='rows'))
  batch = stream.batch(0)
  sizes = {name: len(rows) for name, rows in batch['rows'].items()}
  assert sizes == stream.planned()
