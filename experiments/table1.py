"""The paper's Table 1, measured: LR, MF, DNN, DIN, DeepFM, EAIN.

  python -m experiments.table1 --output_dir=OUT [--dataset_dir=DS] [--seeds=N]

Without --dataset_dir it makes the synthetic world, whose best possible AUC is
known. A run that was interrupted goes on when it is started again.
"""

import contextlib
import json
from pathlib import Path

import numpy as np
import rich
from absl import flags

from eain_jax.artifacts import (
  MANIFEST,
  check_manifest,
  refuse_existing,
  write_json,
)
from eain_jax.config import MODEL_CONFIGS, PrepareConfig, TrainConfig
from eain_jax.data.dataset import Dataset
from eain_jax.data.prepare import prepare
from eain_jax.errors import InputError
from eain_jax.evaluation.evaluator import ceiling
from eain_jax.locking import locked_folder
from eain_jax.reporting.console import TrainingDisplay, table1_on_console
from eain_jax.reporting.report import PAGE_FILE, write_report
from eain_jax.reporting.table1 import Run
from eain_jax.stopping import stop_signals
from eain_jax.training import loop, processes
from eain_jax.training.run_folder import (
  FREE_SETTINGS,
  METRICS_FILE,
  RESULT_FILE,
  differing_setting,
  read_settings,
)
from experiments import cli

OUTPUT_DIR = flags.DEFINE_string(
  'output_dir', None, 'Folder of the report and its runs.', required=True
)
DATASET_DIR = flags.DEFINE_string(
  'dataset_dir', None, 'A prepared dataset; unset: the synthetic world.'
)
MODELS = flags.DEFINE_list('models', list(MODEL_CONFIGS), 'Rows of the table.')
SEEDS = flags.DEFINE_integer(
  'seeds',
  1,
  'Runs a model, from seeds 0, 1, ...; two or more give intervals.',
  lower_bound=1,
)
NUM_EVENTS = flags.DEFINE_integer(
  'num_events', 20_000, 'Size of the synthetic world.', lower_bound=1_000
)
cli.define_verify()
cli.define_models()
cli.define_config(TrainConfig)

PLAN_FILE, DATASET_FOLDER, RUNS_FOLDER = 'plan.json', 'dataset', 'runs'


def plan_from_flags() -> dict:
  """Everything that decides the table; a run resumes only the same plan."""
  models = tuple(MODELS.value)
  repeated = len(set(models)) != len(models)
  if not models or repeated:
    raise cli.FlagError(
      f'--models={",".join(models)} must name models, once each'
    )
  configs = {
    model: cli.model_config_from_flags(model, ignore_unused=True).to_dict()
    for model in models
  }
  return {
    'dataset_dir': DATASET_DIR.value,
    'num_events': None if DATASET_DIR.value else NUM_EVENTS.value,
    'seeds': SEEDS.value,
    'models': configs,
    'train_config': cli.config_from_flags(TrainConfig).to_dict(),
  }


def make_world(folder: Path) -> None:
  """The synthetic world, made by the first process where it is not there."""
  if not processes.is_first() or folder.is_dir():
    return
  # The world's tastes follow hours and months; its weekdays say nothing.
  config = PrepareConfig(
    synthetic=True,
    num_events=NUM_EVENTS.value,
    context=('hour', 'month', 'gap'),
  )
  # The first process may stop here: it is not at a step, and others wait.
  with stop_signals() as stop, stop.released():
    prepare(config, folder)


def run_folder(output_dir: Path, model: str, seed: int) -> Path:
  return output_dir / RUNS_FOLDER / f'{model}-seed{seed}'


def train(dataset: Dataset, model: str, seed: int, folder: Path) -> None:
  """Trains one model and seed; a finished run is not repeated."""
  # Its manifest is what a run writes last.
  is_finished = np.array((folder / MANIFEST).is_file())
  if processes.gather(is_finished).all():
    return
  model_config = cli.model_config_from_flags(model, ignore_unused=True)
  config = cli.config_from_flags(TrainConfig, seed=seed)
  with contextlib.ExitStack() as stack:
    display = None
    if processes.is_first():
      title = f'{model}, seed {seed}'
      display = stack.enter_context(TrainingDisplay(title, config.epochs))
    loop.fit(dataset, model, model_config, config, folder, display)


