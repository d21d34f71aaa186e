"""The log of a run: what it measured, and beside that what the clock said.

`metrics.jsonl` follows from data, settings and seed alone: a checkpoint holds
its text so far, and a run that goes on writes that again before anything else.
So it has neither gap nor repeat, however often the run was interrupted.
`timings.jsonl` has the times and the memory, which no two runs share.
TensorBoard's file is made of both; see `event_file`.
"""

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eain_jax.artifacts import write_text
from eain_jax.errors import InputError
from eain_jax.training.device_memory import peak_bytes
from eain_jax.training.event_file import EventFile
from eain_jax.training.run_folder import METRICS_FILE, RESULT_FILE, TIMINGS_FILE

Report = Callable[[Mapping[str, Any]], None]


class RunLog:
  """Appends to the files of a run, and tells a report of the caller's."""

  def __init__(self, work_dir: Path | None, report: Report | None):
    """Opens nothing yet; see `begin`. `work_dir` None: nothing is kept."""
    self._work_dir, self._report = work_dir, report
    self._files: list[Any] = []
    self._events: EventFile | None = None

  def __enter__(self):
    return self

  def __exit__(self, kind: object, *exc_info: object) -> None:
    """Closes all files.

    Raises:
      InputError: the disk is full, and no other exception is on its way.
    """
    failed = None
    for file in (*self._files, *filter(None, [self._events])):
      try:
        file.close()
      except OSError as error:
        failed = error
    if failed and kind is None:
      with self._as_input_error():
        raise failed

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

  def begin(self, text: str) -> None:
    """Takes up the log where a checkpoint left it, with `text`.

    Raises:
      InputError: the disk is full.
    """
    if self._work_dir is None:
      return
    metrics = self._work_dir / METRICS_FILE
    timings = self._work_dir / TIMINGS_FILE
    records = [json.loads(line) for line in text.splitlines()]
    logged = _with_times(records, timings)
    with self._as_input_error():
      write_text(metrics, text)
      lines = [json.dumps(times) + '\n' for _, times in logged]
      write_text(timings, ''.join(lines))
      self._files = [metrics.open('a'), timings.open('a')]
    self._events = EventFile(self._work_dir, logged)

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
    times = {
      'seconds': seconds,
      'seconds_waiting': seconds_waiting,
      'time': time.time(),
      'peak_memory_bytes': peak_bytes(),
    }
    at = {'kind': record['kind'], 'step': record['step'], **times}
    with self._as_input_error():
      for file, line in zip(self._files, (record, at), strict=False):
        file.write(json.dumps(line) + '\n')
        file.flush()
      if self._events:
        self._events.add(record, times)
    if self._report:
      self._report({**record, **times})

  @contextlib.contextmanager
  def _as_input_error(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise InputError(
        f'{self._work_dir}: the log cannot be written, {error.strerror}: make '
        'room, and run the same command again'
      ) from error

  def warn(self, text: str) -> None:
    """As `say`; where there is no report, as a warning of Python's."""
    self.say(text)
    if not self._report and self._work_dir:
      warnings.warn(text, stacklevel=2)

  def say(self, text: str) -> None:
    """A line for a person: it goes to the report alone."""
    if self._report:
      self._report({'kind': 'note', 'step': 0, 'text': text})


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
  """The lines of a log that were written whole, in their order."""
  if not path.is_file():
    return
  for line in path.read_text(errors='replace').splitlines():
    # The last one is cut where the process was killed while it wrote it.
    with contextlib.suppress(ValueError):
      match json.loads(line):
        case {'kind': str(), 'step': int()} as values:
          yield values


def _last_step(path: Path) -> int:
  """The last step that was logged whole."""
  return max((times['step'] for times in _whole_lines(path)), default=0)


def _with_times(
  records: Sequence[Mapping[str, Any]], path: Path
) -> list[tuple[Mapping[str, Any], dict[str, Any]]]:
  """Records with their lines of `path`, which may have more; or fewer."""
  place = lambda line: (line['kind'], line['step'])
  found = {place(times): times for times in _whole_lines(path)}
  return [(r, found[place(r)]) for r in records if place(r) in found]
