"""Steady-state speed of training and scoring, beside what the machine can do.

  python -m experiments.benchmark --output_dir=OUT [--model=din,eain] [...]

Without --dataset_dir it runs on a synthetic workload of the flags' shape. The
last line of its output is a JSON object of the last row, for paired runners.
"""

import json
from pathlib import Path

import jax
import rich
from absl import flags

from eain_jax.artifacts import refuse_existing, write_json
from eain_jax.benchmark.preparation import measure_preparation
from eain_jax.benchmark.run import Plan, run_benchmark
from eain_jax.config import BenchmarkConfig, WorkloadConfig
from eain_jax.data.dataset import open_dataset
from eain_jax.locking import locked_folder
from eain_jax.reporting import benchmark as reporting
from experiments import cli, step_flags

OUTPUT_DIR = flags.DEFINE_string(
  'output_dir', None, 'Folder of benchmark.json and its plots.', required=True
)
DATASET_DIR = flags.DEFINE_string(
  'dataset_dir', None, 'A prepared dataset; unset: the synthetic workload.'
)
cli.define_verify()
cli.define_config(BenchmarkConfig)
step_flags.define()


def plan_from_flags() -> Plan:
  """What the flags ask for.

  Raises:
    FlagError: they contradict each other.
  """
  config, workload, train = step_flags.read(BenchmarkConfig)
  if config.sweep != 'none' and cli.FLAGS[config.sweep].present:
    raise cli.FlagError(
      f'--sweep={config.sweep} takes --sweep_values, not --{config.sweep}'
    )
  if cli.FLAGS['prepare_reviews'].present and not config.prepare:
    raise cli.FlagError('--prepare_reviews goes with --prepare')
  if DATASET_DIR.value:
    if config.sweep == 'items':
      raise cli.FlagError('--sweep=items is of the workload, not --dataset_dir')
    cli.refuse_flags_of(WorkloadConfig, '--dataset_dir', but=('seed',))
  models = {
    name: cli.model_config_from_flags(name, beside=config.model)
    for name in config.model
  }
  if not DATASET_DIR.value:
    return Plan(config, workload, None, models, train)
  dataset = open_dataset(DATASET_DIR.value, verify=cli.FLAGS.verify)
  return Plan(config, None, dataset, models, train)


def main() -> None:
  output_dir = Path(OUTPUT_DIR.value)
  plan = plan_from_flags()
  with locked_folder(output_dir, '--output_dir'):
    refuse_existing(output_dir)
    measure(plan, output_dir)


def measure(plan: Plan, output_dir: Path) -> None:
  """Measures what the plan asks for, and shows it."""
  config, file = plan.config, output_dir / 'benchmark.json'
  # Seconds of compilation are those of a machine that has not seen the step.
  jax.config.update('jax_enable_compilation_cache', False)
  with reporting.BenchmarkDisplay() as display:
    result = run_benchmark(
      plan,
      display,
      lambda values: write_json(file, values),
      output_dir / 'profile' if config.profile else None,
    )
    write_json(file, result)
    if config.prepare:
      display('preparation')
      result['preparation'] = measure_preparation(
        config.prepare_reviews, plan.train.seed
      )
  write_json(file, result)
  for table in reporting.benchmark_on_console(result):
    rich.print(table)
  if config.sweep != 'none':
    # Here, for matplotlib takes memory that would count as a row's.
    from eain_jax.reporting.sweep_plot import plot_sweep

    picture = output_dir / f'sweep_{config.sweep}.png'
    plot_sweep(result, picture)
    print(f'picture: {picture}')
  print(f'report: {file}')
  print(json.dumps(reporting.last_line(result)))


if __name__ == '__main__':
  cli.run(main)
