"""The log of a run: what it measured, and beside that what the clock said.

`metrics.jsonl` follows from data, settings and seed alone: a checkpoint holds
its text so far, and a run that goes on writes that again before anything else.
So it has neither gap nor repeat, however often the run was interrupted.
`timings.jsonl` has the times, which no two runs share.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eain_jax.artifacts import write_text
from eain_jax.errors import InputError
from eain_jax.training.run_folder import METRICS_FILE, TIMINGS_FILE

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

  @property
  def has_content(self) -> bool:
    """An earlier start of the run has written records."""
    file = self._work_dir / METRICS_FILE if self._work_dir else None
    return bool(file and file.is_file() and file.stat().st_size)

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

  def say(self, text: str) -> None:
    """A line for a person: it goes to the report alone."""
    if self._report:
      self._report({'kind': 'note', 'step': 0, 'text': text})


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
