"""The picture of a measurement of scaling: speed against devices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from eain_jax.reporting import plots
from eain_jax.reporting.benchmark import percent, whole_number
from eain_jax.reporting.claims import NAMES

_TITLES = {'strong': 'Strong scaling', 'weak': 'Weak scaling'}
_IDEAL, _BOUND = '#5c6675', '#D55E00'


def _speed(row: Mapping[str, Any], step: str = 'step_ms') -> float:
  """Examples per second of a step; of these times efficiency is made."""
  return 1e3 * row['batch'] / row[step]


def _draw_bounds(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
  """What n devices would do at best, from the speed of one."""
  alone = _speed(rows[0])
  devices = [row['devices'] for row in rows]
  axes.plot(
    devices,
    [alone * n for n in devices],
    color=_IDEAL,
    lw=1.3,
    ls='--',
    label='n times one device',
  )
  cores = rows[0]['cores']
  if cores is None or devices[-1] <= cores:
    return
  # The bend lies at the number of cores, be it measured or not.
  bends = sorted({*devices, cores})
  axes.plot(
    bends,
    [alone * min(n, cores) for n in bends],
    color=_BOUND,
    lw=1.3,
    ls=':',
    label=f'bound by {cores} core(s)',
  )


def _draw_rows(
  axes: Axes, rows: Sequence[Mapping[str, Any]], model: str
) -> None:
  """Speed with the band of its quartiles, and each row's efficiency."""
  devices = [row['devices'] for row in rows]
  color, marker = plots.style_of(model)
  axes.fill_between(
    devices,
    [_speed(row, 'step_ms_q3') for row in rows],
    [_speed(row, 'step_ms_q1') for row in rows],
    color=color,
    alpha=0.15,
    lw=0,
  )
  axes.plot(
    devices,
    [_speed(row) for row in rows],
    color=color,
    marker=marker,
    ms=6,
    mec='white',
    mew=0.6,
    lw=1.8,
    label=f'{NAMES.get(model, model)}, measured, with its efficiency',
  )
  for row in rows:
    if row['efficiency'] is not None:
      label_efficiency(
        axes, row['efficiency'], (row['devices'], _speed(row)), color
      )


def label_efficiency(
  axes: Axes, efficiency: float, place: tuple[float, float], color: Any
) -> None:
  """Writes an efficiency below its mark."""
  axes.annotate(
    percent(efficiency).replace('.0 %', ' %'),
    place,
    xytext=(0, -15),
    textcoords='offset points',
    ha='center',
    fontsize=9,
    color=color,
  )


def style_scaling_axes(axes: Axes, counts: Sequence[int]) -> None:
  """Both axes logarithmic, with a tick at each number of devices."""
  axes.set_xscale('log', base=2)
  axes.set_yscale('log')
  axes.margins(x=0.08, y=0.12)
  axes.set_xticks(counts)
  axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(
      FuncFormatter(lambda value, _: whole_number(value))
    )
  axes.tick_params(labelleft=True)


def scaling_figure(result: Mapping[str, Any]) -> Figure:
  """Examples per second against devices, a panel for strong and for weak.

  The line is of the median step, the band of the quartiles.
  """
  kinds = list(dict.fromkeys(row['scaling'] for row in result['rows']))
  model = result['settings']['scaling']['model']
  parallelism = result['settings']['scaling']['parallelism']
  figure = Figure(
    figsize=(5.6 * len(kinds), 4.6),
    facecolor='white',
    layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
  )
  # One scale for both: they start from the same row.
  panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
  for axes, kind in zip(panels, kinds, strict=True):
    rows = [row for row in result['rows'] if row['scaling'] == kind]
    batch = whole_number(result['settings']['train']['batch_size'])
    of = 'a step' if kind == 'strong' else 'a device'
    plots.style_axes(
      axes, _TITLES[kind], 'examples/s', f'{batch} examples {of}; {parallelism}'
    )
    if rows[0]['devices'] == 1:
      _draw_bounds(axes, rows)
    _draw_rows(axes, rows, model)
    style_scaling_axes(axes, [row['devices'] for row in rows])
    virtual = 'virtual ' if rows[0]['cores'] is not None else ''
    axes.set_xlabel(f'{virtual}devices', fontsize=9.5)
  figure.legend(
    *panels[0].get_legend_handles_labels(),
    loc='outside upper center',
    ncols=3,
    frameon=False,
    fontsize=9.5,
  )
  return figure


def plot_scaling(result: Mapping[str, Any], path: Path) -> None:
  """Writes `scaling_figure` as a PNG."""
  plots.save_figure(scaling_figure(result), path)
