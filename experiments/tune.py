"""Searches the settings of a model, on the validation part alone.

  python -m experiments.tune --dataset_dir=DS --output_dir=OUT --model=eain \\
      [--trials=N]

A flag of a model or of training that is given stays as it is. The best trial
becomes a file of flags, OUT/eain.flags, for --flagfile of the other binaries;
--skip_above, which is of all models, stands in it as a comment.
A search that was interrupted goes on when it is started again, and one that
ended goes on with more --trials.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich
from absl import flags

from eain_jax.config import MODEL_CONFIGS, TrainConfig
from eain_jax.errors import InputError
from eain_jax.locking import locked_folder
from eain_jax.reporting.console import trials_on_console
from eain_jax.reporting.progress import TrainingDisplay
from eain_jax.training.run_set import check_plan, claim_plan
from experiments import cli

DATASET_DIR = flags.DEFINE_string(
  'dataset_dir', None, 'A prepared dataset.', required=True
)
OUTPUT_DIR = flags.DEFINE_string(
  'output_dir', None, 'Folder of the search.', required=True
)
MODEL = flags.DEFINE_enum('model', 'eain', list(MODEL_CONFIGS), 'The model.')
TRIALS = flags.DEFINE_integer(
  'trials', 20, 'Settings that are tried, the defaults first.', lower_bound=1
)
SEARCH = flags.DEFINE_list(
  'search', [], 'Settings to search; unset: all that have a range.'
)
OBJECTIVE = flags.DEFINE_enum(
  'objective',
  'gauc',
  ('auc', 'gauc', 'ndcg@10', 'hit_rate@10', 'mrr'),
  'The metric of the validation part that is to be high.',
)
SAMPLER = flags.DEFINE_enum(
  'sampler', 'tpe', ('tpe', 'random'), "Optuna's, after three random trials."
)
PRUNE = flags.DEFINE_bool(
  'prune',
  True,
  'Give up a trial that is below the median of those before it at an epoch.',
)
cli.define_verify()
cli.define_models()
cli.define_config(TrainConfig)


def main() -> None:
  # Here, for the rest of the project does without Optuna.
  try:
    from eain_jax.tuning import record, search, space
  except ModuleNotFoundError as error:
    raise InputError(f"needs {error.name}: pip install -e '.[tune]'") from error
  model, output_dir = MODEL.value, Path(OUTPUT_DIR.value)
  fixed = cli.given_settings(model)
  made = space.make_space(
    model,
    cli.model_config_from_flags(model),
    cli.config_from_flags(TrainConfig),
    fixed=tuple(fixed),
    searched=tuple(SEARCH.value),
  )
  dataset = cli.open_together(DATASET_DIR.value)
  searched = search.Search(
    dataset,
    made,
    output_dir,
    OBJECTIVE.value,
    SAMPLER.value,
    PRUNE.value,
    made.train_config.seed,
  )
  with contextlib.ExitStack() as stack:
    stack.enter_context(locked_folder(output_dir, '--output_dir'))
    check_plan(output_dir, searched.plan())
    claim_plan(output_dir, searched.plan())
    shown = stack.enter_context(contextlib.ExitStack())

    def display(number: int, values: Mapping[str, Any]) -> TrainingDisplay:
      named = ' '.join(space.as_flags(values))
      shown.close()
      print(f'trial {number}: {named}', flush=True)
      return shown.enter_context(
        TrainingDisplay(f'{model}, trial {number}', made.train_config.epochs)
      )

    trials = searched.run(TRIALS.value, display)
    command = cli.command('tune', without=('verify',))
    found = record.write_record(searched, trials, fixed, command)
  rich.print(
    trials_on_console(searched.objective, found['trials'], found['best'])
  )
  for note in record.notes(searched, found):
    print(note)
  print(f'flags: {output_dir / record.flags_file(model)}')


if __name__ == '__main__':
  cli.run(main)
