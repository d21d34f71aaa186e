"""A report as plain blocks, from which Markdown and the page are written."""

import dataclasses
import math
import shlex
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from eain_jax.reporting import paper
from eain_jax.reporting.claims import (
  METRIC_NAMES,
  NAMES,
  signed,
  tells_apart,
)

TITLE = 'Table 1, measured'
ABSENT = '-'
LOWER_IS_BETTER = ('logloss', 'ece')
_PAPER_NAMES = {'auc': 'AUC', 'precision@10': 'P@10', 'recall@10': 'R@10'}
_OTHER_METRICS = ('gauc', 'logloss', 'ndcg@10', 'hit_rate@10', 'mrr')
COMPARED_METRICS = ('auc', 'gauc', 'ndcg@10')
# Of what EAIN looks at; `table1.json` has all.
_SHOWN_RANKS, _SHOWN_PAIRS = 10, 5
_MORE_METRICS = ('f1_per_request', 'mrr@10', 'calibration', 'ece')


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell of a grid; `best` marks the best value of its column."""

  text: str
  best: bool = False


@dataclasses.dataclass(frozen=True)
class Paragraph:
  """One paragraph of text."""

  text: str


@dataclasses.dataclass(frozen=True)
class Points:
  """A list of sentences, each of which may have a name before it."""

  items: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Grid:
  """A table.

  Attributes:
    header: names of the columns.
    rows: cells, as many a row as the header has.
    num_text: so many columns from the left are text, the others numbers.
    quoted: columns that are not of this measurement, set apart.
    caption: a sentence over the table, or ''.
  """

  header: tuple[str, ...]
  rows: tuple[tuple[Cell, ...], ...]
  num_text: int = 1
  quoted: frozenset[int] = frozenset()
  caption: str = ''


@dataclasses.dataclass(frozen=True)
class Verdicts:
  """Claims, each with its verdict and the sentence that it rests on."""

  claims: tuple[Mapping[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class Lines:
  """Lines to be set as they are, such as flags."""

  lines: tuple[str, ...]


Block = Paragraph | Points | Grid | Verdicts | Lines


@dataclasses.dataclass(frozen=True)
class Section:
  """A heading and what stands under it."""

  title: str
  blocks: tuple[Block, ...]


@dataclasses.dataclass(frozen=True)
class Report:
  """All of a report but its figures.

  Attributes:
    title: of the page.
    subtitle: what was measured, in one line.
    tiles: numbers that stand first, each with what it is.
    sections: the rest, what was measured first.
  """

  title: str
  subtitle: str
  tiles: tuple[tuple[str, str], ...]
  sections: tuple[Section, ...]


def printable(text: Any) -> str:
  """One line without control characters: ids and file names are hostile."""
  return ''.join(
    c if c.isprintable() else c.encode('unicode_escape').decode('ascii')
    for c in str(text).encode('utf-8', 'backslashreplace').decode('utf-8')
  )


def number_text(value: float | None) -> str:
  """Four decimals."""
  return ABSENT if value is None or math.isnan(value) else f'{value:.4f}'


def interval_text(interval: Mapping[str, Any]) -> str:
  """Mean, and ± half the width of its interval where there is one."""
  mean = number_text(interval['mean'])
  if interval['ci95'] is None:
    return mean
  return f'{mean} ± {interval["ci95"]:.4f}'


def difference_text(difference: Mapping[str, Any] | None) -> str:
  """A signed mean, and ± half the width of its interval where there is one."""
  if difference is None or difference['mean'] is None:
    return ABSENT
  text = signed(difference['mean'], difference['ci95'])
  if difference['ci95'] is None:
    return text
  return f'{text} ± {difference["ci95"]:.4f}'


def p_text(p: float | None) -> str:
  """Three decimals, which is more than a few seeds can tell."""
  if p is None:
    return ABSENT
  return f'{p:.3f}' if p >= 0.0005 else '< 0.001'


def difference_grid(
  rows: Iterable[tuple[str, Mapping[str, Any] | None]],
  first_column: str,
  metrics: Sequence[str],
  caption: str,
) -> Grid:
  """Differences of rows to one of them, each with its p-value.

  Args:
    rows: name and differences, by metric as of `measured.differences_to`.
    first_column: what the names are of.
    metrics: that are shown.
    caption: of the table.
  """
  header = [first_column]
  for metric in metrics:
    header += [METRIC_NAMES[metric], 'p']
  cells = []
  for name, differences in rows:
    line = [Cell(name)]
    for metric in metrics:
      of_metric = differences[metric] if differences else None
      p = of_metric['p_holm'] if of_metric else None
      line += [Cell(difference_text(of_metric)), Cell(p_text(p))]
    cells.append(tuple(line))
  quoted = frozenset(range(2, len(header), 2))
  return Grid(tuple(header), tuple(cells), quoted=quoted, caption=caption)


def best_row(
  rows: Iterable[Mapping[str, Any]], metric: str
) -> Mapping[str, Any] | None:
  """The row with the best mean; None where no row has one."""
  rows = [row for row in rows if row[metric]['mean'] is not None]
  choose = min if metric in LOWER_IS_BETTER else max
  return choose(rows, key=lambda row: row[metric]['mean'], default=None)


def _metric_cells(
  rows: Sequence[Mapping[str, Any]], metrics: Iterable[str]
) -> dict[str, dict[str, Cell]]:
  """By model and metric; the best of several models is marked."""
  cells: dict[str, dict[str, Cell]] = {row['model']: {} for row in rows}
  for metric in metrics:
    # Calibration is best at 1, neither high nor low.
    best = best_row(rows, metric) if metric != 'calibration' else None
    for row in rows:
      is_best = (
        best is not None
        and len(rows) > 1
        and tells_apart(rows, metric)
        and row[metric]['mean'] == best[metric]['mean']
      )
      cells[row['model']][metric] = Cell(interval_text(row[metric]), is_best)
  return cells


def _table1(table: Mapping[str, Any]) -> Grid:
  """The paper's four metrics, the printed figure beside each."""
  rows, metrics = table['rows'], paper.METRICS
  cells = _metric_cells(rows, metrics)
  header = ['Model']
  for metric in metrics:
    header += [_PAPER_NAMES.get(metric, METRIC_NAMES[metric]), 'paper']
  out = []
  for row in rows:
    line = [Cell(row['name'])]
    printed = paper.TABLE_1.get(row['model'], {})
    for metric in metrics:
      figure = f'{printed[metric]:.3f}' if metric in printed else ABSENT
      line += [cells[row['model']][metric], Cell(figure)]
    out.append(tuple(line))
  if table['ceiling']['test']:
    auc = number_text(table['ceiling']['test']['auc'])
    rest = [Cell(ABSENT)] * (len(header) - 2)
    out.append((Cell('Ceiling'), Cell(auc), *rest))
  quoted = frozenset(range(2, len(header), 2))
  return Grid(tuple(header), tuple(out), quoted=quoted)


