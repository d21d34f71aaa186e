"""The picture of calibration: how often what was predicted came true."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullFormatter

from eain_jax.reporting import plots

# Below this share of positives linear axes would press all into a corner.
_RARE = 0.1

# By number of the bin: predicted and observed.
Curve = dict[int, tuple[float, float]]


def _mean_curve(curves: Sequence[Curve]) -> Curve:
  """Over the bins that every seed has: wide ties leave some of them empty."""
  shared = set(curves[0]).intersection(*curves[1:])
  return {
    number: tuple(np.mean([curve[number] for curve in curves], axis=0))
    for number in sorted(shared)
  }


def _draw_model(axes: Axes, row: Mapping[str, Any]) -> None:
  """A line a seed, thin, and their mean; with one seed that line alone."""
  curves: list[Curve] = [
    {one['number']: (one['predicted'], one['observed']) for one in bins}
    for bins in row['reliability']
  ]
  color, marker = plots.style_of(row['model'])
  is_eain = row['model'] == 'eain'
  if len(curves) > 1:
    for curve in curves:
      axes.plot(
        *zip(*curve.values(), strict=True), color=color, alpha=0.3, lw=0.8
      )
  mean = np.array(list(_mean_curve(curves).values())).reshape(-1, 2)
  axes.plot(
    mean[:, 0],
    mean[:, 1],
    color=color,
    lw=2.6 if is_eain else 1.7,
    marker=marker,
    ms=8,
    mec='white',
    mew=0.7,
    zorder=4 if is_eain else 3,
    label=row['name'],
  )


def _limits(points: np.ndarray, is_rare: bool) -> tuple[float, float]:
  """Of both axes; logarithmic ones hold all points that are above 0."""
  if not is_rare:
    return -0.02, 1.02
  return points[points > 0].min() / 1.6, min(1.0, points.max() * 1.6)


def calibration_figure(table: Mapping[str, Any]) -> Figure:
  """Observed by predicted probability in bins of equal mass, all models.

  With several seeds each is a thin line, and the mean is over the bins that all
  of them have. Where positives are rare the axes are logarithmic; a bin
  without a positive is not drawn there.

  Args:
    table: of `build_table1`.
  """
  rows = table['rows']
  figure = Figure(
    figsize=(11, 6.6),
    facecolor='white',
    layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
  )
  axes = figure.subplots()
  bins = [
    one for row in rows for of_seed in row['reliability'] for one in of_seed
  ]
  points = np.array([(one['predicted'], one['observed']) for one in bins])
  weight = np.array([one['weight'] for one in bins])
  base_rate = float(np.average(points[:, 1], weights=weight))
  plots.style_axes(
    axes,
    'Calibration',
    'Observed share of positives',
    'ten bins of equal mass; on the diagonal is best',
  )
  axes.grid(axis='x', color=plots.GRID, linewidth=0.9)
  is_rare = 0 < base_rate < _RARE
  limits = _limits(points, is_rare)
  if is_rare:
    axes.set_xscale('log', nonpositive='mask')
    axes.set_yscale('log', nonpositive='mask')
    axes.tick_params(which='minor', length=0)
    for axis in (axes.xaxis, axes.yaxis):
      axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
      axis.set_minor_formatter(NullFormatter())
  axes.set(xlim=limits, ylim=limits)
  diagonal = np.clip(limits, 0, 1)
  axes.plot(
    diagonal,
    diagonal,
    color=plots.TEXT,
    lw=1.1,
    ls=(0, (4, 3)),
    zorder=2,
  )
  for text, place, align in (
    ('predicts too little', (0.02, 0.98), 'top'),
    ('predicts too much', (0.98, 0.02), 'bottom'),
  ):
    axes.annotate(
      text,
      place,
      xycoords='axes fraction',
      ha='left' if align == 'top' else 'right',
      va=align,
      fontsize=9,
      color=plots.MUTED,
    )
  for row in rows:
    _draw_model(axes, row)
  axes.set_xlabel(
    'Predicted probability, mean of the bin', fontsize=9.5, color=plots.TEXT
  )
  handles, labels = axes.get_legend_handles_labels()
  figure.legend(
    handles,
    labels,
    loc='outside upper center',
    ncols=len(rows),
    frameon=False,
    fontsize=10.5,
    labelcolor=plots.TEXT,
  )
  return figure


def plot_calibration(table: Mapping[str, Any], path: Path) -> None:
  """Writes `calibration_figure` as a PNG."""
  plots.save_figure(calibration_figure(table), path)