def read(dataset: Dataset, model: str, seed: int, folder: Path) -> Run:
  """A finished run.

  Raises:
    InputError: its files are not as they were written.
  """
  check_manifest(folder)
  model_config = cli.model_config_from_flags(model, ignore_unused=True)
  config = cli.config_from_flags(TrainConfig, seed=seed)
  settings = loop.run_config(dataset, model, model_config, config)
  if differs := differing_setting(read_settings(folder), settings):
    raise InputError(
      f'{folder} holds a run with {differs}: name another --output_dir'
    )
  # Where a dataset lies says nothing about the numbers.
  settings['dataset'].pop('path')
  try:
    result = json.loads((folder / RESULT_FILE).read_text())
    lines = (folder / METRICS_FILE).read_text().splitlines()
    records = [json.loads(line) for line in lines]
  except (OSError, ValueError) as error:
    raise InputError(
      f'{folder} does not hold a whole run: remove it to train it again'
    ) from error
  return Run(model, seed, settings, result, records)


def wanted(plan: dict) -> dict:
  """A plan without the devices, on which it does not depend."""
  config = plan['train_config']
  kept = {k: v for k, v in config.items() if k not in FREE_SETTINGS}
  return {**plan, 'train_config': kept}


def check_folder(output_dir: Path, plan: dict) -> None:
  """Raises InputError where the folder holds something but this very table."""
  plan_file = output_dir / PLAN_FILE
  if not plan_file.is_file():
    refuse_existing(output_dir)
    return
  try:
    found = wanted(json.loads(plan_file.read_text()))
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(
      f'{plan_file} is damaged: name another folder for --output_dir'
    ) from error
  if found != wanted(plan):
    raise InputError(
      f'--output_dir={output_dir} holds a table of other flags (see '
      f'{plan_file}): name another folder'
    )


def claim_folder(output_dir: Path, plan: dict) -> None:
  """Makes it this table's, with its world, or leaves it as it was."""
  plan_file = output_dir / PLAN_FILE
  if not processes.is_first():
    return
  is_new = not plan_file.is_file()
  if is_new:
    write_json(plan_file, plan)
  if DATASET_DIR.value:
    return
  try:
    make_world(output_dir / DATASET_FOLDER)
  except BaseException:
    if is_new:
      plan_file.unlink()
    raise


def open_dataset_of(output_dir: Path, plan: dict) -> Dataset:
  """The dataset of the flag, or the synthetic world in the output folder."""
  processes.together(lambda: check_folder(output_dir, plan))
  dataset = None
  if DATASET_DIR.value:
    dataset = cli.open_together(DATASET_DIR.value)
  processes.together(lambda: claim_folder(output_dir, plan))
  return dataset or cli.open_together(str(output_dir / DATASET_FOLDER))


def make_table(output_dir: Path, plan: dict) -> None:
  """Trains what is not trained yet, and writes the report."""
  dataset = open_dataset_of(output_dir, plan)
  asked = [
    (model, seed, run_folder(output_dir, model, seed))
    for model in plan['models']
    for seed in range(SEEDS.value)
  ]
  for run in asked:
    train(dataset, *run)
  if not processes.is_first():
    return
  table, times = write_report(
    output_dir,
    [read(dataset, *run) for run in asked],
    dict(dataset.manifest),
    {part: ceiling(dataset, part) for part in ('valid', 'test')},
    wanted(plan),
  )
  rich.print(table1_on_console(table, times))
  print(f'report: {output_dir / PAGE_FILE}')


def main() -> None:
  output_dir = Path(OUTPUT_DIR.value)
  plan = plan_from_flags()
  with contextlib.ExitStack() as stack:
    lock = lambda: stack.enter_context(
      locked_folder(output_dir, '--output_dir')
    )
    processes.together(lambda: processes.is_first() and lock())
    make_table(output_dir, plan)


if __name__ == '__main__':
  cli.run(main, takes_processes=True)
