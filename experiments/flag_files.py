"""Files of flags, one a model, as a search writes them.

A line is --name=value; `#` begins a comment. `--flagfile` of absl takes them
too, for a binary that runs one model.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from eain_jax.config import MODEL_CONFIGS, ModelConfig, TrainConfig
from eain_jax.errors import InputError
from experiments import cli


def read_flags(path: Path) -> dict[str, str]:
  """By name of a flag its text, from a file of flags.

  Raises:
    InputError: the file is missing, a line is no flag, or one comes twice.
  """
  try:
    lines = path.read_text().splitlines()
  except (OSError, ValueError) as error:
    raise InputError(f'{path} cannot be read as a file of flags') from error
  found: dict[str, str] = {}
  for number, line in enumerate(lines, 1):
    line = line.strip()
    if not line or line.startswith('#'):
      continue
    name, equals, text = line.removeprefix('--').partition('=')
    where = f'{path}, line {number}'
    if not line.startswith('--') or not equals:
      raise InputError(f'{where}: {line[:80]!r} is not written as --name=value')
    if name in found:
      raise InputError(f'{where}: --{name} is there twice')
    found[name] = text
  return found


def find_files(folders: Sequence[Path]) -> dict[str, Path]:
  """By model its file of flags, MODEL.flags in one of the folders.

  Raises:
    InputError: a folder has none, or two have that of one model.
  """
  files: dict[str, Path] = {}
  for folder in folders:
    paths = {model: folder / f'{model}.flags' for model in MODEL_CONFIGS}
    here = {model: path for model, path in paths.items() if path.is_file()}
    if not here:
      names = ', '.join(path.name for path in paths.values())
      raise InputError(f'--flags_dir={folder} holds none of {names}')
    for model in here.keys() & files.keys():
      raise InputError(
        f'--flags_dir names {files[model]} and {here[model]}: which is it?'
      )
    files |= here
  return files


def unequal_note(models: Sequence[str], files: Mapping[str, Path]) -> str:
  """What is to be said where some models alone have a file; '' elsewhere."""
  without = [model for model in models if model not in files]
  if len(without) in (0, len(models)):
    return ''
  return (
    f'Not an equal comparison: for {", ".join(without)} there is no file of '
    'flags, for the others there is.'
  )


def settings_of_one(
  model: str, models: Sequence[str], path: Path | None, seed: int
) -> tuple[ModelConfig, TrainConfig]:
  """The settings of one of several models.

  A flag of the command line holds for every model that has the setting; what
  none says the model's own file says, if it has one.

  Args:
    model: of `MODEL_CONFIGS`.
    models: all of them.
    path: of its file of flags, or None.
    seed: of the training.

  Raises:
    FlagError: a flag of the command line is set that none of the models has.
    InputError: a file has a flag that its model has not, or a value that the
      flag cannot have.
  """
  of_model, of_training = {}, {}
  if path:
    names = cli.setting_names(MODEL_CONFIGS[model])
    # The table's own, of which it takes several.
    of_all = cli.setting_names(TrainConfig) - {'seed'}
    for name, text in read_flags(path).items():
      if name == 'skip_above':
        raise InputError(
          f'{path}: --skip_above changes the data of all models: give it to '
          'the command'
        )
      if name not in names | of_all:
        raise InputError(f'{path}: --{name} is no setting of {model}')
      try:
        value = cli.parsed(name, text)
      except ValueError as error:
        raise InputError(f'{path}: --{name}={text}: {error}') from error
      (of_model if name in names else of_training)[name] = value
  return (
    cli.model_config_from_flags(model, beside=models, beneath=of_model),
    cli.config_from_flags(TrainConfig, beneath=of_training, seed=seed),
  )
