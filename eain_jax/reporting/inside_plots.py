"""Pictures of what EAIN looks at; see `evaluation.inside`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from eain_jax.reporting import plots
from eain_jax.reporting.document import printable
from eain_jax.serving.inspection import Inspection

_MAIN, _OTHER, _PALE = '#D55E00', '#0072B2', '#b8c0cc'
# What fits beside a panel that is half a page wide.
_LABEL_CHARACTERS, _TITLE_CHARACTERS = 42, 72
# More fields than these leave no room for numbers in a cell.
_FIELDS_WITH_NUMBERS = 14


def _cut(text: Any, length: int) -> str:
  """One line of at most `length` characters."""
  text = printable(text)
  return text if len(text) <= length else text[: length - 1] + '\u2026'


def _item_label(item: Mapping[str, Any], length: int) -> str:
  """An item's id, short where there is more to say, and its attributes."""
  # Attributes often repeat each other, such as a category and its path.
  values = list(
    dict.fromkeys(
      value for values in item['attributes'].values() for value in values
    )
  )
  name = _cut(item['item'], 14 if values else length)
  return _cut(' \u00b7 '.join([name, *values]), length)


def _days(days: float | None) -> str:
  if days is None:
    return ''
  return f'{days:.1f} d' if days < 10 else f'{days:,.0f} d'


def _horizontal(axes: Axes, labels: Sequence[str], size: float = 9) -> None:
  """A panel of rows, the first on top; labels are shown as they are."""
  axes.set_yticks(range(len(labels)))
  # A dollar sign in an id would begin a formula.
  axes.set_yticklabels(labels, fontsize=size, parse_math=False)
  axes.tick_params(axis='y', colors=plots.TEXT)
  axes.set_ylim(len(labels) - 0.4, -0.6)
  axes.grid(visible=False, axis='y')
  axes.grid(axis='x', color=plots.GRID, linewidth=0.9)


def _figure(width: float, height: float) -> Figure:
  return Figure(
    figsize=(width, height),
    facecolor='white',
    layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
  )


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
  figure.legend(
    handles=list(handles),
    loc='outside upper center',
    ncols=len(handles),
    frameon=False,
    fontsize=10,
    labelcolor=plots.TEXT,
  )


def _draw_ranks(axes: Axes, ranks: Sequence[Mapping[str, Any]]) -> None:
  plots.style_axes(
    axes,
    'By recency',
    'Mean attention weight',
    'over histories that reach so far',
  )
  place = [one['rank'] for one in ranks]
  axes.bar(place, [one['weight'] for one in ranks], color=_MAIN, width=0.68)
  if ranks[0]['even'] is not None:
    axes.plot(
      place,
      [one['even'] for one in ranks],
      color=plots.TEXT,
      lw=1.6,
      marker='o',
      ms=3.5,
    )
  axes.set_xlabel(
    'Event of the history, 1 is the newest', fontsize=9.5, color=plots.TEXT
  )
  axes.set_xticks([rank for rank in place if rank == 1 or rank % 5 == 0])


def _draw_same(axes: Axes, same: Sequence[Mapping[str, Any]]) -> None:
  plots.style_axes(axes, 'By likeness', '', '1 is an equal share')
  for place, one in enumerate(same):
    ends = one['same'], one['other']
    axes.plot(ends, (place, place), color=_PALE, lw=3, zorder=2)
    for name, color, above in (('other', _OTHER, -17), ('same', _MAIN, 9)):
      axes.plot(one[name], place, marker='o', ms=10, color=color, zorder=3)
      axes.annotate(
        f'{one[name]:.2f}',
        (one[name], place),
        xytext=(0, above),
        textcoords='offset points',
        ha='center',
        fontsize=9,
        color=plots.TEXT,
      )
  axes.axvline(1, color=plots.TEXT, lw=1.1, ls=(0, (4, 3)), zorder=1)
  _horizontal(axes, [_cut(one['feature'], 24) for one in same], 10)
  axes.margins(x=0.18)
  axes.set_xlabel(
    'Weight by the mean of its history', fontsize=9.5, color=plots.TEXT
  )


