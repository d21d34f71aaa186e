"""A search against a training that is a formula: what it tries, and resumes."""

import dataclasses
import errno
import io
import itertools
import json
import os
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution
from optuna.storages.journal import JournalFileBackend
from rich.console import Console

from eain_jax.artifacts import check_manifest
from eain_jax.config import DinConfig, EainConfig, TrainConfig
from eain_jax.errors import BadSettings, InputError, Interrupted
from eain_jax.reporting.console import trials_on_console
from eain_jax.training import loop, run_folder
from eain_jax.training.run_folder import METRICS_FILE
from eain_jax.tuning.record import best_trial, notes, write_record
from eain_jax.tuning.search import Search, Trial
from eain_jax.tuning.space import SPACE, as_flags, make_space
from experiments.flag_files import read_flags

EPOCHS = 3


def quality(model_config, train_config):
  """Highest at a dropout of .3 and a learning rate of 1e-3."""
  rate = train_config.learning_rate / 1e-3
  return 0.9 - (model_config.dropout - 0.3) ** 2 - 0.1 * abs(rate - 1)


class Training:
  """Stands for `loop.fit`: epochs that come to `quality`, and a log."""

  def __init__(self, interrupt_at=()):
    self.calls, self.num_epochs = [], 0
    self._interrupt_at = interrupt_at

  def __call__(
    self, dataset, model, model_config, config, work_dir, told, parts
  ):
    assert parts == ('valid',), 'a search that looks at test is no search'
    self.calls.append((model_config, config))
    work_dir.mkdir(parents=True, exist_ok=True)
    log = work_dir / METRICS_FILE
    done = len(log.read_text().splitlines()) if log.is_file() else 0
    value = quality(model_config, config)
    for epoch in range(done + 1, EPOCHS + 1):
      self.num_epochs += 1
      if self.num_epochs in self._interrupt_at:
        raise Interrupted('told to stop')
      record = {'kind': 'valid', 'epoch': epoch, 'gauc': value - 0.1 / epoch}
      with log.open('a') as file:
        file.write(json.dumps(record) + '\n')
      told(record)
    result = {
      'valid': {'gauc': value, 'auc': value, 'gauc_users': 50},
      'best_epoch': EPOCHS,
      'steps': 10 * EPOCHS,
      'parameters': 7,
    }
    return loop.FitResult(result, None, None)


def make_search(dataset, folder, **changes):
  settings = {'objective': 'gauc', 'sampler': 'tpe', 'prune': True, 'seed': 0}
  space = make_space(
    'din',
    DinConfig(dropout=0.6),
    TrainConfig(learning_rate=3e-3),
    searched=('dropout', 'learning_rate'),
  )
  return Search(dataset, space, folder, **(settings | changes))


def run(search, num_trials, monkeypatch, interrupt_at=()):
  """Trials, started again after each interruption."""
  training = Training(interrupt_at)
  monkeypatch.setattr(loop, 'fit', training)
  for _ in range(len(interrupt_at) + 1):
    try:
      return search.run(num_trials, lambda number, values: None), training
    except Interrupted:
      continue
  raise AssertionError('it is interrupted more often than told')


def test_the_first_trial_is_the_start_and_the_best_is_near_the_top(
  dataset, tmp_path, monkeypatch
):
  search = make_search(dataset, tmp_path, prune=False)
  trials, training = run(search, 25, monkeypatch)
  assert [trial.number for trial in trials] == list(range(25))
  assert trials[0].values == {'dropout': 0.6, 'learning_rate': 3e-3}
  for trial, (model_config, config) in zip(trials, training.calls, strict=True):
    assert model_config.dropout == trial.values['dropout']
    assert config.learning_rate == trial.values['learning_rate']
    # What is not searched stays.
    assert model_config == DinConfig(dropout=model_config.dropout)
    assert trial.value == quality(model_config, config)
    assert trial.epochs == {
      epoch: trial.value - 0.1 / epoch for epoch in range(1, EPOCHS + 1)
    }
  values = [trial.value for trial in trials]
  assert best_trial(trials).value == max(values) > 0.85 > values[0]
  assert not [*(tmp_path / 'runs').iterdir()], 'weights of trials are kept'


@pytest.mark.parametrize('sampler', ['tpe', 'random'])
def test_an_interrupted_search_ends_as_one_that_was_not(
  dataset, tmp_path, monkeypatch, sampler
):
  whole, training = run(
    make_search(dataset, tmp_path / 'a', sampler=sampler), 12, monkeypatch
  )
  assert any(trial.value is None for trial in whole), 'none was given up'
  assert training.num_epochs < 12 * EPOCHS
  # In the first trial, between two, in the last epoch of one, twice in one.
  at = (2, 4, 9, 17, 18)
  parts, _ = run(
    make_search(dataset, tmp_path / 'b', sampler=sampler),
    12,
    monkeypatch,
    interrupt_at=at,
  )
  assert parts == whole
  # A search that goes on with more trials is the longer one.
  longer = make_search(dataset, tmp_path / 'c', sampler=sampler)
  run(longer, 5, monkeypatch)
  assert run(longer, 12, monkeypatch)[0] == whole


