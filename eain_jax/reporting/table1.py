"""Table 1, measured: what `table1.json` and `table1.md` hold."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eain_jax.config import MODEL_CONFIGS, EainConfig, TrainConfig
from eain_jax.evaluation.evaluator import RANK_CUTOFF
from eain_jax.reporting import paper
from eain_jax.reporting.claims import NAMES, check_claims
from eain_jax.reporting.measured import (
  check_runs,
  cut_notes,
  described_dataset,
  differences_to,
  interval_note,
  json_ready,
  measured_row,
  pairing_note,
  protocol,
  run_notes,
  times_of_rows,
  versions,
  without_seed,
)
from eain_jax.training.run_set import Run


def _group_runs(runs: Iterable[Run], fingerprint: str) -> dict[str, list[Run]]:
  """Runs by model in the table's order, by seed within; checked."""
  by_model = _by_model(runs)
  if not by_model:
    raise ValueError('runs is empty: there is nothing to tabulate')
  for model, group in by_model.items():
    check_runs(model, group, fingerprint)
  return by_model


def _by_model(runs: Iterable[Run]) -> dict[str, list[Run]]:
  by_model: dict[str, list[Run]] = {}
  for run in sorted(runs, key=lambda run: (_place(run.model), run.seed)):
    by_model.setdefault(run.model, []).append(run)
  return by_model


def _place(model: str) -> tuple[int, str]:
  """Where a model's row stands; one that is added to the library comes last."""
  order = list(MODEL_CONFIGS)
  return (order.index(model) if model in order else len(order), model)


