"""Runs a binary that meets a fault at a chosen place of its course.

  python -m tests.faults.inject --inject=write:17:kill -- \\
      experiments.prepare_data --output_dir=DS --synthetic

The 17th write kills it. A fault is point:n:action; several go with commas
between them. The library knows nothing of this: points are patched from here.
"""

import atexit
import contextlib
import ctypes
import errno
import functools
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator
from unittest import mock

# Says that a point was passed, so many times over.
Pass = Callable[[int], None]


def _before(owner: object, name: str, passed: Pass) -> mock._patch:
  """A patch by which each call of a function passes the point first."""
  original = getattr(owner, name)

  @functools.wraps(original)
  def call(*args, **kwargs):
    passed(1)
    return original(*args, **kwargs)

  return mock.patch.object(owner, name, call)


def _writes(passed: Pass) -> list[mock._patch]:
  """Before a piece of a column, a table, or any artifact of its own."""
  import polars as pl

  from eain_jax import artifacts
  from eain_jax.data.columns import ColumnWriter

  tables = ('write_csv', 'write_parquet', 'write_ndjson')
  return [
    _before(ColumnWriter, 'append', passed),
    *(_before(pl.DataFrame, name, passed) for name in tables),
    _before(artifacts, '_make_beside', passed),
  ]


def _bytes(passed: Pass) -> list[mock._patch]:
  """A byte of a column, on its way to the disk."""
  from eain_jax.data.columns import ColumnWriter

  original = ColumnWriter.append

  def append(self, rows):
    original(self, rows)
    self._file.flush()
    passed(rows.nbytes)

  return [mock.patch.object(ColumnWriter, 'append', append)]


def _syncs(passed: Pass) -> list[mock._patch]:
  """Before a flush to the disk."""
  return [_before(os, 'fsync', passed)]


def _renames(passed: Pass) -> list[mock._patch]:
  """Before a file or a folder takes its place."""
  return [_before(os, name, passed) for name in ('rename', 'replace')]


def _steps(passed: Pass) -> list[mock._patch]:
  """Before the batch of a training step is taken."""
  from eain_jax.training import loop

  return [_before(loop._Inputs, '__next__', passed)]


def _saves(passed: Pass) -> list[mock._patch]:
  """Before a checkpoint is saved."""
  from orbax.checkpoint import AsyncCheckpointer

  return [_before(AsyncCheckpointer, 'save', passed)]


def _commits(passed: Pass) -> list[mock._patch]:
  """Before a checkpoint, all written, takes its place; on Orbax's thread."""
  from orbax.checkpoint._src.path import atomicity

  kind = atomicity.AtomicRenameTemporaryPath
  original = kind.finalize

  async def finalize(self, *args, **kwargs):
    if self.get_final().name.isdecimal():
      passed(1)
    return await original(self, *args, **kwargs)

  return [mock.patch.object(kind, 'finalize', finalize)]


def _shards(passed: Pass) -> list[mock._patch]:
  """Before a training batch is made, on a thread of its own."""
  from eain_jax.data.batches import TrainStream

  return [_before(TrainStream, 'batch', passed)]


def _evaluations(passed: Pass) -> list[mock._patch]:
  """Before a batch of an evaluation is scored."""
  from eain_jax.training.parallel import Placement

  return [_before(Placement, 'place_eval_batch', passed)]


def _compilations(passed: Pass) -> list[mock._patch]:
  """Before jax compiles a program, or reads it from its cache."""
  from jax._src import compiler

  return [_before(compiler, 'compile_or_get_cached', passed)]


POINTS: dict[str, Callable[[Pass], list[mock._patch]]] = {
  'write': _writes,
  'byte': _bytes,
  'fsync': _syncs,
  'rename': _renames,
  'step': _steps,
  'save': _saves,
  'commit': _commits,
  'shard': _shards,
  'evaluation': _evaluations,
  'compilation': _compilations,
}


def _fill_disk() -> None:
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _hang() -> None:
  print('inject: hangs', file=sys.stderr, flush=True)
  while True:
    time.sleep(60)


def _block() -> None:
  """Waits in C for ever, as in a compiler: no signal brings it back."""
  mutex = ctypes.create_string_buffer(256)
  lock = ctypes.CDLL(None).pthread_mutex_lock
  lock(mutex)
  print('inject: blocks', file=sys.stderr, flush=True)
  lock(mutex)


ACTIONS: dict[str, Callable[[], None]] = {
  'kill': lambda: os.kill(os.getpid(), signal.SIGKILL),
  'term': lambda: os.kill(os.getpid(), signal.SIGTERM),
  'int': lambda: os.kill(os.getpid(), signal.SIGINT),
  'full': _fill_disk,
  'hang': _hang,
  'block': _block,
}


@contextlib.contextmanager
def injected(
  point: str, number: int, action: Callable[[], None] | None = None
) -> Iterator[list[int]]:
  """Within the block the `number`-th pass of a point acts, once.

  Yields the count of passes, which goes on after that. Without an action it
  only counts.
  """
  count = [0]

  def passed(times: int) -> None:
    before, count[0] = count[0], count[0] + times
    if action and before < number <= count[0]:
      action()

  with contextlib.ExitStack() as stack:
    for patch in POINTS[point](passed):
      stack.enter_context(patch)
    yield count


def main() -> None:
  faults, dashes, module, *flags = sys.argv[1:]
  assert (faults[:9], dashes) == ('--inject=', '--'), __doc__
  with contextlib.ExitStack() as stack:
    for fault in faults[9:].split(','):
      point, number, action = fault.split(':')
      if action != 'count':
        stack.enter_context(injected(point, int(number), ACTIONS[action]))
        continue
      count = stack.enter_context(injected(point, 0))
      say = lambda point=point, count=count: print(
        f'inject: {point} {count[0]}', file=sys.stderr
      )
      atexit.register(say)
    sys.argv = [module, *flags]
    runpy.run_module(module, run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  main()