def test_given_up_are_those_below_the_median_by_then(
  dataset, tmp_path, monkeypatch
):
  trials, _ = run(make_search(dataset, tmp_path), 20, monkeypatch)
  for trial in trials:
    so_far = []
    for epoch, value in trial.epochs.items():
      so_far.append(value)
      # Of those that came to their end, five at least.
      others = sorted(
        other.epochs[epoch]
        for other in trials[: trial.number]
        if other.value is not None
      )
      if len(others) < 5:
        continue
      half = len(others) // 2
      median = (others[half] + others[~half]) / 2
      is_last = epoch == max(trial.epochs) and trial.value is None
      assert is_last == (max(so_far) < median), (trial, epoch)


def test_settings_that_cannot_be_trained_end_their_trial_alone(
  dataset, tmp_path, monkeypatch
):
  search = make_search(dataset, tmp_path, prune=False)
  training = Training()

  def train(*args, **kwargs):
    if len(training.calls) == 2:
      training.calls.append(None)
      raise BadSettings('the loss is not finite', 'lower --learning_rate')
    return training(*args, **kwargs)

  monkeypatch.setattr(loop, 'fit', train)
  trials = search.run(4, lambda number, values: None)
  assert [trial.failed for trial in trials] == [
    None,
    None,
    'the loss is not finite',
    None,
  ]
  assert [trial.value is None for trial in trials] == [
    False,
    False,
    True,
    False,
  ]
  record = write_record(search, trials, {}, 'python -m x')
  assert record['trials'][2]['failed'] == 'the loss is not finite'
  assert not record['trials'][2]['given_up']
  shown = io.StringIO()
  Console(file=shown, width=80).print(
    trials_on_console('gauc', record['trials'], record['best'])
  )
  words = ' '.join(shown.getvalue().split())
  assert '1 could not be trained: of trial 2 the loss is not finite' in words
  with pytest.raises(InputError, match='failed the loss is not finite'):
    best_trial(trials[2:3])


def test_an_objective_that_the_data_lack_is_said(
  dataset, tmp_path, monkeypatch
):
  search = make_search(dataset, tmp_path)
  monkeypatch.setattr(
    'tests.tuning.test_search.quality', lambda *_: float('nan')
  )
  with pytest.raises(InputError, match='has no gauc to search for'):
    run(search, 2, monkeypatch)


def test_what_a_kill_leaves_of_the_journal_is_taken_back(
  dataset, tmp_path, monkeypatch
):
  whole, _ = run(make_search(dataset, tmp_path / 'a'), 8, monkeypatch)
  # As by a relative path, so that the lock of Optuna is a link to nothing.
  monkeypatch.chdir(tmp_path)
  search = make_search(dataset, Path('b'))
  run(search, 5, monkeypatch)
  journal = Path('b', 'study.journal')
  Path('b', 'study.journal.lock').symlink_to(journal)
  with journal.open('a') as file:
    file.write('{"op_code": 5, "worker')
  assert run(search, 8, monkeypatch)[0] == whole
  assert not Path('b', 'study.journal.lock').is_symlink()


def test_a_damaged_journal_is_said_to_be(dataset, tmp_path, monkeypatch):
  search = make_search(dataset, tmp_path)
  run(search, 2, monkeypatch)
  journal = tmp_path / 'study.journal'
  lines = journal.read_text().splitlines(keepends=True)
  journal.write_text(''.join([lines[0], lines[1][:20] + '\n', *lines[2:]]))
  with pytest.raises(InputError, match=r'study\.journal is damaged'):
    run(search, 3, monkeypatch)


def test_a_journal_on_a_full_disk_is_said_to_be(dataset, tmp_path, monkeypatch):
  append = JournalFileBackend.append_logs
  written = []

  def counted(self, logs):
    written.append(logs)
    append(self, logs)

  monkeypatch.setattr(JournalFileBackend, 'append_logs', counted)
  whole, _ = run(make_search(dataset, tmp_path / 'whole'), 3, monkeypatch)
  # At its writes, those within trials too.
  for room in range(0, len(written), 3):
    left = iter(range(room))

    def full(self, logs, left=left, folder=tmp_path / str(room)):
      if next(left, None) is not None:
        return append(self, logs)
      with (folder / 'study.journal').open('a') as file:
        file.write('{"op_')
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(JournalFileBackend, 'append_logs', full)
    search = make_search(dataset, tmp_path / str(room))
    with pytest.raises(InputError, match='cannot be kept: No space left'):
      run(search, 3, monkeypatch)
    monkeypatch.setattr(JournalFileBackend, 'append_logs', append)
    assert run(search, 3, monkeypatch)[0] == whole