def _rows(groups: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
  """A row a model; with EAIN and several seeds, also what each is to it."""
  rows = {
    model: {
      'model': model,
      'name': NAMES.get(model, model),
      **measured_row(runs),
      'reliability': [run.result['reliability'] for run in runs],
    }
    for model, runs in groups.items()
  }
  if 'eain' in rows:
    others = [row for model, row in rows.items() if model != 'eain']
    for row, found in zip(
      others, differences_to(rows['eain'], others), strict=True
    ):
      if found is not None:
        row['minus_eain'] = found
  return list(rows.values())


def _precision_note(counts: Mapping[str, int]) -> str:
  """The most that Precision@10 can be, which the paper's figures exceed."""
  requests = counts['requests'] - counts['requests_without_positive']
  positives = counts['positives'] / requests
  bound = min(1.0, positives / RANK_CUTOFF)
  if counts['positives'] == requests:
    text = (
      'Every test request has one positive, so Precision@10 is at most 0.1 and '
      'equals Recall@10 / 10, and F1 follows from the two: the three are one '
      'measurement'
    )
  else:
    text = (
      f'A test request has {positives:.4g} positives on average, so '
      f'Precision@10 is at most {bound:.4g}'
    )
  printed = [row['precision@10'] for row in paper.TABLE_1.values()]
  if min(printed) > bound:
    text += (
      f'. The paper prints {min(printed):.3f} to {max(printed):.3f}, which no '
      'model can reach on these requests'
    )
  return text + '.'


def _notes(
  groups: Mapping[str, Sequence[Run]],
  rows: Sequence[Mapping[str, Any]],
  counts: Mapping[str, int],
  ceiling: Mapping[str, float] | None,
) -> list[str]:
  """Sentences that belong right under the numbers."""
  notes = [interval_note(rows), _precision_note(counts)]
  runs = [run for group in groups.values() for run in group]
  if ceiling:
    notes.append(
      'The ceiling is the true preference of the world, scored on the same '
      'test requests: the best that any model can do, but for chance.'
    )
    for row in rows:
      excess = row['auc']['mean'] - ceiling['auc']
      if excess > max(row['auc_sampling_ci95']):
        notes.append(
          f'{row["name"]} is {excess:.4f} above the ceiling, more than its '
          'sampling interval: look for a leak.'
        )
  notes += run_notes(runs) + _unequal_updates(groups) + cut_notes(rows)
  if any('minus_eain' in row for row in rows):
    notes.append(pairing_note('EAIN'))
  if len({tuple(row['seeds']) for row in rows}) > 1:
    notes.append('Not every model was trained with the same seeds.')
  return notes


def _unequal_updates(groups: Mapping[str, Sequence[Run]]) -> list[str]:
  """What is to be said where --table_update=auto chose by a model's size."""
  by_choice: dict[str, list[str]] = {}
  for model, runs in groups.items():
    choice = runs[0].settings['train_config']['table_update']
    by_choice.setdefault(choice, []).append(NAMES.get(model, model))
  if len(by_choice) < 2:
    return []
  each = '; '.join(
    f'--table_update={choice} for {", ".join(names)}'
    for choice, names in by_choice.items()
  )
  return [
    f'The models were not trained alike: {each}. Row by row a penalty acts on '
    'the rows of the batch alone, and mostly no moving average is kept.'
  ]


def _named(sentence: str) -> str:
  """A sentence with the models' names in place of their keys."""
  for model, name in NAMES.items():
    sentence = re.sub(rf'\b{model}\b', name, sentence)
  return sentence.replace('*', ' \u00d7 ')


def _paper() -> dict[str, Any]:
  rows = []
  checks = paper.check_table()
  for model, row in paper.TABLE_1.items():
    p, r, check = row['precision@10'], row['recall@10'], checks[model]
    rows.append(
      {
        'model': model,
        'name': NAMES[model],
        **row,
        'f1_computed': check.computed,
        'f1_follows': check.follows,
        'f1_exceeds': check.exceeds,
        'arithmetic': f'2 \u00d7 {p:.3f} \u00d7 {r:.3f} / {p + r:.3f} = '
        f'{check.computed:.3f}',
      }
    )
  return {
    'source': dict(paper.SOURCE),
    'rows': rows,
    'findings': [_named(sentence) for sentence in paper.findings()],
  }


def _default(part: str, name: str) -> Any:
  """Of a setting of EAIN, which an older ablation may not name."""
  config = {'model_config': EainConfig, 'train_config': TrainConfig}[part]
  return json_ready(config().to_dict()).get(name)


def _related(
  ablation: Mapping[str, Any], groups: Mapping[str, Sequence[Run]]
) -> dict[str, Any]:
  """An ablation, with a note of how its EAIN differs from the table's."""
  if 'eain' not in groups:
    note = 'The table has no EAIN to compare that of the ablation with.'
    return {**ablation, 'notes': [*ablation['notes'], note]}
  here = json_ready(without_seed(groups['eain'][0]))
  there = ablation['settings']
  differing = [
    f'--{name}={other}, not {value}'
    for part in ('model_config', 'train_config')
    for name, value in here[part].items()
    if (other := there[part].get(name, _default(part, name))) != value
  ]
  note = (
    'Its EAIN has the flags of the table, and its own runs.'
    if not differing
    else f"Its EAIN is not the table's: it has {'; '.join(differing)}."
  )
  return {**ablation, 'notes': [*ablation['notes'], note]}


def build_table1(
  runs: Iterable[Run],
  manifest: Mapping[str, Any],
  ceilings: Mapping[str, Mapping[str, float] | None],
  inside: Mapping[str, Any] | None = None,
  ablation: Mapping[str, Any] | None = None,
  notes: Sequence[str] = (),
) -> dict[str, Any]:
  """The measured table with all that is needed to judge it, ready for JSON.

  Two calls with runs of the same seeds give the same, to the last bit: what
  differs between them is in `training_times`.

  Args:
    runs: of any models and seeds, on one dataset, in any order.
    manifest: of that dataset, with its fingerprint.
    ceilings: by part, 'auc' and 'gauc' of the true preference, or None.
    inside: what EAIN looks at, of `inside.look_inside` with the 'seed' of that
      run; or {'seed', 'left_out'}, why that is not known; None without EAIN.
    ablation: of `build_ablation` on the same dataset, or None.
    notes: what is to be known first.

  Returns:
    rows: a model's test metrics, each {'mean', 'ci95', 'values'} over its
      seeds (None for what is not a number), in the order of MODEL_CONFIGS;
      'reliability', of each seed its bins on test, see `evaluator.reliability`;
      'minus_eain', where both have two seeds in common or more, as of
      `measured.differences_to`.
    inside: as given.
    ablation: as given, with a note where its EAIN is not that of the table.
    ceiling, notes, holds (see `check_claims`), protocol, dataset, settings,
      versions, paper: what the rows are to be read with.

  Raises:
    InputError: runs of another dataset, of one seed twice, or of one model
      with other settings.
    ValueError: no runs.
  """
  groups = _group_runs(runs, manifest['fingerprint'])
  rows = _rows(groups)
  every = [run for group in groups.values() for run in group]
  counts = manifest['counts']['test']
  own_notes = _notes(groups, rows, counts, ceilings.get('test'))
  rows = json_ready(rows)
  ceilings = json_ready(ceilings)
  return json_ready(
    {
      'rows': rows,
      'ceiling': {part: ceilings.get(part) for part in ('valid', 'test')},
      'inside': inside,
      'ablation': None if ablation is None else _related(ablation, groups),
      'notes': [*notes, *own_notes],
      'holds': check_claims(rows, ceilings.get('test')),
      'protocol': protocol(manifest, every),
      'dataset': described_dataset(manifest),
      'settings': {
        'prepare': manifest['config'],
        'models': {
          model: without_seed(group[0]) for model, group in groups.items()
        },
      },
      'versions': versions(),
      'paper': _paper(),
    }
  )


def training_times(runs: Iterable[Run]) -> dict[str, Any]:
  """By model what the training of each seed took; see `times_of_rows`."""
  return times_of_rows(_by_model(runs))
