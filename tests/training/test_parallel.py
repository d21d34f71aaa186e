"""pmap over 4 and 8 devices is the same training as on one."""

import jax
import numpy as np
import pytest

from eain_jax.config import TrainConfig
from eain_jax.data.batches import make_train_stream
from eain_jax.models import make_model
from eain_jax.training import parallel
from eain_jax.training.optimizer import make_optimizer
from eain_jax.training.step import make_train_step

BATCH_SIZE = 500  # 100 requests; 13 a device of eight, the last has 9
NUM_STEPS = 50  # of 15 an epoch: the last of an epoch has 42 requests


@pytest.fixture(scope='module')
def train(dataset, small_config, random_state):
  """train(name, settings, num_devices): losses of the steps, last state."""

  def run(name, settings, num_devices):
    parallelism = 'none' if num_devices == 1 else 'pmap'
    config = TrainConfig(l2=1e-5)
    model = make_model(
      name, small_config(name, **settings), parallel.axis_name(parallelism)
    )
    stream = make_train_stream(dataset, BATCH_SIZE, 0, num_devices)
    optimizer = make_optimizer(config, NUM_STEPS)
    first = parallel.shard_of(stream.batch(0), parallelism)
    state = parallel.place_state(
      random_state(model, dataset, first, optimizer), parallelism, num_devices
    )
    step = parallel.compile_train_step(
      make_train_step(model, dataset.features, optimizer, config), parallelism
    )
    losses = []
    for number in range(NUM_STEPS):
      state, metrics = step(state, stream.batch(number))
      losses.append([float(metrics['loss']), float(metrics['total_loss'])])
    return np.array(losses), state

  return run


CASES = {
  'eain_dropout': ('eain', {'dropout': 0.3}),
  'din_dice_everywhere': ('din', {'dropout': 0.3, 'activation': 'dice'}),
}


@pytest.fixture(scope='module')
def one_device(train):
  """By case the losses and the state of training on one device."""
  return {case: train(*CASES[case], 1) for case in CASES}


@pytest.mark.slow
@pytest.mark.parametrize('num_devices', [4, 8])
@pytest.mark.parametrize('case', list(CASES))
def test_losses_are_those_of_one_device(train, one_device, case, num_devices):
  """pmap takes the first devices where there are more of them than shards."""
  assert jax.local_device_count() == 8
  expected, one = one_device[case]
  losses, state = train(*CASES[case], num_devices)
  np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
  assert losses[-1, 0] < losses[0, 0] - 0.01
  # The state has no axis over devices, and its statistics are the batch's.
  jax.tree.map(
    # Adam divides by the size of a gradient, so where it is nearly nothing
    # the rounding decides.
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-3),
    (state.params, state.stats),
    (one.params, one.stats),
  )
  assert len(state.step.devices()) == num_devices


def test_devices_differ_in_what_they_hold(dataset):
  """The last batch of an epoch leaves devices empty: weights must count."""
  batch = make_train_stream(dataset, BATCH_SIZE, 0, 8).batch(14)
  np.testing.assert_array_equal(
    batch['weight'].sum((1, 2)), [65, 65, 65, 15, 0, 0, 0, 0]
  )
  np.testing.assert_array_equal(batch['row'].reshape(-1), np.arange(8 * 13))


def test_names_of_parallelism():
  assert parallel.num_shards('none') == 1
  assert parallel.num_shards('pmap') == jax.local_device_count()
  assert parallel.axis_name('none') is None
  assert parallel.axis_name('pmap') == parallel.AXIS


@pytest.mark.parametrize('num_devices', [1, 8])
def test_the_state_is_donated(dataset, small_config, random_state, num_devices):
  """Training holds one copy of the tables, not two."""
  parallelism = 'none' if num_devices == 1 else 'pmap'
  model = make_model('lr', small_config('lr'), parallel.axis_name(parallelism))
  stream = make_train_stream(dataset, BATCH_SIZE, 0, num_devices)
  optimizer = make_optimizer(TrainConfig(), 10)
  first = parallel.shard_of(stream.batch(0), parallelism)
  state = random_state(model, dataset, first, optimizer)
  step = parallel.compile_train_step(
    make_train_step(model, dataset.features, optimizer, TrainConfig()),
    parallelism,
  )
  second, _ = step(state, stream.batch(0))
  third, _ = step(second, stream.batch(1))
  assert second.params['tables']['item'].is_deleted()
  assert not third.params['tables']['item'].is_deleted()


@pytest.mark.parametrize(
  ('platform', 'version', 'is_warned'),
  [
    ('gpu', '0.10.2', True),
    ('gpu', '0.11.0', True),
    ('gpu', '0.11.1', False),
    ('gpu', '0.10.1', False),
    ('cpu', '0.10.2', False),
    ('tpu', '0.10.2', False),
  ],
)
def test_a_slow_pair_of_device_and_version_is_said(
  platform, version, is_warned
):
  assert bool(parallel.device_notes(platform, version)) == is_warned
