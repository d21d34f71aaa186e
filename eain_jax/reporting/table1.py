"""Table 1, measured: what `table1.json` and `table1.md` hold."""

import dataclasses
import importlib.metadata
import math
import platform
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

import eain_jax
from eain_jax.config import MODEL_CONFIGS
from eain_jax.errors import InputError
from eain_jax.evaluation.evaluator import RANK_CUTOFF
from eain_jax.evaluation.intervals import mean_interval
from eain_jax.reporting import document, paper
from eain_jax.reporting.claims import METRIC_NAMES, NAMES, check_claims

TITLE = 'Table 1, measured'
_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'polars')


@dataclasses.dataclass(frozen=True)
class Run:
  """One trained model.

  Attributes:
    model: of `models.MODELS`.
    seed: of its training.
    settings: as `loop.run_config`.
    result: the content of `result.json`.
    records: the lines of `metrics.jsonl`.
  """

  model: str
  seed: int
  settings: dict[str, Any]
  result: dict[str, Any]
  records: list[dict[str, Any]]


def _json_ready(tree: Any) -> Any:
  """The tree with None for what JSON has no number for."""
  if isinstance(tree, Mapping):
    return {key: _json_ready(value) for key, value in tree.items()}
  if isinstance(tree, list | tuple):
    return [_json_ready(value) for value in tree]
  if isinstance(tree, float) and not math.isfinite(tree):
    return None
  return tree


def _without_seed(run: Run) -> dict[str, Any]:
  """What the runs of one model must agree in."""
  train_config = {
    name: value
    for name, value in run.settings['train_config'].items()
    if name != 'seed'
  }
  return {
    'model_config': run.settings['model_config'],
    'train_config': train_config,
  }


def _group_runs(runs: Iterable[Run], fingerprint: str) -> dict[str, list[Run]]:
  """Runs by model in the table's order, by seed within; checked."""
  by_model: dict[str, list[Run]] = {}
  for run in runs:
    if run.result['dataset'] != fingerprint:
      raise InputError(
        f'the run of {run.model} with seed {run.seed} was trained on dataset '
        f'{run.result["dataset"]}, this table is of {fingerprint}: train it '
        'again'
      )
    by_model.setdefault(run.model, []).append(run)
  if not by_model:
    raise ValueError('runs is empty: there is nothing to tabulate')
  for model, group in by_model.items():
    group.sort(key=lambda run: run.seed)
    seeds = [run.seed for run in group]
    if len(set(seeds)) < len(seeds):
      raise InputError(f'{model} has two runs of one seed: {seeds}')
    for run in group[1:]:
      if _without_seed(run) != _without_seed(group[0]):
        raise InputError(
          f'the runs of {model} with seeds {seeds[0]} and {run.seed} differ in '
          'more than the seed: train them with the same flags'
        )
  return {model: by_model[model] for model in sorted(by_model, key=_place)}


def _place(model: str) -> tuple[int, str]:
  """Where a model's row stands; one that is added to the library comes last."""
  order = list(MODEL_CONFIGS)
  return (order.index(model) if model in order else len(order), model)


def _number(value: float | None) -> float:
  """JSON has no NaN, so a file may hold null for it."""
  return math.nan if value is None else value


def _intervals(runs: Sequence[Run], part: str) -> dict[str, Any]:
  """By metric the mean over seeds, its interval and its values."""
  return {
    metric: dataclasses.asdict(
      mean_interval(_number(run.result[part][metric]) for run in runs)
    )
    for metric in METRIC_NAMES
  }


def _row(model: str, runs: Sequence[Run]) -> dict[str, Any]:
  return {
    'model': model,
    'name': NAMES.get(model, model),
    'seeds': [run.seed for run in runs],
    **_intervals(runs, 'test'),
    'auc_sampling_ci95': [
      _number(run.result['test']['auc_ci95']) for run in runs
    ],
    'valid': _intervals(runs, 'valid'),
    'parameters': [run.result['parameters'] for run in runs],
    'best_epoch': [run.result['best_epoch'] for run in runs],
    'steps': [run.result['steps'] for run in runs],
  }


def _precision_note(counts: Mapping[str, int]) -> str:
  """The most that Precision@10 can be, which the paper's figures exceed."""
  requests = counts['requests'] - counts['requests_without_positive']
  positives = counts['positives'] / requests
  if counts['positives'] == requests:
    text = (
      'Every test request has one positive, so Precision@10 is at most 0.1 and '
      'equals Recall@10 / 10, and F1 follows from the two: the three are one '
      'measurement'
    )
  else:
    text = (
      f'A test request has {positives:.4g} positives on average, so '
      f'Precision@10 is at most {positives / RANK_CUTOFF:.4g}'
    )
  printed = [row['precision@10'] for row in paper.TABLE_1.values()]
  if min(printed) > positives / RANK_CUTOFF:
    text += (
      f'. The paper prints {min(printed):.3f} to {max(printed):.3f}, which no '
      'model can reach on these requests'
    )
  return text + '.'


