"""The log of a run: what it measured, and beside that what the clock said.

`metrics.jsonl` follows from data, settings and seed alone: a checkpoint holds
its text so far, and a run that goes on writes that again before anything else.
So it has neither gap nor repeat, however often the run was interrupted.
`timings.jsonl` has the times, which no two runs share.
"""

import contextlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eain_jax.artifacts import write_text
from eain_jax.errors import InputError
from eain_jax.training.run_folder import METRICS_FILE, RESULT_FILE, TIMINGS_FILE

Report = Callable[[Mapping[str, Any]], None]
TIMES = ('seconds', 'seconds_waiting')


class RunLog:
  """Appends to the files of a run, and tells a report of the caller's."""

  def __init__(self, work_dir: Path | None, report: Report | None):
    """Opens nothing yet; see `begin`. `work_dir` None: nothing is kept."""
    self._work_dir, self._report = work_dir, report
    self._files: list[Any] = []

  def __enter__(self):
    return self

  def __exit__(self, *exc_info):
    for file in self._files:
      file.close()

  def check_new(self, between: int) -> None:
    """Checks that a run without checkpoints never had one.

    A save waits for the one before it. So a run that has logged steps beyond
    its second save has had one checkpoint at least.

    Args:
      between: steps between two saves, at least.

    Raises:
      InputError: it had, and they are gone.
    """
    if self._work_dir is None:
      return
    last = _last_step(self._work_dir / TIMINGS_FILE)
    if (self._work_dir / RESULT_FILE).exists() or last > 2 * between:
      raise InputError(
        f'{self._work_dir} has a log up to step {last}, and its checkpoints '
        'are gone: put them back, or name another --work_dir'
      )
    if last:
      self.say('the run has no checkpoint yet: it begins anew')

  def begin(self, text: str, step: int) -> None:
    """Takes up the log where a checkpoint of `step` left it, with `text`."""
    if self._work_dir is None:
      return
    metrics = self._work_dir / METRICS_FILE
    timings = self._work_dir / TIMINGS_FILE
    write_text(metrics, text)
    write_text(timings, _timings_until(timings, step))
    self._files = [metrics.open('a'), timings.open('a')]

  def text(self) -> str:
    """All records so far, for a checkpoint."""
    if self._work_dir is None or not self._files:
      return ''
    return (self._work_dir / METRICS_FILE).read_text()

  def __call__(
    self, *, seconds: float, seconds_waiting: float, **record
  ) -> None:
    """Logs a record, and the training time when it was made.

    Raises:
      InputError: the disk is full.
    """
    times = {'seconds': seconds, 'seconds_waiting': seconds_waiting}
    at = {'kind': record['kind'], 'step': record['step'], **times}
    try:
      for file, line in zip(self._files, (record, at), strict=False):
        file.write(json.dumps(line) + '\n')
        file.flush()
    except OSError as error:
      raise InputError(
        f'{self._work_dir}: the log cannot be written, {error.strerror}: make '
        'room, and run the same command again'
      ) from error
    if self._report:
      self._report({**record, **times})

  def warn(self, text: str) -> None:
    """As `say`; where there is no report, as a warning of Python's."""
    self.say(text)
    if not self._report and self._work_dir:
      warnings.warn(text, stacklevel=2)

  def say(self, text: str) -> None:
    """A line for a person: it goes to the report alone."""
    if self._report:
      self._report({'kind': 'note', 'step': 0, 'text': text})


def _last_step(path: Path) -> int:
  """The last step that was logged whole."""
  last = 0
  if path.is_file():
    for line in path.read_text(errors='replace').splitlines():
      with contextlib.suppress(ValueError, KeyError, TypeError):
        last = max(last, int(json.loads(line)['step']))
  return last


def _timings_until(path: Path, step: int) -> str:
  """The lines up to a step: what comes later will come again."""
  if not path.is_file():
    return ''
  kept = []
  for line in path.read_text(errors='replace').splitlines():
    try:
      if json.loads(line)['step'] > step:
        break
    except (ValueError, KeyError, TypeError):
      break  # The process was killed while it wrote this one.
    kept.append(line + '\n')
  return ''.join(kept)
