"""Scores a file of candidates with a trained model.

  python -m experiments.score --work_dir=W --input=F --output=F \\
      [--columns=user=..,item=..,timestamp=..] [--keep=..] [--time=..]

The input has a row a candidate: raw ids of a user and an item as the source of
the training had them, a time, and the log's own context columns. Scores come in
the order of the input. A command that was interrupted goes on.
"""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

import eain_jax
from eain_jax.config import PrepareConfig
from eain_jax.data.dataset import Dataset
from eain_jax.data.lines import read_options
from eain_jax.data.log_values import Refused, parse_columns, parse_timestamp
from eain_jax.reporting.console import CountDisplay
from eain_jax.serving.candidates import HISTORY, CandidateFile
from eain_jax.serving.encoder import Encoder
from eain_jax.serving.lookup import source_columns
from eain_jax.serving.parts import output_format
from eain_jax.serving.score_file import score_file
from eain_jax.serving.scorer import Scorer
from eain_jax.training.restore import Run, open_run
from experiments import cli

WORK_DIR = flags.DEFINE_string(
  'work_dir', None, 'A run that train wrote.', required=True
)
DATASET_DIR = flags.DEFINE_string(
  'dataset_dir', None, 'Its dataset, where that has moved.'
)
INPUT = flags.DEFINE_string(
  'input',
  None,
  'Candidates: CSV, TSV or JSON lines, plain or gzip, or Parquet, a file, a '
  'folder or a glob.',
  required=True,
)
OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'File of scores, .csv, .tsv, .jsonl or .parquet: user, item, timestamp and '
  "--keep, then score, the model's logit, and probability, its sigmoid.",
  required=True,
)
COLUMNS = flags.DEFINE_list(
  'columns',
  [],
  'user=..,item=..,timestamp=.. and context columns, as in prepare_data; unset '
  'ones are called as in the log that the dataset was made of. history=.. and '
  'history_timestamp=.. are lists of the items that a user had before and of '
  "when, with | between them in CSV, in place of the dataset's events.",
)
KEEP = flags.DEFINE_list('keep', [], 'Further columns that pass through.')
TIME = flags.DEFINE_string(
  'time',
  None,
  'One time for all rows, seconds or an ISO 8601 date, in place of a column; '
  "last: the second after the dataset's last event.",
)
BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 4096, 'Candidates that are scored at once.', lower_bound=1
)
_READING = (
  'allow_truncated',
  'max_rejected',
  'max_inflation',
  'max_inflated_gb',
)
cli.define_verify()
cli.define_config(
  PrepareConfig, without=sorted(cli.setting_names(PrepareConfig) - {*_READING})
)


def columns_of(dataset: Dataset) -> dict[str, str]:
  """The columns of the input, as the flags and the dataset name them.

  Raises:
    FlagError: a name is no input of the model.
  """
  known = source_columns(dataset)
  given = parse_columns(tuple(COLUMNS.value))
  if unknown := given.keys() - known.keys() - {*HISTORY}:
    raise cli.FlagError(
      f'--columns names {min(unknown)}, which is no input of the model: '
      f'{", ".join([*known, *HISTORY])}'
    )
  if len(given.keys() & {*HISTORY}) == 1:
    raise cli.FlagError('--columns must name history and history_timestamp')
  return {**known, **given}


def time_of(dataset: Dataset) -> int | None:
  """Seconds that all rows are to be scored at; None: each at its own.

  Raises:
    FlagError: the flag is no time.
  """
  if TIME.value is None:
    return None
  if TIME.value == 'last':
    return dataset.manifest['last_timestamp'] + 1
  try:
    return parse_timestamp('time', TIME.value)
  except Refused as error:
    raise cli.FlagError(f'--time: {error}') from error


def hash_of(params: Any) -> str:
  """sha256 of parameters: which model has scored."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()


def plan_of(run: Run, columns: dict[str, str], time: int | None) -> dict:
  """What decides the scores; the input is told by its size and its date."""
  path = Path(INPUT.value)
  stat = path.stat() if path.is_file() else None
  return {
    'version': eain_jax.__version__,
    'model': run.settings['model'],
    'dataset': run.dataset.fingerprint,
    'parameters': hash_of((run.params, run.stats)),
    'input': INPUT.value,
    'input_stat': [stat.st_size, stat.st_mtime_ns] if stat else None,
    'columns': columns,
    'keep': KEEP.value,
    'time': time,
    'batch_size': BATCH_SIZE.value,
  }


def main() -> None:
  output = Path(OUTPUT.value)
  output_format(output)
  run = open_run(WORK_DIR.value, DATASET_DIR.value, cli.FLAGS.verify)
  columns, time = columns_of(run.dataset), time_of(run.dataset)
  kept = [columns[name] for name in ('user', 'item', 'timestamp')]
  if time is not None:
    kept.pop()
  file = CandidateFile(
    INPUT.value,
    columns,
    list(dict.fromkeys([*kept, *KEEP.value])),
    read_options(cli.config_from_flags(PrepareConfig)),
    time,
  )
  step = run.score_step()
  scorer = Scorer(
    Encoder(run.dataset),
    lambda batch: step(run.params, run.stats, batch),
    BATCH_SIZE.value,
  )
  with CountDisplay('score') as display:
    found = score_file(
      scorer,
      file,
      output,
      plan_of(run, columns, time),
      lambda counts: display(counts.rows),
    )
  print(cli.describe(found['counts']))
  print(f'scores: {output}')


if __name__ == '__main__':
  cli.run(main)
