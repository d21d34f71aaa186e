"""What runs have measured, for every report that is made of them.

Rows of means with their intervals over seeds, differences of two rows seed by
seed, and what the numbers are to be read with.
"""

import dataclasses
import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax

import eain_jax
from eain_jax.errors import InputError
from eain_jax.evaluation.evaluator import (
  MIN_GAUC_USERS,
  RANK_CUTOFF,
  selects_by,
)
from eain_jax.evaluation.intervals import (
  ERROR_RATE,
  adjust_p,
  mean_interval,
  paired_difference,
)
from eain_jax.reporting.claims import METRIC_NAMES
from eain_jax.training.run_set import Run

_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'polars')


def json_ready(tree: Any) -> Any:
  """The tree with None for what JSON has no number for."""
  if isinstance(tree, Mapping):
    return {key: json_ready(value) for key, value in tree.items()}
  if isinstance(tree, list | tuple):
    return [json_ready(value) for value in tree]
  if isinstance(tree, float) and not math.isfinite(tree):
    return None
  return tree


def without_seed(run: Run) -> dict[str, Any]:
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


def check_runs(name: str, runs: Sequence[Run], fingerprint: str) -> None:
  """Makes sure that runs differ in their seed alone.

  Args:
    name: of their row, for what is raised.
    runs: of one row.
    fingerprint: of the dataset that they are to be of.

  Raises:
    InputError: they are of another dataset, of one seed twice, or of other
      settings.
  """
  for run in runs:
    if run.result['dataset'] != fingerprint:
      raise InputError(
        f'the run of {name} with seed {run.seed} was trained on dataset '
        f'{run.result["dataset"]}, this table is of {fingerprint}: train it '
        'again'
      )
  seeds = [run.seed for run in runs]
  if len(set(seeds)) < len(seeds):
    raise InputError(f'{name} has two runs of one seed: {seeds}')
  for run in runs[1:]:
    if without_seed(run) != without_seed(runs[0]):
      raise InputError(
        f'the runs of {name} with seeds {seeds[0]} and {run.seed} differ in '
        'more than the seed: train them with the same flags'
      )


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


def measured_row(runs: Sequence[Run]) -> dict[str, Any]:
  """The numbers of one row, from its runs by seed.

  Returns:
    seeds; by metric {'mean', 'ci95', 'values'} over them, on test and, under
    'valid', on validation; auc_sampling_ci95, parameters, best_epoch and steps
    of each seed; epochs, the most that any may have.
  """
  return {
    'seeds': [run.seed for run in runs],
    **_intervals(runs, 'test'),
    'auc_sampling_ci95': [
      _number(run.result['test']['auc_ci95']) for run in runs
    ],
    'valid': _intervals(runs, 'valid'),
    'parameters': [run.result['parameters'] for run in runs],
    'best_epoch': [run.result['best_epoch'] for run in runs],
    'epochs': runs[0].settings['train_config']['epochs'],
    'steps': [run.result['steps'] for run in runs],
  }


def times_of_rows(
  rows: Mapping[str, Sequence[Run]],
) -> dict[str, dict[str, Any]]:
  """By row what the training of each of its runs took.

  These are 'seconds', 'examples_per_second', and 'trained_together': how many
  runs shared those seconds, because one program trained them.
  """
  return {
    name: {
      'seconds': [run.result['seconds'] for run in runs],
      'examples_per_second': [
        run.result['examples_per_second'] for run in runs
      ],
      # A result from before it was kept lacks it, and is taken as alone.
      'trained_together': [
        run.result.get('trained_together', 1) for run in runs
      ],
    }
    for name, runs in rows.items()
  }


def differences_to(
  base: Mapping[str, Any],
  rows: Sequence[Mapping[str, Any]],
  min_seeds: int = 2,
) -> list[dict[str, Any] | None]:
  """Each row minus the base, by the seeds that both have.

  Args:
    base: of `measured_row`.
    rows: likewise, without the base: the comparisons that p is corrected for.
    min_seeds: that a row and the base must share; one has no interval.

  Returns:
    A row's differences, by metric {'mean', 'ci95', 'values', 'p', 'p_holm'},
    values by ascending seed; None with fewer seeds in common.
    'p_holm' is corrected over the rows, each metric by itself.
  """
  found: list[dict[str, Any] | None] = []
  for row in rows:
    shared = sorted(set(row['seeds']) & set(base['seeds']))
    if len(shared) < min_seeds:
      found.append(None)
      continue
    of_seeds = lambda one, metric, shared=shared: [
      one[metric]['values'][one['seeds'].index(seed)] for seed in shared
    ]
    found.append(
      {
        metric: dataclasses.asdict(
          paired_difference(of_seeds(row, metric), of_seeds(base, metric))
        )
        for metric in METRIC_NAMES
      }
    )
  compared = [differences for differences in found if differences is not None]
  for metric in METRIC_NAMES:
    adjusted = adjust_p([one[metric]['p'] for one in compared])
    for differences, p in zip(compared, adjusted, strict=True):
      differences[metric]['p_holm'] = p
  return found


