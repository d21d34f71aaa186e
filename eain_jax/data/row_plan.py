"""Which rows of each embedding table a batch touches, found in O(batch).

A step that updates only those rows gathers them, differentiates with respect
to them, and scatters them back; what it costs does not depend on the number of
rows of the tables. Planning is the input thread's work, not the device's.
"""

import dataclasses
import threading
from collections.abc import Mapping, Sequence

import numpy as np

from eain_jax.data.features import PADDING, Feature

# Of a table beyond this, a place a row would take more than a gigabyte.
MAX_PLACES = 2**28


class DistinctFinder:
  """Distinct values and their places, without sorting all values.

  It keeps one int32 a possible value, for each thread, and never clears it:
  a place is believed only where it points back to the value. Of very many
  possible values it sorts the ones at hand instead.
  """

  def __init__(self):
    self._of_thread = threading.local()

  def __call__(
    self, values: np.ndarray, num_values: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values, sorted, and where each of `values` stands there.

    Args:
      values: int32, any shape, in [0, num_values).
      num_values: bound of the values.

    Returns:
      int32 [U], and int32 of the shape of `values`.
    """
    if num_values > MAX_PLACES:
      distinct, place = np.unique(values, return_inverse=True)
      return distinct, place.reshape(values.shape).astype(np.int32)
    place = getattr(self._of_thread, 'place', None)
    if place is None or len(place) < num_values:
      place = self._of_thread.place = np.empty(num_values, np.int32)
    flat = values.reshape(-1)
    order = np.arange(len(flat), dtype=np.int32)
    # Of equal values one wins, and all of them read its number.
    place[flat] = order
    distinct = np.sort(flat[place[flat] == order])
    place[distinct] = order[: len(distinct)]
    return distinct, place[flat].reshape(values.shape)


def planned_rows(feature: Feature, num_ids: int) -> int:
  """Q, the static number of planned rows for `num_ids` ids of a feature."""
  return min(feature.num_rows, num_ids + 1)


def owned_rows(num_rows: int, num_owners: int) -> int:
  """L, rows that each owner of a cut table holds; the last may be spare."""
  return -(-num_rows // num_owners)


@dataclasses.dataclass(frozen=True)
class RowsOfShard:
  """The distinct rows that a shard touches, by feature.

  Attributes:
    distinct: {feature: int32 [U]}, sorted; row 0, padding, is the first.
    place: {feature: int32}, of the shape of its ids: where each stands there.
  """

  distinct: Mapping[str, np.ndarray]
  place: Mapping[str, np.ndarray]


def find_rows(
  batch: Mapping, features: Sequence[Feature], find: DistinctFinder
) -> RowsOfShard:
  """The rows of one shard's batch; see `data.batches`.

  Args:
    batch: of one shard.
    features: that have a table.
    find: finds distinct values.
  """
  distinct, place = {}, {}
  for feature in features:
    if feature.kind == 'item':
      ids = batch['items'][feature.name]
    elif feature.kind == 'context':
      ids = batch['context'][feature.name]
    else:
      ids = batch['user']
    padded = np.concatenate([[np.int32(PADDING)], ids.reshape(-1)])
    distinct[feature.name], places = find(padded, feature.num_rows)
    place[feature.name] = places[1:].reshape(ids.shape)
  return RowsOfShard(distinct, place)


def _with_ids(
  batch: Mapping,
  features: Sequence[Feature],
  rows: Mapping[str, np.ndarray],
  local: Mapping[str, np.ndarray],
) -> dict:
  """The batch with a plan, and ids that are places in it."""
  pick = lambda kind: {
    f.name: local[f.name] for f in features if f.kind == kind
  }
  return {
    **batch,
    'rows': rows,
    'items': pick('item'),
    'context': pick('context'),
    # Where users have no table their ids stay: who has one is no padding.
    'user': local.get('user', batch['user']),
  }


def plan_rows(
  batch: Mapping, features: Sequence[Feature], find: DistinctFinder
) -> dict:
  """A shard's batch with the rows that it touches, and ids that index them.

  Args:
    batch: of `data.batches`, one shard.
    features: that have a table, all of the batch's items and context.
    find: finds distinct values.

  Returns:
    The batch with local ids, and `rows`: {feature: int32 [Q]}, sorted and
    distinct. Row 0, padding, is always the first, so that local id 0 is
    padding too. Places that are not needed hold numbers beyond the table,
    which a gather fills with zeros and a scatter drops.
  """
  found, rows = find_rows(batch, features, find), {}
  for feature in features:
    distinct, place = found.distinct[feature.name], found.place[feature.name]
    planned = planned_rows(feature, place.size)
    beyond = np.arange(planned - len(distinct), dtype=np.int32)
    rows[feature.name] = np.concatenate([distinct, feature.num_rows + beyond])
  return _with_ids(batch, features, rows, found.place)


def most_of_an_owner(found: RowsOfShard, num_owners: int) -> dict[str, int]:
  """By feature the most rows that a shard asks of one owner."""
  return {
    name: int(np.bincount(rows % num_owners, minlength=num_owners).max())
    for name, rows in found.distinct.items()
  }


def plan_exchange(
  batch: Mapping,
  features: Sequence[Feature],
  found: RowsOfShard,
  num_owners: int,
  capacity: Mapping[str, int],
) -> dict:
  """A shard's batch with what it asks of each owner of the cut tables.

  Row r lies with owner r mod D, at place r // D.

  Args:
    batch: of `data.batches`, one shard.
    features: that have a table, all of the batch's items and context.
    found: its rows.
    num_owners: D.
    capacity: by feature C, at least `most_of_an_owner`.

  Returns:
    The batch with `rows`: {feature: int32 [D, C]}, places in what each owner
    holds, rising; those that are not needed lie beyond it. Ids are places in
    the flat [D * C], of which padding is the first.
  """
  rows, local = {}, {}
  for feature in features:
    distinct = found.distinct[feature.name]
    places = capacity[feature.name]
    owner = distinct % num_owners
    order = np.argsort(owner, kind='stable')
    count = np.bincount(owner, minlength=num_owners)
    begin = np.cumsum(count) - count
    slot = np.empty(len(distinct), np.int32)
    slot[order] = np.arange(len(distinct)) + np.repeat(
      np.arange(num_owners) * places - begin, count
    )
    asked = np.full(
      num_owners * places, owned_rows(feature.num_rows, num_owners), np.int32
    )
    asked[slot] = distinct // num_owners
    rows[feature.name] = asked.reshape(num_owners, places)
    local[feature.name] = slot[found.place[feature.name]]
  return _with_ids(batch, features, rows, local)
