"""Locks of files and folders that end with the process that holds them.

They are the kernel's own (flock), so one that was killed leaves none behind.
Where a file system knows no locks, nothing is locked and nothing is refused.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eain_jax.errors import InputError, InUse

LOCK_FILE = 'lock'


def _take(handle: int, *, wait: bool) -> bool | None:
  """Whether the lock is ours now; None where nothing can be locked."""
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
  except OSError as error:
    return False if error.errno in (errno.EAGAIN, errno.EACCES) else None
  return True


def _is_at(handle: int, path: Path) -> bool:
  """Whether the open file is still the one of that name."""
  try:
    return os.path.samestat(os.fstat(handle), os.stat(path))
  except FileNotFoundError:
    return False


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
  """Locks a file or a folder that this process has just made.

  Raises:
    FileNotFoundError: another process took it for a leftover, and removed it.
  """
  handle = os.open(path, os.O_RDONLY)
  try:
    _take(handle, wait=True)
    os.stat(path)
    yield
  finally:
    os.close(handle)


@contextlib.contextmanager
def tried(path: Path) -> Iterator[bool | None]:
  """Whether a file or a folder is nobody's, and ours for the block.

  False where a live process holds it, None where that cannot be told.
  """
  try:
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
  except OSError:
    yield None
    return
  try:
    yield _take(handle, wait=False)
  finally:
    os.close(handle)


def _open_lock(file: Path) -> int:
  """The lock file, locked."""
  while True:
    # Writable, or NFS locks nothing.
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
      if _take(handle, wait=False) is False:
        raise BlockingIOError(errno.EAGAIN, 'locked', str(file))
      # Whoever held it may have removed it between our two calls.
      if _is_at(handle, file):
        return handle
    except BaseException:
      os.close(handle)
      raise
    os.close(handle)


def _holder(file: Path) -> str:
  """Who says that the lock is theirs."""
  try:
    values: Any = json.loads(file.read_text())
    return (
      f'process {values["pid"]} on {values["host"]} since {values["started"]}'
    )
  except (OSError, ValueError, KeyError, TypeError):
    return 'another process'


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
  """Makes a folder and those above it; at the end those still empty go again.

  Raises:
    OSError: it cannot be made.
  """
  made = []
  for path in (folder, *folder.parents):
    if path.exists():
      break
    made.append(path)
  folder.mkdir(parents=True, exist_ok=True)
  try:
    yield
  finally:
    with contextlib.suppress(OSError):
      for path in made:
        path.rmdir()


@contextlib.contextmanager
def locked_folder(folder: Path, what: str) -> Iterator[None]:
  """Keeps other processes out of a folder, which is made where it is not there.

  `folder/lock` is locked, and names the process. It is removed at the end, and
  so are the folders that were made and are still empty. A process that was
  killed leaves the file, but no lock: the next one takes it over.

  Args:
    folder: to be used by one process at a time.
    what: the flag that names it, such as '--work_dir'.

  Raises:
    InUse: a live process has it.
    InputError: it cannot be written.
  """
  folder = Path(folder)
  file = folder / LOCK_FILE
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(made_folder(folder))
      handle = _open_lock(file)
      stack.callback(os.close, handle)
      stack.callback(_remove_lock, file, handle)
      started = datetime.datetime.now(datetime.UTC).isoformat(' ', 'seconds')
      text = json.dumps(
        {'pid': os.getpid(), 'host': socket.gethostname(), 'started': started}
      )
      os.ftruncate(handle, 0)
      os.write(handle, text.encode() + b'\n')
    except BlockingIOError as error:
      raise InUse(
        f'{what}={folder} is in use by {_holder(file)}: wait for it, or name '
        'another folder'
      ) from error
    except (FileExistsError, NotADirectoryError) as error:
      raise InputError(
        f'{what}={folder} is a file, or lies in one: name a folder'
      ) from error
    except OSError as error:
      reason = 'the disk is full'
      if error.errno != errno.ENOSPC:
        reason = error.strerror
      raise InputError(
        f'{what}={folder} cannot be written: {reason}'
      ) from error
    yield


def _remove_lock(file: Path, handle: int) -> None:
  """Removes our own lock, while it is locked, and no other's."""
  with contextlib.suppress(OSError):
    if _is_at(handle, file):
      file.unlink()


def remove_stale_lock(folder: Path) -> None:
  """Removes the lock file of a process that was killed, where there is one."""
  file = folder / LOCK_FILE
  with tried(file) as is_ours:
    if is_ours:
      with contextlib.suppress(OSError):
        file.unlink()
