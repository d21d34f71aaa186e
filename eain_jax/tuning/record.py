"""What a search leaves: every trial, and the best one as a file of flags."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import eain_jax
from eain_jax.artifacts import write_json, write_manifest, write_text
from eain_jax.data.dataset import Dataset
from eain_jax.errors import InputError
from eain_jax.evaluation.evaluator import selects_by
from eain_jax.tuning.search import Search, Trial
from eain_jax.tuning.space import as_flags

RECORD_FILE = 'tune.json'
# It is a setting of the data, which all models of a table share.
_OF_ALL_MODELS = 'skip_above'


def best_trial(trials: Sequence[Trial]) -> Trial:
  """The trial of the highest value, the first of equals.

  Raises:
    InputError: no trial has a value.
  """
  done = [
    trial
    for trial in trials
    if trial.value is not None and math.isfinite(trial.value)
  ]
  if not done:
    failed = [trial.failed for trial in trials if trial.failed]
    why = f' (of the last that failed {failed[-1]})' if failed else ''
    raise InputError(
      f'not one trial has a value of the objective{why}: allow more --trials'
    )
  return max(done, key=lambda trial: (trial.value, -trial.number))


def notes(search: Search, record: Mapping[str, Any]) -> list[str]:
  """What is to be known of a search's result.

  Args:
    search: that it is of.
    record: as of `write_record`.
  """
  found = []
  if note := _of_test_note(search.dataset):
    found.append(note)
  if value := record['fixed'].get(_OF_ALL_MODELS):
    found.append(
      f'the file of flags is to be used with --{_OF_ALL_MODELS}={value}'
    )
  valid = record['trials'][record['best']]['valid']
  if search.objective == 'gauc' and selects_by(valid) == 'auc':
    found.append(
      f'GAUC is over {valid["gauc_users"]} users here, which is chance for the '
      'most part: --objective=auc has more to go by'
    )
  return found


def _of_test_note(dataset: Dataset) -> str:
  """What is to be said where validation is the test part; '' elsewhere."""
  if dataset.manifest['split'] != 'last_out_no_validation':
    return ''
  return (
    'last_out_no_validation: the validation part IS the test part, so this '
    'was chosen on test; for comparing with published numbers only'
  )


def flags_file(model: str) -> str:
  return f'{model}.flags'


def write_record(
  search: Search,
  trials: Sequence[Trial],
  fixed: Mapping[str, Any],
  command: str,
) -> dict[str, Any]:
  """Writes `tune.json`, the file of flags, and the manifest of both.

  Args:
    search: that the trials are of.
    trials: all of them.
    fixed: by name of a setting its value, as text, of those that were given.
    command: by which the search can be made again.

  Returns:
    The content of `tune.json`.
  """
  best, space = best_trial(trials), search.space
  assert best.result is not None
  record = {
    'command': command,
    **search.plan(),
    'fixed': dict(fixed),
    'trials': [_trial_record(trial) for trial in trials],
    'best': best.number,
  }
  write_json(search.folder / RECORD_FILE, record)
  lines = [
    f'# {command}',
    f'# {search.objective} {best.value:.5f} on the validation part of dataset',
    f'# {search.dataset.fingerprint}',
    f'# trial {best.number} of {len(trials)}, '
    f'{len(space.distributions)} settings searched',
    f'# {_of_test_note(search.dataset) or "test was not looked at"}',
    f'# eain_jax {eain_jax.__version__}',
  ]
  flags = {**fixed, **best.values}
  if _OF_ALL_MODELS in flags:
    value = flags.pop(_OF_ALL_MODELS)
    lines.append(f'# to be used with --{_OF_ALL_MODELS}={value}')
  lines += as_flags(flags)
  write_text(search.folder / flags_file(space.model), '\n'.join(lines) + '\n')
  names = (RECORD_FILE, flags_file(space.model))
  write_manifest(search.folder, names)
  return record


def _trial_record(trial: Trial) -> dict[str, Any]:
  record: dict[str, Any] = {
    'number': trial.number,
    'values': trial.values,
    'epochs': {str(epoch): value for epoch, value in trial.epochs.items()},
    'value': trial.value,
    'given_up': trial.result is None and trial.failed is None,
    'failed': trial.failed,
  }
  if trial.result is not None:
    kept = ('best_epoch', 'steps', 'parameters', 'valid')
    record |= {name: trial.result[name] for name in kept}
  return record
