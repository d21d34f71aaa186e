"""One request of `serving.inspection` as tables of a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eain_jax.reporting.document import printable
from eain_jax.serving.inspection import Inspection

_BAR = 20
_SHOWN_PAIRS = 5


def _table(title: str, *columns: str) -> Table:
  table = Table(
    title=Text(title),
    title_justify='left',
    header_style='bold',
    box=None,
    pad_edge=False,
  )
  for name in columns:
    is_text = name in ('item', 'field', 'pair', 'attributes', '')
    table.add_column(
      name,
      justify='left' if is_text else 'right',
      overflow='ellipsis',
      no_wrap=True,
    )
  return table


def _attributes(item: Mapping[str, Any]) -> Text:
  values = [value for of in item['attributes'].values() for value in of]
  return Text(printable(' \u00b7 '.join(dict.fromkeys(values))))


def _bar(value: float, highest: float) -> str:
  return '\u2588' * round(_BAR * max(value, 0) / highest) if highest > 0 else ''


def _history(found: Inspection) -> Table:
  weights = [event['weight'] for event in found.history]
  has_weights = weights[0] is not None
  title = 'History, from the newest event'
  if has_weights and found.weights_are_shares:
    title += f'; an even share is {1 / len(weights):.3f}'
  columns = ['days before', 'item', *(['weight', ''] * has_weights)]
  table = _table(title, *columns, 'attributes')
  for event in found.history:
    ago = event['days_before']
    row: list[Any] = ['' if ago is None else f'{ago:,.1f}']
    row.append(Text(printable(event['item'])))
    if has_weights:
      weight = event['weight']
      row += [f'{weight:.3f}', _bar(weight, max(weights))]
    table.add_row(*row, _attributes(event))
  return table


def _pairs(found: Inspection) -> Table:
  assert found.mask is not None
  pairs = sorted(
    (-strength, f'{found.fields[j]} \u00d7 {found.fields[i]}')
    for i, row in enumerate(found.mask)
    for j, strength in enumerate(row)
    if strength is not None and j < i
  )
  table = _table('Strongest masks of pairs, mean |M|', 'pair', '|M|')
  for strength, name in pairs[:_SHOWN_PAIRS]:
    table.add_row(Text(printable(name)), f'{-strength:.3f}')
  return table


def inspection_tables(found: Inspection) -> RenderableType:
  """History, gates, masks and nearest items, those that there are.

  Args:
    found: of `inspect`.
  """
  blocks: list[RenderableType] = []
  if found.history:
    blocks.append(_history(found))
  else:
    blocks.append(Text('No history: the user had nothing before.'))
  if found.gates:
    table = _table('SE gates', 'field', 'factor', '')
    for name, gate in found.gates:
      table.add_row(Text(printable(name)), f'{gate:.3f}', _bar(gate, 1))
    blocks += ['', table]
  if found.mask is not None and len(found.fields) > 1:
    blocks += ['', _pairs(found)]
  if found.nearest:
    table = _table(
      'Nearest items, by cosine',
      'item',
      'cosine',
      'attributes',
    )
    for near in found.nearest:
      name = Text(printable(near['item']))
      table.add_row(name, f'{near["cosine"]:.3f}', _attributes(near))
    blocks += ['', table]
  return Group(*blocks)
