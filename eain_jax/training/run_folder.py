"""A run's folder: whose it is, and what a run must have in common to go on.

config.json      what identifies the run
metrics.jsonl    the log; see `run_log`
timings.jsonl    what the clock said, and the memory
events.out.*     both for TensorBoard; see `event_file`
profile/         a trace, where one was asked for; see `profile`
checkpoints/     see `checkpoint`
result.json      once it is finished; then manifest.json has their hashes
lock             held while a process is at work
"""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import eain_jax
from eain_jax.artifacts import is_empty, write_json
from eain_jax.config import ModelConfig, TrainConfig
from eain_jax.data.dataset import Dataset
from eain_jax.errors import InputError
from eain_jax.training import processes

CONFIG_FILE, METRICS_FILE, TIMINGS_FILE, RESULT_FILE = (
  'config.json',
  'metrics.jsonl',
  'timings.jsonl',
  'result.json',
)
# Raised by whoever changes what a run computes from the same settings: a run
# does not go on by other arithmetic than it began with.
ARITHMETIC_VERSION = 6
# These decide the bits too.
_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
# A run may go on on other devices than it began on.
FREE_SETTINGS = (
  'parallelism',
  'num_devices',
  'data_placement',
  'input_timeout',
)
# The dataset's folder may move, its fingerprint may not change.
_FREE = {'dataset.path', *(f'train_config.{name}' for name in FREE_SETTINGS)}


def software() -> dict[str, Any]:
  """What decides the bits of a run beside its settings and its data."""
  return {
    'version': eain_jax.__version__,
    'arithmetic_version': ARITHMETIC_VERSION,
    'libraries': {
      'python': '.'.join(platform.python_version_tuple()[:2]),
      **{name: version(name) for name in _LIBRARIES},
    },
  }


def settings_of(
  dataset: Dataset,
  model_name: str,
  model_config: ModelConfig,
  config: TrainConfig,
) -> dict[str, Any]:
  """What identifies a run; `config` has nothing left open."""
  return {
    **software(),
    'dataset': {
      'path': str(dataset.path.resolve()),
      'fingerprint': dataset.fingerprint,
    },
    'model': model_name,
    'model_config': model_config.to_dict(),
    'train_config': config.to_dict(),
  }


def differing_setting(
  found: Mapping[str, Any], expected: Mapping[str, Any]
) -> str | None:
  """'name=value' of the first setting that must agree and does not."""
  old, new = _flat(found), _flat(expected)
  for name in sorted((old.keys() | new.keys()) - _FREE):
    if old.get(name) != new.get(name):
      return f'{name}={old.get(name)!r}, this one has {new.get(name)!r}'
  return None


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for group, values in settings.items():
    if isinstance(values, Mapping):
      flat |= {f'{group}.{name}': value for name, value in values.items()}
    else:
      flat[group] = values
  return flat


def read_settings(work_dir: Path) -> dict[str, Any]:
  """The content of `config.json`.

  Raises:
    InputError: there is no run, or the file is damaged.
  """
  file = work_dir / CONFIG_FILE
  if not file.is_file():
    raise InputError(f'{work_dir} is not a run: it holds no {CONFIG_FILE}')
  try:
    settings = json.loads(file.read_text())
  except (ValueError, RecursionError) as error:
    raise InputError(f'{file} is damaged: train the model again') from error
  if not isinstance(settings, dict):
    raise InputError(f'{file} is damaged: train the model again')
  return settings


def claim_folder(work_dir: Path, settings: Mapping[str, Any]) -> None:
  """Makes a run's folder, or checks that it holds this very run.

  The first process has made it, and holds its lock, when others come.

  Raises:
    InputError: it holds another run or something else, or is not one folder.
  """
  file = work_dir / CONFIG_FILE
  if not processes.is_first() and not file.is_file():
    raise not_shared(work_dir)
  if file.is_file():
    if differs := differing_setting(read_settings(work_dir), settings):
      raise InputError(
        f'{work_dir} holds a run with {differs}: name another folder, or the '
        'same settings'
      )
  elif not is_empty(work_dir):
    raise InputError(
      f'--work_dir={work_dir} holds something that is not a run: name another '
      'folder'
    )
  elif processes.is_first():
    write_json(file, settings)


def not_shared(work_dir: Path) -> InputError:
  return InputError(
    f'--work_dir={work_dir} is not one folder of all processes: name one on '
    'storage that they share'
  )


def check_shared(work_dir: Path, numbers: list[int]) -> None:
  """Raises InputError where processes see different checkpoints."""
  told = processes.gather(np.array([len(numbers), *numbers[:1], -1][:2]))
  if (told != told[0]).any():
    raise not_shared(work_dir)
