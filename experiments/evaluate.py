"""Evaluates a run's best checkpoint on a part of its dataset.

python -m experiments.evaluate --work_dir=W [--split=test]
"""

import json
from pathlib import Path

from absl import flags

from eain_jax.artifacts import write_json
from eain_jax.data.examples import PARTS
from eain_jax.evaluation.evaluator import ceiling
from eain_jax.reporting.console import metrics_on_console
from eain_jax.reporting.measured import json_ready
from eain_jax.training.loop import evaluate
from eain_jax.training.restore import open_run
from experiments import cli

WORK_DIR = flags.DEFINE_string(
  'work_dir', None, 'A run that train wrote.', required=True
)
DATASET_DIR = flags.DEFINE_string(
  'dataset_dir', None, 'Its dataset, where that has moved.'
)
cli.define_verify()
SPLIT = flags.DEFINE_enum('split', 'test', PARTS, 'The part to evaluate on.')


def main() -> None:
  run = open_run(WORK_DIR.value, DATASET_DIR.value, cli.FLAGS.verify)
  values = evaluate(
    run.dataset, SPLIT.value, run.score_step(), run.params, run.stats
  )
  values['ceiling'] = ceiling(run.dataset, SPLIT.value)
  metrics_on_console(values)
  split = run.dataset.manifest['split']
  values = json_ready(values)
  print(json.dumps(values))
  file = Path(WORK_DIR.value) / f'evaluation_{SPLIT.value}.json'
  write_json(
    file,
    {
      'model': run.settings['model'],
      'split': split,
      SPLIT.value: values,
    },
  )
  print(f'evaluation: {file}')


if __name__ == '__main__':
  cli.run(main)
