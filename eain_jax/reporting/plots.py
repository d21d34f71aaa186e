"""Figures, drawn without pyplot: nothing global, no display."""

import collections
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from eain_jax.artifacts import written_whole
from eain_jax.config import MODEL_CONFIGS
from eain_jax.evaluation.evaluator import selects_by
from eain_jax.reporting import paper
from eain_jax.reporting.claims import NAMES
from eain_jax.training.run_set import Run

# Okabe and Ito's palette, told apart with any colour vision; shapes as well.
_STYLES = {
  'lr': ('#777777', 'o'),
  'mf': ('#E69F00', 's'),
  'dnn': ('#56B4E9', '^'),
  'din': ('#0072B2', 'D'),
  'deepfm': ('#009E73', 'v'),
  'eain': ('#D55E00', 'P'),
}
_OTHER_STYLE = ('#CC79A7', 'X')
_PANELS = (
  ('loss', 'Training loss', 'nats an example', 'lower is better'),
  ('auc', 'Validation AUC', 'AUC', 'higher is better'),
  ('gauc', 'Validation GAUC', 'GAUC', 'higher is better'),
  ('logloss', 'Validation logloss', 'nats an example', 'lower is better'),
)
TEXT, MUTED, GRID = '#1c2330', '#5c6675', '#e4e8ee'

# By epoch, ascending.
Curve = dict[float, float]


def _training_curve(records: Iterable[Mapping[str, Any]]) -> Curve:
  """Mean of an epoch's records of the loss, at the end of the epoch."""
  losses = collections.defaultdict(list)
  for record in records:
    if record['kind'] == 'train':
      losses[float(math.ceil(record['epoch']))].append(record['loss'])
  return {epoch: float(np.mean(losses[epoch])) for epoch in sorted(losses)}


def _validation_curve(
  records: Iterable[Mapping[str, Any]], metric: str
) -> Curve:
  curve = {
    record['epoch']: record[metric]
    for record in records
    if record['kind'] == 'valid' and record[metric] is not None
  }
  return {epoch: curve[epoch] for epoch in sorted(curve)}


def _mean_curve(curves: Sequence[Curve]) -> Curve:
  """Over the epochs that every seed reached; beyond, the mean would jump."""
  shared = set(curves[0]).intersection(*curves[1:])
  return {
    epoch: float(np.mean([curve[epoch] for curve in curves]))
    for epoch in sorted(shared)
  }


def style_of(model: str) -> tuple[str, str]:
  """The colour and the marker of a model, the same in every figure."""
  return _STYLES.get(model, _OTHER_STYLE)


def style_axes(axes: Axes, title: str, label: str, hint: str) -> None:
  """A panel with its title, the unit of y, and how to read it."""
  axes.set_title(title, loc='left', fontsize=12, color=TEXT, weight='bold')
  # A dollar sign in an id would begin a formula.
  axes.set_title(hint, loc='right', fontsize=8.5, color=MUTED, parse_math=False)
  axes.set_ylabel(label, fontsize=9.5, color=TEXT)
  axes.grid(axis='y', color=GRID, linewidth=0.9)
  axes.set_axisbelow(True)
  axes.tick_params(colors=MUTED, labelsize=9, length=0)
  for side in ('top', 'right', 'left'):
    axes.spines[side].set_visible(False)
  axes.spines['bottom'].set_color('#b8c0cc')


def _by_model(runs: Iterable[Run]) -> dict[str, list[Run]]:
  groups: dict[str, list[Run]] = {}
  for run in runs:
    groups.setdefault(run.model, []).append(run)
  order = [*MODEL_CONFIGS, *sorted(groups.keys() - MODEL_CONFIGS.keys())]
  return {model: groups[model] for model in order if model in groups}


def _draw_model(axes: Axes, model: str, curves: Sequence[Curve]) -> None:
  """A line a seed, thin, and their mean; with one seed that line alone."""
  color, marker = style_of(model)
  width = 2.6 if model == 'eain' else 1.7
  order = 4 if model == 'eain' else 3
  if len(curves) > 1:
    for curve in curves:
      axes.plot(
        list(curve), list(curve.values()), color=color, alpha=0.3, lw=0.9
      )
  mean = _mean_curve(curves)
  axes.plot(
    list(mean),
    list(mean.values()),
    color=color,
    lw=width,
    marker=marker,
    ms=4.5,
    mec='white',
    mew=0.6,
    zorder=order,
    label=NAMES.get(model, model),
  )


