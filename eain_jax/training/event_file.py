"""The log of a run as TensorBoard reads it, beside `metrics.jsonl`.

It says nothing that `metrics.jsonl` and `timings.jsonl` do not: a run that goes
on writes it anew from these two, as they were at its checkpoint, with the times
of then. So where these are whole it has neither gap nor repeat either.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

# protobuf makes the classes when it is imported.
Event = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
Summary = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]

# TensorBoard asks for the one; the other tells ours from a user's own.
PREFIX, SUFFIX = 'events', '.eain'
# What a record is, not what it measured.
_PLACES = ('kind', 'step', 'epoch')
# To the disk so often at most, in seconds of the records' own times.
_FLUSH_SECONDS = 10.0


class EventFile:
  """Writes records as scalars; one file, and no other, in a run's folder.

  A training record is `train/loss` and the like, a validation `valid/auc`;
  with a training record come `speed/steps_per_second` and
  `speed/input_wait_share`, both since the record before, and
  `memory/peak_bytes`.

  Args:
    work_dir: the run's folder. Nothing in it changes before the first `add`.
    logged: records so far, with their times. What has no time of day, as runs
      of before there were event files, is no event.
  """

  def __init__(
    self,
    work_dir: Path,
    logged: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
  ):
    self._work_dir, self._logged = work_dir, logged
    self._writer: EventsWriter | None = None
    self._step, self._seconds, self._waiting = 0, 0.0, 0.0
    self._flushed = 0.0

  def add(self, record: Mapping[str, Any], times: Mapping[str, Any]) -> None:
    """Writes a record with its times, see `run_log`.

    Raises:
      OSError: the disk is full.
    """
    if self._writer is None:
      for file in self._work_dir.glob(f'{PREFIX}.out.tfevents.*{SUFFIX}'):
        file.unlink()
      # Its name has the time, so a TensorBoard that looks on opens it, if it
      # has its data server. Of a path 'gs:..' tensorboardX would make a bucket.
      path = (self._work_dir / PREFIX).absolute()
      self._writer = EventsWriter(str(path), SUFFIX)
      for earlier in self._logged:
        self._write(self._writer, *earlier)
    self._write(self._writer, record, times)
    is_due = times['time'] - self._flushed >= _FLUSH_SECONDS
    if record['kind'] == 'valid' or is_due:
      self._writer.flush()
      self._flushed = times['time']

  def _write(
    self,
    writer: EventsWriter,
    record: Mapping[str, Any],
    times: Mapping[str, Any],
  ) -> None:
    kind, step = record['kind'], record['step']
    steps, seconds, waited = (
      step - self._step,
      times['seconds'] - self._seconds,
      times['seconds_waiting'] - self._waiting,
    )
    self._step, self._seconds = step, times['seconds']
    self._waiting = times['seconds_waiting']
    if 'time' not in times:
      return
    values = {
      f'{kind}/{name}': value
      for name, value in record.items()
      # Counts of a part are the same every time.
      if name not in _PLACES and isinstance(value, float)
    }
    if kind == 'train' and seconds > 0:
      values['speed/steps_per_second'] = steps / seconds
      values['speed/input_wait_share'] = waited / seconds
      values['memory/peak_bytes'] = float(times['peak_memory_bytes'])
    event = Event(wall_time=times['time'], step=step)
    event.summary.CopyFrom(
      Summary(
        value=[
          Summary.Value(tag=tag, simple_value=value)
          for tag, value in values.items()
        ]
      )
    )
    writer.write_event(event)

  def close(self) -> None:
    if self._writer:
      self._writer.close()
