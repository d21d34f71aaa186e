"""Raw ids and values, found or not."""

import polars as pl
import pytest

from eain_jax.data.features import UNKNOWN
from eain_jax.serving.lookup import (
  Categories,
  RawIds,
  items_of,
  source_columns,
  time_features,
  users_of,
)


@pytest.mark.parametrize('values', [['a', 'b', 'd'], ['d', 'a', 'b'], ['a']])
def test_the_number_is_the_place_in_any_order(values):
  ids = RawIds(pl.Series(values))
  wanted = [*values, '', 'A', 'c', 'zz', *values]
  found = ids.find(wanted).tolist()
  assert found == [values.index(v) if v in values else -1 for v in wanted]
  assert ids.find([]).tolist() == []


def test_of_nothing_all_is_unknown():
  assert RawIds(pl.Series([], dtype=pl.String)).find(['a']).tolist() == [-1]


def test_bytes_decide_not_the_alphabet():
  values = ['Zoë', 'a', 'é', '日本']
  ids = RawIds(pl.Series(values))
  assert ids.find(['日本', 'é', 'e', 'Zoë']).tolist() == [3, 2, -1, 0]


def test_users_and_items_are_rows_of_the_dataset(dataset):
  users = pl.read_parquet(dataset.path / 'users.parquet')['user'].to_list()
  assert users_of(dataset).find(['u007', 'u1', 'u199']).tolist() == [
    users.index('u007'),
    -1,
    users.index('u199'),
  ]
  [item] = items_of(dataset).find(['i42'])
  assert dataset.raw_items([item]) == ['i42']


def test_a_value_that_training_did_not_see_is_unknown(dataset):
  devices = Categories(dataset, 'device')
  phone, desktop, *others = devices.find(['phone', 'desktop', 'tv', '', None])
  assert dataset.values_of('device', [phone, desktop]) == {
    phone: 'phone',
    desktop: 'desktop',
  }
  assert others == [UNKNOWN] * 3


def test_columns_are_called_as_in_the_log(dataset):
  assert source_columns(dataset) == {
    'user': 'user',
    'item': 'item',
    'timestamp': 'timestamp',
    'device': 'device',
  }
  assert time_features(dataset) == ['hour', 'weekday', 'month', 'gap']