def attention_figure(inside: Mapping[str, Any]) -> Figure | None:
  """Mean attention by recency, and to events like the target.

  Args:
    inside: of `look_inside`.

  Returns:
    None without attention, and where histories are too few for a mean.
  """
  average = inside['average']
  ranks = average['attention'] or []
  same = [
    one
    for one in average['same'] or []
    if one['same'] is not None and one['other'] is not None
  ]
  num_panels = bool(ranks) + bool(same)
  if not num_panels:
    return None
  figure = _figure(11, 4.6)
  panels = figure.subplots(1, num_panels, squeeze=False)[0]
  handles: list[Any] = []
  if ranks:
    _draw_ranks(panels[0], ranks)
    handles.append(Patch(color=_MAIN, label='attention of EAIN'))
    if ranks[0]['even'] is not None:
      handles.append(
        Line2D(
          [],
          [],
          color=plots.TEXT,
          marker='o',
          ms=3.5,
          lw=1.6,
          label='if all events weighed alike',
        )
      )
  if same:
    _draw_same(panels[-1], same)
    for color, label in (
      (_MAIN, 'shares a value with the target'),
      (_OTHER, 'shares none'),
    ):
      handles.append(
        Line2D([], [], color=color, marker='o', ms=9, lw=0, label=label)
      )
  _legend(figure, handles)
  return figure


def _history_labels(history: Sequence[Mapping[str, Any]]) -> list[str]:
  labels = []
  for event in history:
    ago = _days(event['days_before'])
    label = _item_label(event, _LABEL_CHARACTERS - len(ago) - 2)
    labels.append(f'{label}  {ago}' if ago else label)
  return labels


def _draw_pair(
  axes: Axes, example: Mapping[str, Any], what: str, labels: Sequence[str]
) -> None:
  """Bars of what is sown of the item that was taken and of the other."""
  plots.style_axes(axes, '', '', '')
  shown = [
    (name, example[name]) for name in ('positive', 'negative') if example[name]
  ]
  for number, (name, candidate) in enumerate(shown):
    place = np.arange(len(labels)) + 0.4 * (number - (len(shown) - 1) / 2)
    color = _MAIN if name == 'positive' else _OTHER
    axes.barh(place, candidate[what], height=0.38, color=color)
  _horizontal(axes, labels, 8.5)
  title = [
    f'{mark} {_item_label(candidate, _TITLE_CHARACTERS)}'
    for mark, (_, candidate) in zip(
      ('Taken:', 'Not taken:'), shown, strict=False
    )
  ]
  title.append(
    f'the taken one has rank {example["rank"]} of {example["candidates"]}'
  )
  axes.set_title(
    '\n'.join(title),
    loc='right',
    fontsize=9,
    color=plots.TEXT,
    linespacing=1.35,
    parse_math=False,
  )


def _draw_example(
  axes: Axes, example: Mapping[str, Any], is_share: bool
) -> None:
  history = example['history']
  _draw_pair(axes, example, 'attention', _history_labels(history))
  if is_share:
    axes.axvline(
      1 / len(history), color=plots.TEXT, lw=1.1, ls=(0, (4, 3)), zorder=3
    )
  else:
    axes.axvline(0, color=plots.TEXT, lw=1.1, zorder=3)


def _candidate_patches() -> list[Any]:
  return [
    Patch(color=_MAIN, label='for the item that was taken'),
    Patch(color=_OTHER, label='for the best scored other one'),
  ]


