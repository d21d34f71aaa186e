"""Seeds that are trained together: each is the run that it is alone."""

import dataclasses
import itertools
import json
import os
import signal
import types

import jax
import numpy as np
import pytest

from eain_jax.config import MODEL_CONFIGS, TrainConfig
from eain_jax.errors import InputError, Interrupted
from eain_jax.locking import locked_folder
from eain_jax.stopping import stop_signals
from eain_jax.training import lockstep
from eain_jax.training import seeds as seeds_file
from eain_jax.training import setup as setup_file
from eain_jax.training.device_data import DeviceRunner
from eain_jax.training.device_memory import bytes_of_run
from eain_jax.training.loop import fit
from eain_jax.training.seeds import Member, fit_seeds
from eain_jax.training.setup import set_up

SETTINGS = MODEL_CONFIGS['dnn'](embedding_dim=8, mlp=(16,), dropout=0.2)
CONFIG = TrainConfig(
  batch_size=320,
  epochs=3,
  learning_rate=5e-3,
  log_every=20,
  early_stopping=1,
  data_placement='device',
)
SEEDS = (3, 0, 7)


@pytest.fixture(scope='module')
def alone(dataset, tmp_path_factory):
  """By seed the folder of a run that was trained alone."""
  folders = {}
  for seed in SEEDS:
    folders[seed] = tmp_path_factory.mktemp(f'alone{seed}')
    config = dataclasses.replace(CONFIG, seed=seed)
    fit(dataset, 'dnn', SETTINGS, config, folders[seed])
  return folders


def members(folder, seeds=SEEDS, report=None):
  return {seed: Member(folder / str(seed), report) for seed in seeds}


def train(dataset, runs, config=CONFIG):
  return fit_seeds(dataset, 'dnn', SETTINGS, config, runs)


def records(folder):
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def assert_same(found, expected):
  """All that two runs leave behind, but for the order of their sums."""
  ours, theirs = records(found), records(expected)
  assert [(r['kind'], r['step']) for r in ours] == [
    (r['kind'], r['step']) for r in theirs
  ]
  for one, other in zip(ours, theirs, strict=True):
    if one['kind'] == 'train':
      assert one['loss'] == pytest.approx(other['loss'], abs=1e-4)
    else:
      assert one['auc'] == pytest.approx(other['auc'], abs=2e-3)
  ours, theirs = (
    json.loads((folder / 'result.json').read_text())
    for folder in (found, expected)
  )
  assert ours['steps'] == theirs['steps']
  assert theirs['trained_together'] == 1
  assert ours['seed'] == theirs['seed']
  assert ours['test']['auc'] == pytest.approx(theirs['test']['auc'], abs=2e-3)
  assert (found / 'manifest.json').is_file()


def test_seeds_together_are_the_runs_alone(dataset, alone, tmp_path):
  """Their order, negatives, dropout and parameters; each to its own end."""
  assert train(dataset, members(tmp_path)) == []
  for seed in SEEDS:
    assert_same(tmp_path / str(seed), alone[seed])
    result = json.loads((tmp_path / str(seed) / 'result.json').read_text())
    assert result['trained_together'] == len(SEEDS)
  losses = [records(tmp_path / str(seed))[0]['loss'] for seed in SEEDS]
  assert len(set(losses)) == len(SEEDS)


def test_runs_that_stand_at_different_steps_go_on_together(
  dataset, alone, tmp_path
):
  """One was interrupted, one is new, one has ended; SIGTERM comes between."""

  def stop_after(count):
    """Once, whatever the threads report at the same time."""
    numbers = itertools.count(1)

    def report(record):
      if record['kind'] == 'train' and next(numbers) == count:
        os.kill(os.getpid(), signal.SIGTERM)

    return report

  config = dataclasses.replace(CONFIG, seed=3)
  with pytest.raises(Interrupted):
    fit(dataset, 'dnn', SETTINGS, config, tmp_path / '3', stop_after(2))
  config = dataclasses.replace(CONFIG, seed=0)
  fit(dataset, 'dnn', SETTINGS, config, tmp_path / '0')
  # As a binary has it until there is something to lose.
  with stop_signals() as stop:
    stop.can_end = True
    with pytest.raises(Interrupted):
      train(dataset, members(tmp_path, report=stop_after(3)))
    assert stop.can_end
  steps = [records(tmp_path / str(seed))[-1]['step'] for seed in (3, 7)]
  assert min(steps) > 0
  assert not (tmp_path / '7' / 'result.json').exists()
  assert train(dataset, members(tmp_path)) == []
  together = {}
  for seed in SEEDS:
    assert_same(tmp_path / str(seed), alone[seed])
    result = json.loads((tmp_path / str(seed) / 'result.json').read_text())
    together[seed] = result['trained_together']
  # What had ended before has shared its time with none.
  assert together == {3: 3, 0: 1, 7: 3}


