"""Whether a state fits into memory, before anything is allocated."""

import jax

from eain_jax.benchmark import host
from eain_jax.config import ModelConfig, TrainConfig
from eain_jax.data.dataset import Dataset
from eain_jax.errors import InputError
from eain_jax.training.setup import set_up
from eain_jax.training.state import num_parameters


def state_bytes(
  dataset: Dataset,
  model_name: str,
  model_config: ModelConfig,
  config: TrainConfig,
  mode: str,
) -> tuple[int, int]:
  """Parameters of a model, and the bytes of its state on one device.

  The state holds the parameters and the optimizer's, such as two moments a
  parameter; training makes a gradient as large as the parameters beside it.
  """
  state = jax.eval_shape(
    lambda: set_up(dataset, model_name, model_config, config).state
  )
  size = lambda tree: sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
  )
  gradient = size(state.params) if mode == 'train' else 0
  return num_parameters(state.params), size(state) + gradient


def check_memory(
  dataset: Dataset,
  model_name: str,
  model_config: ModelConfig,
  config: TrainConfig,
  mode: str,
) -> None:
  """Raises InputError, with both numbers, where a state cannot fit."""
  parameters, needed = state_bytes(
    dataset, model_name, model_config, config, mode
  )
  available = host.available_bytes()
  if available is not None and needed > available:
    raise InputError(
      f'{model_name} with {dataset.num_items:,} items has {parameters:,} '
      f'parameters and needs {needed / 1e9:.1f} GB with its optimizer; '
      f'{available / 1e9:.1f} GB of memory are free'
    )
