"""Binaries that are told to stop, killed, or find the disk full."""

import os
import random
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.faults.conftest import summary

SAVE_EVERY = 12
SETTINGS = (
  '--model=lr',
  '--batch_size=400',
  '--epochs=3',
  '--learning_rate=0.01',
  '--log_every=5',
  f'--save_every={SAVE_EVERY}',
)
# How often a run is killed; more is for a long night.
KILLS = int(os.environ.get('EAIN_KILLS', '5'))


def train(world, work, *flags):
  return (
    'experiments.train',
    f'--dataset_dir={world}',
    f'--work_dir={work}',
    *SETTINGS,
    *flags,
  )


@pytest.fixture(scope='module')
def whole(world, tmp_path_factory):
  """What a run that nothing interrupts comes to."""
  from tests.faults.conftest import Binary

  work = tmp_path_factory.mktemp('whole') / 'run'
  Binary(tmp_path_factory.mktemp('output'), *train(world, work)).check()
  return summary(work)


def steps_logged(work):
  log = work / 'metrics.jsonl'
  return len(log.read_text().splitlines()) if log.is_file() else 0


def wait_until(happens, binary, seconds=120):
  deadline = time.monotonic() + seconds
  while not happens():
    assert binary.process.poll() is None, binary.errors()
    assert time.monotonic() < deadline
    time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('inject', 'said'),
  [
    ('step:17:term', 'told to stop before step 16'),
    ('step:17:int', 'told to stop before step 16'),
    ('evaluation:2:term', 'told to stop before step'),
    ('evaluation:2:int', 'told to stop before step'),
    ('compilation:1:term', 'told to stop'),
    ('shard:9:term', 'told to stop before step'),
    ('save:2:term', 'told to stop before step'),
  ],
)
def test_told_to_stop(start, world, whole, tmp_path, inject, said):
  """It saves, exits with 75, and the same command goes on to the same end."""
  work = tmp_path / 'run'
  stopped = start(*train(world, work), inject=inject)
  assert stopped.wait() == 75, stopped.errors()
  assert said in stopped.sentence()
  assert stopped.sentence().endswith('the same command goes on')
  start(*train(world, work)).check()
  assert summary(work) == whole


def test_told_to_stop_within_a_compiler(start, world, tmp_path):
  """Which hears of nothing: where nothing is lost the process is ended."""
  work = tmp_path / 'run'
  run = start(*train(world, work), inject='compilation:3:block')
  wait_until(lambda: 'inject: blocks' in run.errors(), run)
  begin = time.monotonic()
  run.process.send_signal(signal.SIGTERM)
  assert run.wait(10) == 75
  assert time.monotonic() - begin < 10
  assert 'told to stop; the same command goes on' in run.sentence()


@pytest.mark.parametrize('number', [2, 9])
def test_preparation_told_to_stop(start, tmp_path, number):
  place = tmp_path / 'dataset'
  flags = ('--synthetic', '--num_events=3000', f'--output_dir={place}')
  stopped = start(
    'experiments.prepare_data', *flags, inject=f'write:{number}:term'
  )
  assert stopped.wait() == 75, stopped.errors()
  assert 'told to stop; the same command goes on' in stopped.sentence()
  assert list(tmp_path.iterdir()) == []
  start('experiments.prepare_data', *flags).check()


def test_preparation_told_to_stop_within_a_library(start, tmp_path):
  place = tmp_path / 'dataset'
  flags = ('--synthetic', '--num_events=3000', f'--output_dir={place}')
  run = start('experiments.prepare_data', *flags, inject='write:7:block')
  wait_until(lambda: 'inject: blocks' in run.errors(), run)
  run.process.send_signal(signal.SIGINT)
  assert run.wait(10) == 75
  # The next one takes what was left.
  start('experiments.prepare_data', *flags).check()
  assert [path.name for path in tmp_path.iterdir()] == ['dataset']