def test_of_seeds_that_do_not_fit_together_some_are(
  dataset, alone, tmp_path, monkeypatch
):
  sizes = []
  real = seeds_file.in_lockstep
  monkeypatch.setattr(
    seeds_file, 'in_lockstep', lambda r: sizes.append(len(r)) or real(r)
  )
  setup = set_up(dataset, 'dnn', SETTINGS, CONFIG)
  state = setup.placement.bytes_a_device(setup.state_shapes)
  each = bytes_of_run(setup.state_shapes, setup.placement, saves=True) + state
  monkeypatch.setattr(seeds_file, 'available_bytes', lambda: 3 * each - 1)
  assert train(dataset, members(tmp_path)) == []
  assert sizes == [2]
  for seed in SEEDS:
    assert_same(tmp_path / str(seed), alone[seed])


def test_ctrl_c_that_ends_a_compiler_is_an_interruption(
  dataset, alone, tmp_path, monkeypatch
):
  """A GPU's assembler is a process of its own, and hears of it too."""
  real, calls = DeviceRunner.__call__, []

  def call(self, state, inputs):
    calls.append(None)
    if len(calls) == 3:
      os.kill(os.getpid(), signal.SIGINT)
      raise jax.errors.JaxRuntimeError('ptxas exited with non-zero error code')
    return real(self, state, inputs)

  monkeypatch.setattr(DeviceRunner, '__call__', call)
  config = dataclasses.replace(CONFIG, seed=7)
  with pytest.raises(Interrupted):
    fit(dataset, 'dnn', SETTINGS, config, tmp_path)
  fit(dataset, 'dnn', SETTINGS, config, tmp_path)
  assert_same(tmp_path, alone[7])


def test_data_goes_to_an_accelerator_where_all_fits(dataset, monkeypatch):
  auto = dataclasses.replace(CONFIG, data_placement='auto')
  placed = lambda: set_up(dataset, 'dnn', SETTINGS, auto)
  assert placed().config.data_placement == 'host'
  monkeypatch.setattr(setup_file, '_is_accelerator', lambda placement: True)
  setup = placed()
  assert setup.config.data_placement == 'device'
  assert setup.device_runner is not None
  columns = sum(
    leaf.nbytes for leaf in jax.tree.leaves(setup.device_runner.columns)
  )
  needed = bytes_of_run(setup.state_shapes, setup.placement, saves=True)
  room = {'bytes_in_use': 0}
  device = types.SimpleNamespace(memory_stats=lambda: room)
  monkeypatch.setattr(jax, 'local_devices', lambda: [device])
  room['bytes_limit'] = columns + needed
  assert placed().config.data_placement == 'device'
  room['bytes_limit'] -= 1
  setup = placed()
  assert setup.config.data_placement == 'host'
  assert any('the data stays on the host' in note for note in setup.notes)


def test_a_run_that_fails_ends_the_others_in_order(dataset, alone, tmp_path):
  other = dataclasses.replace(CONFIG, seed=7, epochs=1)
  fit(dataset, 'dnn', SETTINGS, other, tmp_path / '7')
  with pytest.raises(InputError, match='epochs=1'):
    train(dataset, members(tmp_path))
  assert train(dataset, members(tmp_path, SEEDS[:2])) == []
  for seed in SEEDS[:2]:
    assert_same(tmp_path / str(seed), alone[seed])


def test_a_run_that_another_process_has_is_left_to_it(dataset, tmp_path):
  config = dataclasses.replace(CONFIG, epochs=1)
  with locked_folder(tmp_path / '0', '--work_dir'):
    assert train(dataset, members(tmp_path), config) == [0]
  assert not (tmp_path / '0' / 'result.json').exists()
  for seed in (3, 7):
    assert (tmp_path / str(seed) / 'result.json').is_file()


def test_a_device_that_fails_is_heard_of_by_all(dataset, tmp_path, monkeypatch):
  def no_memory(self, calls):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED')

  monkeypatch.setattr(lockstep.Lockstep, '_call', no_memory)
  with pytest.raises(InputError, match=r'3 runs do not fit .* --seeds_at_'):
    train(dataset, members(tmp_path))


def test_with_the_data_on_the_host_they_are_trained_alone(dataset, tmp_path):
  config = dataclasses.replace(CONFIG, data_placement='host', epochs=1)
  assert train(dataset, members(tmp_path, (0, 7)), config) == []
  config = dataclasses.replace(config, seed=7)
  alone = fit(dataset, 'dnn', SETTINGS, config).result
  found = json.loads((tmp_path / '7' / 'result.json').read_text())
  assert np.isclose(found['test']['auc'], alone['test']['auc'], atol=0)
