"""Batches assembled on the device: the same steps as batches from the host."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from eain_jax.config import MODEL_CONFIGS, PrepareConfig, TrainConfig
from eain_jax.data.batches import Shards, make_train_stream
from eain_jax.data.dataset import open_dataset
from eain_jax.data.prepare import prepare
from eain_jax.errors import InputError
from eain_jax.models import make_model
from eain_jax.training import distinct
from eain_jax.training.device_data import assemble, make_device_runner
from eain_jax.training.loop import fit
from eain_jax.training.step import make_train_step

BATCH_SIZE = 500


@pytest.fixture(scope='module')
def logged(tmp_path_factory):
  """A log with labels: histories are the user's earlier positives."""
  rng = np.random.default_rng(3)
  lines = ['user,item,timestamp,label']
  for user in range(60):
    for time in range(int(rng.integers(3, 12))):
      item, label = rng.integers(0, 30), rng.integers(0, 2)
      lines.append(f'u{user},i{item},{time},{label}')
  folder = tmp_path_factory.mktemp('logged')
  (folder / 'log.csv').write_text('\n'.join(lines) + '\n')
  config = PrepareConfig(
    events=str(folder / 'log.csv'),
    columns=('user=user', 'item=item', 'timestamp=timestamp', 'label=label'),
    history_length=4,
    context=(),
  )
  prepare(config, folder / 'dataset')
  return open_dataset(folder / 'dataset')


def meaning(batch, features):
  """Per request: user, contexts, items of candidates and history, labels."""
  rows = batch.get('rows')
  back = lambda name, ids: np.asarray(rows[name])[ids] if rows else ids
  items = {
    name: back(name, np.asarray(ids)) for name, ids in batch['items'].items()
  }
  user = np.asarray(batch['user'])
  if 'user' in [f.name for f in features]:
    user = back('user', user)
  found = []
  for r in range(len(batch['user'])):
    is_own = np.asarray(batch['segment']) == r
    events = np.asarray(batch['history'])[is_own]
    targets = np.asarray(batch['target'])[r]
    found.append(
      (
        user[r],
        {n: back(n, np.asarray(i))[r] for n, i in batch['context'].items()},
        {name: ids[events].tolist() for name, ids in items.items()},
        {name: ids[targets].tolist() for name, ids in items.items()},
        int(batch['position'][r]),
        np.asarray(batch['age'])[is_own].tolist(),
        np.asarray(batch['label'])[r].tolist(),
        np.asarray(batch['weight'])[r].tolist(),
      )
    )
  return found


@pytest.mark.parametrize('most', [0, 32])
def test_distinct_ids_by_marking_and_by_sorting(monkeypatch, most):
  monkeypatch.setattr(distinct, 'MAX_ROWS_AN_ID', most)
  ids = np.array([5, 0, 5, 9, 2], np.int32)
  rows, place = distinct.distinct_ids(ids, 10, 6)
  expected = np.array([0, 2, 5, 9])
  np.testing.assert_array_equal(rows[:4], expected)
  # Beyond the table, and in order.
  assert rows[4] >= 10
  assert rows[5] > rows[4]
  np.testing.assert_array_equal(expected[place], ids)


@pytest.mark.parametrize('with_rows', [False, True])
@pytest.mark.parametrize('which', ['dataset', 'logged'])
@pytest.mark.parametrize('name', ['lr', 'mf'])
def test_a_batch_means_the_same(request, name, which, with_rows):
  """The first batch, and the epoch's last, which has padding.

  LR reads no users, MF nothing but users and items.
  """
  dataset = request.getfixturevalue(which)
  shards = Shards(plan='rows' if with_rows else 'none')
  model = make_model(name)
  read = model.reads(dataset.features)
  stream = make_train_stream(dataset, 100, 0, shards, read)
  optimizer = optax.sgd(0.1)
  step = make_train_step(model, dataset.features, optimizer, TrainConfig())
  runner = make_device_runner(stream, step)
  for number in (0, stream.steps_per_epoch - 1):
    inputs = runner.inputs(number, 1)
    one = {name: values[0] for name, values in inputs.steps.items()}
    found = jax.jit(assemble, static_argnums=(2, 3, 4))(
      runner.columns, one, read, inputs.num_events, with_rows
    )
    expected = stream.batch(number)
    assert meaning(found, read) == meaning(expected, read)


@pytest.mark.parametrize('with_rows', [False, True])
def test_many_steps_in_one_call_are_the_steps(
  dataset, small_config, random_state, with_rows
):
  """Dropout included; across an epoch's end; in calls of any length."""
  shards = Shards(plan='rows' if with_rows else 'none')
  stream = make_train_stream(dataset, BATCH_SIZE, 7, shards)
  optimizer = optax.adam(0.01)
  config = TrainConfig()
  model = make_model('eain', small_config('eain', dropout=0.3))
  step = make_train_step(model, dataset.features, optimizer, config)
  state = random_state(model, dataset, stream.batch(0), optimizer)
  start, count = stream.steps_per_epoch - 3, 6
  expected, compiled = [], jax.jit(step)
  host = state
  for number in range(start, start + count):
    host, found = compiled(host, stream.batch(number))
    expected.append(float(found['loss']))
  runner = make_device_runner(stream, step)
  device = state
  for first, last in ((0, 0), (1, 4), (5, 5)):
    inputs = runner.inputs(start + first, last + 1 - first)
    device, found = runner(device, inputs)
    np.testing.assert_allclose(found['loss'], expected[last], atol=2e-6)
  assert runner.run._cache_size() == 1
  for a, b in zip(jax.tree.leaves(host), jax.tree.leaves(device), strict=True):
    np.testing.assert_allclose(a, b, atol=5e-5)


def test_a_run_with_its_data_on_the_device_is_the_run(dataset):
  settings = MODEL_CONFIGS['dnn'](embedding_dim=8, mlp=(16,))
  config = TrainConfig(
    batch_size=320, epochs=2, learning_rate=5e-3, log_every=20
  )
  results = []
  for placement in ('host', 'device'):
    own = dataclasses.replace(config, data_placement=placement)
    results.append(fit(dataset, 'dnn', settings, own).result)
  host, device = results
  assert host['steps'] == device['steps']
  for name in ('auc', 'logloss'):
    assert host['test'][name] == pytest.approx(device['test'][name], abs=1e-4)


def test_data_on_the_device_goes_with_one_device(dataset):
  config = TrainConfig(data_placement='device', parallelism='pmap')
  with pytest.raises(InputError, match='runs on one device'):
    fit(dataset, 'lr', MODEL_CONFIGS['lr'](), config)


def test_columns_that_do_not_fit_are_refused(dataset, monkeypatch):
  class Small:
    def memory_stats(self):
      return {'bytes_limit': 2_000, 'bytes_in_use': 1_500}

  monkeypatch.setattr(jax, 'local_devices', lambda: [Small()])
  stream = make_train_stream(dataset, 100, 0)
  with pytest.raises(InputError, match='use --data_placement=host'):
    make_device_runner(stream, lambda state, batch: (state, {}))
