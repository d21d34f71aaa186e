"""How a benchmark shows on a terminal."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from eain_jax.reporting import document
from eain_jax.reporting.progress import console

_LAST_LINE = (
  'model',
  'mode',
  'batch',
  'ex_s',
  'ex_s_min',
  'ex_s_max',
  'step_ms',
  'cpu_ms',
  'threads',
  'others_cpu',
  'peak_rss_mb',
)


def short_number(value: float | None) -> str:
  """Three significant digits; millions as such, so that a row fits."""
  if value is None or math.isnan(value):
    return document.ABSENT
  if abs(value) >= 1e6:
    return f'{value / 1e6:.3g}M'
  if abs(value) >= 100:
    return f'{value:,.0f}'
  return f'{value:.3g}'


def percent(share: float | None) -> str:
  return document.ABSENT if share is None else f'{100 * share:.1f} %'


def plain_table(title: str, columns: tuple[str, ...], num_text: int) -> Table:
  table = Table(
    title=title,
    title_justify='left',
    title_style='bold',
    header_style='bold',
    box=None,
    pad_edge=False,
    padding=(0, 1, 0, 0),
  )
  for place, name in enumerate(columns):
    table.add_column(
      name, justify='left' if place < num_text else 'right', no_wrap=True
    )
  return table


def whole_number(value: float) -> str:
  return f'{value / 1e6:g}M' if value >= 1e6 else f'{value:,g}'


def varied_key(result: Mapping[str, Any]) -> str:
  """The key of a row that a sweep varies; the batch where there is none."""
  swept = result['settings']['benchmark']['sweep']
  return 'items' if swept == 'items' else 'batch'


def _speed_table(result: Mapping[str, Any]) -> Table:
  varied = varied_key(result)
  table = plain_table(
    f'Speed ({result["device_kind"]}, {result["threads"]} core(s))',
    (
      'model',
      'mode',
      varied,
      'ex/s',
      'step ms',
      'quartiles',
      'CPU ms',
      'fed ex/s',
      'waits',
      'RSS MB',
    ),
    2,
  )
  for row in result['rows']:
    fed = row['end_to_end']
    table.add_row(
      row['model'],
      row['mode'],
      whole_number(row[varied]),
      short_number(row['ex_s']),
      short_number(row['step_ms']),
      f'{short_number(row["step_ms_q1"])}-{short_number(row["step_ms_q3"])}',
      short_number(row['cpu_ms']),
      short_number(fed['ex_s']),
      percent(fed['input_wait_share']),
      short_number(row['peak_rss_mb']),
    )
  return table


def _program_table(result: Mapping[str, Any]) -> Table:
  varied = varied_key(result)
  table = plain_table(
    'Program',
    (
      'model',
      'mode',
      varied,
      'params',
      'compile s',
      'GFLOP',
      'of max',
      'GB',
      'of max',
      'input ex/s',
    ),
    2,
  )
  for row in result['rows']:
    program = row['program']
    giga = lambda value: None if value is None else value / 1e9
    table.add_row(
      row['model'],
      row['mode'],
      whole_number(row[varied]),
      short_number(row['parameters']),
      short_number(row['compile_s']),
      short_number(giga(program['matmul_flops'])),
      percent(row['share_of_matmul_ceiling']),
      short_number(giga(program['bytes_accessed'])),
      percent(row['share_of_memory_ceiling']),
      short_number(row['input_examples_per_second']),
    )
  return table


def late_programs(row: Mapping[str, Any], title: str) -> list[str]:
  """A note where compilations spoiled a row's figures."""
  late = row['timed_compilations'] + row['end_to_end']['timed_compilations']
  if not late:
    return []
  return [
    f'{title}: {late} program(s) were compiled while time was taken: its '
    'figures are too slow.'
  ]


