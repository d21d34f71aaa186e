"""Preparations that are killed, told to stop, or run out of disk."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eain_jax.artifacts import check_manifest
from eain_jax.config import PrepareConfig
from eain_jax.data.dataset import open_dataset
from eain_jax.data.prepare import prepare
from eain_jax.errors import InputError
from tests.faults.inject import POINTS, injected

ROOT = Path(__file__).parents[2]
FLAGS = {'synthetic': True, 'num_events': 1000, 'eval_negatives': 20}

# Prepares in a child of its own for each fault: what they import is imported
# once, before they part.
FORKER = """
import os, sys
from eain_jax.config import PrepareConfig
from eain_jax.data.prepare import prepare
from tests.faults.inject import ACTIONS, injected
out, *faults = sys.argv[1:]
config = PrepareConfig(synthetic=True, num_events=1000, eval_negatives=20)
for fault in faults:
  if not os.fork():
    point, number, action = fault.split(':')
    with injected(point, int(number), ACTIONS[action]):
      prepare(config, out)
    os._exit(0)
  print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
  if input() == 'stop':
    break
"""


def contents(folder):
  """What lies in a folder: by path the bytes of each file."""
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The uninterrupted dataset, and how often it passes each point."""
  out = tmp_path_factory.mktemp('whole') / 'set'
  with contextlib.ExitStack() as stack:
    passes = {
      point: stack.enter_context(injected(point, 0))
      for point in POINTS
      if point in ('write', 'byte', 'fsync', 'rename')
    }
    prepare(PrepareConfig(**FLAGS), out)
  return contents(out), {point: count[0] for point, count in passes.items()}


