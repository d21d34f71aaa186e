"""Plans of rows: distinct, sorted, and pointed to."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eain_jax.data.batches import make_train_stream
from eain_jax.data.row_plan import DistinctFinder

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


@pytest.mark.parametrize('num_shards', [1, 3])
def test_local_ids_point_at_the_ids_of_the_batch(dataset, num_shards):
  plain = make_train_stream(dataset, 500, 0, num_shards)
  planned = dataclasses.replace(plain, with_rows=True)
  # The last step of the epoch has padding.
  for step in (0, plain.steps_per_epoch - 1):
    batch, found = plain.batch(step), planned.batch(step)
    ids = {'user': batch['user'], **batch['items'], **batch['context']}
    local = {'user': found['user'], **found['items'], **found['context']}
    assert ids.keys() == local.keys() == found['rows'].keys()
    for feature in dataset.features:
      rows = found['rows'][feature.name].reshape(num_shards, -1)
      assert (rows == rows[0]).all()
      rows = rows[0]
      assert rows[0] == 0
      assert (np.diff(rows) > 0).all()
      np.testing.assert_array_equal(
        rows[local[feature.name]], ids[feature.name]
      )
      # What is planned and in the table is padding, or in the batch.
      used = rows[rows < feature.num_rows]
      np.testing.assert_array_equal(
        used, np.union1d([0], ids[feature.name].ravel())
      )
    for key in ('target', 'history', 'segment', 'label', 'weight', 'row'):
      np.testing.assert_array_equal(batch[key], found[key])


def test_planned_sizes_are_those_of_the_batches(dataset):
  stream = make_train_stream(dataset, 500, 0)
  stream = dataclasses.replace(stream, with_rows=True)
  batch = stream.batch(0)
  sizes = {name: len(rows) for name, rows in batch['rows'].items()}
  assert sizes == stream.planned()
