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
from eain_jax.training.checkpoint import Checkpoints
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
    model: the network and its table width.
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
  settings = read_settings(work_dir)
  try:
    name, trained_on = settings['model'], settings['dataset']
    model_config = MODEL_CONFIGS[name].from_dict(settings['model_config'])
    config = TrainConfig.from_dict(settings['train_config'])
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(
      f'{work_dir / CONFIG_FILE} is damaged: train the model again'
    ) from error
  dataset = open_dataset(dataset_dir or trained_on['path'], verify=verify)
  if dataset.fingerprint != trained_on['fingerprint']:
    raise InputError(
      f'{work_dir} was trained on another dataset than {dataset.path}: name '
      'its own with --dataset_dir, ids mean something else elsewhere'
    )
  dataset = with_skip_above(dataset, config.skip_above)
  model = make_model(name, model_config)
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
  checkpoints = Checkpoints(
    work_dir, make_placement('none', num_rows), settings
  )
  params, stats = checkpoints.restore_best(shapes.params, shapes.stats)
  return Run(settings, dataset, model, params, stats)