def examples_figure(inside: Mapping[str, Any]) -> Figure | None:
  """The attention over the histories of the examples.

  Args:
    inside: of `look_inside`.

  Returns:
    None without attention or examples.
  """
  examples = inside['examples']
  if not examples or examples[0]['positive']['attention'] is None:
    return None
  num_rows = math.ceil(len(examples) / 2)
  longest = [
    max(len(one['history']) for one in examples[2 * row : 2 * row + 2])
    for row in range(num_rows)
  ]
  heights = [1.1 + 0.27 * length for length in longest]
  figure = _figure(13, 0.6 + sum(heights))
  panels = figure.subplots(
    num_rows, 2, squeeze=False, gridspec_kw={'height_ratios': heights}
  )
  for axes, example in zip(panels.flat, examples, strict=False):
    _draw_example(axes, example, inside['weights_are_shares'])
  for axes in panels.flat[len(examples) :]:
    axes.set_visible(False)
  for axes in panels[-1]:
    axes.set_xlabel('Attention weight', fontsize=9.5, color=plots.TEXT)
  handles = _candidate_patches()
  if inside['weights_are_shares']:
    handles.append(
      Line2D(
        [],
        [],
        color=plots.TEXT,
        lw=1.1,
        ls=(0, (4, 3)),
        label='if all events weighed alike',
      )
    )
  _legend(figure, handles)
  return figure


def _draw_gates(
  axes: Axes, gates: Sequence[Mapping[str, Any]], hint: str
) -> None:
  plots.style_axes(axes, 'SE gates', '', hint)
  place = np.arange(len(gates))
  axes.barh(place, [one['mean'] for one in gates], color=_MAIN, height=0.62)
  axes.hlines(
    place,
    [one['low'] for one in gates],
    [one['high'] for one in gates],
    color=plots.TEXT,
    lw=1.6,
    zorder=3,
  )
  _horizontal(axes, [_cut(one['field'], 24) for one in gates], 9.5)
  axes.set_xlim(0, 1)
  axes.set_xlabel('Factor on the field', fontsize=9.5, color=plots.TEXT)


def _draw_masks(
  axes: Axes,
  mask: Sequence[Sequence[float | None]],
  fields: Sequence[str],
  hint: str = 'mean |M|',
) -> None:
  """A cell a pair, the lower triangle: the mask is the same both ways."""
  plots.style_axes(axes, 'Masks of pairs', '', hint)
  strength = np.array(mask, dtype=float)
  strength[np.triu_indices(len(fields))] = np.nan
  # The first field has no row, the last no column.
  strength = strength[1:, :-1]
  image = axes.imshow(strength, cmap='YlOrBr', aspect='auto')
  names = [_cut(name, 24) for name in fields]
  _horizontal(axes, names[1:], 9.5)
  axes.set_ylim(len(fields) - 1.5, -0.5)
  axes.grid(visible=False)
  axes.set_xticks(range(len(names) - 1))
  axes.set_xticklabels(
    names[:-1], rotation=45, ha='right', fontsize=9.5, parse_math=False
  )
  axes.spines['bottom'].set_visible(False)
  axes.tick_params(axis='x', colors=plots.TEXT)
  if len(fields) <= _FIELDS_WITH_NUMBERS:
    middle = (np.nanmin(strength) + np.nanmax(strength)) / 2
    for (row, column), value in np.ndenumerate(strength):
      if not math.isnan(value):
        axes.text(
          column,
          row,
          f'{value:.2f}',
          ha='center',
          va='center',
          fontsize=8,
          color='white' if value > middle else plots.TEXT,
        )
  else:
    axes.figure.colorbar(image, ax=axes, shrink=0.8)