def spread(passes):
  """Twenty places over the course, with all about the rename."""
  writes, syncs, size = passes['write'], passes['fsync'], passes['byte']
  return [
    *(('write', 1 + place * (writes - 1) // 7) for place in range(8)),
    *(('byte', 1 + place * (size - 1) // 3) for place in range(4)),
    # The manifest's file and folder, the columns, the folders, the last name.
    *(('fsync', number) for number in (1, 2, 3, syncs // 2, syncs - 1, syncs)),
    *(('rename', number) for number in (1, passes['rename'])),
  ]


@pytest.mark.slow
def test_a_killed_preparation_is_whole_or_absent(whole, tmp_path):
  expected, passes = whole
  old, out = tmp_path / 'old', tmp_path / 'out' / 'set'
  prepare(PrepareConfig(**FLAGS, seed=1), old)
  before = contents(old)
  points = spread(passes)
  assert len(points) == 20
  runner = subprocess.Popen(
    [
      sys.executable,
      '-c',
      FORKER,
      out,
      *(f'{point}:{number}:kill' for point, number in points),
    ],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  were_left = 0
  with runner:
    for point, number in points:
      assert int(runner.stdout.readline()) == -signal.SIGKILL, (point, number)
      after_rename = (point, number) == ('fsync', passes['fsync'])
      assert out.exists() == after_rename, (point, number)
      if after_rename:
        assert contents(out) == expected
        for file in sorted(out.rglob('*'), reverse=True):
          file.rmdir() if file.is_dir() else file.unlink()
        out.rmdir()
      # One at most: each run has removed what the one before had left. The
      # first write is that of the folder itself.
      left = [path.name for path in out.parent.iterdir()]
      is_left = not after_rename and (point, number) != ('write', 1)
      assert len(left) == is_left, (point, number)
      assert all(name.startswith('.set.unfinished-') for name in left)
      were_left += len(left)
      print('on', file=runner.stdin, flush=True)
  assert runner.returncode == 0
  assert were_left == 18
  prepare(PrepareConfig(**FLAGS), out)
  assert [path.name for path in out.parent.iterdir()] == ['set']
  assert contents(out) == expected
  assert contents(old) == before


class Stop(BaseException):
  """As a signal raises it, wherever the main thread stands."""


def fail_with(error):
  def act():
    raise error

  return act


@pytest.mark.parametrize(
  'error',
  [Stop(), OSError(errno.ENOSPC, 'No space left on device')],
  ids=['told to stop', 'disk full'],
)
def test_a_preparation_that_fails_leaves_nothing(whole, tmp_path, error):
  expected, passes = whole
  out = tmp_path / 'set'
  for point, number in spread(passes):
    if (point, number) == ('fsync', passes['fsync']):
      continue  # The dataset is there by then.
    with (
      pytest.raises((Stop, InputError)) as caught,
      injected(point, number, fail_with(error)),
    ):
      prepare(PrepareConfig(**FLAGS), out)
    if isinstance(error, OSError):
      assert str(caught.value) == f'{out} cannot be written: the disk is full'
    assert not list(tmp_path.iterdir()), (point, number)
  prepare(PrepareConfig(**FLAGS), out)
  assert contents(out) == expected


def write_log(path):
  lines = ['u,i,t']
  for user in range(200):
    for time in range(8):
      lines.append(f'u{user},i{(user + time * time) % 97},{time}')
  path.write_text('\n'.join(lines) + '\n')
  return PrepareConfig(
    events=str(path),
    columns=('user=u', 'item=i', 'timestamp=t'),
    eval_negatives=20,
  )


def fill(folder, num_free):
  """Leaves so many bytes of a small disk."""
  ballast = folder / 'ballast'
  ballast.unlink(missing_ok=True)
  free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
  ballast.write_bytes(bytes(max(0, free - num_free)))


def test_a_disk_that_is_full_at_any_point(small_disk, tmp_path):
  config = write_log(tmp_path / 'log.csv')
  prepare(config, tmp_path / 'roomy')
  expected = contents(tmp_path / 'roomy')
  disk = small_disk('2m')
  old = disk / 'old'
  prepare(config, old)
  out = disk / 'set'
  needed = sum(len(data) for data in expected.values())
  failed = 0
  # Pages of 4 kB, a file or a folder takes one at least.
  for level in range(0, 2 * needed, needed // 12):
    fill(disk, level)
    try:
      prepare(config, out)
      break
    except InputError as error:
      said = str(error)
    assert said == f'{out} cannot be written: the disk is full'
    failed += 1
    assert sorted(path.name for path in disk.iterdir()) == [
      'ballast',
      'old',
    ]
    assert contents(old) == expected
  assert failed > 8
  assert contents(out) == expected
  open_dataset(out)


@pytest.mark.parametrize(
  ('fault', 'code', 'words'),
  [
    ('write:9:full', 1, 'the disk is full'),
    ('byte:9999:full', 1, 'the disk is full'),
    ('fsync:9:full', 1, 'the disk is full'),
    ('rename:2:full', 1, 'the disk is full'),
    ('write:9:kill', -signal.SIGKILL, ''),
  ],
)
def test_the_binary_says_so(tmp_path, fault, code, words):
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'tests.faults.inject', f'--inject={fault}', '--'),
      'experiments.prepare_data',
      f'--output_dir={tmp_path / "set"}',
      '--synthetic',
      '--num_events=1000',
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == code, done.stderr
  assert words in done.stderr
  assert len(done.stderr.splitlines()) == (code == 1)
  assert bool(list(tmp_path.iterdir())) == (code != 1)


def test_two_preparations_to_one_place(tmp_path, whole):
  out = tmp_path / 'set'
  binary = (
    'experiments.prepare_data',
    f'--output_dir={out}',
    '--synthetic',
    '--num_events=1000',
    '--eval_negatives=20',
  )
  first = subprocess.Popen(
    [
      *(sys.executable, '-m', 'tests.faults.inject', '--inject=write:9:hang'),
      '--',
      *binary,
    ],
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  with first:
    assert first.stderr.readline() == 'inject: hangs\n'
    with pytest.raises(InputError, match='is being written by another process'):
      prepare(PrepareConfig(**FLAGS), out)
    first.kill()
  prepare(PrepareConfig(**FLAGS), out)
  assert contents(out) == whole[0]
  check_manifest(out)
  assert [path.name for path in tmp_path.iterdir()] == ['set']
