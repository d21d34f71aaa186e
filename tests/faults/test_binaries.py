"""Binaries that are told to stop, killed, or find the disk full."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import sys
import time

import pytest

from tests.faults.conftest import Binary, summary

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
KILLS = int(os.environ.get('EAIN_KILLS', '2'))


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
    ('evaluation:2:int', 'told to stop before step'),
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
  run = start(*train(world, work), inject='compilation:2:block')
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
def test_one_of_two_processes_is_told_to_stop(start, world, tmp_path):
  """Within an evaluation, then in a step: both stop before the same one.

  They end with the state of two that nothing interrupts, to the last bit.
  """
  work, calm = tmp_path / 'run', tmp_path / 'calm'

  def launched(folder, inject=''):
    words = lambda *prefix: shlex.join(
      [
        *(sys.executable, '-m', *prefix),
        *train(world, folder, '--parallelism=mesh', '--epochs=2'),
      ]
    )
    faulty = words('tests.faults.inject', f'--inject={inject}', '--')
    script = words()
    if inject:
      script = f'[ $JAX_PROCESS_ID = 1 ] && exec {faulty}; exec {script}'
    return start(*('launch.local', '--processes=2', '--', 'bash', '-c', script))

  for inject in ('evaluation:1:term', 'step:9:term'):
    stopped = launched(work, inject)
    assert stopped.wait(120) == 75, stopped.errors()
    steps = re.findall(r'told to stop before step (\d+)', stopped.errors())
    assert len(steps) == 2
    assert steps[0] == steps[1]
  launched(work).check()
  launched(calm).check()
  assert summary(work) == summary(calm)


def position(work):
  """The last step that was logged, and that of the newest checkpoint."""
  lines = (work / 'timings.jsonl').read_text().split('\n')[:-1]
  latest = work / 'checkpoints' / 'latest'
  saved = [0]
  if latest.is_dir():
    saved += [int(p.name) // 2 for p in latest.iterdir() if p.name.isdigit()]
  return json.loads(lines[-1])['step'], max(saved)


@pytest.mark.slow
def test_killed_at_random_moments(start, world, whole, tmp_path):
  """Whenever SIGKILL comes, what is lost is what was not saved yet."""
  rng, work = random.Random(0), tmp_path / 'run'
  positions = []
  while len(positions) < KILLS:
    before = steps_logged(work)
    run = start(*train(world, work))
    # Some records on, and then anywhere: in a step, a save, an evaluation.
    more = before + rng.randrange(12)
    while run.process.poll() is None and steps_logged(work) <= more:
      time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.2))
    if run.process.poll() is None:
      run.process.kill()
      run.wait()
      positions.append(position(work))
    else:
      assert run.wait() == 0, run.errors()
      assert summary(work) == whole
      shutil.rmtree(work)
  start(*train(world, work)).check()
  assert summary(work) == whole
  assert all(last - saved <= SAVE_EVERY for last, saved in positions)
  print(f'\nkilled {KILLS} times; steps logged and saved: {positions}')


@pytest.mark.slow
@pytest.mark.parametrize('number', [2])
def test_killed_in_the_commit_of_a_checkpoint(
  start, world, whole, tmp_path, number
):
  """All is written, and has not taken its place."""
  work = tmp_path / 'run'
  run = start(*train(world, work), inject=f'commit:{number}:kill')
  assert run.wait() == -signal.SIGKILL
  assert position(work)[1] < position(work)[0]
  start(*train(world, work)).check()
  assert summary(work) == whole


@pytest.mark.slow
@pytest.mark.parametrize('inject', ['save:3:full', 'commit:2:full'])
def test_a_save_that_fails_ends_the_run(start, world, whole, tmp_path, inject):
  """At once, or on a thread of its own while the steps that follow run."""
  work = tmp_path / 'run'
  run = start(*train(world, work), inject=inject)
  assert run.wait() == 1
  assert 'the disk is full; make room' in run.sentence()
  start(*train(world, work)).check()
  assert summary(work) == whole


@pytest.mark.slow
def test_a_commit_that_fails_in_one_of_two_processes(start, world, tmp_path):
  """The first one commits; the other does not wait for it for ever."""
  work = tmp_path / 'run'
  flags = train(world, work, '--parallelism=mesh')
  run = start(
    *('launch.local', '--processes=2', '--', sys.executable, '-m'),
    *('tests.faults.inject', '--inject=commit:2:full', '--', *flags),
  )
  assert run.wait(60) == 1, run.errors()
  assert 'the disk is full; make room' in run.errors()


@pytest.mark.slow
@pytest.mark.parametrize('size', ['150k'])
def test_a_save_that_finds_the_disk_full(start, world, whole, small_disk, size):
  work = small_disk(size) / 'run'
  run = start(*train(world, work))
  assert run.wait() == 1, run.errors()
  assert 'run the same command again' in run.sentence()
  print(f'\n{size}: {run.sentence()}')
  small_disk('100m')
  start(*train(world, work)).check()
  assert summary(work) == whole