def busy_others(rows: Sequence[Mapping[str, Any]], title: str) -> list[str]:
  """A note where other processes slowed rows down."""
  most = max(row['others_cpu'] or 0 for row in rows)
  if most <= 0.15:
    return []
  return [
    f'{title}: other processes kept {"up to " * (len(rows) > 1)}{most:.2f} '
    'core(s) busy: trust CPU time more than wall time.'
  ]


def _notes(result: Mapping[str, Any]) -> list[str]:
  notes = []
  ceilings = result['ceilings']
  if ceilings:
    products = ', '.join(
      f'{short_number(value / 1e9)} GFLOP/s ({name.removeprefix("matmul_")})'
      for name, value in ceilings.items()
      if name != 'memory'
    )
    memory = short_number(ceilings['memory'] / 1e9)
    notes.append(f'Ceilings, measured here: {products}, {memory} GB/s.')
  for row in result['rows']:
    title = f'{row["model"]} {row["mode"]}'
    notes += late_programs(row, title) + busy_others([row], title)
  for skipped in result['skipped']:
    notes.append(f'Left out: {skipped["reason"]}.')
  return notes


def _origin(scope: str) -> str:
  """jit(step)/transpose(jvp(DIN))/mlp/dot: gradient of mlp/dot."""
  scope = re.sub(r'^.*?jit\([^()]*\)/', '', scope)
  scope = re.sub(r'transpose\(jvp\(\w*\)\)/', 'gradient of ', scope)
  return re.sub(r'jvp\(\w*\)/', '', scope) or document.ABSENT


def _operations_table(row: Mapping[str, Any]) -> Table:
  table = plain_table(
    f'Top operations, {row["model"]} {row["mode"]}',
    ('operation', 'from', 'ms a step', 'share'),
    2,
  )
  # On 80 columns the figures stay; the JSON has the names in full.
  table.columns[0].max_width, table.columns[1].max_width = 24, 40
  for operation in row['top_operations']:
    table.add_row(
      Text(operation['name']),
      Text(_origin(operation['scope'])),
      short_number(operation['ms']),
      percent(operation['share']),
    )
  return table


def _preparation_table(values: Mapping[str, Any]) -> Table:
  table = plain_table(
    'Preparation',
    ('reviews', 'MB', 'wall s', 'CPU s', 'reviews/s', 'MB/s', 'RSS MB'),
    0,
  )
  table.add_row(
    f'{values["lines"]:,}',
    short_number(values['megabytes']),
    short_number(values['wall_s']),
    short_number(values['cpu_s']),
    short_number(values['reviews_per_second']),
    short_number(values['megabytes_per_second']),
    short_number(values['peak_rss_mb']),
  )
  return table


def benchmark_on_console(result: Mapping[str, Any]) -> list[RenderableType]:
  """Tables and notes of a benchmark, in the order in which they are shown.

  Args:
    result: the content of `benchmark.json`.
  """
  blocks: list[RenderableType] = []
  if result['rows']:
    blocks += [_speed_table(result), '', _program_table(result), '']
  for row in result['rows']:
    if 'top_operations' in row:
      blocks += [_operations_table(row), '']
  if 'preparation' in result:
    blocks += [_preparation_table(result['preparation']), '']
  return blocks + [Text(note, 'dim') for note in _notes(result)]


def last_line(result: Mapping[str, Any]) -> dict[str, Any]:
  """What a paired runner reads: the last row, or else the preparation."""
  if not result['rows']:
    return dict(result['preparation'])
  return {name: result['rows'][-1][name] for name in _LAST_LINE}


class BenchmarkDisplay:
  """Says what is being measured: a spinner on a terminal, lines elsewhere."""

  def __init__(self):
    self._status = console.status('') if console.is_terminal else None

  def __enter__(self) -> 'BenchmarkDisplay':
    if self._status:
      self._status.start()
    return self

  def __exit__(self, *exception: object) -> None:
    if self._status:
      self._status.stop()

  def __call__(self, text: str) -> None:
    if self._status:
      self._status.update(Text(text))
    else:
      console.print(Text(text), soft_wrap=True)
