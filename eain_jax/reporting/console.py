"""What a person sees at the terminal, and what a log keeps elsewhere.

Everything here goes to standard error; standard output is for results that a
program reads.
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import filesize
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
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
from rich.table import Column, Table
from rich.text import Text

from eain_jax.reporting import document
from eain_jax.reporting.ablation import ablation_report
from eain_jax.reporting.claims import METRIC_NAMES

console = Console(stderr=True, highlight=False)
_TRIALS_SHOWN = 5
_HEARTBEAT = 60.0  # seconds between two training lines where there is no bar
_VERDICT_STYLES = {'holds': 'green', 'fails': 'red'}


def _text(value: Any, style: str = '') -> Text:
  """Literal text: neither markup nor escape sequences of the data count."""
  return Text(document.printable(value), style)


def _narrow(text: str) -> str:
  """.8417±.0015: a row with its intervals fits into 80 columns."""
  return re.sub(r'\b0(?=\.\d)', '', text).replace(' ± ', '±')


def _grid(grid: document.Grid) -> Table:
  table = Table(
    title=_text(grid.caption) if grid.caption else None,
    title_justify='left',
    header_style='bold',
    box=None,
    pad_edge=False,
    padding=(0, 1, 0, 0),
  )
  for place, name in enumerate(grid.header):
    table.add_column(
      _text(name),
      justify='right' if place >= grid.num_text else 'left',
      no_wrap=True,
      style='dim' if place in grid.quoted else '',
    )
  for row in grid.rows:
    table.add_row(*(_text(_narrow(c.text), 'bold green' * c.best) for c in row))
  return table


def table1_on_console(
  table: Mapping[str, Any], times: Mapping[str, Mapping[str, Any]]
) -> RenderableType:
  """The numbers of a table, its notes, which claims hold, and the time taken.

  Args:
    table: of `table1.build_table1`.
    times: of `table1.training_times`.
  """
  report = document.table1_report(table)
  return _report(report, 2, [document.times_grid(table, times)])


def ablation_on_console(table: Mapping[str, Any]) -> RenderableType:
  """The differences of an ablation, and what can be said of each.

  Args:
    table: of `ablation.build_ablation`.
  """
  return _report(ablation_report(table), 2, [])


def _report(
  report: document.Report, num_sections: int, more: Sequence[document.Grid]
) -> RenderableType:
  """The first sections of a report, and grids after them."""
  blocks: list[RenderableType] = [_text(report.subtitle, 'bold')]
  for section in report.sections[:num_sections]:
    for block in section.blocks:
      match block:
        case document.Grid():
          blocks.append(_grid(block))
        case document.Paragraph(text):
          blocks.append(_text(text, 'dim'))
        case document.Points(items):
          lines = Table.grid(padding=(0, 2))
          for name, text in items:
            lines.add_row(_text(name, 'bold'), _text(text))
          blocks.append(lines)
        case document.Verdicts(claims):
          lines = Table.grid(padding=(0, 2))
          for claim in claims:
            style = _VERDICT_STYLES.get(claim['verdict'].split()[0], 'yellow')
            lines.add_row(
              _text(claim['verdict'], style),
              _text(f'{claim["claim"]}. {claim["measured"]}'),
            )
          blocks.append(lines)
  blocks += [_grid(grid) for grid in more]
  return Group(*(Padding(block, (0, 0, 1, 0)) for block in blocks))


def _value_text(name: str, value: Any) -> str:
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return document.ABSENT
  if isinstance(value, int):
    return f'{value:,}'
  return f'{value:.4f}'


def metrics_on_console(values: Mapping[str, Any]) -> None:
  """Prints the metrics of one evaluation.

  Args:
    values: of `evaluator.evaluate_scores`; 'ceiling' beside them, where given,
      is None or the AUC and GAUC of the true preference.
  """
  known = values.get('ceiling') or {}
  table = Table(box=None, pad_edge=False, header_style='bold')
  table.add_column('Metric')
  table.add_column('Value', justify='right')
  if known:
    table.add_column('Ceiling', justify='right', style='dim')
  for name, value in values.items():
    if name in ('ceiling', 'auc_ci95'):
      continue
    text = _value_text(name, value)
    half_width = values.get('auc_ci95')
    if name == 'auc' and half_width is not None and half_width >= 0:
      text += f' ± {half_width:.4f}'
    label = METRIC_NAMES.get(name, name.replace('_', ' '))
    limit = [_text(_value_text(name, known[name]))] if name in known else []
    table.add_row(_text(label), _text(text), *limit)
  console.print(table)


class _PaceColumn(ProgressColumn):
  """Steps a second, the share of waiting for input, and memory."""

  def render(self, task: Task) -> Text:
    return Text(task.fields['pace'], 'dim')


class TrainingDisplay:
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
    self._title, self._epochs = document.printable(title), epochs
    self._console = console if to is None else to
    self._clock = clock
    self._loss: float | None = None
    # The training record before.
    self._last: Mapping[str, Any] | None = None
    self._last_line = clock()
    self._bar = None
    if self._console.is_terminal:
      columns: list[ProgressColumn] = [
        TextColumn('{task.description}', markup=False),
        BarColumn(bar_width=8),
        TextColumn('epoch {task.fields[epoch]}', markup=False),
        _PaceColumn(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(),
      ]
      if epochs is not None:
        columns.append(TimeRemainingColumn())
      bar = Progress(*columns, console=self._console, transient=True)
      self._task = bar.add_task(
        self._title, total=epochs, epoch=self._epoch_text(0.0), pace=''
      )
      self._bar = bar

  def __enter__(self) -> 'TrainingDisplay':
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, *exception: object) -> None:
    if self._bar:
      self._bar.stop()

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
      is_due = self._clock() - self._last_line >= _HEARTBEAT
      if self._bar is None and is_due:
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

  def _print(self, line: str) -> None:
    self._last_line = self._clock()
    self._console.print(Text(line), soft_wrap=True)

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


class TransferDisplay:
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
    self._console = console if to is None else to
    self._clock = clock
    self._name = ''
    self._last_line = 0.0
    # Time and bytes when the present file began.
    self._mark = (0.0, 0)
    self._bar = None
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

  def __enter__(self) -> 'TransferDisplay':
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, *exception: object) -> None:
    if self._bar:
      self._bar.stop()

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
    elif now - self._last_line >= _HEARTBEAT:
      self._print(
        f'{name}: {self._amount(done, total)}{self._pace(done, total)}'
      )

  def note(self, text: str) -> None:
    """Something worth a line."""
    if self._bar:
      self._bar.update(self._task, visible=False)
    self._name = ''
    self._print(text)

  def _print(self, line: str) -> None:
    self._last_line = self._clock()
    self._console.print(_text(line), soft_wrap=True)

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


class CountDisplay:
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
    self._title = document.printable(title)
    self._console = console if to is None else to
    self._clock = clock
    # Of the first call: what came before it took another run's time.
    self._mark: tuple[float, int] | None = None
    self._last_line = clock()
    self._bar = None
    if self._console.is_terminal:
      self._bar = Progress(
        TextColumn('{task.description}', markup=False),
        TimeElapsedColumn(),
        console=self._console,
        transient=True,
      )
      self._task = self._bar.add_task(self._title)

  def __enter__(self) -> 'CountDisplay':
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, *exception: object) -> None:
    if self._bar:
      self._bar.stop()

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
    elif now - self._last_line >= _HEARTBEAT:
      self._last_line = now
      self._console.print(_text(line), soft_wrap=True)


def trials_on_console(
  objective: str, trials: Sequence[Mapping[str, Any]], best: int
) -> RenderableType:
  """The best trials of a search.

  Args:
    objective: the metric that was searched for.
    trials: as the record of a search has them.
    best: the number of the best one.
  """
  done = [trial for trial in trials if trial['value'] is not None]
  done.sort(key=lambda trial: (-trial['value'], trial['number']))
  table = Table(box=None, header_style='bold', pad_edge=False)
  table.add_column('trial', justify='right')
  table.add_column(METRIC_NAMES.get(objective, objective), justify='right')
  table.add_column('epoch', justify='right')
  table.add_column('settings', overflow='fold')
  for trial in done[:_TRIALS_SHOWN]:
    style = 'bold' if trial['number'] == best else ''
    values = [f'{name}={_short(v)}' for name, v in trial['values'].items()]
    table.add_row(
      str(trial['number']),
      document.number_text(trial['value']),
      f'{trial["best_epoch"]:g}',
      _text(' '.join(values)),
      style=style,
    )
  num_given_up = sum(trial['given_up'] for trial in trials)
  said = f'{len(trials)} trials, {num_given_up} of them given up early'
  return Group(_text(said), table)


def _short(value: Any) -> str:
  return f'{value:.3g}' if isinstance(value, float) else str(value)
