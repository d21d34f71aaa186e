"""How a step that was compiled for absent TPUs shows: tables and a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from eain_jax.reporting import plots
from eain_jax.reporting.benchmark import (
  percent,
  plain_table,
  short_number,
  whole_number,
)
from eain_jax.reporting.scaling_plot import (
  label_efficiency,
  style_scaling_axes,
)

_IDEAL = '#5c6675'
_TITLES = {
  'strong': 'Strong scaling, predicted',
  'weak': 'Weak scaling, predicted',
}


def _gigabytes(size: float) -> str:
  return f'{size / 1e9:.3f} GB'


def _program_table(result: Mapping[str, Any]) -> Table:
  program, job = result['program'], result['settings']
  table = plain_table(
    f'{job["model_name"]}, one chip of {result["topology"]} '
    f'({result["chips"]} chips), as compiled by {result["compiler"]}',
    ('a step', 'of a chip'),
    1,
  )
  held = program['argument_bytes'] + program['temporary_bytes']
  rows = [
    ('parameters of the model', whole_number(program['parameters'])),
    ('examples of the batch', whole_number(result['prediction']['batch'])),
    ('update of tables', result['table_update']),
    ('arguments', _gigabytes(program['argument_bytes'])),
    ('temporaries', _gigabytes(program['temporary_bytes'])),
    (
      'together',
      f'{_gigabytes(held)} of {_gigabytes(result["chip"]["memory_bytes"])}',
    ),
    ('FLOPs of products', whole_number(program['matmul_flops'])),
    ('FLOPs, XLA', whole_number(program['flops'])),
    (
      'bytes of memory, unfused',
      whole_number(program['memory_traffic_bytes']),
    ),
    ('bytes of memory, XLA', whole_number(program['bytes_accessed'])),
    ('bytes of collectives', whole_number(program['collective_bytes'])),
    (
      '  of its own distinct rows, each way',
      whole_number(result['collective_bytes_of_own_rows']),
    ),
    (
      "  bound: of all chips' distinct rows",
      whole_number(result['collective_bytes_bound']),
    ),
    ('compiled in', f'{program["compile_s"]:.0f} s'),
  ]
  for row in rows:
    table.add_row(*row)
  return table


def _collectives_table(result: Mapping[str, Any]) -> Table:
  table = plain_table(
    'Collectives of a step', ('operation', 'count', 'bytes'), 1
  )
  for row in result['program']['collectives']:
    table.add_row(row['op'], str(row['count']), whole_number(row['bytes']))
  return table


def _curve_table(result: Mapping[str, Any], kind: str) -> Table:
  batch = 'a batch of {:,} examples'.format(result[kind][-1]['batch'])
  if kind == 'weak':
    batch = f'{whole_number(result["weak"][0]["batch"])} examples a chip'
  table = plain_table(
    f'{kind.capitalize()} scaling, {batch}: predicted, not measured',
    (
      'chips',
      'slice',
      'products',
      'memory',
      'collectives',
      'step ms',
      'ex/s',
      'efficiency',
      'GB a chip',
    ),
    1,
  )
  for row in result[kind]:
    table.add_row(
      whole_number(row['chips']),
      row['shape'],
      *(
        short_number(row[name])
        for name in ('products_ms', 'memory_ms', 'collectives_ms', 'step_ms')
      ),
      short_number(row['ex_s']),
      percent(row['efficiency']),
      f'{row["state_bytes"] / 1e9:.2f}' + ('' if row['fits'] else '*'),
    )
  return table


def prediction_on_console(result: Mapping[str, Any]) -> list[RenderableType]:
  """Tables and assumptions, in the order in which they are shown.

  Args:
    result: the content of `topology.json`.
  """
  return [
    _program_table(result),
    '',
    _collectives_table(result),
    '',
    _curve_table(result, 'strong'),
    '',
    _curve_table(result, 'weak'),
    Text(
      '* more than a chip has; then efficiency is beside a step that cannot be',
      'dim',
    ),
    '',
    Text('A prediction from published figures of the chips, in which', 'bold'),
    *(Text(f'- {line}', 'dim') for line in result['assumptions']),
  ]


def prediction_figure(result: Mapping[str, Any]) -> Figure:
  """Predicted examples per second against chips, strong and weak.

  Hollow marks are slices that the state does not fit into.
  """
  model = result['settings']['model_name']
  color, marker = plots.style_of(model)
  figure = Figure(
    figsize=(11.2, 4.8),
    facecolor='white',
    layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
  )
  panels = figure.subplots(1, 2, squeeze=False, sharey=True)[0]
  for axes, kind in zip(panels, ('strong', 'weak'), strict=True):
    rows = result[kind]
    chips = [row['chips'] for row in rows]
    speed = [row['ex_s'] for row in rows]
    batch = whole_number(rows[-1 if kind == 'strong' else 0]['batch'])
    of = 'a step' if kind == 'strong' else 'a chip'
    plots.style_axes(
      axes, _TITLES[kind], 'examples/s', f'{batch} examples {of}'
    )
    axes.plot(
      chips,
      [speed[0] * n / chips[0] for n in chips],
      color=_IDEAL,
      lw=1.3,
      ls='--',
      label='n times one chip',
    )
    axes.plot(chips, speed, color=color, lw=1.8, label='predicted')
    for fits, face, label in (
      (True, color, 'the state fits'),
      (False, 'white', 'the state does not fit'),
    ):
      own = [row for row in rows if row['fits'] == fits]
      axes.plot(
        [row['chips'] for row in own],
        [row['ex_s'] for row in own],
        color=color,
        marker=marker,
        ms=7,
        mfc=face,
        ls='none',
        label=label,
      )
    for row in rows:
      label_efficiency(
        axes, row['efficiency'], (row['chips'], row['ex_s']), color
      )
    style_scaling_axes(axes, chips)
    axes.set_xlabel(f'chips of {result["generation"]}', fontsize=9.5)
  figure.legend(
    *panels[0].get_legend_handles_labels(),
    loc='outside upper center',
    ncols=4,
    frameon=False,
    fontsize=9.5,
  )
  return figure


def plot_prediction(result: Mapping[str, Any], path: Path) -> None:
  """Writes `prediction_figure` as a PNG."""
  plots.save_figure(prediction_figure(result), path)