def _interval_note(rows: Sequence[Mapping[str, Any]]) -> str:
  sampling = [value for row in rows for value in row['auc_sampling_ci95']]
  known = [value for value in sampling if math.isfinite(value)]
  text = 'The test part and its candidates are the same for every seed'
  if any(len(row['seeds']) > 1 for row in rows):
    text = (
      "± is half of Student's 95 % interval of the mean over seeds. " + text
    )
  else:
    text = (
      'One seed: nothing here tells how the values vary over seeds. ' + text
    )
  if known:
    low, high = f'{min(known):.4f}', f'{max(known):.4f}'
    text += (
      '; another sample of examples would move an AUC by about '
      f'± {low if low == high else f"{low} to {high}"} (95 %, DeLong, examples '
      'taken as independent)'
    )
  return text + '.'


def _notes(
  groups: Mapping[str, Sequence[Run]],
  rows: Sequence[Mapping[str, Any]],
  counts: Mapping[str, int],
  ceiling: Mapping[str, float] | None,
) -> list[str]:
  """Sentences that belong right under the numbers."""
  notes = [_interval_note(rows), _precision_note(counts)]
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
  if any(run.settings['train_config']['shuffle_labels'] for run in runs):
    notes.append(
      'Labels were shuffled in training: this is a test for leaks, not a '
      'measurement of the models.'
    )
  versions = {run.result['version'] for run in runs} - {eain_jax.__version__}
  if versions:
    notes.append(
      f'Some runs were trained by version {", ".join(sorted(versions))}, this '
      f'report is by {eain_jax.__version__}.'
    )
  if len({tuple(row['seeds']) for row in rows}) > 1:
    notes.append('Not every model was trained with the same seeds.')
  return notes


def _protocol(
  manifest: Mapping[str, Any], test: Mapping[str, Any]
) -> dict[str, Any]:
  """How the numbers came about, each entry a phrase or a sentence."""
  config, train = manifest['config'], manifest['counts']['train']
  sampled = manifest['task'] == 'next_item'
  ratio = (train['examples'] - train['positives']) / train['positives']
  split = {
    'last_out': "each user's last event is test, the one before it validation",
    'last_out_no_validation': "each user's last event is test, and the models "
    'are selected on it: optimistic, for comparing with published numbers only',
    'time': 'by time, train, validation and test '
    + ' / '.join(f'{share:g}' for share in config['time_fractions']),
  }[manifest['split']]
  protocol = {
    'Task': manifest['task'],
    'Split': f'{manifest["split"]}: {split}.',
    'Order': 'by user, then timestamp, then source row.',
  }
  if sampled:
    exclusion = {
      'had': 'never an item that the user has had by then',
      'ever': 'never an item that the user has at any time, later ones too',
    }[config['negative_exclusion']]
    sampling = config['negative_sampling']
    if sampling == 'popularity':
      sampling += f'^{config["popularity_exponent"]:g}'
    candidates = 1 + config['eval_negatives']
    protocol |= {
      'Negatives': f'{config["negatives"]} a training positive, drawn anew '
      f'every epoch, {sampling}; {exclusion}.',
      'Evaluation': f'{config["eval_negatives"]} negatives a positive, drawn '
      'once, the same for every model and seed: a request has '
      f'{candidates} candidates, and chance has Recall@10 '
      f'{min(1.0, RANK_CUTOFF / candidates):.3f}.',
    }
  else:
    protocol['Negatives'] = (
      f'as the data have them, {ratio:.4g} a positive in training; evaluation '
      'is on the examples as they are.'
    )
  if config['skip_above']:
    where = 'on a simulated order' if sampled else "by the log's positions"
    protocol['Skip Above'] = f'(16-17), {where}.'
  protocol |= {
    'History': f'the most recent {config["history_length"]} events before the '
    f'target; an example needs {manifest["min_history"]}.',
    'Selection': 'the epoch with the best validation GAUC is the one tested; '
    'the learning rate falls and training stops by it too.',
    'AUC': f'(21), exact, over all {test["examples"]:,} test examples '
    'together.',
    'GAUC': "the mean of users' own AUC, weighted by examples, over "
    f'{test["gauc_users"]:,} users; {test["gauc_users_skipped"]:,} have one '
    'class only and none.',
    'Ranking': f'(22)-(24), each request on its own, over {test["requests"]:,} '
    f'requests; {test["requests_without_positive"]:,} have no positive and are '
    'left out. F1 is (24) of the averaged Precision@10 and Recall@10; F1 per '
    'request is its mean over requests.',
    'Logloss': 'stated, as is calibration, at one negative a positive: logits '
    f'move by log {ratio:.4g}, the training ratio, and the negatives of a '
    'request weigh as one.'
    if sampled
    else 'of the probabilities as they are, every example counting once.',
  }
  return protocol | {'simulated': list(manifest['notes'])}


def _versions() -> dict[str, Any]:
  devices = jax.devices()
  return {
    'eain_jax': eain_jax.__version__,
    'python': platform.python_version(),
    **{name: importlib.metadata.version(name) for name in _LIBRARIES},
    'platform': devices[0].platform,
    'device': devices[0].device_kind,
    'devices': len(devices),
  }


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


