"""Which rows of each embedding table a batch touches, found in O(batch).

A step that updates only those rows gathers them, differentiates with respect
to them, and scatters them back; what it costs does not depend on the number of
rows of the tables. Planning is the input thread's work, not the device's.
"""

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


def plan_rows(
  batch: Mapping, features: Sequence[Feature], find: DistinctFinder
) -> dict:
  """The batch with the rows that it touches, and ids that index into them.

  Args:
    batch: of `data.batches`; with several shards, stacked: the plan is one for
      all of them, so that their gradients can be added.
    features: of the dataset.
    find: finds distinct values.

  Returns:
    The batch with local ids, and `rows`: {feature: int32 [..., Q]}, sorted and
    distinct. Row 0, padding, is always the first, so that local id 0 is
    padding too. Places that are not needed hold numbers beyond the table,
    which a gather fills with zeros and a scatter drops.
  """
  rows, local = {}, {}
  num_shards = batch['row'].size // batch['row'].shape[-1]
  is_sharded = batch['row'].ndim == 2
  for feature in features:
    if feature.kind == 'item':
      ids = batch['items'][feature.name]
    elif feature.kind == 'context':
      ids = batch['context'][feature.name]
    else:
      ids = batch['user']
    padded = np.concatenate([[np.int32(PADDING)], ids.reshape(-1)])
    distinct, place = find(padded, feature.num_rows)
    planned = planned_rows(feature, ids.size)
    beyond = np.arange(planned - len(distinct), dtype=np.int32)
    plan = np.concatenate([distinct, feature.num_rows + beyond])
    rows[feature.name] = np.tile(plan, (num_shards, 1)) if is_sharded else plan
    local[feature.name] = place[1:].reshape(ids.shape)
  pick = lambda kind: {
    f.name: local[f.name] for f in features if f.kind == kind
  }
  return {
    **batch,
    'rows': rows,
    'items': pick('item'),
    'context': pick('context'),
    'user': next(iter(pick('user').values())),
  }
