"""Makes a dataset from Amazon files, a log of your own, or a synthetic world.

  python -m experiments.prepare_data --output_dir=DS --reviews=F[,F] \\
      [--metadata=F[,F]]
  python -m experiments.prepare_data --output_dir=DS --events=F \\
      --columns=user=..,item=..,timestamp=..[,label=..,request=..] \\
      [--items=F --item_key=.. --item_attributes=..]
  python -m experiments.prepare_data --output_dir=DS --synthetic
"""

from pathlib import Path

from absl import flags

from eain_jax.config import PrepareConfig
from eain_jax.data.prepare import prepare
from experiments import cli

OUTPUT_DIR = flags.DEFINE_string(
  'output_dir',
  None,
  'Folder of the dataset; must be new or empty.',
  required=True,
)
cli.define_config(PrepareConfig)


def print_manifest(manifest: dict) -> None:
  """What was read, and what became of it."""
  for source in manifest['sources']:
    facts = {k: v for k, v in source.items() if k not in ('name', 'sha256')}
    print(f'read {source["name"]}: {cli.describe(facts)}')
  counts = manifest['counts']
  totals = {k: v for k, v in counts.items() if isinstance(v, int)}
  print(f'counts: {cli.describe(totals)}')
  print(f'task {manifest["task"]}, split {manifest["split"]}')
  for part in ('train', 'valid', 'test'):
    print(f'{part}: {cli.describe(counts[part])}')
  for feature in manifest['features']:
    values = f', up to {feature["max_values"]} values an item'
    print(
      f'feature {feature["name"]} ({feature["kind"]}): '
      f'{feature["num_rows"]:,} rows'
      + (values if feature['multi_valued'] else '')
    )
  for note in manifest['notes']:
    print(f'note: {note}')


def main() -> None:
  config = cli.config_from_flags(PrepareConfig)
  manifest = prepare(config, Path(OUTPUT_DIR.value))
  print_manifest(manifest)
  print(f'dataset: {OUTPUT_DIR.value}')


if __name__ == '__main__':
  cli.run(main)