def gates_figure(inside: Mapping[str, Any]) -> Figure | None:
  """The mean gate of each field, and the mean mask of each pair of fields.

  Args:
    inside: of `look_inside`.

  Returns:
    None without both layers.
  """
  average, fields = inside['average'], inside['fields']
  has_gates, has_masks = average['gate'], average['mask'] and len(fields) > 1
  if not has_gates and not has_masks:
    return None
  widths = [1.0] * bool(has_gates) + [1.35] * bool(has_masks)
  figure = _figure(5 * sum(widths), 1.9 + 0.36 * len(fields))
  panels = figure.subplots(
    1, len(widths), squeeze=False, gridspec_kw={'width_ratios': widths}
  )[0]
  if has_gates:
    hint = 'mean, and 10 to 90 % of requests'
    _draw_gates(panels[0], average['gate'], hint)
  if has_masks:
    _draw_masks(panels[-1], average['mask'], fields)
  return figure


def example_gates_figure(inside: Mapping[str, Any]) -> Figure | None:
  """The gates and masks of the examples, which are those of the attention.

  Args:
    inside: of `look_inside`.

  Returns:
    None without both layers, and without examples.
  """
  examples, fields = inside['examples'], inside['fields']
  if not examples:
    return None
  first = examples[0]['positive']
  has_gates, has_masks = bool(first['gate']), bool(first['mask'])
  has_masks &= len(fields) > 1
  if not has_gates and not has_masks:
    return None
  widths = [1.0] * has_gates + [1.35] * has_masks
  height = 1.9 + 0.36 * len(fields)
  figure = _figure(5.6 * sum(widths), 0.6 + height * len(examples))
  rows = figure.subplots(
    len(examples),
    len(widths),
    squeeze=False,
    gridspec_kw={'width_ratios': widths},
  )
  for panels, example in zip(rows, examples, strict=True):
    if has_gates:
      _draw_pair(panels[0], example, 'gate', [_cut(f, 24) for f in fields])
      panels[0].set_xlim(0, 1)
      panels[0].set_xlabel('SE gate', fontsize=9.5, color=plots.TEXT)
    if has_masks:
      item = _item_label(example['positive'], _TITLE_CHARACTERS // 2)
      hint = f'mean |M| for {item}'
      _draw_masks(panels[-1], example['positive']['mask'], fields, hint)
  if has_gates:
    _legend(figure, _candidate_patches())
  return figure


def inspection_figure(found: Inspection) -> Figure | None:
  """One request: the weights of its history, the gates and the masks.

  Args:
    found: of `serving.inspection.inspect`.

  Returns:
    None where the model has nothing of the kind.
  """
  has_history = bool(found.history) and found.history[0]['weight'] is not None
  has_masks = found.mask is not None and len(found.fields) > 1
  widths = [1.6] * has_history + [0.8] * bool(found.gates) + [1.2] * has_masks
  if not widths:
    return None
  num_rows = max(has_history * len(found.history), len(found.fields), 4)
  figure = _figure(4.6 * sum(widths), 1.9 + 0.3 * num_rows)
  panels = iter(
    figure.subplots(
      1, len(widths), squeeze=False, gridspec_kw={'width_ratios': widths}
    )[0]
  )
  if has_history:
    _draw_weights(next(panels), found)
  if found.gates:
    alone = [
      {'field': name, 'mean': gate, 'low': gate, 'high': gate}
      for name, gate in found.gates
    ]
    _draw_gates(next(panels), alone, '')
  if has_masks and found.mask is not None:
    _draw_masks(next(panels), found.mask, found.fields)
  return figure


def _draw_weights(axes: Axes, found: Inspection) -> None:
  plots.style_axes(axes, 'Attention over the history', '', '')
  labels = _history_labels(found.history)
  place = np.arange(len(labels))
  axes.barh(
    place, [e['weight'] for e in found.history], height=0.62, color=_MAIN
  )
  _horizontal(axes, labels, 8.5)
  axes.set_xlabel(
    'Weight, the newest event on top', fontsize=9.5, color=plots.TEXT
  )
  if found.weights_are_shares:
    even = 1 / len(labels)
    axes.axvline(even, color=plots.TEXT, lw=1.1, ls=(0, (4, 3)), zorder=3)
