"""A checkpoint does not depend on the devices that it was saved from."""

import dataclasses

import jax
import numpy as np
import pytest

from eain_jax.config import TrainConfig
from eain_jax.training.checkpoint import Checkpoints
from eain_jax.training.setup import set_up

BATCH_SIZE = 320
CONFIG = TrainConfig(batch_size=BATCH_SIZE, table_update='rowwise')
ONE = ('none', 0)
LOOP = {'best_step': 3, 'best_value': 0.75, 'evaluated_step': 3}


def run_setup(dataset, small_config, parallelism, num_devices):
  config = dataclasses.replace(
    CONFIG, parallelism=parallelism, num_devices=num_devices
  )
  return set_up(dataset, 'din', small_config('din'), config)


def on_host(setup, state):
  """All leaves, tables in the order of their rows and without spare ones."""
  num_rows = setup.placement.num_rows

  def leaf(path, x):
    names = [str(getattr(p, 'key', getattr(p, 'name', ''))) for p in path]
    x = np.asarray(x)
    return x[: num_rows[names[-1]]] if 'tables' in names else x

  return jax.tree_util.tree_map_with_path(
    leaf, setup.placement.to_canonical(state)
  )


@pytest.fixture(scope='module')
def saved(dataset, small_config, tmp_path_factory):
  """saved(parallelism, devices): a folder, its leaves, the next losses."""
  made = {}

  def get(parallelism, num_devices):
    key = (parallelism, num_devices)
    if key not in made:
      setup = run_setup(dataset, small_config, *key)
      place, step = setup.placement.place_batch, setup.train_step
      state = setup.make_state()
      for number in range(3):
        state, _ = step(state, place(setup.stream.batch(number)))
      folder = tmp_path_factory.mktemp('saved')
      with Checkpoints(folder, setup.placement, {}) as checkpoints:
        best = (state.params, state.stats)
        checkpoints.save(state, best, LOOP, 'the log')
      leaves = on_host(setup, state)
      _, metrics = step(state, place(setup.stream.batch(3)))
      made[key] = folder, leaves, float(metrics['loss'])
    return made[key]

  return get


@pytest.mark.slow
@pytest.mark.parametrize(
  ('before', 'after'),
  [
    (('mesh', 4), ONE),
    (('mesh', 4), ('mesh', 8)),
    (('mesh', 4), ('mesh', 3)),
    (('mesh', 4), ('pmap', 4)),
    (ONE, ('mesh', 4)),
    (('pmap', 4), ('mesh', 8)),
    (('pmap', 4), ONE),
  ],
)
def test_a_run_goes_on_on_other_devices(
  dataset, small_config, saved, before, after
):
  """Bit-equal leaves, the same next batch, and the loss of it."""
  folder, leaves, loss = saved(*before)
  setup = run_setup(dataset, small_config, *after)
  checkpoints = Checkpoints(folder, setup.placement, {})
  unit = checkpoints.restore(setup.state_shapes, pytest.fail)
  assert (unit.loop, unit.log) == (LOOP, 'the log')
  state, (params, stats) = unit.state, unit.best
  assert int(state.step) == 3
  found = on_host(setup, state)
  jax.tree.map(np.testing.assert_array_equal, leaves, found)
  best = on_host(setup, dataclasses.replace(state, params=params, stats=stats))
  jax.tree.map(np.testing.assert_array_equal, leaves, best)
  batch = setup.placement.place_batch(setup.stream.batch(3))
  _, metrics = setup.train_step(state, batch)
  assert float(metrics['loss']) == pytest.approx(loss, abs=1e-5)