def test_record_and_flags(dataset, tmp_path, monkeypatch):
  search = make_search(dataset, tmp_path)
  trials, _ = run(search, 6, monkeypatch)
  fixed = {'mlp': '64,32', 'attention_softmax': 'false'}
  record = write_record(search, trials, fixed, 'python -m x --a=b')
  check_manifest(tmp_path)
  assert json.loads((tmp_path / 'tune.json').read_text()) == record
  best = trials[record['best']]
  assert best == best_trial(trials)
  assert len(record['trials']) == 6
  assert record['dataset'] == dataset.fingerprint
  text = (tmp_path / 'din.flags').read_text()
  assert text.splitlines()[0] == '# python -m x --a=b'
  assert read_flags(tmp_path / 'din.flags') == {
    **fixed,
    **{name: str(value) for name, value in best.values.items()},
  }


def test_a_search_on_test_says_so(dataset, tmp_path, monkeypatch):
  manifest = {**dataset.manifest, 'split': 'last_out_no_validation'}
  published = dataclasses.replace(dataset, manifest=manifest)
  for data, note, split in (
    (dataset, 'test was not looked at', 'last_out'),
    (published, 'the validation part IS the test part', manifest['split']),
  ):
    search = make_search(data, tmp_path / split)
    trials, _ = run(search, 1, monkeypatch)
    record = write_record(search, trials, {'skip_above': 'on'}, 'python -m x')
    assert record['split'] == split
    said = notes(search, record)
    assert any('the test part' in line for line in said) == (data is published)
    assert any('with --skip_above=on' in line for line in said)
    assert any('GAUC is over 50 users' in line for line in said)
    lines = (search.folder / 'din.flags').read_text().splitlines()
    assert sum(note in line for line in lines) == 1
    # A table takes it as a flag of its own, and not in a file.
    assert '# to be used with --skip_above=on' in lines
    assert 'skip_above' not in read_flags(search.folder / 'din.flags')


def test_a_search_goes_on_by_the_arithmetic_that_it_began_with(
  dataset, tmp_path, monkeypatch
):
  search = make_search(dataset, tmp_path)
  before = search.plan()
  assert before['libraries'].keys() >= {'jax', 'optax', 'numpy'}
  monkeypatch.setattr(run_folder, 'ARITHMETIC_VERSION', 0)
  assert search.plan() == {**before, 'arithmetic_version': 0}


def test_the_best_is_the_first_of_equals_and_never_nan():
  trial = lambda number, value: Trial(number, {}, {}, value, None)
  trials = [
    trial(0, float('nan')),
    trial(1, 0.5),
    trial(2, 0.5),
    trial(3, None),
  ]
  assert best_trial(trials).number == 1
  with pytest.raises(InputError, match='not one trial has a value'):
    best_trial([trials[0], trials[3]])


def test_space_leaves_out_what_is_fixed_or_off():
  every = make_space('eain', EainConfig(), TrainConfig()).distributions
  fields = {
    f.name for c in (EainConfig, TrainConfig) for f in dataclasses.fields(c)
  }
  assert set(every) == SPACE.keys() & fields
  space = make_space(
    'eain',
    EainConfig(use_paim=False),
    TrainConfig(),
    fixed=('dropout', 'use_paim'),
  ).distributions
  gone = {'dropout', 'paim_layers', 'paim_dim', 'paim_input', 'position'}
  assert set(space) == set(every) - gone
  with pytest.raises(InputError, match='seed cannot be searched for eain'):
    make_space('eain', EainConfig(), TrainConfig(), searched=('seed',))
  with pytest.raises(InputError, match='dropout is to be searched, and has'):
    make_space(
      'eain',
      EainConfig(),
      TrainConfig(),
      searched=('dropout',),
      fixed=('dropout',),
    )
  with pytest.raises(InputError, match='no setting of eain is left'):
    make_space('eain', EainConfig(), TrainConfig(), fixed=tuple(every))


def test_every_corner_of_the_space_is_a_setting():
  space = make_space('eain', EainConfig(), TrainConfig())
  assert space.start().keys() == space.distributions.keys()
  ends = {
    name: d.choices
    if isinstance(d, CategoricalDistribution)
    else (d.low, d.high)
    for name, d in space.distributions.items()
  }
  longest = max(map(len, ends.values()))
  for corner in itertools.islice(
    zip(*(itertools.cycle(values) for values in ends.values()), strict=True),
    longest,
  ):
    values = dict(zip(ends, corner, strict=True))
    model_config, train_config = space.configs(values)
    for name, value in values.items():
      config = model_config if hasattr(model_config, name) else train_config
      found = getattr(config, name)
      as_text = ','.join(map(str, found)) if isinstance(found, tuple) else found
      assert as_text == value
    assert len(as_flags(values)) == len(values)
