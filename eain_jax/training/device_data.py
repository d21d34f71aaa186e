"""Batches that a device assembles itself, from columns that it keeps.

The host decides which rows and candidates a step has, as for batches of its
own, and sends only those numbers; histories, features and the plan of a
row-wise update are looked up on the device. Many steps then run in one call,
as a loop. Order, negatives and losses are those of batches from the host.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from eain_jax.data.batches import TrainStream, size_class
from eain_jax.data.features import (
  NUM_DAY_BUCKETS,
  PADDING,
  SECONDS_PER_DAY,
  Feature,
  names_of,
)
from eain_jax.data.row_plan import planned_rows
from eain_jax.errors import InputError
from eain_jax.training.distinct import distinct_ids
from eain_jax.training.step import StepFn

STEPS_A_CALL = 16
INT32_MAX = np.iinfo(np.int32).max


@flax.struct.dataclass
class Columns:
  """What a device keeps of a part; I items, M history entries, X rows.

  Attributes:
    item_ids: {feature: int32 [I + 1] or [I + 1, W]}; row 0 is padding.
    history_item: int32 [M], row of `item_ids` of each history entry.
    history_day: int32 [M], day of each history entry.
    user: int32 [X], the users' ids.
    context: {feature: int32 [X]}.
    start: int32 [X], where the row's history begins, newest events kept.
    end: int32 [X], where it ends.
    day: int32 [X], of the target.
    position: int32 [X], the target's index in its user's sequence.
  """

  item_ids: Mapping[str, Any]
  history_item: Any
  history_day: Any
  user: Any
  context: Mapping[str, Any]
  start: Any
  end: Any
  day: Any
  position: Any


def make_columns(stream: TrainStream) -> Columns:
  """The columns of a stream's part, in host memory.

  Raises:
    InputError: the histories have more entries than an int32 can count.
  """
  packer, dataset = stream.packer, stream.packer.dataset
  history = dataset.history_event
  num_entries = len(dataset.item if history is None else history)
  if num_entries > INT32_MAX:
    raise InputError(
      f'{num_entries:,} history entries are too many for '
      '--data_placement=device: use host'
    )
  rows = np.arange(len(packer.part))
  event = packer.part.event
  start, end = packer.history_range(rows)
  user = dataset.user[event]
  item, day = dataset.item, dataset.timestamp // SECONDS_PER_DAY
  # Differences matter alone.
  day = (day - day.min()).astype(np.int32)
  day_of_target = day[event]
  if history is not None:
    item, day = item[history], day[history]
  of_kind = functools.partial(names_of, packer.features)
  pad = lambda ids: np.pad(ids, [(1, 0)] + [(0, 0)] * (ids.ndim - 1))
  return Columns(
    {name: pad(dataset.item_ids[name]) for name in of_kind('item')},
    item.astype(np.int32) + 1,
    day,
    dataset.user_ids[user],
    {name: dataset.context_ids[name][event] for name in of_kind('context')},
    start.astype(np.int32),
    end.astype(np.int32),
    day_of_target,
    (end - dataset.history_start[user]).astype(np.int32),
  )


def _bucket_days(days: jax.Array) -> jax.Array:
  """As `data.features.bucket_days`."""
  power = 32 - jax.lax.clz(jnp.maximum(days, 0))
  return jnp.minimum(power, NUM_DAY_BUCKETS - 1)


def _plan(
  ids_by_feature: Mapping[str, jax.Array], features: Sequence[Feature]
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """As `data.row_plan.plan_rows`: rows, and local ids."""
  rows, local = {}, {}
  for feature in features:
    ids = ids_by_feature[feature.name]
    planned = planned_rows(feature, ids.size)
    padded = jnp.concatenate([jnp.full((1,), PADDING, jnp.int32), ids.ravel()])
    rows[feature.name], place = distinct_ids(padded, feature.num_rows, planned)
    local[feature.name] = place[1:].reshape(ids.shape)
  return rows, local


def assemble(
  columns: Columns,
  step: Mapping[str, jax.Array],
  features: Sequence[Feature],
  num_events: int,
  with_rows: bool,
) -> dict:
  """The batch of one step, as `data.batches` describes it, on the device.

  An item stands once for each time that it occurs: what deduplication saves on
  a device is less than the sort that it takes.

  Args:
    columns: of `make_columns`.
    step: `rows` int32 [R], -1 for padding; `candidates` int32 [R, C], items;
      `label` and `weight` float32 [R, C]; `key` uint32 [2].
    features: that have a table.
    num_events: static N, at least the events of the step.
    with_rows: plan the rows of a row-wise update.
  """
  valid_R = step['rows'] >= 0
  row_R = jnp.maximum(step['rows'], 0)
  num_requests, num_candidates = step['candidates'].shape
  start_R = columns.start[row_R]
  length_R = jnp.where(valid_R, columns.end[row_R] - start_R, 0)
  after_R = jnp.cumsum(length_R)
  # Each event belongs to as many requests on as have ended before it.
  ended_N = jnp.zeros(num_events, jnp.int32).at[after_R].add(1, mode='drop')
  segment_N = jnp.cumsum(ended_N)
  own_R = jnp.minimum(segment_N, num_requests - 1)
  entry_N = (
    jnp.arange(num_events) - (after_R - length_R)[own_R] + start_R[own_R]
  )
  is_event_N = segment_N < num_requests
  history_N = columns.history_item.at[entry_N].get(mode='clip')
  days_N = columns.day[row_R][own_R] - columns.history_day.at[entry_N].get(
    mode='clip'
  )
  target_RC = jnp.where(valid_R[:, None], step['candidates'] + 1, 0)
  item_U = jnp.concatenate(
    [
      jnp.zeros(1, jnp.int32),
      target_RC.ravel(),
      jnp.where(is_event_N, history_N, 0),
    ]
  )
  first = 1 + num_requests * num_candidates
  only_valid = lambda ids: jnp.where(valid_R, ids, PADDING)
  user_R = only_valid(columns.user[row_R])
  items = {name: ids[item_U] for name, ids in columns.item_ids.items()}
  context = {
    name: only_valid(ids[row_R]) for name, ids in columns.context.items()
  }
  batch: dict[str, Any] = {
    'target': jnp.arange(1, first, dtype=jnp.int32).reshape(target_RC.shape),
    'history': jnp.where(is_event_N, first + jnp.arange(num_events), 0),
    'segment': segment_N,
    'age': jnp.where(is_event_N, _bucket_days(days_N), 0),
    'position': jnp.where(valid_R, columns.position[row_R], 0),
    'row': jnp.arange(num_requests, dtype=jnp.int32),
    'label': step['label'],
    'weight': step['weight'],
    'key': step['key'],
  }
  if with_rows:
    rows, local = _plan({**items, **context, 'user': user_R}, features)
    batch['rows'] = rows
    # Where users have no table their ids stay.
    user_R = local.get('user', user_R)
    items = {name: local[name] for name in items}
    context = {name: local[name] for name in context}
  return {**batch, 'items': items, 'context': context, 'user': user_R}


@flax.struct.dataclass
class StepInputs:
  """What the host sends for the steps of a call; K is `STEPS_A_CALL`.

  Attributes:
    steps: `rows` int32 [K, R], `candidates` int32 [K, R, C], `label` and
      `weight` float32 [K, R, C] of each step, as `assemble` takes them, and
      `key` uint32 [K, 2], the bits of the run's key. Those beyond `count` are
      padding.
    count: int32, of steps.
    num_events: static N, which holds the events of each.
  """

  steps: Mapping[str, Any]
  count: Any
  num_events: int


@dataclasses.dataclass(frozen=True)
class DeviceRunner:
  """Runs many steps in one call, on columns that stay where they are.

  One program serves any number of steps, and runs of any seed.

  Attributes:
    stream: decides rows and candidates; on one device.
    columns: on the device.
    function: pure, `(state, columns, steps, count, num_events) -> (state,
      metrics)`; the arguments after `columns` are those of `StepInputs`.
    run: the same, compiled; the state is donated.
  """

  stream: TrainStream
  columns: Columns
  function: Any
  run: Any

  def inputs(self, first: int, count: int) -> StepInputs:
    """What the host sends for steps [first, first + count)."""
    packer = self.stream.packer
    size, num_candidates = packer.num_requests, self.stream.num_candidates
    num_rows = STEPS_A_CALL * size
    rows = np.full(num_rows, -1, np.int32)
    candidates = np.zeros((num_rows, num_candidates), np.int32)
    label, weight = np.zeros((2, num_rows, num_candidates), np.float32)
    events = np.zeros(num_rows, np.int64)
    done = 0
    while done < count:
      # Those of one epoch are drawn together.
      place = (first + done) % self.stream.steps_per_epoch
      now = min(count - done, self.stream.steps_per_epoch - place)
      drawn = self.stream.examples(first + done, num_steps=now)
      at = slice(done * size, done * size + len(drawn[0]))
      rows[at], candidates[at], label[at], weight[at] = drawn
      start, end = packer.history_range(drawn[0])
      events[at] = end - start
      done += now
    by_step = lambda x: x.reshape(STEPS_A_CALL, size, *x.shape[1:])
    steps = {
      'rows': by_step(rows),
      'candidates': by_step(candidates),
      'label': by_step(label),
      'weight': by_step(weight),
      'key': np.tile(self.stream.key, (STEPS_A_CALL, 1)),
    }
    most = int(by_step(events).sum(axis=1).max())
    num_events = size_class(
      most, packer.base_events, size * packer.history_length
    )
    return StepInputs(steps, np.int32(count), num_events)

  def leave(self) -> None:
    """No calls follow."""

  def __call__(self, state, inputs: StepInputs):
    """The state after the steps, and the metrics of the last one."""
    return self.run(
      state, self.columns, inputs.steps, inputs.count, inputs.num_events
    )


def _check_memory(columns: Columns, spare: int) -> None:
  """Raises InputError where the columns are larger than what is free."""
  needed = sum(leaf.nbytes for leaf in jax.tree.leaves(columns))
  stats = jax.local_devices()[0].memory_stats() or {}
  free = stats.get('bytes_limit', 0) - stats.get('bytes_in_use', 0) - spare
  if 'bytes_limit' in stats and needed > free:
    raise InputError(
      f'the columns take {needed / 1e9:.1f} GB and the device has '
      f'{free / 1e9:.1f} GB left: use --data_placement=host'
    )


def make_device_runner(
  stream: TrainStream, train_step: StepFn, spare: int = 0
) -> DeviceRunner:
  """The runner of a pure, not yet compiled step.

  Args:
    stream: on one device.
    train_step: of `step.make_train_step`.
    spare: bytes of the device that are to stay free beside the columns.

  Raises:
    InputError: the columns do not suit a device, or do not fit into it.
  """
  columns = make_columns(stream)
  _check_memory(columns, spare)
  features = stream.packer.features
  with_rows = stream.shards.plan == 'rows'

  def run(state, columns, steps, count, num_events):
    def one(number, state):
      step = jax.tree.map(lambda of_steps: of_steps[number], steps)
      batch = assemble(columns, step, features, num_events, with_rows)
      return train_step(state, batch)

    _, shapes = jax.eval_shape(one, 0, state)
    metrics = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    # A `scan` would be a program for each count, and to compile one takes a
    # GPU as long as some epochs.
    return jax.lax.fori_loop(
      0, count, lambda number, carry: one(number, carry[0]), (state, metrics)
    )

  return DeviceRunner(
    stream,
    jax.device_put(columns),
    run,
    jax.jit(run, donate_argnums=0, static_argnums=4),
  )
