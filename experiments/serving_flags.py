"""What the binaries that ask a trained model have in common."""

import fnmatch
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

import eain_jax
from eain_jax.config import PrepareConfig
from eain_jax.data.dataset import Dataset
from eain_jax.data.lines import ReadOptions, read_options
from eain_jax.data.log_values import Refused, parse_columns
from eain_jax.serving.candidates import HISTORY, seconds
from eain_jax.serving.lookup import source_columns
from eain_jax.serving.parts import output_format
from eain_jax.training.restore import Run, open_run
from experiments import cli

_READING = (
  'allow_truncated',
  'max_rejected',
  'max_inflation',
  'max_inflated_gb',
)
FLAGS = flags.FLAGS
flags.disclaim_key_flags()


def define_run(time: str | None, when: str) -> None:
  """Defines the flags of a run, and of when it is asked.

  Args:
    time: the default of --time.
    when: what --time is, for its help.
  """
  flags.DEFINE_string(
    'work_dir', None, 'A run that train wrote.', required=True
  )
  flags.DEFINE_string('dataset_dir', None, 'Its dataset, where that has moved.')
  flags.DEFINE_string(
    'time',
    time,
    f'{when} seconds or an ISO 8601 date; last: the second after the '
    "dataset's last event.",
  )
  cli.define_verify()


def define_asking(what: str) -> None:
  """Defines the flags of a run and of how a file asks it.

  Args:
    what: a row of the file is.
  """
  define_run(None, 'One time for all rows, in place of a column:')
  flags.DEFINE_list(
    'columns',
    [],
    f'Of {what}: user=.., timestamp=.. and context columns, as in '
    'prepare_data; unset ones are called as in the log that the dataset was '
    'made of. history=.. and history_timestamp=.. are lists of the items that '
    'a user had before and of when, with | between them in CSV, in place of '
    "the dataset's events.",
  )
  flags.DEFINE_list('keep', [], 'Further columns that pass through.')
  cli.define_config(
    PrepareConfig,
    without=sorted(cli.setting_names(PrepareConfig) - {*_READING}),
  )


def opened_run() -> Run:
  """The run of the flags."""
  return open_run(FLAGS.work_dir, FLAGS.dataset_dir, FLAGS.verify)


def reading() -> ReadOptions:
  """How forgiving the flags are."""
  return read_options(cli.config_from_flags(PrepareConfig))


def columns_of(dataset: Dataset) -> dict[str, str]:
  """The columns of the input, as the flags and the dataset name them.

  Raises:
    FlagError: a name is no input of the model.
  """
  known = source_columns(dataset)
  given = parse_columns(tuple(FLAGS.columns))
  if unknown := given.keys() - known.keys() - {*HISTORY}:
    raise cli.FlagError(
      f'--columns names {min(unknown)}, which is no input of the model: '
      f'{", ".join([*known, *HISTORY])}'
    )
  if len(given.keys() & {*HISTORY}) == 1:
    raise cli.FlagError('--columns must name history and history_timestamp')
  return {**known, **given}


def time_of(dataset: Dataset) -> int | None:
  """Seconds that all rows are asked at; None: each at its own.

  Raises:
    FlagError: the flag is no time.
  """
  if FLAGS.time is None:
    return None
  if FLAGS.time == 'last':
    return dataset.manifest['last_timestamp'] + 1
  try:
    return seconds('time', FLAGS.time)
  except Refused as error:
    raise cli.FlagError(f'--time: {error}') from error


def kept_columns(columns: dict[str, str], names: Sequence[str]) -> list[str]:
  """What passes through: the columns of our `names`, then those of --keep."""
  kept = [columns[name] for name in names]
  return list(dict.fromkeys([*kept, *FLAGS.keep]))


def _hash_of(params: Any) -> str:
  """sha256 of parameters: which model was asked."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()


def check_output(output: Path, source: str | None) -> None:
  """Raises FlagError where an output would be, or become, its own input."""
  output_format(output)
  if output.is_dir():
    raise cli.FlagError(f'--output={output} is a folder: name a file')
  if not source:
    return
  here, there = output.resolve(), Path(source)
  if there.exists():
    is_within = there.resolve() in (here, *here.parents)
  else:
    is_within = fnmatch.fnmatch(str(here), os.path.abspath(source))
  if is_within:
    raise cli.FlagError(
      f'--output={output} is, or lies in, what is read: name another place'
    )


def plan_of(run: Run, **more: Any) -> dict[str, Any]:
  """What decides an output, but for the input."""
  return {
    'version': eain_jax.__version__,
    'model': run.settings['model'],
    'dataset': run.dataset.fingerprint,
    'parameters': _hash_of((run.params, run.stats)),
    'keep': FLAGS.keep,
    **more,
  }
