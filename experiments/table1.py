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

from eain_jax.artifacts import refuse_existing, write_json, write_text
from eain_jax.config import MODEL_CONFIGS, PrepareConfig, TrainConfig
from eain_jax.data.dataset import Dataset, open_dataset
from eain_jax.data.prepare import prepare
from eain_jax.errors import InputError
from eain_jax.evaluation.evaluator import ceiling
from eain_jax.reporting.console import TrainingDisplay, table1_on_console
from eain_jax.reporting.page import render_page
from eain_jax.reporting.plots import plot_auc, plot_training_curves
from eain_jax.reporting.table1 import Run, build_table1, render_markdown
from eain_jax.training import loop, processes
from eain_jax.training.run_folder import (
  FREE_SETTINGS,
  METRICS_FILE,
  RESULT_FILE,
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
cli.define_models()
cli.define_config(TrainConfig)

PLAN_FILE, DATASET_FOLDER, RUNS_FOLDER = 'plan.json', 'dataset', 'runs'
CURVES_FILE, AUC_FILE = 'training_curves.png', 'auc.png'


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


def open_or_make_dataset(output_dir: Path) -> Dataset:
  """The dataset of the flag, or the synthetic world in the output folder."""
  if DATASET_DIR.value:
    return cli.open_together(DATASET_DIR.value)
  folder = output_dir / DATASET_FOLDER
  processes.together(lambda: make_world(folder))
  return cli.open_together(str(folder))


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
  prepare(config, folder)


def run_folder(output_dir: Path, model: str, seed: int) -> Path:
  return output_dir / RUNS_FOLDER / f'{model}-seed{seed}'


def train(dataset: Dataset, model: str, seed: int, folder: Path) -> None:
  """Trains one model and seed; a finished run is not repeated."""
  is_finished = np.array((folder / RESULT_FILE).is_file())
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
  """A finished run."""
  model_config = cli.model_config_from_flags(model, ignore_unused=True)
  config = cli.config_from_flags(TrainConfig, seed=seed)
  records = (folder / METRICS_FILE).read_text().splitlines()
  settings = loop.run_config(dataset, model, model_config, config)
  # Where a dataset lies says nothing about the numbers.
  settings['dataset'].pop('path')
  return Run(
    model,
    seed,
    settings,
    json.loads((folder / RESULT_FILE).read_text()),
    [json.loads(line) for line in records],
  )


def wanted(plan: dict) -> dict:
  """A plan without the devices, on which it does not depend."""
  config = plan['train_config']
  kept = {k: v for k, v in config.items() if k not in FREE_SETTINGS}
  return {**plan, 'train_config': kept}


def claim_folder(output_dir: Path, plan: dict) -> None:
  """Makes the folder of the table, or checks that it holds this very one."""
  plan_file = output_dir / PLAN_FILE
  if not plan_file.is_file():
    if DATASET_DIR.value:
      open_dataset(DATASET_DIR.value)
    refuse_existing(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(plan_file, plan)
  elif wanted(json.loads(plan_file.read_text())) != wanted(plan):
    raise InputError(
      f'--output_dir={output_dir} holds a table of other flags (see '
      f'{plan_file}): name another folder'
    )


def main() -> None:
  output_dir = Path(OUTPUT_DIR.value)
  plan = plan_from_flags()
  processes.first_then_others(lambda: claim_folder(output_dir, plan))
  dataset = open_or_make_dataset(output_dir)
  asked = [
    (model, seed, run_folder(output_dir, model, seed))
    for model in plan['models']
    for seed in range(SEEDS.value)
  ]
  for run in asked:
    train(dataset, *run)
  if not processes.is_first():
    return
  runs = [read(dataset, *run) for run in asked]
  ceilings = {part: ceiling(dataset, part) for part in ('valid', 'test')}
  table = build_table1(runs, dict(dataset.manifest), ceilings)
  curves, bars = output_dir / CURVES_FILE, output_dir / AUC_FILE
  plot_training_curves(runs, curves, ceilings['valid'])
  plot_auc(table, bars)
  write_json(output_dir / 'table1.json', table)
  write_text(output_dir / 'table1.md', render_markdown(table))
  write_text(
    output_dir / 'report.html',
    render_page(table, {'Test AUC': bars, 'Training curves': curves}),
  )
  rich.print(table1_on_console(table))
  print(f'report: {output_dir / "report.html"}')


if __name__ == '__main__':
  cli.run(main, takes_processes=True)
