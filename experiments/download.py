"""Fetches Amazon's published data, and says what to run on it.

  python -m experiments.download --dataset=electronics_2014 [--output_dir=DIR]
      [--reviews=5core|all|ratings] [--nometadata] [--mirror=URL] [--refresh]
  python -m experiments.download --list [--dataset=electronics_2014]

The files go to DIR/electronics_2014. What is interrupted goes on with the same
command. At its end the commands for the library's own protocol and for the
published one stand on standard output.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from eain_jax.config import DownloadConfig
from eain_jax.data.catalogue import DATASETS, RemoteFile, dataset_files
from eain_jax.data.download import download
from eain_jax.errors import InputError
from eain_jax.reporting.progress import TransferDisplay
from experiments import cli

DATASET = flags.DEFINE_string(
  'dataset', None, 'Category and year, such as electronics_2014; see --list.'
)
OUTPUT_DIR = flags.DEFINE_string(
  'output_dir', 'data', 'The files go to a folder of the name of the dataset.'
)
LIST = flags.DEFINE_bool(
  'list', False, 'Name the datasets and the addresses of their files, and end.'
)
cli.define_config(DownloadConfig)

# What DIN and BARS do, for comparing with their numbers only: their features
# are items and their categories, and nothing of the time.
PUBLISHED = (
  '--split=last_out_no_validation',
  '--eval_negatives=1',
  '--negatives=1',
  '--negative_exclusion=ever',
  '--context=',
)
# Files of flags of a published protocol.
PUBLISHED_FLAGS = {
  'electronics_2014': (
    '--models=din',
    '--flags_dir=experiments/configs/electronics_2014_bars',
  )
}


def files_of(name: str, config: DownloadConfig) -> tuple[RemoteFile, ...]:
  """The files that the flags name.

  Raises:
    FlagError: there is no such dataset, or the mirror is no address.
  """
  try:
    return dataset_files(name, config.reviews, config.metadata, config.mirror)
  except InputError as error:
    raise cli.FlagError(f'--{error}') from error


def commands(
  folder: Path, files: Sequence[RemoteFile], reviews: str, protocol: str
) -> list[str]:
  """The command that prepares the files by a protocol, and that for table 1."""
  dataset, table = folder / protocol, folder / f'table1_{protocol}'
  inputs = zip(('--reviews', '--metadata'), files, strict=False)
  prepare = (
    f'--output_dir={dataset}',
    *(f'{flag}={folder / file.name}' for flag, file in inputs),
    *(() if reviews == '5core' else ('--k_core=5',)),
  )
  table1 = (f'--dataset_dir={dataset}', f'--output_dir={table}')
  if protocol == 'published':
    prepare += PUBLISHED
    if len(files) > 1:
      prepare += ('--item_attributes=category',)
    table1 += PUBLISHED_FLAGS.get(folder.name, ())
  else:
    prepare += ('--split=last_out',)
  return [
    f'python -m experiments.{binary} {shlex.join(arguments)}'
    for binary, arguments in (('prepare_data', prepare), ('table1', table1))
  ]


def main() -> None:
  config = cli.config_from_flags(DownloadConfig)
  if LIST.value:
    for name in [DATASET.value] if DATASET.value else DATASETS:
      for file in files_of(name, config):
        print(f'{name:<33} {file.url}')
    return
  if not DATASET.value:
    raise cli.FlagError('--dataset=NAME is needed; --list names all')
  files = files_of(DATASET.value, config)
  folder = Path(OUTPUT_DIR.value, DATASET.value)
  with TransferDisplay() as display:
    kept = download(files, folder, config, display)
  for name, entry in kept.items():
    print(f'{folder / name}: {entry.bytes:,} bytes, sha256 {entry.sha256}')
  for protocol, what in (
    ('last_out', "# This library's protocol, with a validation set:"),
    ('published', '# As DIN and BARS do, to compare with their numbers only:'),
  ):
    print(
      '', what, *commands(folder, files, config.reviews, protocol), sep='\n'
    )


if __name__ == '__main__':
  cli.run(main)
