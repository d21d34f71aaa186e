"""A run that was interrupted, anywhere and often, ends as one that was not."""

import dataclasses
import functools
import json
import os
import shutil
import time

import numpy as np
import pytest

from eain_jax.artifacts import check_manifest
from eain_jax.config import MODEL_CONFIGS, TrainConfig
from eain_jax.errors import InputError, Interrupted
from eain_jax.training import loop
from eain_jax.training.checkpoint import Checkpoints
from tests.faults.conftest import hash_state, summary
from tests.faults.inject import ACTIONS, injected

STEPS = 40
# 200 requests of 21 candidates for validation while it trains, and of 31 after
# that: three batches, and four.
EVAL_BATCH_SIZE = 1_550
EVALUATION = 3
# Steps between two at which a run of its own is interrupted; 1 takes minutes.
EVERY = int(os.environ.get('EAIN_FAULT_EVERY', '19'))
CONFIG = TrainConfig(
  batch_size=800,
  epochs=4,
  early_stopping=9,
  plateau_patience=1,
  learning_rate=0.02,
  log_every=3,
  save_every=7,
  ema_decay=0.9,
)
# Of Dice it has statistics to restore, too.
DIN = MODEL_CONFIGS['din'](embedding_dim=4, mlp=(8,), attention=(6,))


class Killed(BaseException):
  """Ends a run without another save, in this process.

  What is under way is still saved; for SIGKILL see `test_binaries.py`.
  """


def kill():
  raise Killed


@pytest.fixture(scope='module')
def fit(dataset):
  """fit(folder): one compiled program serves all runs of the module."""
  original = loop.set_up

  @functools.cache
  def once(model_name, model_config, config):
    return original(dataset, model_name, model_config, config)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, 'set_up', lambda _, *settings: once(*settings))
    # Some batches an evaluation, so that it can be interrupted within.
    patch.setattr(loop, 'EVAL_BATCH_SIZE', EVAL_BATCH_SIZE)
    yield lambda folder: loop.fit(dataset, 'din', DIN, CONFIG, folder)


@pytest.fixture(scope='module')
def whole(fit, dataset, tmp_path_factory):
  """A run that nothing interrupts, and the sha256 of all of its state."""
  folder = tmp_path_factory.mktemp('whole')
  fitted = fit(folder)
  assert fitted.result['steps'] == STEPS
  # The learning rate has fallen, and the best is not the last.
  records = (folder / 'metrics.jsonl').read_text().splitlines()
  assert 0 < fitted.result['best_step'] < STEPS
  assert json.loads(records[-1])['learning_rate_factor'] < 1
  return folder, hash_all(dataset, folder)


def hash_all(dataset, folder):
  setup = loop.set_up(dataset, 'din', DIN, CONFIG)
  settings = json.loads((folder / 'config.json').read_text())
  checkpoints = Checkpoints(folder, setup.placement, settings)
  unit = checkpoints.restore(setup.state_shapes, pytest.fail)
  return hash_state((unit.state, unit.best))


@pytest.mark.slow
def test_interrupted_before_each_step_of_forty(fit, dataset, whole, tmp_path):
  """One run, which makes one step a start."""
  folder, expected = whole
  starts = 1
  while True:
    try:
      with injected('step', 2, ACTIONS['term']):
        fit(tmp_path)
      break
    except Interrupted:
      starts += 1
  assert starts == STEPS
  assert hash_all(dataset, tmp_path) == expected
  assert summary(tmp_path) == summary(folder)


@pytest.mark.slow
@pytest.mark.parametrize('act', [ACTIONS['term'], kill])
def test_interrupted_once_anywhere(fit, dataset, whole, tmp_path, act):
  folder, expected = whole
  for step in range(1, STEPS + 1, EVERY):
    work = tmp_path / str(step)
    with pytest.raises((Killed, Interrupted)), injected('step', step, act):
      fit(work)
    fit(work)
    assert hash_all(dataset, work) == expected, step
    assert summary(work) == summary(folder), step
    shutil.rmtree(work)


def saved_record(work):
  """What the loop remembered at the newest checkpoint."""
  latest = work / 'checkpoints' / 'latest'
  newest = max(latest.iterdir(), key=lambda path: int(path.name))
  return json.loads((newest / 'record' / 'metadata').read_text())


