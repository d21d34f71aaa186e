"""An ablation: EAIN, and what each change to it does to the numbers.

A difference is called shown where its p-value, paired over seeds and corrected
for all changes of its table, is below .05; of any other it is said that no
difference is shown, which is not that there is none.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from eain_jax.reporting import document
from eain_jax.reporting.claims import METRIC_NAMES
from eain_jax.reporting.measured import (
  Line,
  check_runs,
  cut_notes,
  described_dataset,
  differences_to,
  interval_note,
  is_shown,
  json_ready,
  measured_row,
  pairing_note,
  protocol,
  run_notes,
  versions,
  without_seed,
)
from eain_jax.training.run_set import Run
from eain_jax.training.variants import Variant

TITLE = 'EAIN, one thing changed at a time'
_JUDGED = ('auc', 'gauc')
_SHOWN = ('auc', 'gauc', 'logloss', 'ndcg@10', 'hit_rate@10', 'mrr')


def _sentence(differences: Mapping[str, Mapping[str, Any]], metric: str) -> str:
  """What the seeds let one say of a metric, without a full stop."""
  difference, label = differences[metric], METRIC_NAMES[metric]
  text = document.difference_text(difference)
  p = f'p {document.p_text(difference["p_holm"])}'
  if difference['mean'] is None:
    return f'{label} is not a number with some seed'
  if difference['ci95'] is None:
    return f'{label} {text}, of one seed, which shows nothing'
  if is_shown(difference):
    word = 'lower' if difference['mean'] < 0 else 'higher'
    return f'{label} is {word}: {text}, {p}'
  if abs(difference['mean']) > difference['ci95']:
    return (
      f'no difference in {label} shown: {text} leaves 0 out, but not once '
      f'corrected for all changes of this table, {p}'
    )
  return f'no difference in {label} shown: {text} holds 0'


def _rows(
  base: Mapping[str, Any],
  runs: Mapping[str, Sequence[Run]],
  variants: Mapping[str, Variant],
) -> list[dict[str, Any]]:
  """A row a variant, by group as they are listed, the largest loss first."""
  rows = [
    {
      'variant': key,
      'name': variants[key].name,
      'group': variants[key].group,
      'what': variants[key].what,
      'equations': variants[key].equations,
      'changes': {**variants[key].model, **variants[key].train},
      **measured_row(of_variant),
    }
    for key, of_variant in runs.items()
  ]
  found = json_ready(differences_to(base, rows, min_seeds=1))
  for row, differences in zip(rows, found, strict=True):
    if differences is None:
      raise ValueError(f'{row["variant"]} has no seed in common with EAIN')
    row['minus_eain'] = differences
    row['sentence'] = (
      '; '.join(_sentence(differences, metric) for metric in _JUDGED) + '.'
    )
  groups = list(dict.fromkeys(variant.group for variant in variants.values()))

  def place(row: Mapping[str, Any]) -> tuple[int, float]:
    mean = row['minus_eain']['auc']['mean']
    return groups.index(row['group']), math.inf if mean is None else mean

  return sorted(rows, key=place)


def _notes(
  base: Mapping[str, Any],
  rows: Sequence[Mapping[str, Any]],
  runs: Sequence[Run],
) -> list[str]:
  notes = [pairing_note('EAIN'), interval_note([base])]
  seeds = len(base['seeds'])
  if seeds == 1:
    notes = [
      'One seed: no difference has an interval, and none is shown. Take '
      '--seeds=5 or more.',
      notes[1],
    ]
  elif seeds < 5:
    notes.append(
      f'With {seeds} seeds only large differences can be shown; that none is '
      'shown is no proof that a part does nothing.'
    )
  notes.append(
    'A change keeps all other settings, which were not looked for with it: one '
    'that is worse might be less so with settings of its own.'
  )
  return notes + run_notes(runs) + cut_notes([base, *rows])


def build_ablation(
  base: Sequence[Run],
  runs: Mapping[str, Sequence[Run]],
  variants: Mapping[str, Variant],
  manifest: Mapping[str, Any],
  ceiling: Mapping[str, float] | None,
  left_out: Mapping[str, str],
) -> dict[str, Any]:
  """The ablation with all that is needed to judge it, ready for JSON.

  Args:
    base: runs of EAIN, by seed.
    runs: by variant, by seed.
    variants: what each is, and in which order groups stand.
    manifest: of the dataset as EAIN is trained on it.
    ceiling: 'auc' and 'gauc' of the true preference on test, or None.
    left_out: by variant that was not measured, why.

  Returns:
    base: a row, as of `measured_row`; rows: likewise, with 'variant', 'name',
      'group', 'what', 'equations', 'changes', 'minus_eain' as of
      `differences_to`, and 'sentence'.
    ceiling, left_out, notes, protocol, dataset, settings, versions: what they
      are to be read with.

  Raises:
    InputError: runs of another dataset, of one seed twice, or of one variant
      with other settings.
    ValueError: a variant shares no seed with EAIN.
  """
  for name, of_row in {'eain': base, **runs}.items():
    check_runs(name, of_row, manifest['fingerprint'])
  own = {'name': 'EAIN', **measured_row(base)}
  rows = _rows(own, runs, variants)
  every = [*base, *(run for of_row in runs.values() for run in of_row)]
  return json_ready(
    {
      'base': own,
      'rows': rows,
      'ceiling': ceiling,
      'left_out': dict(left_out),
      'notes': _notes(own, rows, every),
      'protocol': protocol(manifest, base),
      'dataset': described_dataset(manifest),
      'settings': {'prepare': manifest['config'], **without_seed(base[0])},
      'versions': versions(),
    }
  )


def ablation_lines(table: Mapping[str, Any]) -> list[Line]:
  """The rows of the picture, a heading over each group."""
  lines, group = [], None
  for row in table['rows']:
    if row['group'] != group:
      group = row['group']
      lines.append(Line(group, None))
    lines.append(Line(row['name'], row['minus_eain']))
  return lines


def _measured(table: Mapping[str, Any]) -> document.Section:
  ceiling = table['ceiling']
  known = () if ceiling is None else (('Ceiling', ceiling),)
  cell = document.Cell
  grid = document.Grid(
    ('Test', *(METRIC_NAMES[metric] for metric in _SHOWN)),
    (
      *(
        (
          cell(row['name']),
          *(cell(document.interval_text(row[metric])) for metric in _SHOWN),
        )
        for row in (table['base'], *table['rows'])
      ),
      *(
        (
          cell(name),
          *(cell(document.number_text(of.get(metric))) for metric in _SHOWN),
        )
        for name, of in known
      ),
    ),
  )
  return document.Section('Values', (grid,))


def _differences(table: Mapping[str, Any]) -> document.Section:
  return document.Section(
    'Differences to EAIN',
    (
      document.difference_grid(
        [(row['name'], row['minus_eain']) for row in table['rows']],
        'Minus EAIN',
        _JUDGED,
        '',
      ),
      *(document.Paragraph(note) for note in table['notes']),
    ),
  )


def _changes(table: Mapping[str, Any]) -> document.Section:
  points = [
    (
      row['name'],
      f'{row["what"]}, {row["equations"]}. '
      + row['sentence'][0].upper()
      + row['sentence'][1:],
    )
    for row in table['rows']
  ]
  points += [
    (f'Not measured, {name}', f'{why}.')
    for name, why in table['left_out'].items()
  ]
  return document.Section(
    'What can be said of each change', (document.Points(tuple(points)),)
  )


def _settings(table: Mapping[str, Any]) -> document.Section:
  settings = table['settings']
  return document.Section(
    'Flags',
    (
      document.Paragraph('The data were prepared with'),
      document.Lines(document.flag_lines(settings['prepare'])),
      document.Paragraph('EAIN is'),
      document.Lines(document.flag_lines(settings['model_config'])),
      document.Paragraph('All were trained with'),
      document.Lines(document.flag_lines(settings['train_config'])),
      document.Paragraph('The changes are'),
      document.Points(
        tuple(
          (row['name'], ' '.join(document.flag_lines(row['changes'])))
          for row in table['rows']
        )
      ),
    ),
  )


def _tiles(table: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
  rows = table['rows']
  tiles = [
    (document.interval_text(table['base']['auc']), 'test AUC of EAIN'),
    (
      f'{sum(any(is_shown(r["minus_eain"][m]) for m in _JUDGED) for r in rows)}'
      f' of {len(rows)}',
      'changes show a difference in AUC or GAUC',
    ),
  ]
  for word, sign in (('loss', 1), ('gain', -1)):
    shown = [
      row
      for row in rows
      if is_shown(row['minus_eain']['auc'])
      and sign * row['minus_eain']['auc']['mean'] < 0
    ]
    if shown:
      most = min(shown, key=lambda row: sign * row['minus_eain']['auc']['mean'])
      text = document.signed(most['minus_eain']['auc']['mean'])
      tiles.append((text, f'AUC, the largest {word} shown: {most["name"]}'))
  return tuple(tiles)


def ablation_sections(table: Mapping[str, Any]) -> tuple[document.Section, ...]:
  """An ablation within another report: what its pictures do not say.

  Args:
    table: of `build_ablation`, with a note that says whether its EAIN is that
      of the report.
  """
  differences = _differences(table)
  return (
    document.Section(
      'Ablation: differences to EAIN',
      (
        document.Paragraph(
          document.subtitle(table['dataset'], [table['base']])
        ),
        *differences.blocks,
      ),
    ),
    document.Section(
      'Ablation: what can be said of each change', _changes(table).blocks
    ),
  )


def ablation_report(table: Mapping[str, Any]) -> document.Report:
  """The whole report of what `build_ablation` made."""
  rows = (table['base'], *table['rows'])
  return document.Report(
    TITLE,
    document.subtitle(table['dataset'], rows),
    _tiles(table),
    (
      _differences(table),
      _changes(table),
      _measured(table),
      document.Section(
        'Training',
        (document.training_grid(rows, 'Model'), document.TIMES_NOTE),
      ),
      document.protocol_section(table),
      document.data_section(table),
      _settings(table),
      document.versions_section(table),
    ),
  )