def _other_metrics(
  table: Mapping[str, Any], metrics: Sequence[str], caption: str
) -> Grid:
  rows = table['rows']
  cells = _metric_cells(rows, metrics)
  out = [
    (Cell(row['name']), *(cells[row['model']][metric] for metric in metrics))
    for row in rows
  ]
  if table['ceiling']['test'] and 'gauc' in metrics:
    known = table['ceiling']['test']
    out.append(
      (
        Cell('Ceiling'),
        *(Cell(number_text(known.get(metric))) for metric in metrics),
      )
    )
  header = ('Model', *(METRIC_NAMES[metric] for metric in metrics))
  return Grid(header, tuple(out), caption=caption)


def _measured(table: Mapping[str, Any]) -> Section:
  notes = [Paragraph(sentence) for sentence in table['notes']]
  grids = [
    _table1(table),
    _other_metrics(table, _OTHER_METRICS, 'Beside the metrics of the paper:'),
  ]
  compared = [row for row in table['rows'] if 'minus_eain' in row]
  if compared:
    grids.append(
      difference_grid(
        [(row['name'], row['minus_eain']) for row in compared],
        'Minus EAIN',
        COMPARED_METRICS,
        'Each model minus EAIN, paired by seed:',
      )
    )
  return Section('Measured', (*grids, *notes))


def _claims(table: Mapping[str, Any]) -> Section:
  return Section(
    'Which claims of Table 1 hold here',
    (
      Paragraph(
        'By the means over seeds, differences taken seed by seed. A claim '
        'holds where each of its differences is settled by its interval over '
        'seeds, and fails where one against it is, at 5 % corrected by Holm '
        'for all that the claim compares; else it is undecided. Nothing is '
        'corrected for the number of claims.'
      ),
      Verdicts(tuple(table['holds'])),
    ),
  )


