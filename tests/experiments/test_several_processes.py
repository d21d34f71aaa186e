"""Training on several devices and in several processes, as a user starts it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from launch.local import merge_device_count

ROOT = Path(__file__).parents[2]
# Some 26 steps an epoch, the last one uneven.
SETTINGS = (
  '--model=din',
  '--batch_size=500',
  '--epochs=2',
  '--log_every=1',
  '--save_every=10',
  '--learning_rate=0.003',
)
LAUNCH = ('launch.local', '--processes=2', '--devices_per_process=2', '--')


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  folder = tmp_path_factory.mktemp('world') / 'dataset'
  start(
    'experiments.prepare_data',
    f'--output_dir={folder}',
    '--synthetic',
    '--num_events=3200',
    '--eval_negatives=20',
  ).check()
  return folder


class Started:
  """A command that runs; its output goes to files."""

  def __init__(self, process, folder):
    self.process, self.folder = process, folder

  def check(self):
    assert self.process.wait(300) == 0, self.errors()
    return self

  def errors(self):
    return (self.folder / 'stderr').read_text()


def start(*command, devices=1, folder=None):
  folder = Path(folder or tempfile.mkdtemp())
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': merge_device_count(os.environ['XLA_FLAGS'], devices),
  }
  process = subprocess.Popen(
    [sys.executable, '-m', *map(str, command)],
    cwd=ROOT,
    env=environment,
    stdout=(folder / 'stdout').open('w'),
    stderr=(folder / 'stderr').open('w'),
  )
  return Started(process, folder)


def train(world, work, *flags):
  return (
    'experiments.train',
    f'--dataset_dir={world}',
    f'--work_dir={work}',
    *SETTINGS,
    *flags,
  )


def launched(world, work, *flags):
  return (*LAUNCH, sys.executable, '-m', *train(world, work, *flags))


def losses(work):
  records = [
    json.loads(line)
    for line in (work / 'metrics.jsonl').read_text().splitlines()
  ]
  return np.array([r['loss'] for r in records if r['kind'] == 'train'])


def result(work):
  return json.loads((work / 'result.json').read_text())


@pytest.fixture(scope='module')
def one_device(world, tmp_path_factory):
  work = tmp_path_factory.mktemp('one') / 'run'
  start(*train(world, work)).check()
  assert len(losses(work)) >= 50
  return work


@pytest.mark.slow
@pytest.mark.parametrize('how', ['pmap', 'two pmap', 'two mesh'])
def test_the_same_losses_and_auc_as_on_one_device(
  world, one_device, tmp_path, how
):
  work, parallelism = tmp_path / 'run', how.split()[-1]
  flag = f'--parallelism={parallelism}'
  if how.startswith('two'):
    start(*launched(world, work, flag), folder=tmp_path).check()
  else:
    start(*train(world, work, flag), devices=4, folder=tmp_path).check()
  np.testing.assert_allclose(
    losses(work), losses(one_device), rtol=0, atol=1e-5
  )
  found, expected = result(work), result(one_device)
  for part in ('valid', 'test'):
    assert found[part]['auc'] == pytest.approx(expected[part]['auc'], abs=1e-4)
    assert found[part]['examples'] == expected[part]['examples']
  # What was saved on many devices is read on one.
  evaluated = start(
    'experiments.evaluate', f'--work_dir={work}', folder=tmp_path
  ).check()
  lines = (evaluated.folder / 'stdout').read_text().splitlines()
  values = json.loads(next(line for line in lines if line.startswith('{')))
  assert values['auc'] == pytest.approx(found['test']['auc'], abs=1e-6)


@pytest.mark.slow
def test_a_killed_process_ends_all_and_the_run_goes_on_elsewhere(
  world, one_device, tmp_path
):
  """Two processes, of which one is killed; then one device, to the same end."""
  work = tmp_path / 'run'
  run = start(*launched(world, work, '--parallelism=mesh'), folder=tmp_path)
  deadline = time.monotonic() + 200
  latest = work / 'checkpoints' / 'latest'
  while not (
    latest.is_dir() and any(p.name.isdigit() for p in latest.iterdir())
  ):
    assert run.process.poll() is None, run.errors()
    assert time.monotonic() < deadline
    time.sleep(0.05)
  children = subprocess.run(
    ['pgrep', '-f', f'experiments.train.*--work_dir={work}'],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.split()
  workers = [int(pid) for pid in children if int(pid) != run.process.pid]
  assert len(workers) == 2
  os.kill(workers[1], signal.SIGKILL)
  begin = time.monotonic()
  assert run.process.wait(10) == 128 + signal.SIGKILL
  assert time.monotonic() - begin < 10
  last = run.errors().splitlines()[-1]
  assert 'was killed by SIGKILL' in last
  for pid in workers:
    with pytest.raises(ProcessLookupError):
      os.kill(pid, 0)
  assert not (work / 'result.json').exists()
  start(*train(world, work), folder=tmp_path).check()
  np.testing.assert_allclose(
    losses(work), losses(one_device), rtol=0, atol=1e-5
  )
  assert result(work)['test']['auc'] == pytest.approx(
    result(one_device)['test']['auc'], abs=1e-4
  )


def wait_for_steps(work, run):
  """Returns when a few steps have been logged."""
  log, deadline = work / 'metrics.jsonl', time.monotonic() + 200
  while not (log.is_file() and len(log.read_text().splitlines()) > 5):
    assert run.process.poll() is None, run.errors()
    assert time.monotonic() < deadline
    time.sleep(0.05)


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_saves_and_goes_on(
  world, one_device, tmp_path
):
  """SIGTERM to the launcher: all processes stop at one step."""
  work = tmp_path / 'run'
  command = launched(world, work, '--parallelism=mesh')
  run = start(*command, folder=tmp_path)
  wait_for_steps(work, run)
  run.process.send_signal(signal.SIGTERM)
  assert run.process.wait(60) == 75, run.errors()
  assert 'told to stop before step' in run.errors()
  saved = {int(p.name) for p in (work / 'checkpoints' / 'latest').iterdir()}
  # By twice the step, and one more where that is evaluated.
  assert max(saved) // 2 == len(losses(work)) < 50
  start(*train(world, work), folder=tmp_path).check()
  np.testing.assert_allclose(
    losses(work), losses(one_device), rtol=0, atol=1e-5
  )


@pytest.mark.slow
def test_saves_that_follow_each_other_closely(world, tmp_path):
  """Each epoch is better than the last: two series are saved at once."""
  work = tmp_path / 'run'
  flags = (
    '--model=dnn',
    '--batch_size=4000',
    '--epochs=6',
    '--early_stopping=9',
    '--save_every=1',
  )
  command = launched(world, work, *flags, '--parallelism=mesh')
  start(*command, folder=tmp_path).check()
  assert result(work)['best_epoch'] > 3


def test_a_folder_of_each_process_is_refused(world, tmp_path):
  """As where a cluster mounts no storage that all share."""
  script = tmp_path / 'train.sh'
  words = ' '.join(train(world, f'{tmp_path}/run$JAX_PROCESS_ID'))
  script.write_text(f'exec {sys.executable} -m {words} --parallelism=mesh')
  run = start(*LAUNCH, 'bash', script, folder=tmp_path)
  assert run.process.wait(100) == 1
  assert 'is not one folder of all processes' in run.errors().splitlines()[-1]


BAD = {
  'one device': (('--parallelism=none',), 'uses one device, and 2 processes'),
  'devices': (
    ('--parallelism=mesh', '--num_devices=8'),
    'num_devices=8 does not fit: there are 4 cpu',
  ),
  'batch': (
    ('--parallelism=mesh', '--batch_size=10'),
    r'holds 2 request(s) of 5 examples, too few for 4 device(s)',
  ),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_one_sentence_of_all(world, tmp_path, name):
  flags, message = BAD[name]
  work = tmp_path / 'run'
  run = start(*launched(world, work, *flags), folder=tmp_path)
  assert run.process.wait(100) == 1
  assert message in run.errors().splitlines()[-1]
  assert 'Traceback' not in run.errors()
  assert not work.exists()


def test_preparation_is_no_matter_for_many(tmp_path):
  run = start(
    *LAUNCH,
    sys.executable,
    '-m',
    'experiments.prepare_data',
    '--synthetic',
    f'--output_dir={tmp_path / "out"}',
    folder=tmp_path,
  )
  assert run.process.wait(100) == 1
  assert 'prepare_data: runs in one process' in run.errors()
