"""What each part of EAIN, and each choice in it, does: one change at a time.

  python -m experiments.ablation --dataset_dir=DS --output_dir=OUT [--seeds=5]
      [--variants=no_attention,no_paim] [...]

Flags of EAIN and of the training set what the variants are compared with. An
ablation that was interrupted goes on when it is started again.
"""

import dataclasses
from pathlib import Path
from typing import cast

import rich
from absl import flags

from eain_jax.config import EainConfig, TrainConfig
from eain_jax.data.dataset import Dataset
from eain_jax.data.skip_above import with_skip_above
from eain_jax.errors import InputError
from eain_jax.evaluation.evaluator import ceiling
from eain_jax.reporting.ablation import build_ablation
from eain_jax.reporting.console import ablation_on_console
from eain_jax.reporting.measured import times_of_rows
from eain_jax.reporting.report import PAGE_FILE, write_ablation
from eain_jax.training import processes
from eain_jax.training.run_set import (
  Job,
  check_plan,
  claim_plan,
  deciding,
  read_job,
)
from eain_jax.training.setup import resolve_config
from eain_jax.training.variants import VARIANTS, changed_configs, why_not
from experiments import cli, side_by_side

OUTPUT_DIR = flags.DEFINE_string(
  'output_dir', None, 'Folder of the report and its runs.', required=True
)
DATASET_DIR = flags.DEFINE_string(
  'dataset_dir', None, 'A prepared dataset.', required=True
)
NAMES = flags.DEFINE_list(
  'variants',
  None,
  f'Changes that are tried: {", ".join(VARIANTS)}. Unset: all that can be.',
)
SEEDS = flags.DEFINE_integer(
  'seeds',
  3,
  'Runs of EAIN and of each variant, from seeds 0, 1, ...; two or more give '
  'intervals.',
  lower_bound=1,
)
cli.define_verify()
cli.define_models()
cli.define_config(TrainConfig, without=('seed',))

MODULE = 'experiments.ablation'


def variant_names() -> list[str]:
  """The variants of the flag, or all.

  Raises:
    FlagError: one is unknown, or named twice.
  """
  names = list(VARIANTS) if NAMES.value is None else NAMES.value
  if not names or len(set(names)) != len(names) or set(names) - set(VARIANTS):
    raise cli.FlagError(
      f'--variants={",".join(names)} must name variants, once each: '
      f'{", ".join(VARIANTS)}'
    )
  return names


def left_out_of(
  names: list[str],
  model: EainConfig,
  train: TrainConfig,
  given: TrainConfig,
  dataset: Dataset,
) -> dict[str, str]:
  """By variant that cannot be tried why not; see `why_not`.

  Raises:
    InputError: the user has named it, or none is left.
  """
  whys = {
    name: why_not(VARIANTS[name], model, train, dataset, given)
    for name in names
  }
  left_out = {name: why for name, why in whys.items() if why is not None}
  if left_out and (NAMES.value is not None or len(left_out) == len(names)):
    name, why = next(iter(left_out.items()))
    raise InputError(f'--variants={name} cannot be tried: {why}')
  return left_out


def ablate(output_dir: Path, names: list[str]) -> None:
  """Trains what is not trained yet, and writes the report."""
  model = cast(EainConfig, cli.model_config_from_flags('eain'))
  train = cli.config_from_flags(TrainConfig, seed=0)
  side_by_side.seeds_at_once([train])
  on_disk = cli.open_together(DATASET_DIR.value)
  dataset = processes.together(
    lambda: with_skip_above(on_disk, train.skip_above)
  )
  chosen = processes.together(
    lambda: resolve_config(dataset, 'eain', model, train)
  )
  left_out = processes.together(
    lambda: left_out_of(names, model, chosen, train, dataset)
  )
  variants = {name: VARIANTS[name] for name in names if name not in left_out}
  plan = {
    'dataset_dir': DATASET_DIR.value,
    'seeds': SEEDS.value,
    'model_config': model.to_dict(),
    'variants': {n: {**v.model, **v.train} for n, v in variants.items()},
    'train_config': deciding(train),
  }
  processes.together(
    lambda: check_plan(output_dir, plan, joins=side_by_side.JOIN.value)
  )
  processes.together(lambda: claim_plan(output_dir, plan))
  jobs: dict[str, list[Job]] = {}
  for name in ('eain', *variants):
    # One batch size for all: by itself it follows the negatives that are left.
    configs = model, dataclasses.replace(train, batch_size=chosen.batch_size)
    if name in variants:
      configs = changed_configs(variants[name], *configs)
    jobs[name] = [
      Job(name, 'eain', configs[0], dataclasses.replace(configs[1], seed=seed))
      for seed in range(SEEDS.value)
    ]
  # By seed, so that an early look at the runs compares whole pairs, where
  # seeds are not trained together.
  by_seed = [
    job for of_seed in zip(*jobs.values(), strict=True) for job in of_seed
  ]
  is_whole = side_by_side.train(on_disk, by_seed, output_dir, MODULE)
  if not is_whole or not processes.is_first():
    return
  runs = {
    name: [read_job(on_disk, job, output_dir) for job in of_name]
    for name, of_name in jobs.items()
  }
  times = times_of_rows(runs)
  table = build_ablation(
    runs.pop('eain'),
    runs,
    variants,
    dataset.manifest,
    ceiling(dataset, 'test'),
    left_out,
  )
  write_ablation(output_dir, table, plan, times)
  rich.print(ablation_on_console(table, times))
  print(f'report: {output_dir / PAGE_FILE}')


def main() -> None:
  output_dir, names = Path(OUTPUT_DIR.value), variant_names()
  with side_by_side.folder_of_plan(output_dir):
    ablate(output_dir, names)


if __name__ == '__main__':
  cli.run(main, takes_processes=True)
