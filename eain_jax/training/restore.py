"""A finished or unfinished run, opened for use."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax

from eain_jax.config import MODEL_CONFIGS, TrainConfig
from eain_jax.data.batches import make_eval_stream
from eain_jax.data.dataset import Dataset, open_dataset
from eain_jax.data.skip_above import with_skip_above
from eain_jax.errors import InputError
from eain_jax.models import Model, make_model
from eain_jax.training import processes
from eain_jax.training.checkpoint import Checkpoints
from eain_jax.training.device_memory import available_bytes
from eain_jax.training.loop import EVAL_BATCH_SIZE
from eain_jax.training.optimizer import make_optimizer
from eain_jax.training.parallel import make_placement
from eain_jax.training.run_folder import CONFIG_FILE, read_settings
from eain_jax.training.state import init_state
from eain_jax.training.step import make_score_step


@dataclasses.dataclass(frozen=True)
class Run:
  """A trained model with the dataset that gives its inputs.

  Attributes:
    settings: the content of `config.json`.
    dataset: the dataset that it was trained on, or another of one schema.
    model: the network, what it reads, and the width of its tables.
    params: of the best evaluation.
    stats: of the best evaluation.
  """

  settings: dict[str, Any]
  dataset: Dataset
  model: Model
  params: Any
  stats: Any

  def score_step(self):
    """The compiled `score_step(params, stats, batch)`."""
    return jax.jit(make_score_step(self.model, self.dataset.features))


def _read(work_dir: Path) -> tuple[dict[str, Any], Model, TrainConfig]:
  """The settings of a run, and what they make."""
  settings = read_settings(work_dir)
  try:
    name = settings['model']
    model_config = MODEL_CONFIGS[name].from_dict(settings['model_config'])
    config = TrainConfig.from_dict(settings['train_config'])
    trained_on = settings['dataset']
    if not {'path', 'fingerprint'} <= trained_on.keys():
      raise KeyError('dataset')
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(
      f'{work_dir / CONFIG_FILE} is damaged: train the model again'
    ) from error
  return settings, make_model(name, model_config), config


def _check_room(work_dir: Path, needed: int) -> None:
  available = available_bytes()
  if available is not None and needed > available:
    raise InputError(
      f'the parameters of {work_dir} take {needed / 1e9:,.1f} GB, and one '
      f'device can give {available / 1e9:,.1f} GB'
    )


def open_run(
  work_dir: str | Path,
  dataset_dir: str | Path | None = None,
  verify: Literal['full', 'quick'] = 'full',
) -> Run:
  """Opens a run at its best checkpoint.

  Args:
    work_dir: the folder that `train` wrote.
    dataset_dir: the dataset, where it is not at the path of its training.
    verify: how the dataset is checked; see `open_dataset`.

  Raises:
    InputError: there is no run, it has no evaluated checkpoint, or the dataset
      is another one than it was trained on.
  """
  work_dir = Path(work_dir)
  settings, _, config = _read(work_dir)
  trained_on = settings['dataset']
  dataset = open_dataset(dataset_dir or trained_on['path'], verify=verify)
  if dataset.fingerprint != trained_on['fingerprint']:
    raise InputError(
      f'{work_dir} was trained on another dataset than {dataset.path}: name '
      'its own with --dataset_dir, ids mean something else elsewhere'
    )
  return open_run_on(with_skip_above(dataset, config.skip_above), work_dir)


def open_run_on(dataset: Dataset, work_dir: Path) -> Run:
  """Opens a run at its best checkpoint, on the very dataset of its training.

  Of several processes all call it, and each gets all of the parameters.

  Args:
    dataset: as it was trained on, see `with_skip_above`.
    work_dir: the folder of the run.

  Raises:
    InputError: there is no run, or it has no evaluated checkpoint.
  """
  settings, model, config = _read(work_dir)
  batch = make_eval_stream(dataset, 'valid', EVAL_BATCH_SIZE, 1).batch(0)
  shapes = jax.eval_shape(
    lambda: init_state(
      model,
      dataset.features,
      make_optimizer(config, 1),
      batch,
      jax.random.key(0),
    )
  )
  num_rows = {feature.name: feature.num_rows for feature in dataset.features}
  own = make_placement('none', num_rows, devices=jax.local_devices())
  needed = own.bytes_a_device({'params': shapes.params})
  processes.together(lambda: _check_room(work_dir, needed))
  checkpoints = Checkpoints(work_dir, own, settings)
  params, stats = checkpoints.restore_best(shapes.params, shapes.stats)
  return Run(settings, dataset, model, params, stats)
