"""Writes a trained model as files that jax and numpy alone can score with.

  python -m experiments.export --work_dir=W --output=DIR [--platforms=..]

The folder holds a StableHLO program for any number of rows, the parameters as
safetensors, the vocabularies, and golden rows with their scores. It is opened
again and scored before the command says that it is there.
"""

from pathlib import Path

from absl import flags

from eain_jax.artifacts import refuse_existing
from eain_jax.serving.export import GOLDEN_BATCH, PLATFORMS, export_run
from eain_jax.serving.exported import open_export, platform_here
from eain_jax.training.restore import open_run
from experiments import cli

WORK_DIR = flags.DEFINE_string(
  'work_dir', None, 'A run that train wrote.', required=True
)
DATASET_DIR = flags.DEFINE_string(
  'dataset_dir', None, 'Its dataset, where that has moved.'
)
OUTPUT = flags.DEFINE_string(
  'output', None, 'Folder of the export, which is not there yet.', required=True
)
KNOWN = (*PLATFORMS, 'rocm')
CHOSEN = flags.DEFINE_list(
  'platforms',
  list(PLATFORMS),
  f'That the program is for, of {", ".join(KNOWN)}.',
)
cli.define_verify()


def main() -> None:
  platforms, output = tuple(CHOSEN.value), Path(OUTPUT.value)
  is_known = set(platforms) <= set(KNOWN)
  if not platforms or not is_known or len(set(platforms)) < len(platforms):
    raise cli.FlagError(
      f'--platforms={",".join(platforms)} must name some of '
      f'{", ".join(KNOWN)}, once each'
    )
  refuse_existing(output, '--output')
  run = open_run(WORK_DIR.value, DATASET_DIR.value, cli.FLAGS.verify)
  here = platform_here()
  is_for_here = here in platforms
  export_run(
    run, output, platforms, open_export if is_for_here else lambda folder: None
  )
  size = sum(file.stat().st_size for file in output.rglob('*'))
  if is_for_here:
    print(f'opened again: it gives the logits of {GOLDEN_BATCH}')
  else:
    print(f'not opened again: this is {here}')
  print(
    f'export: {output}, {run.settings["model"]} for '
    f'{", ".join(platforms)}, {size / 1e6:,.1f} MB'
  )


if __name__ == '__main__':
  cli.run(main)
