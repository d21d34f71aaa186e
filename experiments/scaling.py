"""How training scales over devices: measured here, or predicted for TPUs.

  python -m experiments.scaling --output_dir=OUT [--devices=1,2,4,8]
      [--parallelism=mesh|pmap] [--model=din] [--batch_size=N] [--items=N] [...]
  python -m experiments.scaling --output_dir=OUT --topology=v5e:16x16
      [--items=N] [--embedding_dim=N] [--batch_size=N] [...]

On a CPU the devices are virtual and share its cores. With --topology the step
is compiled for a slice of TPUs that need not be there, and nothing is run. The
last line of its output is a JSON object of the last row, for paired runners.
"""

import json
from pathlib import Path

import jax
import rich
from absl import flags

from eain_jax.artifacts import refuse_existing, write_json
from eain_jax.benchmark.scaling import (
  ScalingPlan,
  make_virtual_devices,
  run_scaling,
)
from eain_jax.benchmark.topology import Job, predict_topology
from eain_jax.config import ScalingConfig
from eain_jax.locking import locked_folder
from eain_jax.reporting import prediction
from eain_jax.reporting import scaling as reporting
from eain_jax.reporting.benchmark import BenchmarkDisplay
from experiments import cli, step_flags

OUTPUT_DIR = flags.DEFINE_string(
  'output_dir',
  None,
  'Folder of scaling.json and scaling.png, or topology.json and .png.',
  required=True,
)
cli.define_config(ScalingConfig)
# --parallelism is that of ScalingConfig, and rows differ in their devices;
# data that lies on the device is for one device alone.
step_flags.define(without=('parallelism', 'num_devices', 'data_placement'))


def plan_from_flags() -> ScalingPlan:
  """What the flags ask for.

  Raises:
    FlagError: they contradict each other.
  """
  config, workload, train = step_flags.read(ScalingConfig)
  if not train.batch_size:
    raise cli.FlagError('--batch_size=0: name the batch that is to be compared')
  return ScalingPlan(
    config, workload, cli.model_config_from_flags(config.model), train
  )


def measure(output_dir: Path) -> None:
  """Times the steps on the devices that are here."""
  plan = plan_from_flags()
  make_virtual_devices(plan.config.counts[-1])
  # Seconds of compilation are those of a machine that has not seen the step.
  jax.config.update('jax_enable_compilation_cache', False)
  file = output_dir / 'scaling.json'
  save = lambda values: write_json(file, values)
  with BenchmarkDisplay() as display:
    result = run_scaling(plan, display, save)
  save(result)
  for block in reporting.scaling_on_console(result):
    rich.print(block)
  # Here, for matplotlib takes memory that would count as a row's.
  from eain_jax.reporting.scaling_plot import plot_scaling

  picture = output_dir / 'scaling.png'
  plot_scaling(result, picture)
  print(f'picture: {picture}')
  print(f'report: {file}')
  print(json.dumps(reporting.last_line(result)))


def predict(output_dir: Path) -> None:
  """Compiles the step for a slice of TPUs and predicts its time."""
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_enable_compilation_cache', False)
  plan = plan_from_flags()
  for name in (
    *('devices', 'scaling', 'parallelism', 'steps', 'warmup', 'repeats'),
    *('batches', 'mean_length', 'sequences'),
  ):
    if cli.FLAGS[name].present:
      raise cli.FlagError(f'--{name} goes without --topology')
  job = Job(plan.workload, plan.config.model, plan.model, plan.train)
  with BenchmarkDisplay() as display:
    result = predict_topology(job, plan.config.topology, display)
  file, picture = output_dir / 'topology.json', output_dir / 'topology.png'
  write_json(file, result)
  for block in prediction.prediction_on_console(result):
    rich.print(block)
  prediction.plot_prediction(result, picture)
  print(f'picture: {picture}')
  print(f'report: {file}')
  print(json.dumps(result['prediction']))


def main() -> None:
  act = predict if cli.FLAGS.topology else measure
  output_dir = Path(OUTPUT_DIR.value)
  with locked_folder(output_dir, '--output_dir'):
    refuse_existing(output_dir)
    act(output_dir)


if __name__ == '__main__':
  cli.run(main)
