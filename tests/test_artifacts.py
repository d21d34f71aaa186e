"""Files and folders that are whole or absent, whatever happens."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eain_jax import artifacts
from eain_jax.artifacts import (
  MANIFEST,
  check_manifest,
  files_written_together,
  folder_written_whole,
  refuse_existing,
  write_json,
  write_manifest,
  write_text,
  written_whole,
)
from eain_jax.errors import InputError
from eain_jax.locking import LOCK_FILE, locked_folder

ROOT = Path(__file__).parents[1]


def names(folder):
  return sorted(path.name for path in folder.iterdir())


class Stop(BaseException):
  """As a signal raises it, where no `except Exception` sees it."""


def write_and_fail(path, failure):
  with written_whole(path) as beside:
    beside.write_text('new')
    raise failure


def make_and_fail(path, failure):
  with folder_written_whole(path) as beside:
    (beside / 'c').write_text('new')
    raise failure


@pytest.mark.parametrize('failure', [Stop, ValueError])
def test_a_failed_write_leaves_the_old_and_nothing_beside(tmp_path, failure):
  file = tmp_path / 'a.json'
  write_json(file, {'old': 1})
  with pytest.raises(failure):
    write_and_fail(file, failure)
  with pytest.raises(failure):
    make_and_fail(tmp_path / 'deep' / 'down' / 'b', failure)
  assert names(tmp_path) == ['a.json']
  assert json.loads(file.read_text()) == {'old': 1}


def test_all_is_flushed_before_and_after_the_rename(tmp_path, monkeypatch):
  """A crash of the machine loses what is not flushed, or the name of it."""
  seen = []
  fsync, replace = os.fsync, os.replace

  def flush(handle):
    seen.append(Path(os.readlink(f'/proc/self/fd/{handle}')).name)
    fsync(handle)

  def rename(old, new):
    seen.append('rename')
    replace(old, new)

  monkeypatch.setattr(os, 'fsync', flush)
  monkeypatch.setattr(os, 'replace', rename)
  with folder_written_whole(tmp_path / 'd') as beside:
    (beside / 'in').mkdir()
    for name in ('in/x', 'y'):
      (beside / name).write_text(name)
  assert seen == ['x', 'in', 'y', beside.name, 'rename', tmp_path.name]
  seen.clear()
  write_text(tmp_path / 'e', 'text')
  assert [name.split('.unfinished')[0] for name in seen] == [
    '.e',
    'rename',
    tmp_path.name,
  ]


@pytest.mark.parametrize(
  ('number', 'words'),
  [
    (errno.ENOSPC, 'the disk is full'),
    (errno.EDQUOT, 'the disk quota is used up'),
    (errno.EROFS, 'Read-only file system'),
    (errno.EACCES, 'Permission denied'),
  ],
)
@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_what_the_disk_refuses_is_one_sentence(
  tmp_path, monkeypatch, call, number, words
):
  write_text(tmp_path / 'a', 'old')

  def refuse(*arguments):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(os, call, refuse)
  with pytest.raises(InputError) as caught:
    write_text(tmp_path / 'a', 'new')
  assert str(caught.value) == f'{tmp_path}/a cannot be written: {words}'
  assert (tmp_path / 'a').read_text() == 'old'
  assert names(tmp_path) == ['a']


def test_a_place_that_cannot_be_is_one_sentence(tmp_path):
  (tmp_path / 'file').write_text('mine')
  for path in (tmp_path / 'file' / 'a', tmp_path / 'file' / 'b' / 'c'):
    with pytest.raises(InputError, match=f'{path} cannot be written'):
      write_text(path, 'text')
    with (
      pytest.raises(InputError, match=str(path)),
      folder_written_whole(path),
    ):
      pass
  assert names(tmp_path) == ['file']


WRITER = """
import resource, signal, sys
from pathlib import Path
from eain_jax.artifacts import write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
write_text(Path(sys.argv[1]), 'x' * 100_000)
"""


def test_a_file_that_grows_too_large_is_no_half_of_one(tmp_path):
  """The portable disk that is full: a limit on files that the kernel keeps."""
  write_text(tmp_path / 'a', 'old')
  done = subprocess.run(
    [sys.executable, '-c', WRITER, tmp_path / 'a'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert 'a cannot be written: the file is larger than' in done.stderr
  assert (names(tmp_path), (tmp_path / 'a').read_text()) == (['a'], 'old')


HOLDER = """
import sys, time
from pathlib import Path
from eain_jax.artifacts import folder_written_whole
from eain_jax.locking import locked_folder
kind, path = sys.argv[1], Path(sys.argv[2])
hold = folder_written_whole
if kind == 'lock':
  hold = lambda path: locked_folder(path, '--work_dir')
