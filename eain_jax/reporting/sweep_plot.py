"""The picture of a sweep: speed against what was varied."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from eain_jax.reporting import plots
from eain_jax.reporting.benchmark import varied_key, whole_number
from eain_jax.reporting.claims import NAMES

_MODE_TITLES = {'train': 'Training', 'score': 'Scoring'}


def sweep_figure(result: Mapping[str, Any]) -> Figure:
  """Examples per second over the sweep's values, a panel a mode.

  The band is from the slowest to the fastest window of steps.
  """
  key = varied_key(result)
  modes = list(dict.fromkeys(row['mode'] for row in result['rows']))
  models = list(dict.fromkeys(row['model'] for row in result['rows']))
  figure = Figure(
    figsize=(5.6 * len(modes), 4.4),
    facecolor='white',
    layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
  )
  panels = figure.subplots(1, len(modes), squeeze=False)[0]
  short = FuncFormatter(lambda value, _: whole_number(value))
  for axes, mode in zip(panels, modes, strict=True):
    plots.style_axes(axes, _MODE_TITLES[mode], 'examples/s', 'higher is better')
    for model in models:
      rows = sorted(
        (r for r in result['rows'] if (r['model'], r['mode']) == (model, mode)),
        key=lambda row: row[key],
      )
      place = [row[key] for row in rows]
      color, marker = plots.style_of(model)
      axes.fill_between(
        place,
        [row['ex_s_min'] for row in rows],
        [row['ex_s_max'] for row in rows],
        color=color,
        alpha=0.15,
        lw=0,
      )
      axes.plot(
        place,
        [row['ex_s'] for row in rows],
        color=color,
        marker=marker,
        ms=5,
        mec='white',
        mew=0.6,
        lw=1.8,
        label=NAMES.get(model, model),
      )
    axes.set_xscale('log')
    if len(models) == 1:
      axes.set_ylim(bottom=0)
    else:  # A linear model is a hundred times as fast as a deep one.
      axes.set_yscale('log')
      axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
      axes.yaxis.set_minor_locator(NullLocator())
    places = sorted({row[key] for row in result['rows']})
    axes.set_xticks(places)
    axes.xaxis.set_major_formatter(short)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(short)
    axes.set_xlabel(
      'items' if key == 'items' else 'examples a batch',
      fontsize=9.5,
    )
  figure.legend(
    *panels[0].get_legend_handles_labels(),
    loc='outside upper center',
    ncols=len(models),
    frameon=False,
    fontsize=10.5,
  )
  return figure


def plot_sweep(result: Mapping[str, Any], path: Path) -> None:
  """Writes `sweep_figure` as a PNG."""
  plots.save_figure(sweep_figure(result), path)
