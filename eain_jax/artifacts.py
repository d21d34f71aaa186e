"""Files and folders that are whole or absent, and the manifests that say so.

What is written lies beside its place first, under a name that nobody opens:
`.NAME.unfinished-PID-..`. It is flushed to the disk, renamed, and the rename is
flushed too. So a crash, a full disk or a signal leaves what was there before,
or all of the new. What a killed process left beside is removed by the next one
that writes to the same place.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from eain_jax import locking
from eain_jax.data.lines import hash_file
from eain_jax.errors import InputError

MANIFEST = 'manifest.json'
# A manifest of ten thousand sources has some megabytes.
_MAX_MANIFEST_BYTES = 1 << 28


class _CannotWrite(InputError):
  """A failed write, with its reason in plain words."""

  def __init__(self, path: Path, error: OSError):
    reason = {
      errno.ENOSPC: 'the disk is full',
      errno.EDQUOT: 'the disk quota is used up',
      errno.EFBIG: 'the file is larger than a file may be here',
    }.get(error.errno or 0, error.strerror or str(error))
    super().__init__(f'{path} cannot be written: {reason}')
    self.error = error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
  """Says of a failed write to `path` in the block what failed, and why.

  Raises:
    InputError: in place of the block's OSError.
  """
  try:
    yield
  except OSError as error:
    raise _CannotWrite(path, error) from error


def _sync(path: Path) -> None:
  """Flushes a file, or the names in a folder, to the disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  except OSError as error:
    # Some file systems know no flush of a folder.
    if error.errno not in (errno.EINVAL, errno.ENOTSUP):
      raise
  finally:
    os.close(handle)


def _sync_tree(folder: Path) -> None:
  for path, _, files in os.walk(folder, topdown=False):
    for name in files:
      _sync(Path(path, name))
    _sync(Path(path))


