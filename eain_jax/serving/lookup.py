"""Raw ids of a dataset's users and items, and values of its features."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from eain_jax.data.dataset import Dataset
from eain_jax.data.features import TIME_VALUES, UNKNOWN
from eain_jax.data.log_values import parse_columns


class RawIds:
  """Finds the numbers of raw ids.

  Ids are kept as one sorted column and found by halving it, so a hundred
  million of them take the memory of their text and no more.
  """

  def __init__(self, values: pl.Series):
    """Of the raw ids, by number; each once."""
    self._order = None
    if not values.is_sorted():
      self._order = values.arg_sort().to_numpy()
      values = values.gather(self._order)
    self._values = values

  def find(self, raw: Sequence[str] | pl.Series) -> np.ndarray:
    """int32, the number of each raw id, -1 for one that is unknown."""
    wanted = pl.Series('raw', raw, pl.String)
    if not len(self._values) or not len(wanted):
      return np.full(len(wanted), -1, np.int32)
    place = self._values.search_sorted(wanted).to_numpy()
    place = np.minimum(place, len(self._values) - 1)
    is_known = (self._values.gather(place) == wanted).to_numpy()
    number = place if self._order is None else self._order[place]
    return np.where(is_known, number, -1).astype(np.int32)


def raw_ids(dataset: Dataset, kind: str) -> pl.Series:
  """The raw ids of all users or items, by number; `kind`: user or item."""
  file = dataset.path / f'{kind}s.parquet'
  return pl.read_parquet(file, columns=[kind], glob=False)[kind].cast(pl.String)


def users_of(dataset: Dataset) -> RawIds:
  """The users of a dataset, by their row of `user_ids`."""
  return RawIds(raw_ids(dataset, 'user'))


def items_of(dataset: Dataset) -> RawIds:
  """The items of a dataset, by their row of `item_ids`."""
  return RawIds(raw_ids(dataset, 'item'))


def _vocabulary(dataset: Dataset, feature: str) -> pl.DataFrame:
  """'id' and 'value' of what a feature's vocabulary holds."""
  table = pl.read_csv(
    dataset.path / 'vocabularies' / f'{feature}.csv',
    columns=['id', 'value'],
    schema_overrides={'id': pl.Int32, 'value': pl.String},
    glob=False,
  )
  # An empty field reads as none.
  return table.with_columns(pl.col('value').fill_null(''))


def time_ids(dataset: Dataset) -> dict[str, np.ndarray]:
  """By feature of a timestamp int32 [W + 1], the vocabulary id of each code.

  The last entry, which code -1 indexes, is that of a value that is unknown.
  """
  found = {}
  for name in time_features(dataset):
    table = _vocabulary(dataset, name)
    id_of: Mapping[str, int] = dict(table.select('value', 'id').iter_rows())
    ids = [id_of.get(value, UNKNOWN) for value in TIME_VALUES[name]]
    found[name] = np.array([*ids, UNKNOWN], np.int32)
  return found


class Categories:
  """Finds the vocabulary ids of a context column's values."""

  def __init__(self, dataset: Dataset, feature: str):
    table = _vocabulary(dataset, feature).sort('value')
    self._ids = table['id'].to_numpy()
    self._values = RawIds(table['value'])

  def find(self, raw: Sequence[str | None] | pl.Series) -> np.ndarray:
    """int32, the id of each value; `UNKNOWN` for none and for others."""
    wanted = pl.Series('raw', raw, pl.String)
    if not len(self._ids):
      return np.full(len(wanted), UNKNOWN, np.int32)
    place = self._values.find(wanted.fill_null(''))
    is_known = (place >= 0) & wanted.is_not_null().to_numpy()
    return np.where(is_known, self._ids[place], UNKNOWN).astype(np.int32)


def time_features(dataset: Dataset) -> list[str]:
  """Context features that follow from the timestamp, not columns of the log."""
  given = dataset.config.context
  named = parse_columns(dataset.config.columns)
  return [n for n in dataset.context_ids if n in given and n not in named]


def source_columns(dataset: Dataset) -> dict[str, str]:
  """Our names of the columns that requests have to the log's own.

  user, item and timestamp, then the context columns; where a dataset is not
  made of a log with named columns, the names are ours.
  """
  named = parse_columns(dataset.config.columns)
  of_time = time_features(dataset)
  own = [name for name in dataset.context_ids if name not in of_time]
  wanted = ('user', 'item', 'timestamp', *own)
  return {name: named.get(name, name) for name in wanted}
