"""Runs of one plan by several processes: shared out, waited for, stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl.flags import FLAGS

from eain_jax.config import TrainConfig
from eain_jax.errors import InputError, Interrupted, InUse
from eain_jax.locking import locked_folder
from eain_jax.training import run_set
from eain_jax.training.run_set import Job, check_begun, train_all, train_jobs
from experiments import side_by_side
from launch.processes import ProcessGroup

ROOT = Path(__file__).parents[2]
TINY = (
  '--num_events=2000',
  '--models=lr,mf',
  '--seeds=2',
  '--epochs=1',
  '--batch_size=512',
)
needs_two_cores = pytest.mark.skipif(
  (os.cpu_count() or 1) < 2, reason='--jobs=2 needs two cores'
)


def start(*flags):
  return subprocess.Popen(
    [sys.executable, '-m', 'experiments.table1', *map(str, flags)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def end(process):
  out, error = process.communicate(timeout=600)
  return process.returncode, out, error


@pytest.fixture
def jobs(small_config):
  return [
    Job('lr', 'lr', small_config('lr'), TrainConfig(seed=seed))
    for seed in range(3)
  ]


@pytest.fixture
def trained(monkeypatch, tmp_path):
  """The seeds that were trained here; a run is its manifest alone."""
  seeds = []

  def train(dataset, name, model_config, config, folder, report):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'manifest.json').write_text('{}')
    seeds.append(config.seed)

  monkeypatch.setattr(run_set.loop, 'fit', train)
  monkeypatch.setattr(run_set, 'POLL_SECONDS', 0.01)
  return seeds


class Silent:
  def __init__(self, *_):
    pass

  def __enter__(self):
    return lambda record: None

  def __exit__(self, *_):
    pass


def test_what_another_process_trains_is_left_to_it(jobs, trained, tmp_path):
  with locked_folder(jobs[1].folder(tmp_path), '--work_dir'):
    left = train_jobs(None, jobs, tmp_path, Silent)
  assert (trained, left) == ([0, 2], [jobs[1]])
  # Nobody has it any more, and the others are not repeated.
  assert train_jobs(None, jobs, tmp_path, Silent) == []
  assert trained == [0, 2, 1]


def test_what_cannot_go_on_is_said_before_anything_is_trained(
  dataset, jobs, trained, tmp_path
):
  begun = jobs[1].folder(tmp_path)
  begun.mkdir(parents=True)
  settings = run_set.loop.run_config(
    dataset, 'lr', jobs[1].model_config, jobs[1].config
  )
  (begun / 'config.json').write_text(json.dumps(settings))
  check_begun(dataset, jobs, tmp_path)
  settings['libraries']['jax'] = '0.1'
  (begun / 'config.json').write_text(json.dumps(settings))
  with pytest.raises(InputError, match=r"lr-seed1 holds .*jax='0\.1'.*_dir"):
    side_by_side.train(dataset, jobs, tmp_path, 'experiments.table1')
  assert not trained


def test_a_run_that_another_takes_first_is_left_to_it(
  jobs, trained, tmp_path, monkeypatch
):
  train = run_set.loop.fit

  def taken_once(*args):
    monkeypatch.setattr(run_set.loop, 'fit', train)
    raise InUse('somebody was faster')

  monkeypatch.setattr(run_set.loop, 'fit', taken_once)
  assert train_jobs(None, jobs, tmp_path, Silent) == [jobs[0]]
  assert trained == [1, 2]


def test_seeds_are_grouped_by_what_is_trained(
  jobs, trained, tmp_path, monkeypatch, small_config
):
  """Up to so many; not those that are finished, nor those of other settings."""
  other = [
    Job('mf', 'mf', small_config('mf'), TrainConfig(seed=seed))
    for seed in (0, 1)
  ]
  ablation = [
    job for pair in zip(jobs, other, strict=False) for job in pair
  ] + jobs[2:]
  groups = []

  def together(dataset, model, model_config, config, members):
    groups.append((model, [*members]))
    for member in members.values():
      member.work_dir.mkdir(parents=True, exist_ok=True)
      (member.work_dir / 'manifest.json').write_text('{}')
    return [2] if model == 'lr' else []

  monkeypatch.setattr(run_set, 'fit_seeds', together)
  left = train_jobs(None, ablation, tmp_path / 'a', Silent, 3)
  assert groups == [('lr', [0, 1, 2]), ('mf', [0, 1])]
  assert left == [jobs[2]]
  assert train_jobs(None, ablation, tmp_path / 'a', Silent, 3) == []
  groups.clear()
  train_jobs(None, ablation, tmp_path / 'b', Silent, 2)
  assert (groups, trained) == ([('lr', [0, 1]), ('mf', [0, 1])], [2])
  groups.clear()
  with locked_folder(jobs[1].folder(tmp_path / 'c'), '--work_dir'):
    assert train_jobs(None, jobs, tmp_path / 'c', Silent, 3) == [
      jobs[2],
      jobs[1],
    ]
  assert groups == [('lr', [0, 2])]


def test_how_many_seeds_are_trained_together(monkeypatch):
  host, device, auto, pmap = (
    TrainConfig(data_placement='host'),
    TrainConfig(data_placement='device'),
    TrainConfig(),
    TrainConfig(parallelism='pmap'),
  )
  asked = lambda number, *configs: (
    monkeypatch.setattr(
      side_by_side, 'SEEDS_AT_ONCE', type('Flag', (), {'value': number})
    ),
    side_by_side.seeds_at_once(configs),
  )[1]
  assert asked(0, device, device) == 1
  assert asked(3, device, device) == 3
  for config in (host, auto, pmap):
    with pytest.raises(side_by_side.cli.FlagError, match='--seeds_at_once=2'):
      asked(2, device, config)
  monkeypatch.setattr(side_by_side.jax, 'default_backend', lambda: 'gpu')
  assert asked(0, auto, auto, device) == 3
  assert asked(0, auto, pmap) == 1
  assert asked(1, auto, auto) == 1
  assert asked(2, auto, auto) == 2


def test_a_run_whose_process_ends_goes_on_here(
  jobs, trained, tmp_path, monkeypatch
):
  said, lock = [], locked_folder(jobs[2].folder(tmp_path), '--work_dir')
  lock.__enter__()
  naps = iter([None, None, lambda: lock.__exit__(None, None, None)])
  monkeypatch.setattr(
    run_set.time, 'sleep', lambda _: (next(naps) or (lambda: None))()
  )
  train_all(None, jobs, tmp_path, Silent, said.append)
  assert trained == [0, 1, 2]
  assert said == ['waiting for what other processes train: lr, seed 2']


@needs_two_cores
@pytest.mark.slow
def test_jobs_that_are_stopped_go_on_and_make_one_report(tmp_path):
  out = tmp_path / 'out'
  flags = (*TINY, f'--output_dir={out}', '--jobs=2')
  process = start(*flags)
  runs = out / 'runs'
  while len(list(runs.glob('*/lock'))) < 2 and process.poll() is None:
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  code, _, error = end(process)
  assert code == 75, error
  assert 'RuntimeWarning' not in error
  assert error.splitlines()[-1].startswith('table1: told to stop')
  assert not (out / 'table1.json').exists()
  # A third process may help, but needs the very same flags.
  code, _, error = end(start(*TINY, f'--output_dir={out}', '--join', '--l2=1'))
  assert (code, 'holds what other flags made' in error) == (1, True)
  process = start(*flags)
  code, _, error = end(start(*TINY, f'--output_dir={out}', '--join'))
  assert code == 0, error
  assert end(process)[0] == 0
  table = json.loads((out / 'table1.json').read_text())
  assert [len(row['auc']['values']) for row in table['rows']] == [2, 2]
  assert not list(out.glob('**/lock'))


class Ended:
  """Helpers that have ended, as ProcessGroup tells of them."""

  def __init__(self, code, received=()):
    self.code, self.received = code, list(received)

  def __call__(self, *_):
    return self

  def start(self, *_, **__):
    pass

  def run(self):
    return self.code, 'process 1 ended with exit code 1: the disk is full'


@pytest.mark.parametrize(
  ('group', 'expected'),
  [
    (Ended(0), None),
    (Ended(0, [signal.SIGUSR1]), None),
    (Ended(75, [signal.SIGTERM]), Interrupted),
    (Ended(0, [signal.SIGINT]), Interrupted),
    # It was told to stop, but could not save.
    (Ended(1, [signal.SIGTERM]), InputError),
  ],
)
def test_how_helpers_ended_is_how_the_command_ends(
  group, expected, monkeypatch
):
  monkeypatch.setattr(side_by_side, 'ProcessGroup', group)
  monkeypatch.setattr(side_by_side, '_cores', lambda: None)
  FLAGS.mark_as_parsed()
  if expected is None:
    side_by_side._start_helpers('experiments.table1')
    return
  with pytest.raises(expected, match=r'told to stop|the disk is full'):
    side_by_side._start_helpers('experiments.table1')


def test_a_group_gives_signals_back(monkeypatch):
  heard = []
  before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
  try:
    group = ProcessGroup(1, 1)
    group.start([sys.executable, '-c', 'pass'], os.environ, forks=False)
    assert group.run() == (0, '')
    os.kill(os.getpid(), signal.SIGUSR1)
    assert heard == [1]
    assert signal.set_wakeup_fd(-1) == -1
  finally:
    signal.signal(signal.SIGUSR1, before)


def test_jobs_that_cannot_be_are_refused(tmp_path):
  out = f'--output_dir={tmp_path / "out"}'
  code, _, error = end(start(out, '--jobs=5000'))
  assert (code, 'table1: --jobs=5000 is more than the' in error) == (2, True)
  code, _, error = end(start(out, '--jobs=2', '--join'))
  assert (code, '--join takes no --jobs' in error) == (2, True)
  code, _, error = end(start(out, '--seeds_at_once=2'))
  assert (code, '--seeds_at_once=2 needs one process' in error) == (2, True)
  code, _, error = end(start(out, '--join'))
  assert code == 1
  assert 'holds no plan to join' in error
  assert list(tmp_path.iterdir()) == []
