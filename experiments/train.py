"""Trains a model on a prepared dataset; goes on where it was interrupted.

python -m experiments.train --dataset_dir=DS --work_dir=W --model=eain
"""

import json
from pathlib import Path

from absl import flags

from eain_jax.config import TrainConfig
from eain_jax.data.dataset import open_dataset
from eain_jax.reporting.console import TrainingDisplay, metrics_on_console
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
cli.define_models()
cli.define_config(TrainConfig)


def main() -> None:
  model_config = cli.model_config_from_flags(MODEL.value)
  config = cli.config_from_flags(TrainConfig)
  dataset = open_dataset(DATASET_DIR.value)
  with TrainingDisplay(MODEL.value, config.epochs) as display:
    fitted = fit(
      dataset,
      MODEL.value,
      model_config,
      config,
      Path(WORK_DIR.value),
      display,
    )
  metrics_on_console(fitted.result['test'])
  print(json.dumps({k: v for k, v in fitted.result.items() if k != 'valid'}))
  print(f'run: {WORK_DIR.value}')


if __name__ == '__main__':
  cli.run(main)