@pytest.mark.parametrize(
  ('number', 'step'),
  [(2, 10), (EVALUATION + 1, 20), (3 * EVALUATION + 2, 40)],
)
def test_interrupted_within_an_evaluation(
  fit, dataset, whole, tmp_path, number, step
):
  """The state is saved as it is, and once more when it is evaluated."""
  folder, expected = whole
  with (
    pytest.raises(Interrupted),
    injected('evaluation', number, ACTIONS['term']),
  ):
    fit(tmp_path)
  record = saved_record(tmp_path)
  assert record['step'] == step
  assert record['loop']['evaluated_step'] == step - 10
  # Again, just before the save that comes after the evaluation.
  with pytest.raises(Killed), injected('save', 1, kill):
    fit(tmp_path)
  assert saved_record(tmp_path) == record
  fit(tmp_path)
  assert hash_all(dataset, tmp_path) == expected
  assert summary(tmp_path) == summary(folder)


def test_interrupted_when_all_is_trained(fit, dataset, whole, tmp_path):
  """In the last evaluations, of validation and test, for the result."""
  folder, expected = whole
  for number in (4 * EVALUATION + 1, 1, 6):
    with (
      pytest.raises(Interrupted),
      injected('evaluation', number, ACTIONS['term']),
    ):
      fit(tmp_path)
    assert not (tmp_path / 'result.json').exists()
  fit(tmp_path)
  assert hash_all(dataset, tmp_path) == expected
  assert summary(tmp_path) == summary(folder)


@pytest.mark.parametrize('number', [1, 4])
def test_stopped_before_a_save(fit, dataset, whole, tmp_path, number):
  folder, expected = whole
  with injected('save', number, kill), pytest.raises(Killed):
    fit(tmp_path)
  fit(tmp_path)
  assert hash_all(dataset, tmp_path) == expected
  assert summary(tmp_path) == summary(folder)


def test_checkpoints_that_are_gone_are_missed(fit, tmp_path):
  """A run that has had one does not begin anew, and nothing more is lost."""
  fit(tmp_path)
  shutil.rmtree(tmp_path / 'checkpoints' / 'latest')
  log = (tmp_path / 'metrics.jsonl').read_text()
  with pytest.raises(InputError, match='step 40, and its checkpoints are gone'):
    fit(tmp_path)
  (tmp_path / 'result.json').unlink()
  with pytest.raises(InputError, match='are gone'):
    fit(tmp_path)
  assert (tmp_path / 'metrics.jsonl').read_text() == log


def test_a_finished_run_stays_finished_when_it_is_started_again(fit, tmp_path):
  fit(tmp_path)
  before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
  fit(tmp_path)
  after = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
  assert before == after
  check_manifest(tmp_path)


def test_a_file_that_a_killed_start_has_left_is_nothing(fit, tmp_path):
  (tmp_path / '.config.json.unfinished-123-0a1b2c3d').write_text('{')
  (tmp_path / 'lock').write_text('{}')
  assert fit(tmp_path).result['steps'] == STEPS


def test_a_run_is_one_process(fit, tmp_path):
  """A second run on a folder is refused while the first is at work."""
  errors = []

  def again():
    with pytest.raises(InputError) as caught:
      fit(tmp_path)
    errors.append(str(caught.value))

  with injected('step', 5, again):
    fit(tmp_path)
  assert 'in use by process' in errors[0]
  assert (tmp_path / 'result.json').is_file()


def test_settings_and_versions_that_differ_are_named(fit, tmp_path):
  with injected('step', 9, ACTIONS['term']), pytest.raises(Interrupted):
    fit(tmp_path)
  file = tmp_path / 'config.json'
  text = file.read_text()
  settings = json.loads(text)
  for change, message in [
    ({'arithmetic_version': 0}, r'arithmetic_version=0, this one has \d'),
    ({'libraries': {'jax': '0.1'}}, r"libraries\.jax='0\.1', this one has"),
    (
      {'dataset': {'fingerprint': 'f' * 64}},
      r"dataset\.fingerprint='ffff.*this one has",
    ),
    ({'train_config': {'seed': 1}}, r'train_config\.seed=1, this one has 0'),
  ]:
    changed = {
      name: {**value, **change.get(name, {})}
      if isinstance(value, dict)
      else change.get(name, value)
      for name, value in settings.items()
    }
    file.write_text(json.dumps(changed))
    with pytest.raises(InputError, match=message):
      fit(tmp_path)
  # Nothing was lost by that.
  file.write_text(text)
  assert fit(tmp_path).result['steps'] == STEPS


def test_a_batch_that_does_not_come_ends_the_run(dataset, tmp_path):
  config = dataclasses.replace(CONFIG, input_timeout=1)
  begin = time.monotonic()
  with (
    injected('shard', 30, lambda: time.sleep(30)),
    pytest.raises(InputError, match='no batch has come for 1 seconds'),
  ):
    loop.fit(dataset, 'din', DIN, config, tmp_path)
  assert time.monotonic() - begin < 25
  config = dataclasses.replace(CONFIG, input_timeout=600)
  assert np.isfinite(
    loop.fit(dataset, 'din', DIN, config, tmp_path).result['test']['auc']
  )