@pytest.mark.slow
@pytest.mark.parametrize('inject', ['step:14:term', 'evaluation:1:term'])
def test_one_of_two_processes_is_told_to_stop(start, world, tmp_path, inject):
  """Both stop before the same step, and go on to the same end."""
  work, calm = tmp_path / 'run', tmp_path / 'calm'

  def launched(folder, inject=''):
    words = lambda *prefix: shlex.join(
      [
        *(sys.executable, '-m', *prefix),
        *train(world, folder, '--parallelism=mesh'),
      ]
    )
    faulty = words('tests.faults.inject', f'--inject={inject}', '--')
    script = words()
    if inject:
      script = f'[ $JAX_PROCESS_ID = 1 ] && exec {faulty}; exec {script}'
    return start(*('launch.local', '--processes=2', '--', 'bash', '-c', script))

  stopped = launched(work, inject)
  assert stopped.wait(120) == 75, stopped.errors()
  assert stopped.errors().count('told to stop before step') == 2
  launched(work).check()
  launched(calm).check()
  # Two processes are the same as two, to the last bit.
  assert summary(work) == summary(calm)


@pytest.mark.slow
def test_killed_at_random_moments(start, world, whole, tmp_path):
  """At most one save interval is done again, whenever SIGKILL comes."""
  rng, work = random.Random(0), tmp_path / 'run'
  killed, reached = 0, []
  while killed < KILLS:
    run = start(*train(world, work))
    begin = time.monotonic()
    # Anywhere: starting, compiling, in a step, in a save, after the last.
    until = begin + rng.uniform(0, 8)
    while time.monotonic() < until and run.process.poll() is None:
      time.sleep(0.01)
    if run.process.poll() is not None:
      assert run.wait() == 0, run.errors()
      assert summary(work) == whole
      subprocess.run(['rm', '-r', work], check=True)
      continue
    run.process.kill()
    run.wait()
    killed += 1
    logged = work / 'timings.jsonl'
    if logged.is_file() and (lines := logged.read_text().split('\n')[:-1]):
      last = int(lines[-1].split('"step": ')[1].split(',')[0])
      latest = work / 'checkpoints' / 'latest'
      saved = [0]
      if latest.is_dir():
        saved += [int(p.name) for p in latest.iterdir() if p.name.isdigit()]
      reached.append((last, max(saved)))
  start(*train(world, work)).check()
  assert summary(work) == whole
  # A save that is under way when the next one is due holds that up.
  assert all(last - saved <= 2 * SAVE_EVERY for last, saved in reached)
  print(f'\nkilled {killed} times; last step logged and saved: {reached}')


def tmpfs(folder, size):
  """Mounts a small file system, or skips."""
  folder.mkdir(exist_ok=True)
  done = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', folder],
    capture_output=True,
    check=False,
  )
  if done.returncode:
    pytest.skip('to mount a small file system takes root')


@pytest.fixture
def small_disk(tmp_path):
  """small_disk(size): a file system of that size; again, it gets that size."""
  folder, mounted = tmp_path / 'disk', []

  def make(size):
    if mounted:
      subprocess.run(
        ['mount', '-o', f'remount,size={size}', folder], check=True
      )
    else:
      tmpfs(folder, size)
      mounted.append(folder)
    return folder

  yield make
  for folder in mounted:
    subprocess.run(['umount', '-l', folder], check=False)


@pytest.mark.slow
@pytest.mark.parametrize('size', ['150k', '250k', '350k'])
def test_a_save_that_finds_the_disk_full(start, world, whole, small_disk, size):
  work = small_disk(size) / 'run'
  run = start(*train(world, work))
  assert run.wait() == 1, run.errors()
  assert 'run the same command again' in run.sentence()
  print(f'\n{size}: {run.sentence()}')
  small_disk('100m')
  start(*train(world, work)).check()
  assert summary(work) == whole


def test_a_save_that_fails_ends_the_run(start, world, whole, tmp_path):
  work = tmp_path / 'run'
  run = start(*train(world, work), inject='save:3:full')
  assert run.wait() == 1
  assert 'the disk is full; that of step 12 is whole' in run.sentence()
  start(*train(world, work)).check()
  assert summary(work) == whole
