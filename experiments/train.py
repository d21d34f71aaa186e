"""Trains a model on a prepared dataset; goes on where it was interrupted.

python -m experiments.train --dataset_dir=DS --work_dir=W --model=eain
"""

import contextlib
import json
from pathlib import Path

from absl import flags

from eain_jax.config import TrainConfig
from eain_jax.reporting.console import metrics_on_console
from eain_jax.reporting.progress import TrainingDisplay
from eain_jax.training import processes
from eain_jax.training.loop import fit
from experiments import cli

DATASET_DIR = flags.DEFINE_string(
  'dataset_dir', None, 'A prepared dataset.', required=True
)
WORK_DIR = flags.DEFINE_string(
  'work_dir',
  None,
  'Folder of the run: settings, log, checkpoints, result.',
  required=True,
)
MODEL = flags.DEFINE_string('model', 'eain', 'lr, mf, dnn, din, deepfm, eain.')
PROFILE = flags.DEFINE_bool(
  'profile',
  False,
  'Trace twenty calls of the device, after the first ten, into '
  'WORK_DIR/profile: perfetto_trace.json.gz is for https://ui.perfetto.dev.',
)
cli.define_verify()
cli.define_models()
cli.define_config(TrainConfig)


def main() -> None:
  model_config = cli.model_config_from_flags(MODEL.value)
  config = cli.config_from_flags(TrainConfig)
  dataset = cli.open_together(DATASET_DIR.value)
  with contextlib.ExitStack() as stack:
    display = None
    if processes.is_first():
      display = stack.enter_context(TrainingDisplay(MODEL.value, config.epochs))
    fitted = fit(
      dataset,
      MODEL.value,
      model_config,
      config,
      Path(WORK_DIR.value),
      display,
      profile_dir=Path(WORK_DIR.value) / 'profile' if PROFILE.value else None,
    )
  if not processes.is_first():
    return
  metrics_on_console(fitted.result['test'])
  left_out = ('valid', 'reliability')  # They stand in result.json.
  print(
    json.dumps({k: v for k, v in fitted.result.items() if k not in left_out})
  )
  print(f'run: {WORK_DIR.value}')


if __name__ == '__main__':
  cli.run(main, takes_processes=True)
