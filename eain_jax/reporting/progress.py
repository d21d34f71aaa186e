"""How far a long command is: a bar on a terminal, plain lines elsewhere.

Everything here goes to standard error; standard output is for results that a
program reads. Nothing of jax is needed.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from rich import filesize
from rich.console import Console
from rich.progress import (
  BarColumn,
  DownloadColumn,
  Progress,
  ProgressColumn,
  Task,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
  TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text

from eain_jax.reporting import document

console = Console(stderr=True, highlight=False)
_ROOM_FOR_A_BAR, _WIDTH_BUT_TITLE = 110, 66  # columns
_HEARTBEAT = 60.0  # seconds between two lines where there is no bar


class _PaceColumn(ProgressColumn):
  """Steps a second, the share of waiting for input, and memory."""

  def render(self, task: Task) -> Text:
    return Text(task.fields['pace'], 'dim')


class _Display:
  """A context manager with a bar, on a terminal, and lines that stay.

  Args:
    to: where it is shown; standard error by default.
    clock: seconds, ever rising.
  """

  def __init__(self, to: Console | None, clock: Callable[[], float]):
    self._console = console if to is None else to
    self._clock = clock
    self._last_line = clock()
    self._bar: Progress | None = None

  def __enter__(self) -> Self:
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, *exception: object) -> None:
    if self._bar:
      self._bar.stop()

  def _print(self, line: str) -> None:
    self._last_line = self._clock()
    self._console.print(Text(document.printable(line)), soft_wrap=True)

  def _is_due(self) -> bool:
    """Whether a line is to say how far it is: there is no bar to do so."""
    return self._bar is None and self._clock() - self._last_line >= _HEARTBEAT


class TrainingDisplay(_Display):
  """A report for `loop.fit`: a bar on a terminal, plain lines elsewhere.

  Use it as a context manager. Every validation record becomes a line; a
  terminal has a bar under them, anything else one training line a minute. Both
  have steps a second, the share of the time that went into waiting for input,
  and the most memory so far, see `device_memory.peak_bytes`.

  Args:
    title: what is trained.
    epochs: at most so many; without it the bar has no end and no time left.
    to: where it is shown; standard error by default.
    clock: seconds, ever rising.
  """

  def __init__(
    self,
    title: str,
    epochs: int | None = None,
    to: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    super().__init__(to, clock)
    self._title, self._epochs = document.printable(title), epochs
    self._loss: float | None = None
    # The training record before.
    self._last: Mapping[str, Any] | None = None
    if self._console.is_terminal:
      # Where there is no room for all, the title is cut and the bar left out.
      shown = Text(self._title)
      shown.truncate(
        max(8, self._console.width - _WIDTH_BUT_TITLE), overflow='ellipsis'
      )
      whole = lambda: Column(no_wrap=True)
      columns: list[ProgressColumn] = [
        TextColumn('{task.description}', markup=False, table_column=whole()),
        TextColumn(
          'epoch {task.fields[epoch]}', markup=False, table_column=whole()
        ),
        _PaceColumn(table_column=whole()),
        TimeElapsedColumn(table_column=whole()),
      ]
      if epochs is not None:
        columns.append(TimeRemainingColumn(table_column=whole()))
      if self._console.width >= _ROOM_FOR_A_BAR:
        columns.insert(1, BarColumn(bar_width=16))
      bar = Progress(*columns, console=self._console, transient=True)
      self._task = bar.add_task(
        shown.plain, total=epochs, epoch=self._epoch_text(0.0), pace=''
      )
      self._bar = bar

  def __call__(self, record: Mapping[str, Any]) -> None:
    """Shows a record of the log."""
    if record['kind'] == 'note':
      self._print(f'{self._title}: {record["text"]}')
      return
    pace: str | None = None
    if record['kind'] == 'valid':
      self._print(self._validation_line(record))
    else:
      self._loss = record['loss']
      pace = self._pace(record)
      self._last = record
      if self._is_due():
        self._print(self._training_line(record, pace))
    if self._bar:
      self._bar.update(
        self._task,
        completed=record['epoch'],
        epoch=self._epoch_text(record['epoch']),
      )
      if pace is not None:
        self._bar.update(self._task, pace=pace)

  def _pace(self, record: Mapping[str, Any]) -> str | None:
    """Of a training record, since the one before it."""
    if self._last is None:
      return None
    seconds = record['seconds'] - self._last['seconds']
    if seconds <= 0:
      return None
    rate = (record['step'] - self._last['step']) / seconds
    waited = record['seconds_waiting'] - self._last['seconds_waiting']
    memory = filesize.decimal(record['peak_memory_bytes'])
    return f'{rate:.1f} steps/s  {waited / seconds:.0%} input  {memory}'

  def _epoch_text(self, epoch: float) -> str:
    text = f'{epoch:.4g}' if epoch == round(epoch) else f'{epoch:.1f}'
    return text if self._epochs is None else f'{text}/{self._epochs}'

  def _training_line(self, record: Mapping[str, Any], pace: str | None) -> str:
    line = (
      f'{self._title}: epoch {self._epoch_text(record["epoch"])}  step '
      f'{record["step"]:,}  loss {record["loss"]:.4f}'
    )
    return line if pace is None else f'{line}  {pace}'

  def _validation_line(self, record: Mapping[str, Any]) -> str:
    return (
      f'{self._title}: epoch {self._epoch_text(record["epoch"])}  loss '
      f'{document.number_text(self._loss)}'
      f'  AUC {document.number_text(record["auc"])}  GAUC '
      f'{document.number_text(record["gauc"])}  logloss '
      f'{document.number_text(record["logloss"])}  lr '
      f'x{record["learning_rate_factor"]:g}  {record["seconds"]:.1f} s'
    )


class TransferDisplay(_Display):
  """How far a download is: a bar on a terminal, a line a minute elsewhere.

  Args:
    to: where it is shown; standard error by default.
    clock: seconds, ever rising.
  """

  def __init__(
    self,
    to: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    super().__init__(to, clock)
    self._name = ''
    # Time and bytes when the present file began.
    self._mark = (0.0, 0)
    if self._console.is_terminal:
      self._bar = Progress(
        TextColumn('{task.description}', markup=False),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=self._console,
        transient=True,
      )
      self._task = self._bar.add_task('', visible=False)

  def progress(self, name: str, done: int, total: int | None) -> None:
    """So many bytes of a file are here; `total` is None where nobody knows."""
    now = self._clock()
    if name != self._name:
      self._name, self._mark = name, (now, done)
      self._print(f'{name}: {self._amount(done, total)}')
      if self._bar:
        self._bar.reset(
          self._task, description=name, completed=done, visible=True
        )
    if self._bar:
      self._bar.update(self._task, completed=done, total=total)
    elif self._is_due():
      self._print(
        f'{name}: {self._amount(done, total)}{self._pace(done, total)}'
      )

  def note(self, text: str) -> None:
    """Something worth a line."""
    if self._bar:
      self._bar.update(self._task, visible=False)
    self._name = ''
    self._print(text)

  def _amount(self, done: int, total: int | None) -> str:
    if total is None:
      return filesize.decimal(done)
    if not done:
      return filesize.decimal(total)
    return f'{filesize.decimal(done)} of {filesize.decimal(total)}'

  def _pace(self, done: int, total: int | None) -> str:
    seconds, came = self._clock() - self._mark[0], done - self._mark[1]
    if seconds <= 0 or came <= 0:
      return ''
    pace = f', {filesize.decimal(int(came / seconds))}/s'
    if total is None:
      return pace
    left = (total - done) * seconds / came
    return f'{pace}, {left / 60:.0f} minutes left'


class CountDisplay(_Display):
  """How many rows are done: a bar on a terminal, a line a minute elsewhere.

  Args:
    title: what is done with them.
    to: where it is shown; standard error by default.
    clock: seconds, ever rising.
  """

  def __init__(
    self,
    title: str,
    to: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    super().__init__(to, clock)
    self._title = document.printable(title)
    # Of the first call: what came before it took another run's time.
    self._mark: tuple[float, int] | None = None
    if self._console.is_terminal:
      self._bar = Progress(
        TextColumn('{task.description}', markup=False),
        TimeElapsedColumn(),
        console=self._console,
        transient=True,
      )
      self._task = self._bar.add_task(self._title)

  def __call__(self, done: int) -> None:
    """So many rows are done."""
    now = self._clock()
    line = f'{self._title}: {done:,} rows'
    if self._mark is None:
      self._mark = (now, done)
    elif now > self._mark[0]:
      line += (
        f', {(done - self._mark[1]) / (now - self._mark[0]):,.0f} a second'
      )
    if self._bar:
      self._bar.update(self._task, description=line)
    elif self._is_due():
      self._print(line)
