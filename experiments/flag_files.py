"""Files of flags, one a model, as a search writes them.

A line is --name=value; `#` begins a comment. `--flagfile` of absl takes them
too, for a binary that runs one model.
"""

from collections.abc import Sequence
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


def check_folder(folder: Path) -> None:
  """Raises InputError where no model has a file of flags in the folder."""
  if not any((folder / f'{model}.flags').is_file() for model in MODEL_CONFIGS):
    names = ', '.join(f'{model}.flags' for model in MODEL_CONFIGS)
    raise InputError(f'--flags_dir={folder} holds none of {names}')


def settings_of_one(
  model: str, models: Sequence[str], folder: Path | None, seed: int
) -> tuple[ModelConfig, TrainConfig]:
  """The settings of one of several models.

  A flag of the command line holds for every model that has the setting; what
  none says the model's own file says, if it has one.

  Args:
    model: of `MODEL_CONFIGS`.
    models: all of them.
    folder: of files MODEL.flags, or None.
    seed: of the training.

  Raises:
    FlagError: a flag of the command line is set that none of the models has.
    InputError: a file has a flag that its model has not, or a value that the
      flag cannot have.
  """
  of_model, of_training = {}, {}
  path = folder and folder / f'{model}.flags'
  if path and path.is_file():
    names = cli.setting_names(MODEL_CONFIGS[model])
    # The table's own, of which it takes several.
    of_all = cli.setting_names(TrainConfig) - {'seed'}
    for name, text in read_flags(path).items():
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
