"""Rows of a part to batches: order, negatives, packing, prefetch.

A batch is a pure function of (dataset, settings, step): nothing has to be
saved to resume, and nothing depends on how many workers made it. Histories
travel packed, one after another, so compute follows their real lengths; the
packed axes have few static sizes, so a step is compiled a handful of times.
"""

import collections
import concurrent.futures
import dataclasses
import math
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from eain_jax.data.dataset import Dataset
from eain_jax.data.examples import (
  NegativeSampler,
  Part,
  hash_bits,
  segment_ranges,
)
from eain_jax.data.features import (
  SECONDS_PER_DAY,
  UNKNOWN,
  Feature,
  bucket_days,
  names_of,
)
from eain_jax.data.row_plan import (
  DistinctFinder,
  RowsOfShard,
  find_rows,
  most_of_an_owner,
  owned_rows,
  plan_exchange,
  plan_rows,
  planned_rows,
)
from eain_jax.errors import InputError

# A batch is a dict of arrays, R requests of C candidates, U items, N events:
#   items      {feature: int32 [U] or [U, W]}  the distinct items; 0 is padding;
#              here and of context those features that have a table
#   user       int32 [R]
#   context    {feature: int32 [R]}
#   target     int32 [R, C]   row of items
#   history    int32 [N]      row of items
#   segment    int32 [N]      request of each event, non-decreasing; R: padding
#   age        int32 [N]      days from each event to its target, in buckets
#   position   int32 [R]      the target's index in its user's sequence
#   row        int32 [R]      the request's place in the global batch
#   label      float32 [R, C]
#   weight     float32 [R, C] 0 marks padding
#   key        uint32 [2]     of training: the run's key, for dropout; data, so
#              that runs of all seeds are one program
#   rows       {feature: int32 [Q]}  where they are planned, the rows of each
#              table that the batch touches; ids are then places in them, but
#              for those of users where they have no table. Of
#              tables that are cut over D devices int32 [D, C], see `row_plan`
# Stacked, every array has a leading axis over shards.
Batch = dict

GROWTH = 1.25
SIZE_MULTIPLE = 128
# Of a wait for a batch, between two looks around.
WAIT_SECONDS = 1.0
# How long the batches that are being made may hold up the end.
CLOSING_SECONDS = 2.0
# Of what a shard asks of one of many owners, which is little.
CAPACITY_MULTIPLE = 4


