"""What a run keeps on disk, through Orbax; nothing else imports Orbax.

    checkpoints/latest/STEP/   state before batch STEP
    checkpoints/best/STEP/     parameters of the best validation GAUC so far
    checkpoints/damaged/       what was found damaged, out of the way

Beside each lies a record: the settings of the run and a checksum of every leaf;
that of a state has also what the loop remembers, the best that it belongs to,
and the log so far. All of that is one unit: where a part of it is damaged, an
older unit is taken. A checkpoint at step s is the state before batch s.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from eain_jax.errors import InputError
from eain_jax.training import processes
from eain_jax.training.checksums import check_finite, take_checksums
from eain_jax.training.parallel import Placement
from eain_jax.training.run_folder import differing_setting
from eain_jax.training.state import TrainState

FORMAT_VERSION = 1
# A save goes beside the two; three bests are what they can belong to.
KEPT_STATES, KEPT_BESTS = 2, 3
LATEST, BEST, DAMAGED = 'latest', 'best', 'damaged'
REASON_LENGTH = 200


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


def _hash(record: Mapping[str, Any]) -> str:
  text = json.dumps(record, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()


def _reason(error: BaseException) -> str:
  lines = str(error).strip().splitlines() or ['']
  return f'{type(error).__name__}: {lines[0]}'[:REASON_LENGTH]


def _out_of_memory(error: BaseException) -> bool:
  return isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error)


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
    self._series: dict[str, ocp.CheckpointManager] = {}

  def __enter__(self):
    return self

  def __exit__(self, kind, *exc_info):
    try:
      self.wait()
    except InputError:
      # What has already failed says more.
      if kind is None or not issubclass(kind, Exception):
        raise
    finally:
      for series in self._series.values():
        with contextlib.suppress(Exception):  # It fails once more.
          series.close()

  def _open(self, name: str) -> ocp.CheckpointManager:
    """A series to write to; what a killed save has left there is removed."""
    if name not in self._series:
      options = ocp.CheckpointManagerOptions(
        max_to_keep=KEPT_STATES if name == LATEST else KEPT_BESTS,
        create=True,
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
        # Both may save at once, and processes meet at places with names.
        multiprocessing_options=ocp.options.MultiprocessingOptions(
          barrier_sync_key_prefix=name
        ),
      )
      self._series[name] = ocp.CheckpointManager(
        self._folder / name, options=options
      )
    return self._series[name]

  def steps(self, name: str = LATEST) -> list[int]:
    """Of the checkpoints that are there, whole or not, the newest first."""
    folder = self._folder / name
    if not folder.is_dir():
      return []
    found = [int(f.name) for f in folder.iterdir() if f.name.isdecimal()]
    return sorted(found, reverse=True)

  def save(self, state: TrainState, loop: Mapping[str, Any], log: str) -> None:
    """Saves the state before its step, while the steps that follow run.

    Raises:
      InputError: a leaf is not finite; or this save, or the one before it,
        has failed.
    """
    content = {'loop': dict(loop), 'log': log}
    self._save(LATEST, int(state.step), state, content)

  def save_best(self, step: int, params, stats) -> None:
    """Saves the parameters of the best evaluation so far; see `save`."""
    self._save(BEST, step, {'params': params, 'stats': stats}, {})

  def _save(self, name: str, step: int, tree, content: Mapping) -> None:
    tree = self._placement.to_canonical(tree)
    checksums = take_checksums(tree, self._placement.num_rows)
    check_finite(checksums, f'before step {step}')
    record = {
      'format_version': FORMAT_VERSION,
      'step': step,
      'settings': self._settings,
      'checksums': checksums.of_leaf,
      **content,
    }
    args = ocp.args.Composite(
      tree=ocp.args.StandardSave(tree),
      record=ocp.args.JsonSave({**record, 'sha256': _hash(record)}),
    )
    try:
      series = self._open(name)
      if step in series.all_steps():
        series.wait_until_finished()
        series.delete(step)
      if not series.save(step, args=args):
        raise RuntimeError('Orbax has skipped it')
    except Exception as error:
      raise self._save_failed(error) from error

  def wait(self) -> None:
    """Returns when all that is under way is saved.

    Raises:
      InputError: a save has failed.
    """
    try:
      for series in self._series.values():
        series.wait_until_finished()
        series.check_for_errors()
    except Exception as error:
      raise self._save_failed(error) from error

  def _save_failed(self, error: Exception) -> InputError:
    steps, reason = self.steps(), _reason(error)
    if 'No space left' in str(error) or 'RESOURCE_EXHAUSTED' in str(error):
      reason = 'the disk is full'
    left = f'that of step {steps[0]} is whole' if steps else 'there is none yet'
    return InputError(
      f'a checkpoint could not be written to {self._folder}: '
      f'{reason}; {left}: make room, and run the same command again'
    )

  def restore(self, shapes: TrainState, say: Callable[[str], None]):
    """The newest unit that is whole; None where there never was one.

    What is newer is damaged, and moved out of the way.

    Args:
      shapes: of the state, as it lies here.
      say: is told what was found damaged.

    Raises:
      InputError: there are checkpoints, and none of them is whole.
    """
    failed: list[tuple[int, str]] = []
    for step in self.steps():
      try:
        unit = self._read_unit(step, shapes)
      except InputError as error:
        failed.append((step, str(error)))
        continue
      for damaged, reason in failed:
        say(
          f'the checkpoint of step {damaged} is damaged and not used: {reason}'
        )
      if failed:
        say(f'goes on from the checkpoint of step {step}')
      self._clear([s for s, _ in failed], unit.loop['best_step'])
      return unit
    if failed:
      raise InputError(
        f'{self._folder} holds no checkpoint that is whole: '
        + '; '.join(f'step {step}: {reason}' for step, reason in failed)
        + '; to begin anew, name another --work_dir'
      )
    self._clear([], -1)
    return None

  def _clear(self, damaged: list[int], best_step: int) -> None:
    """Moves damaged states out of the way, and bests that are yet to come."""
    aside = [(LATEST, step) for step in damaged]
    aside += [(BEST, step) for step in self.steps(BEST) if step > best_step]

    def move() -> None:
      for name, step in aside if processes.is_first() else ():
        folder = self._folder / name / str(step)
        if not damaged:
          shutil.rmtree(folder)  # The run was killed before it saved the state.
          continue
        kept = self._folder / DAMAGED
        kept.mkdir(exist_ok=True)
        number = len(list(kept.glob(f'{name}-{step}.*')))
        folder.rename(kept / f'{name}-{step}.{number}')

    processes.first_then_others(move)

  def _read_unit(self, step: int, shapes: TrainState) -> Unit:
    state, record = self._read(LATEST, step, shapes)
    best_step, best = record['loop']['best_step'], None
    if best_step >= 0:
      best = self._read_best(best_step, shapes.params, shapes.stats)
    return Unit(state, record['loop'], record['log'], best)

  def _read_best(self, step: int, params, stats) -> tuple[Any, Any]:
    tree, _ = self._read(BEST, step, {'params': params, 'stats': stats})
    return tree['params'], tree['stats']

  def restore_best(self, params, stats) -> tuple[Any, Any]:
    """The parameters and statistics of the best evaluation.

    Raises:
      InputError: the run has not reached its first evaluation, or what it has
        kept of the best one is damaged.
    """
    steps = self.steps(BEST)
    if not steps:
      raise InputError(
        'the run holds no evaluated checkpoint yet: train it further'
      )
    try:
      return self._read_best(steps[0], params, stats)
    except InputError as error:
      raise InputError(
        f'the best checkpoint is damaged, {error}: run the same train command '
        'again, it goes on from what is whole'
      ) from error

  def _read(self, name: str, step: int, shapes) -> tuple[Any, dict[str, Any]]:
    """A checkpoint as it is to lie here, and its record, both checked.

    Raises:
      InputError: it is damaged, or of another run.
    """
    folder = self._folder / name / str(step)
    tree, record = processes.together(
      lambda: self._read_files(folder, step, shapes)
    )
    checksums = take_checksums(tree, self._placement.num_rows)
    if differing := checksums.differing(record['checksums']):
      raise InputError(f'{folder}: {differing[0]} is not as it was saved')
    return self._placement.from_canonical(tree), record

  def _read_files(
    self, folder: Path, step: int, shapes
  ) -> tuple[Any, dict[str, Any]]:
    """Tables were saved with as many spare rows as their devices had."""
    canonical = self._placement.canonical_shapes(shapes)
    reading = ''
    try:
      reading = 'record'
      record = _reader(ocp.JsonCheckpointHandler()).restore(folder / reading)
      stated = record.pop('sha256')
      if _hash(record) != stated or record['step'] != step:
        raise ValueError('it is not as it was saved')
      reading = 'tree'
      tree = _reader(ocp.StandardCheckpointHandler()).restore(
        folder / reading,
        args=ocp.args.StandardRestore(canonical, strict=False),
      )
      jax.block_until_ready(tree)
    except Exception as error:
      if _out_of_memory(error):
        raise
      raise InputError(f'{folder / reading}: {_reason(error)}') from error
    if name := differing_setting(record['settings'], self._settings):
      raise InputError(f'{folder} belongs to a run with another {name}')
    return tree, record


def _reader(handler: ocp.CheckpointHandler) -> ocp.Checkpointer:
  """Reads in this process alone: one that fails makes no other one wait."""
  own = jax.process_index()
  options = ocp.options.MultiprocessingOptions(
    primary_host=own,
    active_processes={own},
    barrier_sync_key_prefix=f'process{own}',
  )
  return ocp.Checkpointer(handler, multiprocessing_options=options)
