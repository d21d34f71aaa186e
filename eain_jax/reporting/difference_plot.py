"""The picture of differences: rows minus one of them, with their intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from eain_jax.reporting import plots
from eain_jax.reporting.claims import METRIC_NAMES, signed
from eain_jax.reporting.measured import Line, is_shown

METRICS = ('auc', 'gauc')
_TEXT, _MUTED, _GRID, _BAND = '#1c2330', '#5c6675', '#e4e8ee', '#f4f6f9'
_LOWER, _HIGHER, _OPEN = '#D55E00', '#0072B2', '#8a93a1'


def _draw(axes: Axes, place: int, difference: Mapping[str, Any]) -> None:
  """One difference with its interval and its number."""
  mean = difference['mean']
  if mean is None:
    return
  color = _OPEN
  if is_shown(difference):
    color = _LOWER if mean < 0 else _HIGHER
  axes.errorbar(
    mean,
    place,
    xerr=difference['ci95'] or 0.0,
    color=color,
    fmt='o',
    ms=8.5,
    mfc=color if is_shown(difference) else 'white',
    mew=1.8,
    capsize=4,
    lw=2,
    zorder=3,
  )
  axes.annotate(
    signed(mean, difference['ci95']),
    (mean, place),
    xytext=(0, 8),
    textcoords='offset points',
    ha='center',
    fontsize=8.5,
    color=_TEXT,
    # The line through 0 would cross the number.
    bbox={'fc': 'white', 'ec': 'none', 'alpha': 0.85, 'pad': 0.6},
    zorder=4,
  )


def _style(axes: Axes, metric: str, lines: Sequence[Line]) -> None:
  axes.set_title(
    f'Test {METRIC_NAMES[metric]}',
    loc='left',
    fontsize=12,
    color=_TEXT,
    weight='bold',
  )
  axes.axvline(0, color=_TEXT, lw=1.2, zorder=2)
  for place, line in enumerate(lines):
    if line.differences is None:
      axes.axhspan(place - 0.42, place + 0.42, color=_BAND, lw=0, zorder=0)
  axes.set_ylim(len(lines) - 0.4, -0.6)
  axes.margins(x=0.1)
  axes.grid(axis='x', color=_GRID, linewidth=0.9)
  axes.set_axisbelow(True)
  axes.xaxis.set_major_locator(MaxNLocator(5))
  axes.xaxis.set_major_formatter(
    FuncFormatter(lambda value, _: f'{value:+.3g}' if value else '0')
  )
  axes.tick_params(colors=_TEXT, labelsize=9.5, length=0)
  for side in ('top', 'right', 'left'):
    axes.spines[side].set_visible(False)
  axes.spines['bottom'].set_color('#b8c0cc')


def difference_figure(lines: Sequence[Line], base: str) -> Figure:
  """Differences to a base in AUC and GAUC, 0 a line through both panels.

  A filled mark is a difference that is shown, see `measured.is_shown`.

  Args:
    lines: from top to bottom.
    base: what they are differences to.
  """
  figure = Figure(
    figsize=(11, 1.5 + 0.45 * len(lines)),
    facecolor='white',
    layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1),
  )
  panels = figure.subplots(1, len(METRICS), sharey=True, squeeze=False)[0]
  for axes, metric in zip(panels, METRICS, strict=True):
    for place, line in enumerate(lines):
      if line.differences is not None:
        _draw(axes, place, line.differences[metric])
    _style(axes, metric, lines)
    axes.set_xlabel(f'minus {base}', fontsize=9.5, color=_TEXT)
  panels[0].set_yticks(range(len(lines)), [line.name for line in lines])
  for label, line in zip(panels[0].get_yticklabels(), lines, strict=True):
    if line.differences is None:
      label.set_color(_MUTED)
      label.set_weight('bold')
  mark = lambda color, face, label: Line2D(
    [],
    [],
    color=color,
    marker='o',
    ms=8,
    mfc=face,
    mew=1.8,
    lw=2,
    label=label,
  )
  figure.legend(
    handles=[
      mark(_LOWER, _LOWER, f'below {base}'),
      mark(_HIGHER, _HIGHER, f'above {base}'),
      mark(_OPEN, 'white', 'no difference shown'),
    ],
    title='95 % interval over seeds, paired; filled where p < .05 after Holm',
    title_fontsize=9,
    loc='outside upper center',
    ncols=3,
    frameon=False,
    fontsize=10,
    labelcolor=_TEXT,
  )
  return figure


def plot_differences(lines: Sequence[Line], base: str, path: Path) -> None:
  """Writes `difference_figure` as a PNG."""
  plots.save_figure(difference_figure(lines, base), path)