def permute_index(index: np.ndarray, size: int, key: int) -> np.ndarray:
  """A random-looking permutation of [0, size), evaluated where it is asked.

  A four-round Feistel network over the next even power of two, walked until
  it lands inside: memory is that of `index`, not of `size`.

  Args:
    index: int64, any shape, in [0, size).
    size: length of the permuted range.
    key: selects the permutation.

  Returns:
    int64, the shape of `index`.
  """
  half = max(1, (int(size - 1).bit_length() + 1) // 2)
  mask = np.uint64((1 << half) - 1)
  shift = np.uint64(half)
  out = np.asarray(index).astype(np.uint64)
  outside = np.ones(out.shape, bool)
  while outside.any():
    value = out[outside]
    left, right = value >> shift, value & mask
    for round_number in range(4):
      mixed = hash_bits(key, round_number, right) & mask
      left, right = right, left ^ mixed
    out[outside] = (left << shift) | right
    outside = out >= size
  return out.astype(np.int64)


def size_class(
  needed: int, base: int, most: int, multiple: int = SIZE_MULTIPLE
) -> int:
  """The smallest static size that holds `needed`: base, base * 1.25, ..."""
  size = base
  while size < needed:
    size = int(np.ceil(size * GROWTH / multiple)) * multiple
  return max(min(size, most), needed)


def _round_up(value: float) -> int:
  return int(np.ceil(value / SIZE_MULTIPLE)) * SIZE_MULTIPLE


def pad_rows(values: np.ndarray, length: int) -> np.ndarray:
  """`values` with rows of zeros after them, [length, ...]."""
  shape = (length - len(values), *values.shape[1:])
  return np.concatenate([values, np.zeros(shape, values.dtype)])


@dataclasses.dataclass(frozen=True)
class Requests:
  """What is scored, in the numbers of a dataset; r requests, n events.

  Attributes:
    item: int32 [r, C], candidates; I, the number of items, is an unknown one.
    user: int32 [r], vocabulary ids.
    context: by feature int32 [r], vocabulary ids.
    history: int32 [n], the items of all histories, one after another.
    segment: int [n], whose they are; non-decreasing.
    days: int [n], from each event to its target.
    position: int32 [r], events of the user before the target.
  """

  item: np.ndarray
  user: np.ndarray
  context: Mapping[str, np.ndarray]
  history: np.ndarray
  segment: np.ndarray
  days: np.ndarray
  position: np.ndarray


def pack_requests(
  requests: Requests,
  item_ids: Mapping[str, np.ndarray],
  num_requests: int,
  size_events: Callable[[int], int],
  size_items: Callable[[int], int],
  find: DistinctFinder,
) -> Batch:
  """The arrays of a batch but for 'row', 'label' and 'weight'.

  Args:
    requests: r of them.
    item_ids: by feature int32 [I] or [I, W], see `Dataset`.
    num_requests: R >= r.
    size_events: the static N for a number of events.
    size_items: the static U for a number of distinct items and a row of
      padding.
    find: finds distinct values.
  """
  count, num_candidates = requests.item.shape
  total = len(item_ids['item'])
  flat = np.concatenate([requests.item.reshape(-1), requests.history])
  # One more, for items that are unknown.
  distinct, place = find(flat, total + 1)
  place += 1  # row 0 is padding
  num_events = size_events(len(requests.history))
  num_items = size_items(len(distinct) + 1)
  num_known = len(distinct) - bool(len(distinct) and distinct[-1] == total)
  items = {}
  for name, table in item_ids.items():
    ids = np.zeros((num_items, *table.shape[1:]), np.int32)
    ids[1 : num_known + 1] = table[distinct[:num_known]]
    if num_known < len(distinct):
      ids[len(distinct), *([0] * (ids.ndim - 1))] = UNKNOWN
    items[name] = ids
  segment = np.full(num_events, num_requests, np.int32)
  segment[: len(requests.segment)] = requests.segment
  targets = place[: count * num_candidates].reshape(count, num_candidates)
  return {
    'items': items,
    'user': pad_rows(requests.user, num_requests),
    'context': {
      name: pad_rows(ids, num_requests)
      for name, ids in requests.context.items()
    },
    'target': pad_rows(targets, num_requests),
    'history': pad_rows(place[count * num_candidates :], num_events),
    'segment': segment,
    'age': pad_rows(bucket_days(requests.days), num_events),
    'position': pad_rows(requests.position, num_requests),
  }


@dataclasses.dataclass(frozen=True)
class Packer:
  """Turns rows of a part into the arrays of one shard.

  Attributes:
    dataset: the open dataset.
    part: its part.
    history_length: the most recent events that are used.
    num_requests: R, rows a shard; fewer are padded with weight 0.
    base_events: smallest static size of N.
    base_items: smallest static size of U.
    features: that have a table, the item's own among them; a batch has no
      others.
    base_capacity: by feature the smallest static C of an exchange.
    find: finds distinct values.
  """

  dataset: Dataset
  part: Part
  history_length: int
  num_requests: int
  base_events: int
  base_items: int
  features: Sequence[Feature]
  base_capacity: Mapping[str, int] = dataclasses.field(default_factory=dict)
  find: DistinctFinder = dataclasses.field(default_factory=DistinctFinder)

  def history_range(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of the histories of `rows`, newest events kept."""
    end = self.part.history_end[rows]
    user = self.dataset.user[self.part.event[rows]]
    start = self.dataset.history_start[user]
    return np.maximum(start, end - self.history_length), end

  def pack(
    self,
    rows: np.ndarray,
    items_RC: np.ndarray,
    label_RC: np.ndarray,
    weight_RC: np.ndarray,
    first_row: int,
    num_events: int | None = None,
    num_items: int | None = None,
  ) -> Batch:
    """The arrays of a shard.

    Args:
      rows: int64 [r], r <= R, rows of the part.
      items_RC: int32 [r, C], candidates.
      label_RC: float32 [r, C].
      weight_RC: float32 [r, C].
      first_row: place of the first row in the global batch.
      num_events: static N; None: its size class.
      num_items: static U; None: its size class.
    """
    dataset, size = self.dataset, self.num_requests
    event = self.part.event[rows]
    user = dataset.user[event]
    start, end = self.history_range(rows)
    entry, segment = segment_ranges(start, end)
    if dataset.history_event is not None:
      entry = dataset.history_event[entry]
    day = dataset.timestamp[event] // SECONDS_PER_DAY
    position = end - dataset.history_start[user]
    requests = Requests(
      items_RC,
      dataset.user_ids[user],
      {
        name: dataset.context_ids[name][event]
        for name in names_of(self.features, 'context')
      },
      dataset.item[entry],
      segment,
      day[segment] - dataset.timestamp[entry] // SECONDS_PER_DAY,
      position.astype(np.int32),
    )
    batch = pack_requests(
      requests,
      {
        name: dataset.item_ids[name] for name in names_of(self.features, 'item')
      },
      size,
      lambda needed: (
        num_events
        or size_class(needed, self.base_events, size * self.history_length)
      ),
      lambda needed: (
        num_items or size_class(needed, self.base_items, dataset.num_items + 1)
      ),
      self.find,
    )
    return {
      **batch,
      'row': np.arange(first_row, first_row + size, dtype=np.int32),
      'label': pad_rows(label_RC.astype(np.float32), size),
      'weight': pad_rows(weight_RC.astype(np.float32), size),
    }

  def capacity(
    self,
    found: Sequence[RowsOfShard],
    num_owners: int,
    at_least: Mapping[str, int],
  ) -> dict[str, int]:
    """By feature the size class of C that holds what all shards ask."""
    most = [most_of_an_owner(rows, num_owners) for rows in found]
    if at_least:
      most.append(dict(at_least))
    return {
      feature.name: size_class(
        max(shard[feature.name] for shard in most),
        self.base_capacity.get(feature.name, 1),
        owned_rows(feature.num_rows, num_owners),
        CAPACITY_MULTIPLE,
      )
      for feature in self.features
    }


def _base_capacity(
  found: Sequence[RowsOfShard], num_owners: int
) -> dict[str, int]:
  """By feature a C that nearly all pairs of shard and owner stay below."""
  return {
    name: capacity_for(
      max(len(rows.distinct[name]) for rows in found) / num_owners
    )
    for name in found[0].distinct
  }


def capacity_for(mean: float) -> int:
  """C for shards that ask `mean` rows of each owner, rounded up.

  Rows lie with their owners as if at random, so their number is about Poisson:
  less than one pair of shard and owner in a million asks for more.
  """
  most = mean + 4.75 * np.sqrt(mean) + 3
  return int(np.ceil(most / CAPACITY_MULTIPLE)) * CAPACITY_MULTIPLE


def _base_events(packer: Packer, num_requests: int, rows: np.ndarray) -> float:
  """Events that all but a few in 100,000 batches stay below."""
  start, end = packer.history_range(rows)
  length = (end - start).astype(np.float64)
  # Four standard deviations of the sum of R independent lengths.
  return num_requests * length.mean() + 4 * np.sqrt(num_requests) * length.std()


def _base_items(
  packer: Packer, num_requests: int, num_candidates: int, rows: np.ndarray
) -> float:
  """Distinct items that nearly all batches stay below, from batches at hand."""
  dataset, most = packer.dataset, 0
  for first in range(0, min(len(rows), 4 * num_requests), num_requests):
    of_batch = rows[first : first + num_requests]
    entry, _ = segment_ranges(*packer.history_range(of_batch))
    if dataset.history_event is not None:
      entry = dataset.history_event[entry]
    size = len(of_batch) * (num_candidates - 1)
    # As if negatives were uniform, which gives the most distinct ones.
    drawn = hash_bits(size, np.arange(size)) % np.uint64(dataset.num_items)
    items = [dataset.item[packer.part.event[of_batch]], dataset.item[entry]]
    distinct, _ = packer.find(
      np.concatenate([*items, drawn.astype(np.int32)]), dataset.num_items
    )
    most = max(most, len(distinct))
  # Between batches the number varies less than a Poisson one.
  return most + 4 * np.sqrt(most)


def _make_packer(
  dataset: Dataset,
  part: Part,
  num_requests: int,
  num_candidates: int,
  features: Sequence[Feature],
) -> Packer:
  """A packer whose smallest sizes hold nearly every batch of the part."""
  history_length = dataset.config.history_length
  packer = Packer(dataset, part, history_length, num_requests, 0, 0, features)
  size = min(len(part), max(65_536, 4 * num_requests))
  rows = permute_index(np.arange(size), len(part), len(part))
  most_events = num_requests * history_length
  events = _base_events(packer, num_requests, rows)
  items = 1 + _base_items(packer, num_requests, num_candidates, rows)
  return dataclasses.replace(
    packer,
    base_events=_round_up(min(max(events, 1), most_events)),
    base_items=_round_up(min(items, dataset.num_items + 1)),
  )


@dataclasses.dataclass(frozen=True)
class Shards:
  """Into which a batch is cut, and what of it is made here.

  Attributes:
    count: shards of the global batch, one a device.
    own: those that this process makes, one after another.
    is_stacked: arrays have a leading axis over the own shards.
    plan: 'none'; 'rows': each shard's batch plans the rows that it touches;
      'exchange': it plans what it asks of each owner of the cut tables.
  """

  count: int = 1
  own: range = range(1)
  is_stacked: bool = False
  plan: str = 'none'


@dataclasses.dataclass(frozen=True)
class Shape:
  """What an array would be."""

  shape: tuple[int, ...]
  dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Sizes:
  """The static sizes of a shard's batch, the same for all shards.

  Attributes:
    num_events: N.
    num_items: U.
    capacity: by feature C of an exchange; empty without one.
  """

  num_events: int
  num_items: int
  capacity: Mapping[str, int]

  def to_array(self) -> np.ndarray:
    """int32 [2 + features]."""
    sizes = [self.num_events, self.num_items, *self.capacity.values()]
    return np.array(sizes, np.int32)

  def from_array(self, sizes: np.ndarray) -> 'Sizes':
    """Sizes of the same features."""
    events, items, *capacity = (int(size) for size in sizes)
    names = dict(zip(self.capacity, capacity, strict=True))
    return Sizes(events, items, names)


def stack(shards: Sequence[Batch]) -> Batch:
  """Batches of equal shapes, stacked along a new leading axis."""
  first = shards[0]
  return {
    key: {name: np.stack([s[key][name] for s in shards]) for name in value}
    if isinstance(value, dict)
    else np.stack([s[key] for s in shards])
    for key, value in first.items()
  }


def sizes_of(batch: Batch) -> Sizes:
  """The static sizes of a batch, stacked or not."""
  exchanged = {
    name: rows.shape[-1]
    for name, rows in batch.get('rows', {}).items()
    if rows.ndim == batch['row'].ndim + 1
  }
  return Sizes(
    batch['history'].shape[-1],
    next(iter(batch['items'].values())).shape[batch['row'].ndim - 1],
    exchanged,
  )


def shapes_of_batch(
  features: Sequence[Feature],
  num_requests: int,
  num_candidates: int,
  sizes: Sizes,
  num_owners: int,
) -> Batch:
  """Shapes and types of one shard's batch that plans an exchange.

  Args:
    features: that have a table.
    num_requests: R.
    num_candidates: C.
    sizes: the rest.
    num_owners: D.
  """
  array = lambda *shape, dtype='int32': Shape(shape, np.dtype(dtype))
  of_kind = lambda kind: [f for f in features if f.kind == kind]
  return {
    'items': {
      f.name: array(sizes.num_items, *([f.max_values] * f.multi_valued))
      for f in of_kind('item')
    },
    'user': array(num_requests),
    'context': {f.name: array(num_requests) for f in of_kind('context')},
    'target': array(num_requests, num_candidates),
    'history': array(sizes.num_events),
    'segment': array(sizes.num_events),
    'age': array(sizes.num_events),
    'position': array(num_requests),
    'row': array(num_requests),
    'label': array(num_requests, num_candidates, dtype='float32'),
    'weight': array(num_requests, num_candidates, dtype='float32'),
    'key': array(2, dtype='uint32'),
    'rows': {
      f.name: array(num_owners, sizes.capacity[f.name]) for f in features
    },
  }


def _assemble(
  pack: Callable[..., Batch],
  packer: Packer,
  shards: Shards,
  at_least: Sizes | None,
) -> Batch:
  """The shards of this process, of equal sizes, stacked and planned.

  Args:
    pack: makes one shard, given its number; `num_events` and `num_items` where
      its own size classes are not those of all.
    packer: knows features and size classes.
    shards: which are made.
    at_least: sizes that other processes' shards need.
  """
  made = [pack(shard) for shard in shards.own]
  needed = [sizes_of(batch) for batch in made]
  if at_least is not None:
    needed.append(at_least)
  num_events = max(size.num_events for size in needed)
  num_items = max(size.num_items for size in needed)
  for number, size in enumerate(needed[: len(made)]):
    # Shards that differ in size class are packed again at the largest.
    if (size.num_events, size.num_items) != (num_events, num_items):
      made[number] = pack(
        shards.own[number], num_events=num_events, num_items=num_items
      )
  features = packer.features
  if shards.plan == 'rows':
    made = [plan_rows(batch, features, packer.find) for batch in made]
  elif shards.plan == 'exchange':
    found = [find_rows(batch, features, packer.find) for batch in made]
    lower = {} if at_least is None else at_least.capacity
    capacity = packer.capacity(found, shards.count, lower)
    made = [
      plan_exchange(batch, features, rows, shards.count, capacity)
      for batch, rows in zip(made, found, strict=True)
    ]
  return stack(made) if shards.is_stacked else made[0]


@dataclasses.dataclass(frozen=True)
class TrainStream:
  """The batches of training, as a function of the step.

  Attributes:
    packer: of one shard.
    num_candidates: C.
    num_requests: requests of the global batch.
    shards: into which it is cut.
    seed: of the order, the negatives and the key.
    sampler: draws negatives, or None for the tasks with labels.
    draws_once: every epoch has the negatives of the first.
  """

  packer: Packer
  num_candidates: int
  num_requests: int
  shards: Shards
  seed: int
  sampler: NegativeSampler | None
  draws_once: bool = False

  @property
  def steps_per_epoch(self) -> int:
    return -(-len(self.packer.part) // self.num_requests)

  @property
  def key(self) -> np.ndarray:
    """uint32 [2]: the bits of the seed's key, as `jax.random.key` has it."""
    return np.array([0, self.seed], np.uint32)

  def num_examples(self, step: int) -> int:
    """Examples of a step; the last one of an epoch holds fewer."""
    begin = step % self.steps_per_epoch * self.num_requests
    requests = min(self.num_requests, len(self.packer.part) - begin)
    return requests * self.num_candidates

  def rows(
    self,
    step: int,
    begin: int = 0,
    end: int | None = None,
    num_steps: int = 1,
  ) -> tuple[int, np.ndarray]:
    """The epoch, and the part's rows of steps, or of a stretch of them.

    Args:
      step: the first.
      begin: of a stretch of their rows.
      end: of the stretch; None: all.
      num_steps: one after another; those beyond the epoch are cut off.

    Returns:
      int64 [<= end - begin]; the last step of an epoch holds fewer.
    """
    epoch, place = divmod(step, self.steps_per_epoch)
    first = place * self.num_requests
    most = min(num_steps * self.num_requests, len(self.packer.part) - first)
    end = most if end is None else min(end, most)
    index = np.arange(first + begin, first + max(begin, end))
    key = int(hash_bits(self.seed, 0x0D, epoch))
    return epoch, permute_index(index, len(self.packer.part), key)

  def examples(
    self,
    step: int,
    begin: int = 0,
    end: int | None = None,
    num_steps: int = 1,
  ) -> tuple[np.ndarray, ...]:
    """rows [r], items [r, C], label [r, C] and weight [r, C] of steps.

    Args:
      step: the first.
      begin: of a stretch of their rows; no other row is read.
      end: of the stretch; None: all.
      num_steps: of one epoch, one after another. Sixteen at once take a
        quarter of the time that they take one by one.
    """
    epoch, rows = self.rows(step, begin, end, num_steps)
    part, dataset = self.packer.part, self.packer.dataset
    event = part.event[rows]
    items = dataset.item[event][:, None]
    label = part.label[rows].astype(np.float32)[:, None]
    weight = np.ones_like(label)
    if self.sampler is not None:
      drawn = 0 if self.draws_once else epoch
      negatives = self.sampler.draw(
        drawn, event, dataset.user[event], self.num_candidates - 1
      )
      items = np.concatenate([items, negatives], axis=1)
      label = np.concatenate([label, np.zeros(negatives.shape)], axis=1)
      weight = np.ones_like(label)
      if part.kept_negatives is not None:
        kept = part.kept_negatives[rows]
        weight[:, 1:] = np.arange(self.num_candidates - 1) < kept[:, None]
    return rows, items, label, weight

  def batch(self, step: int, at_least: Sizes | None = None) -> Batch:
    """The own shards of a step's global batch.

    Every array is [own shards, ...] where shards are stacked.

    Args:
      step: from 0.
      at_least: sizes that the shards of other processes need.
    """
    size = self.packer.num_requests
    own = self.shards.own
    first = own.start * size
    examples = self.examples(step, first, own.stop * size)

    def pack(shard: int, **sizes: int) -> Batch:
      begin = shard * size - first
      rows, items, label, weight = (x[begin : begin + size] for x in examples)
      return self.packer.pack(rows, items, label, weight, shard * size, **sizes)

    batch = _assemble(pack, self.packer, self.shards, at_least)
    stacked = (len(own), 1) if self.shards.is_stacked else 1
    return {**batch, 'key': np.tile(self.key, stacked)}

  def planned(self) -> dict[str, int]:
    """Rows of each feature's table that most batches plan, Q."""
    packer, sizes = self.packer, {}
    for feature in packer.features:
      num_ids = packer.num_requests
      if feature.kind == 'item':
        num_ids = packer.base_items * feature.max_values
      sizes[feature.name] = planned_rows(feature, num_ids * self.shards.count)
    return sizes


def make_train_stream(
  dataset: Dataset,
  batch_size: int,
  seed: int,
  shards: Shards = Shards(),
  features: Sequence[Feature] | None = None,
  draws_once: bool = False,
) -> TrainStream:
  """The training batches of a dataset.

  Args:
    dataset: an open dataset.
    batch_size: examples a step, over all shards; rounded down to whole
      requests.
    seed: of the order, the negatives and the key.
    shards: parts that a batch is cut into, one a device.
    features: that have a table; None: all of the dataset.
    draws_once: every epoch has the negatives of the first.

  Raises:
    ValueError: batch_size holds less than one request a shard, or the seed is
      none of 32 bits.
  """
  if not 0 <= seed < 2**32:
    raise ValueError(f'seed {seed} must be from 0 to {2**32 - 1}')
  part = dataset.parts['train']
  has_negatives = dataset.task == 'next_item'
  num_candidates = 1 + dataset.config.negatives if has_negatives else 1
  num_requests = batch_size // num_candidates
  if num_requests < shards.count:
    raise ValueError(
      f'batch_size {batch_size} holds {num_requests} request(s) of '
      f'{num_candidates} examples, too few for {shards.count} device(s)'
    )
  packer = _make_packer(
    dataset,
    part,
    -(-num_requests // shards.count),
    num_candidates,
    dataset.features if features is None else features,
  )
  stream = TrainStream(
    packer,
    num_candidates,
    num_requests,
    shards,
    seed,
    dataset.sampler(seed) if has_negatives else None,
    draws_once,
  )
  if shards.plan != 'exchange':
    return stream
  # From the first shard, which any process can make: all must say the same.
  first = dataclasses.replace(stream, shards=Shards())
  size = packer.num_requests
  found = []
  for step in range(min(2, stream.steps_per_epoch)):
    rows, items, label, weight = first.examples(step, 0, size)
    batch = packer.pack(rows, items, label, weight, 0)
    found.append(find_rows(batch, packer.features, packer.find))
  packer = dataclasses.replace(
    packer, base_capacity=_base_capacity(found, shards.count)
  )
  return dataclasses.replace(stream, packer=packer)


@dataclasses.dataclass(frozen=True)
class EvalStream:
  """The batches of an evaluation, in the part's order.

  Attributes:
    packer: of one shard.
    num_candidates: C.
    shards: into which a batch is cut.
    at_least: sizes that some batch of some process needs.
  """

  packer: Packer
  num_candidates: int
  shards: Shards
  at_least: Sizes | None = None

  @property
  def num_batches(self) -> int:
    size = self.packer.num_requests * self.shards.count
    return -(-len(self.packer.part) // size)

  def batch(self, number: int) -> Batch:
    """The own shards of a batch; see `TrainStream.batch`."""
    part, dataset = self.packer.part, self.packer.dataset
    size = self.packer.num_requests

    def pack(shard: int, **sizes: int) -> Batch:
      begin = min((number * self.shards.count + shard) * size, len(part))
      rows = np.arange(begin, min(begin + size, len(part)))
      items = dataset.item[part.event[rows]][:, None]
      label = part.label[rows].astype(np.float32)[:, None]
      if part.candidates is not None:
        candidates = part.candidates[rows, : self.num_candidates - 1]
        items = np.concatenate([items, candidates], axis=1)
        label = np.concatenate([label, np.zeros(candidates.shape)], axis=1)
      weight = np.ones_like(label)
      return self.packer.pack(rows, items, label, weight, 0, **sizes)

    return _assemble(pack, self.packer, self.shards, self.at_least)

  def own_sizes(self) -> Sizes:
    """Sizes that hold each batch of this process: it makes them all once."""
    found = [
      sizes_of(batch) for batch in prefetch(self.batch, range(self.num_batches))
    ]
    most = np.max([sizes.to_array() for sizes in found], axis=0)
    return found[0].from_array(most)


def _evaluation_packer(
  dataset: Dataset,
  part: Part,
  num_requests: int,
  num_candidates: int,
  features: Sequence[Feature],
) -> Packer:
  """A packer with one static shape for all batches of a part.

  They are taken in order and there are few, so the longest is looked up, where
  training, which meets random ones for ever, takes what nearly all stay below.
  """
  history_length = dataset.config.history_length
  packer = Packer(dataset, part, history_length, num_requests, 0, 0, features)
  start, end = packer.history_range(np.arange(len(part)))
  first = np.arange(0, len(part), num_requests)
  most_events = int(np.add.reduceat(end - start, first).max())
  most_items = most_events + num_requests * num_candidates
  return dataclasses.replace(
    packer,
    base_events=_round_up(max(1, most_events)),
    base_items=_round_up(1 + min(most_items, dataset.num_items)),
  )


def make_eval_stream(
  dataset: Dataset,
  part_name: str,
  batch_size: int,
  max_negatives: int | None = None,
  shards: Shards = Shards(),
  features: Sequence[Feature] | None = None,
) -> EvalStream:
  """The evaluation batches of a part, about `batch_size` examples each.

  Args:
    dataset: an open dataset.
    part_name: of it.
    batch_size: examples a batch, over all shards.
    max_negatives: takes only the first so many candidates of each request.
    shards: parts that a batch is cut into, one a device.
    features: that have a table; None: all of the dataset.
  """
  part = dataset.parts[part_name]
  num_candidates = 1
  if part.candidates is not None:
    num_candidates = 1 + part.candidates.shape[1]
    if max_negatives is not None:
      num_candidates = min(num_candidates, 1 + max_negatives)
  num_requests = min(max(1, batch_size // num_candidates), len(part))
  packer = _evaluation_packer(
    dataset,
    part,
    -(-num_requests // shards.count),
    num_candidates,
    dataset.features if features is None else features,
  )
  return EvalStream(packer, num_candidates, shards)


def prefetch(
  make: Callable[[Any], Any],
  of: Iterable[Any],
  *,
  ahead: int = 4,
  timeout: float = math.inf,
  while_waiting: Callable[[], None] | None = None,
) -> Generator[Any]:
  """make(x) for each x of `of`, in order, made ahead by two threads.

  An exception in `make` reaches the caller at its batch. The threads are
  daemons: one that hangs in a disk that does not answer holds up nobody for
  long. Close the generator: a daemon that still works when the interpreter
  ends can abort the process.

  Args:
    make: makes a batch.
    of: what it makes them of.
    ahead: batches that may wait for the caller.
    timeout: seconds that a batch may let the caller wait.
    while_waiting: is called about every second of that, and may raise.

  Raises:
    InputError: a batch did not come in time.
  """
  work: queue.SimpleQueue = queue.SimpleQueue()

  def run() -> None:
    while (task := work.get()) is not None:
      future, argument = task
      if future.set_running_or_notify_cancel():
        try:
          future.set_result(make(argument))
        except BaseException as error:
          future.set_exception(error)

  def wait(future: concurrent.futures.Future) -> Any:
    end = time.monotonic() + timeout
    while not future.done():
      if concurrent.futures.wait([future], WAIT_SECONDS).done:
        break
      if while_waiting is not None:
        while_waiting()
      if time.monotonic() > end:
        raise InputError(
          f'no batch has come for {timeout:g} seconds: look whether the disk '
          'of the dataset answers, or give it more time with --input_timeout'
        )
    return future.result()

  threads = [
    threading.Thread(target=run, name=f'batches{number}', daemon=True)
    for number in range(2)
  ]
  for thread in threads:
    thread.start()
  pending: collections.deque[concurrent.futures.Future] = collections.deque()
  try:
    for argument in of:
      future: concurrent.futures.Future = concurrent.futures.Future()
      pending.append(future)
      work.put((future, argument))
      if len(pending) > ahead:
        yield wait(pending.popleft())
    while pending:
      yield wait(pending.popleft())
  finally:
    for future in pending:
      future.cancel()
    for _ in threads:
      work.put(None)
    end = time.monotonic() + CLOSING_SECONDS
    for thread in threads:
      thread.join(max(0.0, end - time.monotonic()))
