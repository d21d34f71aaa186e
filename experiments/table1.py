"""The paper's Table 1, measured: LR, MF, DNN, DIN, DeepFM, EAIN.

  python -m experiments.table1 --output_dir=OUT [--dataset_dir=DS] [--seeds=N]

Without --dataset_dir it makes the synthetic world, whose best possible AUC is
known. A run that was interrupted goes on when it is started again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import rich
from absl import flags
from rich.text import Text

from eain_jax.config import MODEL_CONFIGS, PrepareConfig, TrainConfig
from eain_jax.data.dataset import Dataset
from eain_jax.data.prepare import prepare
from eain_jax.data.skip_above import with_skip_above
from eain_jax.errors import InputError
from eain_jax.evaluation.evaluator import ceiling
from eain_jax.evaluation.inside import look_inside
from eain_jax.models.eain import EAIN
from eain_jax.reporting.console import table1_on_console
from eain_jax.reporting.progress import console
from eain_jax.reporting.report import PAGE_FILE, read_ablation, write_report
from eain_jax.stopping import stop_signals
from eain_jax.training import processes
from eain_jax.training.restore import open_run_on
from eain_jax.training.run_set import (
  Job,
  check_plan,
  claim_plan,
  read_job,
)
from experiments import cli, side_by_side
from experiments.flag_files import find_files, settings_of_one, unequal_note

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
FLAGS_DIR = flags.DEFINE_list(
  'flags_dir',
  None,
  'Folders of files MODEL.flags, as experiments.tune writes them, each for its '
  'model; a flag that is given here holds for all models. Unset: the defaults.',
)
ABLATION_DIR = flags.DEFINE_string(
  'ablation_dir',
  None,
  'Output folder of experiments.ablation on the same dataset, to be shown in '
  'the report.',
)
NUM_EVENTS = flags.DEFINE_integer(
  'num_events', 20_000, 'Size of the synthetic world.', lower_bound=1_000
)
cli.define_verify()
cli.define_models()
cli.define_config(TrainConfig, without=('seed',))

DATASET_FOLDER = 'dataset'
MODULE = 'experiments.table1'


def jobs_from_flags() -> tuple[list[Job], str]:
  """The runs of the table, by model, then by seed; and what is unequal."""
  if DATASET_DIR.value and cli.FLAGS['num_events'].present:
    raise cli.FlagError(
      '--num_events is the size of the synthetic world, and --dataset_dir '
      'names another dataset'
    )
  models = tuple(MODELS.value)
  repeated = len(set(models)) != len(models)
  if not models or repeated:
    raise cli.FlagError(
      f'--models={",".join(models)} must name models, once each'
    )
  files = find_files([Path(folder) for folder in FLAGS_DIR.value or ()])
  jobs = [
    Job(model, model, *settings_of_one(model, models, files.get(model), seed))
    for model in models
    for seed in range(SEEDS.value)
  ]
  return jobs, unequal_note(models, files)


def plan_of(jobs: Sequence[Job]) -> dict:
  """Everything that decides the table; a run resumes only the same plan."""
  first = [job for job in jobs if job.config.seed == 0]
  return {
    'dataset_dir': DATASET_DIR.value,
    'num_events': None if DATASET_DIR.value else NUM_EVENTS.value,
    'seeds': SEEDS.value,
    'models': {job.model: job.settings() for job in first},
  }


def make_world(folder: Path) -> None:
  """The synthetic world, where it is not there."""
  if folder.is_dir():
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


def open_dataset_of(output_dir: Path, plan: dict) -> Dataset:
  """The dataset of the flag, or the synthetic world, as it is trained on."""
  processes.together(
    lambda: check_plan(output_dir, plan, joins=side_by_side.JOIN.value)
  )
  choice = cli.FLAGS.skip_above
  if DATASET_DIR.value:
    on_disk = cli.open_together(DATASET_DIR.value)
    dataset = processes.together(lambda: with_skip_above(on_disk, choice))
    processes.together(lambda: claim_plan(output_dir, plan))
    return dataset
  folder = output_dir / DATASET_FOLDER
  if side_by_side.JOIN.value:
    if not folder.is_dir():
      raise InputError(f'{folder} is still being made: join again in a while')
  else:
    processes.together(
      lambda: claim_plan(output_dir, plan, lambda: make_world(folder))
    )
  return with_skip_above(cli.open_together(str(folder)), choice)


def inside_eain(
  dataset: Dataset, jobs: Sequence[Job], output_dir: Path
) -> dict[str, Any] | None:
  """What EAIN looks at, by its first seed; None without EAIN.

  Of several processes all call it, and the first one alone looks.
  """
  job = next((job for job in jobs if job.model == 'eain'), None)
  if job is None:
    return None
  seed = {'seed': job.config.seed}
  try:
    run = open_run_on(dataset, job.folder(output_dir))
  except InputError as error:
    # The table is worth more than its pictures of one model.
    return {**seed, 'left_out': str(error)}
  if not processes.is_first():
    return None
  model = cast(EAIN, run.model)
  return {**seed, **look_inside(dataset, model, run.params, run.stats)}


def ablation_of(dataset: Dataset) -> dict[str, Any] | None:
  """The ablation of the flag, which is read before anything is trained."""
  if not ABLATION_DIR.value:
    return None
  folder = Path(ABLATION_DIR.value)
  return processes.together(lambda: read_ablation(folder, dataset.fingerprint))


def make_table(output_dir: Path, jobs: Sequence[Job], note: str) -> None:
  """Trains what is not trained yet, and writes the report."""
  side_by_side.seeds_at_once([job.config for job in jobs])
  plan = plan_of(jobs)
  dataset = open_dataset_of(output_dir, plan)
  ablation = ablation_of(dataset)
  if note and processes.is_first() and not side_by_side.JOIN.value:
    console.print(Text(note))
  # From the last row on: the deepest models take longest.
  ordered = jobs[::-1] if side_by_side.JOIN.value else jobs
  if not side_by_side.train(dataset, ordered, output_dir, MODULE):
    return
  inside = inside_eain(dataset, jobs, output_dir)
  if not processes.is_first():
    return
  table, times = write_report(
    output_dir,
    [read_job(dataset, job, output_dir) for job in jobs],
    dict(dataset.manifest),
    {part: ceiling(dataset, part) for part in ('valid', 'test')},
    plan,
    inside,
    ablation,
    [note] if note else [],
  )
  rich.print(table1_on_console(table, times))
  print(f'report: {output_dir / PAGE_FILE}')


def main() -> None:
  output_dir = Path(OUTPUT_DIR.value)
  jobs, note = jobs_from_flags()
  with side_by_side.folder_of_plan(output_dir):
    make_table(output_dir, jobs, note)


if __name__ == '__main__':
  cli.run(main, takes_processes=True)