def build_table1(
  runs: Iterable[Run],
  manifest: Mapping[str, Any],
  ceilings: Mapping[str, Mapping[str, float] | None],
) -> dict[str, Any]:
  """The measured table with all that is needed to judge it, ready for JSON.

  Two calls with runs of the same seeds give the same, to the last bit: what
  differs between them is in `training_times`.

  Args:
    runs: of any models and seeds, on one dataset, in any order.
    manifest: of that dataset, with its fingerprint.
    ceilings: by part, 'auc' and 'gauc' of the true preference, or None.

  Returns:
    rows: a model's test metrics, each {'mean', 'ci95', 'values'} over its
      seeds (None for what is not a number), in the order of MODEL_CONFIGS.
    ceiling, notes, holds (see `check_claims`), protocol, dataset, settings,
      versions, paper: what the rows are to be read with.

  Raises:
    InputError: runs of another dataset, of one seed twice, or of one model
      with other settings.
    ValueError: no runs.
  """
  groups = _group_runs(runs, manifest['fingerprint'])
  rows = [_row(model, group) for model, group in groups.items()]
  first = next(iter(groups.values()))[0]
  notes = _notes(groups, rows, manifest['counts']['test'], ceilings.get('test'))
  rows = _json_ready(rows)
  ceilings = _json_ready(ceilings)
  return _json_ready(
    {
      'rows': rows,
      'ceiling': {part: ceilings.get(part) for part in ('valid', 'test')},
      'notes': notes,
      'holds': check_claims(rows, ceilings.get('test')),
      'protocol': _protocol(manifest, first.result['test']),
      'dataset': {
        name: manifest[name]
        for name in (
          'fingerprint',
          'task',
          'split',
          'counts',
          'sources',
          'features',
          'first_timestamp',
          'last_timestamp',
        )
      },
      'settings': {
        'prepare': manifest['config'],
        'models': {
          model: _without_seed(group[0]) for model, group in groups.items()
        },
      },
      'versions': _versions(),
      'paper': _paper(),
    }
  )


def training_times(runs: Iterable[Run]) -> dict[str, Any]:
  """By model the 'seconds' and 'examples_per_second' of each seed."""
  times: dict[str, Any] = {}
  for run in sorted(runs, key=lambda run: (_place(run.model), run.seed)):
    of_model = times.setdefault(run.model, {})
    for name in ('seconds', 'examples_per_second'):
      of_model.setdefault(name, []).append(run.result[name])
  return times


def _escape(text: str) -> str:
  """Text as Markdown shows it literally."""
  text = re.sub(r'&(?=#?\w+;)', '&amp;', document.printable(text))
  # A lone < stays as it is, for the reader at a terminal.
  text = re.sub(r'<(?=[A-Za-z/!?])', '&lt;', text)
  return re.sub(r'([\\`*|\[\]])', r'\\\1', text)


def _grid_lines(grid: document.Grid) -> list[str]:
  """A table whose columns align in a terminal too."""
  lines = [
    [_escape(name) for name in grid.header],
    *(
      [
        f'**{_escape(cell.text)}**' if cell.best else _escape(cell.text)
        for cell in row
      ]
      for row in grid.rows
    ),
  ]
  widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
  right = [place >= grid.num_text for place in range(len(widths))]
  rule = [
    '-' * (width - 1) + ':' if at_right else '-' * width
    for width, at_right in zip(widths, right, strict=True)
  ]
  return [
    '| '
    + ' | '.join(
      text.rjust(width) if at_right else text.ljust(width)
      for text, width, at_right in zip(line, widths, right, strict=True)
    )
    + ' |'
    for line in (lines[0], rule, *lines[1:])
  ]


def _block_lines(block: document.Block) -> list[str]:
  match block:
    case document.Paragraph(text):
      return textwrap.wrap(_escape(text), 80, break_on_hyphens=False)
    case document.Points(items):
      return [
        line
        for name, text in items
        for line in _point(f'**{_escape(name)}:** ' if name else '', text)
      ]
    case document.Verdicts(claims):
      return [
        line
        for claim in claims
        for line in _point(
          f'**{_escape(claim["verdict"])}**: ',
          f'{claim["claim"]}. {claim["measured"]}',
        )
      ]
    case document.Lines(lines):
      return ['```', *lines, '```']
    case document.Grid():
      caption = [_escape(block.caption), ''] if block.caption else []
      return caption + _grid_lines(block)


def _point(name: str, text: str) -> list[str]:
  return textwrap.wrap(
    f'- {name}{_escape(text)}',
    80,
    subsequent_indent='  ',
    break_on_hyphens=False,
    break_long_words=False,
  )


def render_markdown(table: Mapping[str, Any]) -> str:
  """`table1.md`: reads on GitHub and in a terminal.

  Args:
    table: of `build_table1`.
  """
  blocks = [
    [f'# {TITLE}'],
    _block_lines(document.Paragraph(document.subtitle(table))),
  ]
  for section in document.sections(table):
    blocks.append([f'## {section.title}'])
    blocks += [_block_lines(block) for block in section.blocks]
  return '\n\n'.join('\n'.join(lines) for lines in blocks) + '\n'