def training_figure(
  runs: Iterable[Run], ceiling: Mapping[str, float] | None = None
) -> Figure:
  """Figure 4: training loss, validation AUC, GAUC and logloss by epoch.

  The mean over seeds is drawn over the epochs that every seed reached, each
  seed as a thin line beside it. Training loss is an epoch's mean, with
  dropout, at the negatives of training.

  Args:
    runs: of any models and seeds.
    ceiling: 'auc' and 'gauc' of the true preference on the validation part.
  """
  groups = _by_model(runs)
  figure = Figure(
    figsize=(11, 7.6),
    facecolor='white',
    layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
  )
  panels = figure.subplots(2, 2, sharex=True)
  for axes, (metric, title, label, hint) in zip(
    panels.flat, _PANELS, strict=True
  ):
    chosen = {selects_by(r.result['valid']) for g in groups.values() for r in g}
    if metric in chosen:
      hint += '; selects the epoch'
    style_axes(axes, title, label, hint)
    for model, group in groups.items():
      curves = [
        _training_curve(run.records)
        if metric == 'loss'
        else _validation_curve(run.records, metric)
        for run in group
      ]
      _draw_model(axes, model, curves)
    known = (ceiling or {}).get(metric)
    if known is not None and math.isfinite(known):
      axes.axhline(known, color=TEXT, lw=1.1, ls=(0, (4, 3)), zorder=2)
      axes.annotate(
        f'ceiling {known:.3f}',
        (0.995, known),
        xycoords=('axes fraction', 'data'),
        xytext=(0, 3),
        textcoords='offset points',
        ha='right',
        fontsize=8.5,
        color=TEXT,
      )
  for axes in panels[1]:
    axes.set_xlabel('Epoch', fontsize=9.5, color=TEXT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  handles = [
    Line2D(
      [],
      [],
      color=style_of(model)[0],
      marker=style_of(model)[1],
      lw=2.2,
      label=NAMES.get(model, model),
    )
    for model in groups
  ]
  figure.legend(
    handles=handles,
    loc='outside upper center',
    ncols=len(handles),
    frameon=False,
    fontsize=10.5,
    labelcolor=TEXT,
  )
  return figure


def auc_figure(table: Mapping[str, Any]) -> Figure:
  """Each model's test AUC with its interval, the paper's figure beside it.

  The interval is over seeds, or the sampling interval where there is one seed.

  Args:
    table: of `build_table1`.
  """
  rows = table['rows']
  figure = Figure(
    figsize=(11, 1.5 + 0.55 * len(rows)),
    facecolor='white',
    layout='constrained',
  )
  axes = figure.subplots()
  for place, row in enumerate(rows):
    color, _ = style_of(row['model'])
    mean, ci95 = row['auc']['mean'], row['auc']['ci95']
    if ci95 is None:
      ci95 = row['auc_sampling_ci95'][0]
    if mean is not None:
      axes.errorbar(
        mean,
        place,
        xerr=ci95 or 0.0,
        color=color,
        fmt='o',
        ms=9,
        capsize=4,
        lw=2,
        zorder=3,
      )
      axes.annotate(
        f'{mean:.4f}',
        (mean, place),
        xytext=(0, 9),
        textcoords='offset points',
        ha='center',
        fontsize=9.5,
        color=TEXT,
      )
    printed = paper.TABLE_1.get(row['model'])
    if printed:
      axes.plot(
        printed['auc'],
        place,
        marker='D',
        ms=7,
        mfc='white',
        mec=MUTED,
        mew=1.4,
        zorder=2,
      )
  kinds = ('seeds', 'test examples (DeLong)')
  has_seeds = {row['auc']['ci95'] is not None for row in rows}
  over = ', or '.join(
    kind
    for kind, of_seeds in zip(kinds, (True, False), strict=True)
    if of_seeds in has_seeds
  )
  handles = [
    Line2D(
      [],
      [],
      color=TEXT,
      marker='o',
      ms=8,
      lw=2,
      label=f'measured, 95 % over {over}',
    ),
    Line2D(
      [],
      [],
      color=MUTED,
      marker='D',
      ms=6,
      mfc='white',
      mew=1.4,
      lw=0,
      label='printed in the paper, on other data',
    ),
  ]
  known = (table['ceiling']['test'] or {}).get('auc')
  if known is not None:
    axes.axvline(known, color=TEXT, lw=1.1, ls=(0, (4, 3)), zorder=1)
    handles.append(
      Line2D(
        [],
        [],
        color=TEXT,
        lw=1.1,
        ls=(0, (4, 3)),
        label=f'ceiling {known:.4f}',
      )
    )
  axes.set_yticks(range(len(rows)), [row['name'] for row in rows])
  axes.set_ylim(len(rows) - 0.5, -0.7)
  axes.set_xlabel('Test AUC', fontsize=9.5, color=TEXT)
  axes.grid(axis='x', color=GRID, linewidth=0.9)
  axes.set_axisbelow(True)
  axes.tick_params(colors=TEXT, labelsize=10, length=0)
  for side in ('top', 'right', 'left'):
    axes.spines[side].set_visible(False)
  axes.spines['bottom'].set_color('#b8c0cc')
  figure.legend(
    handles=handles,
    loc='outside upper center',
    ncols=len(handles),
    frameon=False,
    fontsize=10,
    labelcolor=TEXT,
  )
  return figure


def save_figure(figure: Figure, path: Path) -> None:
  """Writes a PNG, whole or not at all."""
  with written_whole(path) as beside, warnings.catch_warnings():
    # Ids may have letters that the font has not: they are drawn as boxes.
    warnings.filterwarnings('ignore', 'Glyph .* missing from font')
    FigureCanvasAgg(figure).print_png(beside)


def plot_training_curves(
  runs: Iterable[Run],
  path: Path,
  ceiling: Mapping[str, float] | None = None,
) -> None:
  """Writes `training_figure` as a PNG."""
  save_figure(training_figure(runs, ceiling), path)


def plot_auc(table: Mapping[str, Any], path: Path) -> None:
  """Writes `auc_figure` as a PNG."""
  save_figure(auc_figure(table), path)