def _remove(path: Path) -> None:
  """Removes a file or a folder, where it is still there."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path, ignore_errors=True)
  else:
    with contextlib.suppress(OSError):
      path.unlink()


def _sweep(path: Path) -> list[Path]:
  """Removes what dead processes left beside `path`; what live ones write."""
  alive = []
  prefix = f'.{path.name}.unfinished-'
  for name in os.listdir(path.parent):
    beside = path.parent / name
    if name.startswith(prefix) and not beside.is_symlink():
      with locking.tried(beside) as is_ours:
        if is_ours:
          _remove(beside)
        elif is_ours is False:
          alive.append(beside)
  return alive


def _make_beside(
  path: Path, make: Callable[[Path], None], stack: contextlib.ExitStack
) -> Path:
  """Makes and locks a new file or folder, which `stack` removes."""
  while True:
    mark = f'{os.getpid()}-{secrets.token_hex(4)}'
    beside = path.parent / f'.{path.name}.unfinished-{mark}'
    stack.callback(_remove, beside)
    make(beside)
    # Until it is locked another process may take it for a leftover.
    with contextlib.suppress(FileNotFoundError):
      stack.enter_context(locking.held(beside))
      return beside


def _rename(beside: Path, path: Path) -> None:
  try:
    os.replace(beside, path)
  except OSError as error:
    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
      raise
    raise InputError(
      f'{path} was made by another process meanwhile: what it wrote stays'
    ) from error
  _sync(path.parent)


def take_place(beside: Path, path: Path) -> None:
  """Flushes a file that lies beside `path`, and gives it that name.

  Raises:
    InputError: it cannot; what was at `path` is still there.
  """
  with writing(path):
    _sync(beside)
    _rename(beside, path)


def _move_files(beside: Path, path: Path) -> None:
  """Renames what a folder holds into that of `path`; a manifest is last."""
  files = sorted(beside.iterdir(), key=lambda file: file.name == MANIFEST)
  for file in files:
    os.replace(file, path.parent / file.name)
  _sync(path.parent)


@contextlib.contextmanager
def _beside(
  path: Path,
  make: Callable[[Path], None],
  take_place: Callable[[Path, Path], None] = _rename,
  *,
  alone: bool,
  called: Path | None = None,
) -> Iterator[Path]:
  """What is made beside `path`, whose place it takes if the block ends well."""
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(locking.made_folder(path.parent))
      alive = _sweep(path)
      if alive and alone:
        raise InputError(
          f'{path} is being written by another process, to {alive[0]}: wait '
          'for it, or name another'
        )
      beside = _make_beside(path, make, stack)
      yield beside
      if beside.is_dir():
        _sync_tree(beside)
      else:
        _sync(beside)
      take_place(beside, path)
    except OSError as error:
      raise _CannotWrite(called or path, error) from error
    except _CannotWrite as error:
      # A file within: the user knows the whole alone.
      raise _CannotWrite(called or path, error.error) from error


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
  """A file to write to that becomes `path` only when the block ends well.

  Its name has no ending: tell a writer its format.

  Raises:
    InputError: the file cannot be written; what was at `path` is still there.
  """
  with _beside(Path(path), Path.touch, alone=False) as beside:
    yield beside


def write_text(path: Path, text: str) -> None:
  """Writes UTF-8 text, whole or not at all; see `written_whole`."""
  with written_whole(path) as beside:
    beside.write_text(text, encoding='utf-8')


def write_json(path: Path, values: Mapping[str, Any]) -> None:
  """As `write_text`."""
  write_text(path, json.dumps(values, indent=2) + '\n')


def is_empty(folder: Path) -> bool:
  """Whether a folder holds nothing but what killed processes have left there.

  The lock of one, or a file that it had not finished.
  """
  left = re.compile(rf'{locking.LOCK_FILE}|\..*\.unfinished-[0-9]+-[0-9a-f]+')
  return all(left.fullmatch(name) for name in os.listdir(folder))


def refuse_existing(path: Path, flag: str = '--output_dir') -> None:
  """Raises InputError where `path` is a file or holds something.

  What a process that was killed has left there is nothing.
  """
  try:
    holds_something = not is_empty(path)
  except FileNotFoundError:
    return
  except NotADirectoryError as error:
    raise InputError(
      f'{flag}={path} is a file: name a folder that is not there'
    ) from error
  except OSError as error:
    raise InputError(
      f'{flag}={path} cannot be read: {error.strerror}'
    ) from error
  if holds_something:
    raise InputError(
      f'{flag}={path} already holds something: name another, or remove it'
    )


@contextlib.contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
  """A folder to write into that becomes `path` only when the block ends well.

  Of two processes that write to one place the later one is refused.

  Raises:
    InputError: `path` already holds something, is being written, or cannot be.
  """
  path = Path(path)
  refuse_existing(path)
  with _beside(path, Path.mkdir, alone=True) as beside:
    yield beside
    # A folder takes the place of an empty one, and of no other.
    locking.remove_stale_lock(path)


@contextlib.contextmanager
def files_written_together(folder: Path, what: str) -> Iterator[Path]:
  """A folder to write into, whose files go to `folder` if the block ends well.

  What can fail has been done by then: what is left are renames, `manifest.json`
  last, by which a crash between them shows.

  Args:
    folder: may hold other files, and older ones of these names.
    what: the files are, for the name of the folder beside.

  Raises:
    InputError: they cannot be written; the older ones are still there.
  """
  path = folder / what
  with _beside(
    path, Path.mkdir, _move_files, alone=False, called=folder
  ) as beside:
    yield beside


def hash_values(values: Mapping[str, Any]) -> str:
  """sha256 of values as JSON, whatever the order of their keys."""
  text = json.dumps(values, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(
  folder: Path, names: Sequence[str], **facts: Any
) -> dict[str, Any]:
  """Writes `manifest.json`, which vouches for files of a folder; returns it.

  Write it last: a folder that has it was finished.

  Args:
    folder: where the files are.
    names: of the files, by their paths in the folder.
    facts: what else it is to hold.
  """
  files = {
    name: {
      'bytes': (folder / name).stat().st_size,
      'sha256': hash_file(folder / name),
    }
    for name in names
  }
  values = {**facts, 'files': files}
  values['fingerprint'] = hash_values(values)
  write_json(folder / MANIFEST, values)
  return values


def _remedy(folder: Path) -> str:
  return f'remove {folder} and run the command that made it again'


def read_manifest(
  folder: Path, remedy: str = '', format_version: int | None = None
) -> dict[str, Any]:
  """The manifest of a folder, checked against its own hash.

  Args:
    folder: that it lies in.
    remedy: what the user is to do where it cannot be used.
    format_version: what it is to state; another one may hash otherwise.

  Raises:
    InputError: it is missing, is none, is of another version, or was changed.
  """
  file, remedy = folder / MANIFEST, remedy or _remedy(folder)
  try:
    if not file.is_file():
      raise InputError(f'{file} is missing: {remedy}')
    if file.stat().st_size > _MAX_MANIFEST_BYTES:
      raise InputError(f'{file} is damaged, it is no manifest: {remedy}')
    values = json.loads(file.read_bytes().decode('utf-8'))
    if not isinstance(values, dict):
      raise ValueError('no JSON object')
    version = values.get('format_version')
    if format_version is not None and version != format_version:
      raise InputError(
        f'{file} has format version {version!r}, this version reads '
        f'{format_version}: {remedy}'
      )
    stated = values.pop('fingerprint')
    differs = hash_values(values) != stated
  except OSError as error:
    raise InputError(f'{file} cannot be read: {error.strerror}') from error
  except (ValueError, KeyError, RecursionError) as error:
    raise InputError(
      f'{file} is damaged, it is no manifest: {remedy}'
    ) from error
  if differs:
    raise InputError(f'{file} was changed after it was written: {remedy}')
  return {**values, 'fingerprint': stated}


def _is_inside(name: str, folder: Path) -> bool:
  """Whether a name leads to a place within its folder, links followed."""
  # An escape sequence would reach the terminal, a NUL no file.
  if not name.isprintable() or '..' in Path(name).parts:
    return False
  return (folder / name).resolve().is_relative_to(folder.resolve())


def _difference(file: Path, expected: Mapping[str, Any], verify: str) -> str:
  """How a file differs from what a manifest says of it, or ''."""
  num_bytes = file.stat().st_size
  if num_bytes != expected['bytes']:
    return f'it has {num_bytes} bytes of {expected["bytes"]}'
  if verify == 'full' and hash_file(file) != expected['sha256']:
    return 'its sha256 differs'
  return ''


def check_files(
  folder: Path,
  manifest: Mapping[str, Any],
  *,
  verify: Literal['full', 'quick'] = 'full',
  remedy: str = '',
) -> None:
  """Checks the files of a folder against its manifest, which may be hostile.

  Args:
    folder: where they are.
    manifest: of `read_manifest`.
    verify: 'full' reads every file; 'quick' looks at sizes alone.
    remedy: what the user is to do where one differs.

  Raises:
    InputError: a file is missing, was changed, or is not in the folder.
  """
  remedy = remedy or _remedy(folder)
  files = manifest.get('files')
  if not isinstance(files, dict):
    raise InputError(f'{folder / MANIFEST} lists no files: {remedy}')
  for name, expected in files.items():
    if not (
      isinstance(expected, dict)
      and isinstance(expected.get('bytes'), int)
      and isinstance(expected.get('sha256'), str)
    ):
      raise InputError(
        f'{folder / MANIFEST} does not give bytes and sha256 of {name!r}: '
        f'{remedy}'
      )
    file = folder / name
    try:
      if not _is_inside(name, folder):
        raise InputError(
          f'{folder / MANIFEST} names {name!r}, which is no file of its '
          f'folder: {remedy}'
        )
      if not os.path.lexists(file):
        raise InputError(f'{file} is missing: {remedy}')
      if not stat.S_ISREG(file.stat().st_mode):
        raise InputError(f'{file} is not a file: {remedy}')
      differs = _difference(file, expected, verify)
    except OSError as error:
      raise InputError(f'{file} cannot be read: {error.strerror}') from error
    except (ValueError, RuntimeError) as error:
      # Half of a surrogate pair; a ring of links.
      raise InputError(
        f'{folder / MANIFEST} names {name!r}, which is no file of its folder: '
        f'{remedy}'
      ) from error
    if differs:
      raise InputError(
        f'{file} was changed after it was written ({differs}): {remedy}'
      )


def check_manifest(folder: Path) -> dict[str, Any]:
  """The manifest of a folder, all of whose files are as it says.

  Raises:
    InputError: the manifest or a file of it is missing or was changed.
  """
  folder = Path(folder)
  manifest = read_manifest(folder)
  check_files(folder, manifest)
  return manifest
