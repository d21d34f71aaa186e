"""Sizes that processes agree on, with the other processes played by a list."""

import collections

import numpy as np
import pytest

from eain_jax.data.batches import Shards, make_train_stream, sizes_of
from eain_jax.training import agreement
from eain_jax.training.agreement import AHEAD, AgreedBatches

NUM_STEPS = 12


@pytest.mark.parametrize('plan', ['none', 'rows', 'exchange'])
def test_each_batch_has_the_most_of_all_processes(dataset, monkeypatch, plan):
  """The other process needs more events in some steps, known ahead."""
  shards = Shards(4, range(2), True, plan)
  stream = make_train_stream(dataset, 320, 0, shards)
  # The last number says that nobody was told to stop.
  own = [
    np.append(sizes_of(stream.batch(step)).to_array(), np.int32(0))
    for step in range(NUM_STEPS)
  ]
  others = [sizes.copy() for sizes in own]
  for step in (1, 5, 6, NUM_STEPS - 1):
    others[step][0] += 128 * step
    others[step][-2] += 1
  first = 0

  def gather(values):
    np.testing.assert_array_equal(values, own[first : first + AHEAD])
    return np.stack([values, others[first : first + AHEAD]])

  monkeypatch.setattr(agreement, 'gather', gather)
  made = []

  def make(step, sizes):
    made.append(step)
    return stream.batch(step, sizes)

  batches = AgreedBatches(map(stream.batch, range(NUM_STEPS)), make, first)
  # What the devices return for a step is the most of what all have sent.
  sent = collections.deque()
  for step in range(NUM_STEPS):
    batch = next(batches)
    expected = np.maximum(own[step], others[step])
    np.testing.assert_array_equal(sizes_of(batch).to_array(), expected[:-1])
    assert not batches.stops
    ahead = batch.pop('ahead')
    assert ahead.shape == (2, len(expected))
    if step + AHEAD < NUM_STEPS:
      np.testing.assert_array_equal(ahead, [own[step + AHEAD]] * 2)
      ahead = np.maximum(ahead[0], others[step + AHEAD])
    batches.observe(ahead)
    sent.append(ahead)
    # Larger sizes change no example.
    mine = stream.batch(step)
    for name in ('label', 'weight', 'row', 'position'):
      np.testing.assert_array_equal(batch[name], mine[name])
  assert made == [1, 5, 6, NUM_STEPS - 1]


def test_fewer_steps_than_are_looked_ahead(dataset, monkeypatch):
  stream = make_train_stream(dataset, 320, 0, Shards(2, range(1), True))
  monkeypatch.setattr(agreement, 'gather', lambda values: values[None])
  batches = AgreedBatches(map(stream.batch, [7]), stream.batch, 7)
  batch = next(batches)
  np.testing.assert_array_equal(batch['row'], stream.batch(7)['row'])


def test_all_stop_before_the_same_step(dataset, monkeypatch):
  """Of two processes one is told, in different steps of the other."""
  stream = make_train_stream(dataset, 320, 0, Shards(2, range(1), True))
  monkeypatch.setattr(agreement, 'gather', lambda values: values[None])
  asked = [False, False]
  both = [
    AgreedBatches(
      map(stream.batch, range(10)),
      stream.batch,
      0,
      lambda process=process: asked[process],
    )
    for process in range(2)
  ]
  stops = []
  for step in range(8):
    asked[1] = step >= 2
    told = [next(batches)['ahead'] for batches in both]
    stops.append([batches.stops for batches in both])
    for batches in both:
      batches.observe(np.max(told, axis=(0, 1)))
  assert stops == [[step >= 2 + AHEAD] * 2 for step in range(8)]