@dataclasses.dataclass(frozen=True)
class Line:
  """A line of a picture of differences.

  Attributes:
    name: at its left.
    differences: by metric as of `differences_to`; a mean may have no
      interval. None: a heading.
  """

  name: str
  differences: Mapping[str, Mapping[str, Any]] | None


def is_shown(difference: Mapping[str, Any]) -> bool:
  """Whether a difference is more than chance among its comparisons, at 5 %."""
  p = difference['p_holm']
  return p is not None and p < ERROR_RATE  # nan is not


def interval_note(rows: Sequence[Mapping[str, Any]]) -> str:
  """What ± is, and how far another sample of examples would move an AUC."""
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


def pairing_note(base: str) -> str:
  """What a difference is of, and what its p-value is corrected for."""
  return (
    f'Differences to {base} are taken seed by seed: two runs of one seed meet '
    'the same requests in the same order with the same negatives (but where '
    'Skip Above takes some from one of them, or one has them drawn once), and '
    "are tested on the same candidates. ± is half of Student's 95 % interval "
    'of their mean; p is two-sided, and corrected by Holm for all comparisons '
    'of its metric in this table. The intervals are not corrected, nor is p '
    'for the number of metrics. Both are over seeds, on this test part: they '
    'do not say how another sample of users would move a difference.'
  )


def cut_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Of rows with a name: whose training was cut before it stopped rising."""
  notes = []
  for row in rows:
    ends, most = row['best_epoch'], row['epochs']
    if cut := sum(end >= most for end in ends):
      notes.append(
        f'{row["name"]}: {cut} of {len(ends)} runs are best at the last of '
        f'--epochs={most}, so longer training may be better.'
      )
  return notes


def run_notes(runs: Sequence[Run]) -> list[str]:
  """What makes runs something else than a measurement of this version."""
  notes = []
  if any(run.settings['train_config']['shuffle_labels'] for run in runs):
    notes.append(
      'Labels were shuffled in training: this is a test for leaks, not a '
      'measurement of the models.'
    )
  others = {run.result['version'] for run in runs} - {eain_jax.__version__}
  if others:
    notes.append(
      f'Some runs were trained by version {", ".join(sorted(others))}, this '
      f'report is by {eain_jax.__version__}.'
    )
  return notes


def protocol(
  manifest: Mapping[str, Any], runs: Sequence[Run]
) -> dict[str, Any]:
  """How the numbers came about, each entry a phrase or a sentence.

  Args:
    manifest: of the dataset as it was trained on.
    runs: that it is of.
  """
  run = runs[0]
  among = lambda name: {r.settings['train_config'][name] for r in runs}
  test = run.result['test']
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
  entries = {
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
    often = {
      (False,): 'anew every epoch',
      (True,): 'once',
    }.get(tuple(among('negatives_once')), 'anew every epoch or once, see Flags')
    entries |= {
      'Negatives': f'{config["negatives"]} a training positive, drawn {often}, '
      f'{sampling}; {exclusion}.',
      'Evaluation': f'{config["eval_negatives"]} negatives a positive, drawn '
      'once, the same for every model and seed: a request has '
      f'{candidates} candidates, and chance has Recall@10 '
      f'{min(1.0, RANK_CUTOFF / candidates):.3f}.',
    }
  else:
    entries['Negatives'] = (
      f'as the data have them, {ratio:.4g} a positive in training; evaluation '
      'is on the examples as they are.'
    )
  valid = run.result['valid']
  chosen_by = METRIC_NAMES[selects_by(valid)]
  users = f'{valid["gauc_users"]:,} users'
  most = config['eval_negatives']
  few = {min(number, most) for number in among('valid_negatives')}
  some = ''
  if sampled and few != {most}:
    each = ' or '.join(str(number) for number in sorted(few))
    some = f' among {each} of the negatives'
  why = f'GAUC is over {users}'
  if chosen_by == 'AUC':
    why = f'GAUC would be over {users} only, fewer than {MIN_GAUC_USERS}'
  choice = run.settings['train_config']['skip_above']
  if choice == 'on' or (choice == 'dataset' and config['skip_above']):
    where = 'on a simulated order' if sampled else "by the log's positions"
    entries['Skip Above'] = f'(16-17), {where}.'
  entries |= {
    'History': f'the most recent {config["history_length"]} events before the '
    f'target; an example needs {manifest["min_history"]}.',
    'Selection': 'the epoch with the best validation '
    f'{chosen_by}{some} is the one tested; the learning rate falls and '
    f'training stops by it too. There {why}.',
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
  return entries | {'simulated': list(manifest['notes'])}


def versions() -> dict[str, Any]:
  """Of this library, of those below it, and the devices."""
  devices = jax.devices()
  return {
    'eain_jax': eain_jax.__version__,
    'python': platform.python_version(),
    **{name: importlib.metadata.version(name) for name in _LIBRARIES},
    'platform': devices[0].platform,
    'device': devices[0].device_kind,
    'devices': len(devices),
  }


def described_dataset(manifest: Mapping[str, Any]) -> dict[str, Any]:
  """What a report says of the dataset itself."""
  return {
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
  }