def _paper(table: Mapping[str, Any]) -> Section:
  printed, source = table['paper'], table['paper']['source']
  rows = []
  for row in printed['rows']:
    follows = 'yes' if row['f1_follows'] else 'no'
    if row['f1_exceeds']:
      follows = 'no, nor from any average'
    rows.append(
      (
        Cell(row['name']),
        Cell(row['arithmetic']),
        Cell(f'{row["f1"]:.3f}'),
        Cell(follows),
      )
    )
  return Section(
    'The paper against its own equations',
    (
      Paragraph(
        f'{source["table"]} of {source["author"]}, "{source["title"]}", doi '
        f'{source["doi"]}, {source["posted"]}, {source["licence"]}.'
      ),
      Grid(
        (
          'Model',
          '(24): 2PR / (P + R)',
          'F1 as printed',
          'follows from (24)',
        ),
        tuple(rows),
        num_text=4,
      ),
      # The first finding is the arithmetic that the grid shows.
      Points(tuple(('', text) for text in printed['findings'][1:])),
    ),
  )


def protocol_section(table: Mapping[str, Any]) -> Section:
  """How the numbers came about."""
  protocol = table['protocol']
  points = [(name, protocol[name]) for name in protocol if name != 'simulated']
  points += [('Note', note) for note in protocol['simulated']]
  return Section('Protocol', (Points(tuple(points)),))


def _count(value: Any) -> str:
  return f'{value:,}' if isinstance(value, int) else str(value)


def _period(dataset: Mapping[str, Any]) -> str:
  first, last = dataset['first_timestamp'], dataset['last_timestamp']
  if dataset['task'] == 'logged':
    # There a timestamp may be any order, such as a list's number.
    return f'timestamps {first:,} to {last:,}'
  days = [
    np.datetime64(second, 's').astype('datetime64[D]')
    for second in (first, last)
  ]
  return f'{days[0]} to {days[1]}'


def data_section(table: Mapping[str, Any]) -> Section:
  """The dataset, its sources and features."""
  dataset = table['dataset']
  counts = dataset['counts']
  whole = {k: v for k, v in counts.items() if not isinstance(v, Mapping)}
  parts = {k: v for k, v in counts.items() if isinstance(v, Mapping)}
  blocks: list[Block] = [
    Points(
      (
        ('Whole', ', '.join(f'{k} {_count(v)}' for k, v in whole.items())),
        ('Period', _period(dataset)),
        ('Dataset', f'fingerprint {dataset["fingerprint"]}'),
      )
    )
  ]
  names = list(dict.fromkeys(name for part in parts.values() for name in part))
  blocks.append(
    Grid(
      ('Part', *(name.replace('_', ' ') for name in names)),
      tuple(
        (
          Cell(part),
          *(Cell(_count(values.get(name, ABSENT))) for name in names),
        )
        for part, values in parts.items()
      ),
    )
  )
  if dataset['sources']:
    blocks.append(
      Grid(
        ('Source', 'format', 'bytes', 'sha256'),
        tuple(
          tuple(
            Cell(_count(source.get(name, ABSENT)))
            for name in ('name', 'format', 'bytes', 'sha256')
          )
          for source in dataset['sources']
        ),
        num_text=2,
      )
    )
  blocks.append(
    Grid(
      ('Feature', 'of', 'table rows', 'values at most'),
      tuple(
        (
          Cell(feature['name']),
          Cell(feature['kind']),
          Cell(_count(feature['num_rows'])),
          Cell(_count(feature['max_values'])),
        )
        for feature in dataset['features']
      ),
      num_text=2,
    )
  )
  return Section('Data', tuple(blocks))


def _per_seed(values: Iterable[Any], text: Callable[[Any], str]) -> str:
  """One value a seed, or one where all seeds agree."""
  texts = [text(value) for value in values]
  return texts[0] if len(set(texts)) == 1 else ', '.join(texts)


def times_grid(
  names: Mapping[str, str], times: Mapping[str, Mapping[str, Any]]
) -> Grid:
  """What training took; no part of the report, for no two runs agree in it.

  Args:
    names: of the rows, by their keys.
    times: by key, of `measured.times_of_rows`.
  """
  rows = []
  is_shared = any(
    together > 1
    for of_row in times.values()
    for together in of_row['trained_together']
  )
  for key, name in names.items():
    of_row = times[key]
    rate = [round(value) for value in of_row['examples_per_second']]
    seconds = _per_seed(of_row['seconds'], lambda value: f'{value:.1f}')
    cells = [Cell(name), Cell(seconds), Cell(_per_seed(rate, _count))]
    if is_shared:
      cells.append(Cell(_per_seed(of_row['trained_together'], str)))
    rows.append(tuple(cells))
  titles = ['Training', 'seconds', 'examples/s']
  if is_shared:
    titles.append('runs in these seconds')
  return Grid(tuple(titles), tuple(rows))


