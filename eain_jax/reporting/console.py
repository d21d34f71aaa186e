"""What a command found, for a terminal.

Most of it is given back for the caller to print; `metrics_on_console` prints to
standard error, for the same values are JSON on standard output.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from eain_jax.reporting import document
from eain_jax.reporting.ablation import ablation_report
from eain_jax.reporting.claims import METRIC_NAMES
from eain_jax.reporting.progress import console

_TRIALS_SHOWN = 5
_VERDICT_STYLES = {'holds': 'green', 'fails': 'red'}


def _text(value: Any, style: str = '') -> Text:
  """Literal text: neither markup nor escape sequences of the data count."""
  return Text(document.printable(value), style)


def _narrow(text: str) -> str:
  """.8417±.0015: a row with its intervals fits into 80 columns."""
  return re.sub(r'\b0(?=\.\d)', '', text).replace(' ± ', '±')


def _grid(grid: document.Grid, *, wraps: bool = False) -> Table:
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
      no_wrap=not wraps,
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
  names = {row['model']: row['name'] for row in table['rows']}
  return _report(report, 2, document.times_grid(names, times))


def ablation_on_console(
  table: Mapping[str, Any], times: Mapping[str, Mapping[str, Any]]
) -> RenderableType:
  """The differences of an ablation, what can be said of each, the time taken.

  Args:
    table: of `ablation.build_ablation`.
    times: of `measured.times_of_rows`, by variant, and 'eain'.
  """
  names = {row['variant']: row['name'] for row in table['rows']}
  grid = document.times_grid({'eain': table['base']['name'], **names}, times)
  return _report(ablation_report(table), 2, grid)


def _report(
  report: document.Report, num_sections: int, times: document.Grid
) -> RenderableType:
  """The first sections of a report, and the times after them."""
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
            style = _VERDICT_STYLES.get(claim['verdict'], 'yellow')
            lines.add_row(
              _text(claim['verdict'], style),
              _text(f'{claim["claim"]}. {claim["measured"]}'),
            )
          blocks.append(lines)
  # Of many seeds they are wider than a terminal.
  blocks.append(_grid(times, wraps=True))
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
  if failed := [trial for trial in trials if trial['failed']]:
    first = failed[0]
    said += (
      f'; {len(failed)} could not be trained: of trial {first["number"]} '
      f'{first["failed"]}'
    )
  return Group(_text(said), table)


def _short(value: Any) -> str:
  return f'{value:.3g}' if isinstance(value, float) else str(value)
