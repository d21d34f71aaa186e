"""Seeds that are trained together: each is the run that it is alone."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from eain_jax.config import MODEL_CONFIGS, TrainConfig
from eain_jax.errors import InputError, Interrupted
from eain_jax.locking import locked_folder
from eain_jax.training import lockstep
from eain_jax.training.loop import fit
from eain_jax.training.seeds import Member, fit_seeds

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
  assert ours['seed'] == theirs['seed']
  assert ours['test']['auc'] == pytest.approx(theirs['test']['auc'], abs=2e-3)
  assert (found / 'manifest.json').is_file()


def test_seeds_together_are_the_runs_alone(dataset, alone, tmp_path):
  """Their order, negatives, dropout and parameters; each to its own end."""
  assert train(dataset, members(tmp_path)) == []
  for seed in SEEDS:
    assert_same(tmp_path / str(seed), alone[seed])
  losses = [records(tmp_path / str(seed))[0]['loss'] for seed in SEEDS]
  assert len(set(losses)) == len(SEEDS)


def test_runs_that_stand_at_different_steps_go_on_together(
  dataset, alone, tmp_path
):
  """One was interrupted, one is new, one has ended; SIGTERM comes between."""
  seen = []

  def stop_after(count):
    def report(record):
      if record['kind'] == 'train':
        seen.append(record['step'])
      if len(seen) == count:
        os.kill(os.getpid(), signal.SIGTERM)

    return report

  config = dataclasses.replace(CONFIG, seed=3)
  with pytest.raises(Interrupted):
    fit(dataset, 'dnn', SETTINGS, config, tmp_path / '3', stop_after(2))
  config = dataclasses.replace(CONFIG, seed=0)
  fit(dataset, 'dnn', SETTINGS, config, tmp_path / '0')
  seen.clear()
  with pytest.raises(Interrupted):
    train(dataset, members(tmp_path, report=stop_after(3)))
  assert not (tmp_path / '7' / 'result.json').exists()
  assert train(dataset, members(tmp_path)) == []
  for seed in SEEDS:
    assert_same(tmp_path / str(seed), alone[seed])


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
  with pytest.raises(jax.errors.JaxRuntimeError, match='EXHAUSTED'):
    train(dataset, members(tmp_path))


def test_with_the_data_on_the_host_they_are_trained_alone(dataset, tmp_path):
  config = dataclasses.replace(CONFIG, data_placement='host', epochs=1)
  assert train(dataset, members(tmp_path, (0, 7)), config) == []
  config = dataclasses.replace(config, seed=7)
  alone = fit(dataset, 'dnn', SETTINGS, config).result
  found = json.loads((tmp_path / '7' / 'result.json').read_text())
  assert np.isclose(found['test']['auc'], alone['test']['auc'], atol=0)