def training_grid(rows: Iterable[Mapping[str, Any]], first_column: str) -> Grid:
  """What came of the training of each row."""
  cells = [
    tuple(
      Cell(text)
      for text in (
        row['name'],
        _per_seed(row['seeds'], str),
        _per_seed(row['parameters'], _count),
        _per_seed(row['best_epoch'], lambda value: f'{value:g}'),
        interval_text(row['valid']['auc']),
        interval_text(row['valid']['gauc']),
      )
    )
    for row in rows
  ]
  header = (
    first_column,
    'seeds',
    'parameters',
    'best epoch',
    'validation AUC',
    'validation GAUC',
  )
  return Grid(header, tuple(cells))


# Not here, so that a page that is made again is the same to the last bit.
TIMES_NOTE = Paragraph(
  'What each run took, in seconds and examples a second, stands in times.json '
  'beside this page.'
)


def _training(table: Mapping[str, Any]) -> Section:
  return Section(
    'Training and calibration',
    (
      training_grid(table['rows'], 'Model'),
      _other_metrics(
        table,
        _MORE_METRICS,
        'Calibration is mean predicted by observed probability, 1 at best; '
        'ECE the mean gap between them over bins of equal mass, 0 at best:',
      ),
      TIMES_NOTE,
    ),
  )


def _attention_grids(average: Mapping[str, Any]) -> list[Block]:
  blocks: list[Block] = []
  if average['attention']:
    blocks.append(
      Grid(
        ('Event', 'mean weight', 'if all weighed alike', 'requests'),
        tuple(
          (
            Cell(f'{one["rank"]}'),
            Cell(number_text(one['weight'])),
            Cell(number_text(one['even'])),
            Cell(_count(one['requests'])),
          )
          for one in average['attention'][:_SHOWN_RANKS]
        ),
        caption='Attention by recency, event 1 is the newest:',
      )
    )
  if average['same']:
    blocks.append(
      Grid(
        ('In common', 'weight if so', 'if not', 'events', 'others'),
        tuple(
          (
            Cell(one['feature']),
            Cell(number_text(one['same'])),
            Cell(number_text(one['other'])),
            Cell(_count(one['events_same'])),
            Cell(_count(one['events_other'])),
          )
          for one in average['same']
        ),
        caption='Attention to events that have a value in common with the '
        'target, by the mean weight of their history:',
      )
    )
  return blocks


def _strongest_pairs(
  mask: Sequence[Sequence[float | None]], fields: Sequence[str]
) -> Points:
  pairs = sorted(
    (value, i, j)
    for i, row in enumerate(mask)
    for j, value in enumerate(row[:i])
    if value is not None
  )
  text = lambda found: ', '.join(
    f'{fields[j]} \u00d7 {fields[i]} {value:.2f}' for value, i, j in found
  )
  return Points(
    (
      ('Strongest masks', text(pairs[: -1 - _SHOWN_PAIRS : -1])),
      ('Weakest masks', text(pairs[:_SHOWN_PAIRS])),
    )
  )


def _inside(inside: Mapping[str, Any]) -> Section:
  """What EAIN looks at, on average; the examples are in its pictures."""
  # Here, because it takes jax with it, which a progress bar needs not.
  from eain_jax.evaluation.inside import EXAMPLE_EVENTS

  title = 'What EAIN looks at'
  if 'left_out' in inside:
    return Section(title, (Paragraph(f'Not shown: {inside["left_out"]}.'),))
  average, fields = inside['average'], inside['fields']
  low, high = EXAMPLE_EVENTS
  blocks: list[Block] = [
    Paragraph(
      f'The run of seed {inside["seed"]} at its best epoch, over '
      f'{average["requests"]:,} positives of the test part in the order of a '
      'fixed hash. The examples in the picture are the first '
      f'{len(inside["examples"])} of that order whose history has {low} to '
      f'{high} events, whether they went well or not. Weights, gates and masks '
      'say what a layer lets through, not what decides a score.'
    ),
    *_attention_grids(average),
  ]
  if average['gate']:
    blocks.append(
      Grid(
        ('Field', 'mean gate', '10 % are below', '10 % are above'),
        tuple(
          (
            Cell(one['field']),
            *(Cell(number_text(one[name])) for name in ('mean', 'low', 'high')),
          )
          for one in average['gate']
        ),
        caption='SE gates, factors between 0 and 1 on each field:',
      )
    )
  if average['mask'] and len(fields) > 1:
    blocks.append(_strongest_pairs(average['mask'], fields))
    blocks.append(
      Paragraph(
        'The mask of a pair is the mean |M| of (4). It starts near 1, and with '
        '--mask_norm the size of a pair is normed away after it.'
      )
    )
  return Section(title, tuple(blocks))


