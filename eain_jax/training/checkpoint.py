"""What a run keeps on disk, through Orbax; nothing else imports Orbax.

    checkpoints/latest/NUMBER/tree     state before a step
    checkpoints/latest/NUMBER/best     parameters of the best epoch so far
    checkpoints/latest/NUMBER/record   all else; see `Checkpoints.save`
    checkpoints/damaged/               what was found damaged, out of the way

A checkpoint is one unit, which Orbax renames into its place when all of it is
written: where a part of it is damaged, the unit before it is taken. NUMBER is
twice the step, and one more once that step is evaluated: both may be saved, and
neither replaces the other before it is whole. A checkpoint at step s is the
state before batch s.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from eain_jax.artifacts import hash_values
from eain_jax.errors import InputError
from eain_jax.training import processes
from eain_jax.training.checksums import check_finite, take_checksums
from eain_jax.training.parallel import Placement
from eain_jax.training.run_folder import differing_setting
from eain_jax.training.state import TrainState

FORMAT_VERSION = 2
# A save goes beside the two.
KEPT = 2
REASON_LENGTH = 200
# What a file says of itself when it is damaged; all else is the disk's matter.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_UNREADABLE = (
  'Out of memory',
  'PERMISSION_DENIED',
  'UNAVAILABLE',
  'Input/output error',
  'Stale file handle',
  'Too many open files',
)
_WHOLE, _DAMAGED, _NOT_READ = range(3)
# Orbax numbers its saves by a counter of the process: two that begin at once,
# of runs on threads of their own, would take each other's signals.
_BEGINNING = threading.Lock()


class Damaged(InputError):
  """A checkpoint is not as it was saved."""


@dataclasses.dataclass(frozen=True)
class Unit:
  """What a run goes on from.

  Attributes:
    state: before its step.
    loop: what the loop remembers beside it.
    log: the text of the log up to there.
    best: parameters and statistics of the best evaluation so far, or None.
  """

  state: TrainState
  loop: dict[str, Any]
  log: str
  best: tuple[Any, Any] | None


def _reason(error: BaseException) -> str:
  lines = str(error).strip().splitlines() or ['']
  return f'{type(error).__name__}: {lines[0]}'[:REASON_LENGTH]


def _is_damage(error: Exception) -> bool:
  """Whether an error in reading says something of the checkpoint itself."""
  if isinstance(error, MemoryError):
    return False
  if isinstance(error, OSError) and error.errno is not None:
    return error.errno in _DAMAGE
  return not any(text in str(error) for text in _UNREADABLE)


class Checkpoints:
  """The checkpoints of a run.

  Use as a context manager: leaving it waits for saves that are under way.
  With several processes all make the same calls.
  """

  def __init__(
    self, work_dir: Path, placement: Placement, settings: Mapping[str, Any]
  ):
    """Reads nothing yet.

    Args:
      work_dir: of the run.
      placement: where restored leaves are to lie.
      settings: of the run; a checkpoint of another one counts as damaged.
    """
    self._placement, self._settings = placement, dict(settings)
    self._folder = work_dir.resolve() / 'checkpoints'
    self._saver: ocp.AsyncCheckpointer | None = None
    self._under_way: concurrent.futures.Future | None = None

  def __enter__(self):
    return self

  def __exit__(self, kind, *exc_info):
    if self._saver is None:
      return
    has_failed = kind is not None and issubclass(kind, Exception)
    if has_failed and self._placement.spans_processes:
      return  # The others may never come to where all would meet.
    try:
      self.wait()
    except InputError:
      # What has already failed says more.
      if not has_failed:
        raise
    finally:
      with contextlib.suppress(Exception):  # It fails once more.
        self._saver.close()

  def _open(self) -> ocp.AsyncCheckpointer:
    """To write with; what a killed save has left is removed."""
    if self._saver is None:
      if processes.is_first():
        (self._folder / 'latest').mkdir(parents=True, exist_ok=True)
        for leftover in (self._folder / 'latest').glob('*.orbax-*'):
          shutil.rmtree(leftover)
      self._saver = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
    return self._saver

  def numbers(self) -> list[int]:
    """Of the checkpoints that are there, whole or not, the newest first."""
    folder = self._folder / 'latest'
    if not folder.is_dir():
      return []
    found = [int(f.name) for f in folder.iterdir() if f.name.isdecimal()]
    return sorted(found, reverse=True)

  def save(
    self,
    state: TrainState,
    best: tuple[Any, Any] | None,
    loop: Mapping[str, Any],
    log: str,
  ) -> None:
    """Saves the state before its step, while the steps that follow run.

    Args:
      state: to go on from.
      best: parameters and statistics of the best evaluation so far.
      loop: what the loop remembers, its `evaluated_step` among it.
      log: the text of the log up to here.

    Raises:
      InputError: a leaf is not finite; or this save, or the one before it,
        has failed.
    """
    step = int(state.step)
    items: dict[str, Any] = {'tree': state}
    if best is not None:
      items['best'] = {'params': best[0], 'stats': best[1]}
    items = {n: self._placement.to_canonical(t) for n, t in items.items()}
    checksums = {
      name: take_checksums(tree, self._placement.num_rows)
      for name, tree in items.items()
    }
    check_finite(checksums['tree'], f'before step {step}')
    record = {
      'format_version': FORMAT_VERSION,
      'step': step,
      'settings': self._settings,
      'checksums': {name: sums.of_leaf for name, sums in checksums.items()},
      'loop': dict(loop),
      'log': log,
    }
    args = ocp.args.Composite(
      record=ocp.args.JsonSave({**record, 'sha256': hash_values(record)}),
      **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
    )
    number = 2 * step + (loop['evaluated_step'] == step)
    self.wait()
    try:
      saver = self._open()
      with _BEGINNING:
        saver.save(self._folder / 'latest' / str(number), args=args)
    except Exception as error:
      raise self._save_failed(error) from error
    self._under_way = _in_thread(saver.wait_until_finished)

  def check(self) -> None:
    """Raises InputError where a save that was under way has failed.

    Of several processes the one that it has failed in hears of it at once;
    whoever waits for the others would wait for ever.
    """
    if self._under_way is None or not self._under_way.done():
      return
    under_way, self._under_way = self._under_way, None
    if error := under_way.exception():
      raise self._save_failed(error) from error
    for number in self.numbers()[KEPT:] if processes.is_first() else ():
      shutil.rmtree(self._folder / 'latest' / str(number))

  def wait(self) -> None:
    """Returns when all that is under way is saved.

    Raises:
      InputError: a save has failed.
    """
    if self._under_way is not None:
      concurrent.futures.wait([self._under_way])
      self.check()

  def _save_failed(self, error: BaseException) -> InputError:
    reason, remedy = _reason(error), 'run the same command again'
    if 'No space left' in str(error) or 'quota exceeded' in str(error):
      reason, remedy = 'the disk is full', f'make room, and {remedy}'
    return InputError(
      f'a checkpoint could not be written to {self._folder}: {reason}; {remedy}'
    )

  def restore(
    self, shapes: TrainState, warn: Callable[[str], None]
  ) -> Unit | None:
    """The newest unit that is whole; None where there is none at all.

    What is newer is damaged, and moved out of the way.

    Args:
      shapes: of the state, as it lies here.
      warn: is told what was found damaged.

    Raises:
      InputError: there are checkpoints, and none of them is whole; or they
        cannot be read.
    """
    failed: list[tuple[int, str]] = []
    for number in self.numbers():
      try:
        unit = self._read_unit(number, shapes)
      except Damaged as error:
        failed.append((number, str(error)))
        continue
      for damaged, reason in failed:
        warn(
          f'the checkpoint of step {damaged // 2} is damaged and not used: '
          f'{reason}'
        )
      if failed:
        warn(f'goes on from the checkpoint of step {number // 2}')
      self._set_aside([damaged for damaged, _ in failed])
      return unit
    if failed:
      raise InputError(
        f'{self._folder} holds no checkpoint that is whole: '
        + '; '.join(f'step {n // 2}: {reason}' for n, reason in failed)
        + '; to begin anew, name another --work_dir'
      )
    return None

  def _set_aside(self, numbers: list[int]) -> None:
    def move() -> None:
      for number in numbers if processes.is_first() else ():
        kept = self._folder / 'damaged'
        kept.mkdir(exist_ok=True)
        place = len(list(kept.glob(f'{number}.*')))
        (self._folder / 'latest' / str(number)).rename(
          kept / f'{number}.{place}'
        )

    processes.first_then_others(move)

  def _read_unit(self, number: int, shapes: TrainState) -> Unit:
    of_best = {'params': shapes.params, 'stats': shapes.stats}
    found, record = self._read(number, {'tree': shapes, 'best': of_best})
    best = found.get('best')
    return Unit(
      found['tree'],
      record['loop'],
      record['log'],
      best and (best['params'], best['stats']),
    )

  def restore_best(self, params, stats) -> tuple[Any, Any]:
    """The parameters and statistics of the best evaluation.

    Raises:
      InputError: the run has not reached its first evaluation, or what it has
        kept of the best one is damaged.
    """
    for number in self.numbers():
      try:
        found, _ = self._read(
          number, {'best': {'params': params, 'stats': stats}}
        )
      except Damaged as error:
        raise InputError(
          f'the newest checkpoint is damaged, {error}: run the same train '
          'command again, it goes on from what is whole'
        ) from error
      if 'best' in found:
        return found['best']['params'], found['best']['stats']
    raise InputError(
      'the run holds no evaluated checkpoint yet: train it further'
    )

  def _read(
    self, number: int, shapes: Mapping[str, Any]
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Items of a checkpoint as they are to lie here, and its record, checked.

    An item that it does not have is left out.

    Raises:
      Damaged: some of it is not as it was saved, or of another run.
      InputError: it cannot be read.
    """
    folder = self._folder / 'latest' / str(number)
    outcome, why, found, record = _WHOLE, '', {}, {}
    try:
      found, record = self._read_files(folder, number, shapes)
    except Damaged as error:
      outcome, why = _DAMAGED, str(error)
    except InputError as error:
      outcome, why = _NOT_READ, str(error)
    # All processes must think alike of it.
    worst = int(processes.gather(np.array(outcome)).max())
    why = why or f'{folder}: another process could not read it'
    if worst == _NOT_READ:
      raise InputError(why)
    if worst == _DAMAGED:
      raise Damaged(why)
    for name, tree in found.items():
      sums = take_checksums(tree, self._placement.num_rows)
      if differing := sums.differing(record['checksums'][name]):
        raise Damaged(f'{folder / name}: {differing[0]} is not as it was saved')
    return (
      {n: self._placement.from_canonical(tree) for n, tree in found.items()},
      record,
    )

  def _read_files(
    self, folder: Path, number: int, shapes: Mapping[str, Any]
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    reading, found = 'record', {}
    try:
      record = _reader(ocp.JsonCheckpointHandler()).restore(folder / reading)
      stated = record.pop('sha256')
      if hash_values(record) != stated or record['step'] != number // 2:
        raise ValueError('it is not as it was saved')
      if record['format_version'] != FORMAT_VERSION:
        raise InputError(
          f'{folder} has format version {record["format_version"]}, this '
          f'version reads {FORMAT_VERSION}: train the model again, in another '
          '--work_dir'
        )
      for reading in shapes:
        if reading not in record['checksums']:
          continue
        canonical = self._placement.canonical_shapes(shapes[reading])
        # Tables were saved with as many spare rows as their devices had.
        found[reading] = _reader(ocp.StandardCheckpointHandler()).restore(
          folder / reading,
          args=ocp.args.StandardRestore(canonical, strict=False),
        )
        jax.block_until_ready(found[reading])
    except InputError:
      raise
    except Exception as error:
      if _is_damage(error):
        raise Damaged(f'{folder / reading}: {_reason(error)}') from error
      raise InputError(
        f'{folder / reading} cannot be read: {_reason(error)}; nothing was '
        'changed, run the same command again'
      ) from error
    if name := differing_setting(record['settings'], self._settings):
      raise Damaged(f'{folder} belongs to a run with another {name}')
    return found, record


def _in_thread(act: Callable[[], None]) -> concurrent.futures.Future:
  """`act()` on a thread that holds up nobody's end."""
  future: concurrent.futures.Future = concurrent.futures.Future()

  def run() -> None:
    try:
      future.set_result(act())
    except BaseException as error:
      future.set_exception(error)

  threading.Thread(target=run, name='checkpoint', daemon=True).start()
  return future


def _reader(handler: ocp.CheckpointHandler) -> ocp.Checkpointer:
  """Reads in this process alone: one that fails makes no other one wait."""
  own = jax.process_index()
  options = ocp.options.MultiprocessingOptions(
    primary_host=own,
    active_processes={own},
    barrier_sync_key_prefix=f'process{own}',
  )
  return ocp.Checkpointer(handler, multiprocessing_options=options)
