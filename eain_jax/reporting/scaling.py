"""How a measurement of scaling shows on a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from eain_jax.reporting.benchmark import (
  busy_others,
  late_programs,
  percent,
  plain_table,
  short_number,
  whole_number,
)

_LAST_LINE = (
  'model',
  'scaling',
  'parallelism',
  'devices',
  'cores',
  'batch',
  'ex_s',
  'ex_s_min',
  'ex_s_max',
  'step_ms',
  'efficiency',
  'efficiency_of_cores',
  'efficiency_of_cpu_time',
  'collective_ms',
  'collective_share',
  'cpu_ms',
  'others_cpu',
  'peak_rss_mb',
)


def _speed_table(result: Mapping[str, Any]) -> Table:
  settings = result['settings']['scaling']
  table = plain_table(
    f'Scaling of {settings["model"]}, {settings["parallelism"]} '
    f'({result["device_kind"]}, {result["threads"]} core(s))',
    ('scaling', 'devices', 'batch', 'ex/s', 'windows', 'step ms', 'quartiles'),
    1,
  )
  for row in result['rows']:
    span = lambda low, high, row=row: (
      f'{short_number(row[low])}-{short_number(row[high])}'
    )
    table.add_row(
      row['scaling'],
      str(row['devices']),
      whole_number(row['batch']),
      short_number(row['ex_s']),
      span('ex_s_min', 'ex_s_max'),
      short_number(row['step_ms']),
      span('step_ms_q1', 'step_ms_q3'),
    )
  return table


def _efficiency_table(result: Mapping[str, Any]) -> Table:
  shares_cores = result['rows'][0]['cores'] is not None
  table = plain_table(
    'Efficiency',
    (
      'scaling',
      'devices',
      'efficiency',
      *(['of cores', 'of CPU time'] if shares_cores else []),
      'collectives ms',
      'of step',
      'fed ex/s',
    ),
    1,
  )
  names = ['efficiency']
  if shares_cores:
    names += ['efficiency_of_cores', 'efficiency_of_cpu_time']
  for row in result['rows']:
    table.add_row(
      row['scaling'],
      str(row['devices']),
      *(percent(row[name]) for name in names),
      short_number(row['collective_ms']),
      percent(row['collective_share']),
      short_number(row['end_to_end']['ex_s']),
    )
  return table


def scaling_on_console(result: Mapping[str, Any]) -> list[RenderableType]:
  """Tables and notes, in the order in which they are shown.

  Args:
    result: the content of `scaling.json`.
  """
  notes = list(result['notes'])
  for row in result['rows']:
    # One device is one measurement, though it stands in both.
    if row['devices'] > 1 or row['scaling'] == result['rows'][0]['scaling']:
      notes += late_programs(
        row, f'{row["scaling"]}, {row["devices"]} device(s)'
      )
  notes += busy_others(result['rows'], 'While rows were timed')
  notes += [f'Left out: {skipped["reason"]}.' for skipped in result['skipped']]
  return [
    _speed_table(result),
    '',
    _efficiency_table(result),
    '',
    *(Text(note, 'dim') for note in notes),
  ]


def last_line(result: Mapping[str, Any]) -> dict[str, Any]:
  """What a paired runner reads: the last row."""
  return {name: result['rows'][-1][name] for name in _LAST_LINE}