def _flag(name: str, value: Any) -> str:
  if isinstance(value, bool):
    return f'--{name}' if value else f'--no{name}'
  if isinstance(value, list | tuple):
    value = ','.join(str(entry) for entry in value)
  return f'--{name}={shlex.quote(printable(value)) if value != "" else ""}'


def flag_lines(values: Mapping[str, Any]) -> tuple[str, ...]:
  """Settings as the flags that set them."""
  return tuple(
    textwrap.wrap(
      ' '.join(_flag(name, value) for name, value in values.items()),
      78,
      subsequent_indent='    ',
      break_on_hyphens=False,
      break_long_words=False,
    )
  )


def _settings(table: Mapping[str, Any]) -> Section:
  settings = table['settings']
  models = settings['models']
  shared = {
    name: value
    for name, value in next(iter(models.values()))['train_config'].items()
    if all(
      model['train_config'].get(name) == value for model in models.values()
    )
  }
  blocks: list[Block] = [
    Paragraph('The data were prepared with'),
    Lines(flag_lines(settings['prepare'])),
    Paragraph('All models were trained with'),
    Lines(flag_lines(shared)),
  ]
  for model, values in models.items():
    own = {
      name: value
      for name, value in values['train_config'].items()
      if name not in shared
    }
    blocks.append(Paragraph(f'{NAMES.get(model, model)}:'))
    blocks.append(Lines(flag_lines({**values['model_config'], **own})))
  return Section('Flags', tuple(blocks))


def versions_section(table: Mapping[str, Any]) -> Section:
  """What computed the numbers."""
  text = ', '.join(f'{name} {v}' for name, v in table['versions'].items())
  return Section('Versions', (Paragraph(f'{text}.'),))


def subtitle(
  dataset: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]
) -> str:
  """What was measured, in one line."""
  names = [printable(source['name']) for source in dataset['sources']]
  data = ', '.join(names) if names else 'the synthetic world'
  seeds = sorted({seed for row in rows for seed in row['seeds']})
  return (
    f'{data}: {dataset["counts"]["events"]:,} events, '
    f'{dataset["counts"]["users"]:,} users, {dataset["counts"]["items"]:,} '
    f'items; task {dataset["task"]}, split {dataset["split"]}; '
    f'{len(seeds)} seed{"s" if len(seeds) > 1 else ""}'
  )


def _tiles(table: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
  rows = {row['model']: row for row in table['rows']}
  tiles = []
  best = best_row(table['rows'], 'auc')
  if best:
    value = number_text(best['auc']['mean'])
    tiles.append((value, f'highest test AUC: {best["name"]}'))
  if 'eain' in rows and best is not rows['eain']:
    value = number_text(rows['eain']['auc']['mean'])
    tiles.append((value, 'test AUC of EAIN'))
  if table['ceiling']['test']:
    value = number_text(table['ceiling']['test']['auc'])
    tiles.append((value, 'AUC ceiling of this world'))
  words = [claim['verdict'] for claim in table['holds']]
  measured = len(words) - words.count('not measured')
  said = "of the paper's claims that were measured hold here"
  if open_ones := words.count('undecided'):
    said += f', {open_ones} are undecided'
  if any(word.endswith('(one seed)') for word in words):
    words = [word.removesuffix(' (one seed)') for word in words]
    said += ', by one seed, which settles none'
  tiles.append((f'{words.count("holds")} of {measured}', said))
  return tuple(tiles)


def table1_report(
  table: Mapping[str, Any], ablation: Sequence[Section] = ()
) -> Report:
  """The whole report of a table that `build_table1` made.

  Args:
    table: that.
    ablation: what is said of an ablation that is shown with it.
  """
  return Report(
    TITLE,
    subtitle(table['dataset'], table['rows']),
    _tiles(table),
    (
      _measured(table),
      _claims(table),
      _paper(table),
      protocol_section(table),
      data_section(table),
      _training(table),
      *([_inside(table['inside'])] if table['inside'] else []),
      *ablation,
      _settings(table),
      versions_section(table),
    ),
  )