with hold(path) as beside:
  if beside:
    (beside / 'half').write_text('half')
  print('held', flush=True)
  time.sleep(600)
"""


@pytest.fixture
def holder():
  """holder(kind, path): a live process that locks a folder, or writes it."""
  started = []

  def start(kind, path):
    process = subprocess.Popen(
      [sys.executable, '-c', HOLDER, kind, path],
      cwd=ROOT,
      stdout=subprocess.PIPE,
    )
    started.append(process)
    assert process.stdout.readline() == b'held\n'
    return process

  yield start
  for process in started:
    process.kill()
    process.wait()
    process.stdout.close()


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(
  tmp_path, holder
):
  path = tmp_path / 'set'
  first = holder('folder', path)
  (left,) = names(tmp_path)
  assert left.startswith(f'.set.unfinished-{first.pid}-')
  with (
    pytest.raises(InputError, match=f'{path} is being written by another'),
    folder_written_whole(path),
  ):
    pass
  # Another's work, under a name that only looks like ours.
  with folder_written_whole(tmp_path / 'se') as beside:
    (beside / 'a').write_text('a')
  assert names(tmp_path) == [left, 'se']
  assert names(tmp_path / left) == ['half']
  first.kill()
  first.wait()
  assert names(tmp_path) == [left, 'se']
  with folder_written_whole(path) as beside:
    assert names(tmp_path) == sorted([beside.name, 'se'])
    (beside / 'whole').write_text('whole')
  assert names(tmp_path) == ['se', 'set']
  assert names(path) == ['whole']


def test_files_go_to_their_places_together(tmp_path):
  for name in ('a', 'b', 'kept'):
    (tmp_path / name).write_text('old')

  def write(failure=None):
    with files_written_together(tmp_path, 'report') as beside:
      (beside / 'a').write_text('new')
      write_json(beside / MANIFEST, {})
      if failure:
        raise failure
      write_text(beside / 'b', 'new')

  with pytest.raises(Stop):
    write(Stop)
  assert names(tmp_path) == ['a', 'b', 'kept']
  assert {(tmp_path / name).read_text() for name in 'ab'} == {'old'}
  write()
  assert names(tmp_path) == ['a', 'b', 'kept', MANIFEST]
  assert {(tmp_path / name).read_text() for name in 'ab'} == {'new'}
  assert (tmp_path / 'kept').read_text() == 'old'


def make_while_another_does(path):
  with folder_written_whole(path) as beside:
    (beside / 'mine').write_text('mine')
    path.mkdir()
    (path / 'theirs').write_text('theirs')


def test_of_two_that_end_at_once_one_wins(tmp_path):
  path = tmp_path / 'set'
  with pytest.raises(InputError, match='made by another process meanwhile'):
    make_while_another_does(path)
  assert (names(tmp_path), names(path)) == (['set'], ['theirs'])


def test_a_folder_is_used_by_one_process_at_a_time(tmp_path, holder):
  path = tmp_path / 'deep' / 'run'
  first = holder('lock', path)
  with (
    pytest.raises(InputError) as caught,
    locked_folder(path, '--work_dir'),
  ):
    pass
  sentence = str(caught.value)
  assert sentence.startswith(f'--work_dir={path} is in use by process ')
  assert f'process {first.pid} on {os.uname().nodename} since 2' in sentence
  assert names(path) == [LOCK_FILE]
  first.kill()
  first.wait()
  # The file stays, the lock does not: it is taken over, and counts as nothing.
  assert names(path) == [LOCK_FILE]
  refuse_existing(path)
  with locked_folder(path, '--work_dir'):
    (path / 'mine').write_text('mine')
    holding = json.loads((path / LOCK_FILE).read_text())
    assert holding['pid'] == os.getpid()
  assert names(path) == ['mine']


def test_a_lock_leaves_nothing_where_nothing_was(tmp_path):
  with (
    pytest.raises(Stop),
    locked_folder(tmp_path / 'deep' / 'run', '--work_dir'),
  ):
    raise Stop
  assert names(tmp_path) == []
  (tmp_path / 'mine').mkdir()
  with locked_folder(tmp_path / 'mine', '--work_dir'):
    pass
  assert names(tmp_path) == ['mine']


def test_a_dataset_takes_the_place_of_a_stale_lock(tmp_path):
  (tmp_path / 'set').mkdir()
  (tmp_path / 'set' / LOCK_FILE).write_text('{"pid": 1}')
  with folder_written_whole(tmp_path / 'set') as beside:
    (beside / 'a').write_text('a')
  assert names(tmp_path / 'set') == ['a']


def test_a_manifest_names_the_file_that_differs(tmp_path):
  for name in ('a', 'b'):
    (tmp_path / name).write_text(f'{name} as written')
  write_manifest(tmp_path, ('a', 'b'), step=7)
  assert check_manifest(tmp_path)['step'] == 7
  for name in ('a', 'b', 'manifest.json'):
    file = tmp_path / name
    good = file.read_bytes()
    for place in range(0, len(good), 7):
      flipped = bytearray(good)
      flipped[place] ^= 4
      file.write_bytes(bytes(flipped))
      with pytest.raises(InputError, match=f'{file} (was changed|is damaged)'):
        check_manifest(tmp_path)
    file.unlink()
    with pytest.raises(InputError, match=f'{file} is missing'):
      check_manifest(tmp_path)
    file.mkdir()
    with pytest.raises(InputError, match=f'{file} is (missing|not a file)'):
      check_manifest(tmp_path)
    file.rmdir()
    file.write_bytes(good)
  check_manifest(tmp_path)


def signed(tmp_path, change):
  """A manifest that was changed, and states its own hash all the same."""
  values = write_manifest(tmp_path, ('a',))
  del values['fingerprint']
  change(values)
  values['fingerprint'] = artifacts.hash_values(values)
  (tmp_path / 'manifest.json').write_text(json.dumps(values))


@pytest.mark.parametrize(
  'name',
  [
    '/etc/hostname',
    '../outside',
    'in/../../outside',
    'link',
    'linked/outside',
    'nul\0',
    'escape\x1b[2J',
    'half\udc80',
    'ring',
    '',
    '.',
    'pipe',
    'in',
    'x' * 300,
  ],
)
def test_a_hostile_manifest_reads_nothing_outside(tmp_path, name):
  outside = tmp_path / 'outside'
  outside.write_text('secret')
  folder = tmp_path / 'set'
  (folder / 'in').mkdir(parents=True)
  (folder / 'a').write_text('a')
  (folder / 'link').symlink_to(outside)
  (folder / 'linked').symlink_to(tmp_path)
  (folder / 'ring').symlink_to(folder / 'ring')
  os.mkfifo(folder / 'pipe')
  entry = {'bytes': 6, 'sha256': artifacts.hash_file(outside)}
  signed(folder, lambda values: values['files'].update({name: entry}))
  with pytest.raises(InputError) as caught:
    check_manifest(folder)
  assert len(str(caught.value).splitlines()) == 1
  assert str(caught.value).isprintable()


@pytest.mark.parametrize(
  'change',
  [
    lambda values: values.update(files=[]),
    lambda values: values.update(files={'a': 'b'}),
    lambda values: values.update(files={'a': {'bytes': 1}}),
    lambda values: values.update(files={'a': {'bytes': '1', 'sha256': ''}}),
    lambda values: values.pop('files'),
  ],
)
def test_a_manifest_of_other_types_is_one_sentence(tmp_path, change):
  (tmp_path / 'a').write_text('a')
  signed(tmp_path, change)
  with pytest.raises(InputError, match=MANIFEST):
    check_manifest(tmp_path)


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'null',
    b'[1]',
    b'{"a": 1}',
    b'\xff\xfe',
    b'{"fingerprint": 1e999999}',
    b'[' * 200_000,
    b'{"a":' * 200_000,
    b'{"a": ' + b'9' * 100_000 + b'}',
    b'\xef\xbb\xbf{}',
  ],
)
def test_what_is_no_manifest_is_one_sentence(tmp_path, content):
  (tmp_path / 'manifest.json').write_bytes(content)
  with pytest.raises(InputError, match=f'{MANIFEST} (is damaged|was changed)'):
    check_manifest(tmp_path)
