"""Whether a state fits into memory, before anything is allocated."""

import dataclasses

import jax

from eain_jax.benchmark.subject import config_of_mode
from eain_jax.config import ModelConfig, TrainConfig, WorkloadConfig
from eain_jax.data.dataset import Dataset
from eain_jax.data.features import NUM_RESERVED
from eain_jax.data.workload import make_workload
from eain_jax.errors import InputError
from eain_jax.training.device_memory import available_bytes
from eain_jax.training.setup import choose_placement, set_up


def state_bytes(
  dataset: Dataset,
  model_name: str,
  model_config: ModelConfig,
  config: TrainConfig,
  mode: str,
) -> tuple[int, int]:
  """Parameters of a model, and the bytes of its state on each device.

  The state holds the parameters and the optimizer's, such as two moments a
  parameter; dense training makes a gradient and an update beside it, each as
  large as the parameters.
  """
  setup = set_up(
    dataset, model_name, model_config, config_of_mode(config, mode)
  )
  state, config = setup.state_shapes, setup.config
  size = setup.placement.bytes_a_device
  # A dense update has a gradient and an update of every parameter.
  is_dense = mode == 'train' and config.table_update == 'dense'
  temporary = 2 * size({'params': state.params}) if is_dense else 0
  return setup.num_parameters, size(state) + temporary


# On a CPU the heap that is kept for reuse has gaps: with 10 M items training
# took 8.0 GB where state and temporary buffers are 3.3.
HEAP_FACTOR = 2.0
# Bytes an item that `make_workload` needs at its peak: ids and their drawing.
WORKLOAD_BYTES = 48


def tables_of(workload: WorkloadConfig) -> Dataset:
  """A dataset with the tables of a workload, but hardly any items.

  It tells the shapes of a state, and is made in no time at any size.
  """
  small = make_workload(dataclasses.replace(workload, items=100))
  rows = workload.items + NUM_RESERVED
  features = tuple(
    dataclasses.replace(f, num_rows=rows) if f.name == 'item' else f
    for f in small.features
  )
  return dataclasses.replace(small, features=features)


def check_memory(
  dataset: Dataset,
  model_name: str,
  model_config: ModelConfig,
  config: TrainConfig,
  mode: str,
  *,
  makes_data: bool = False,
) -> None:
  """Raises InputError, with both numbers, where a state cannot fit.

  `makes_data`: a workload of that many items will be made beside it. The
  devices of a CPU share its memory.
  """
  parameters, needed = state_bytes(
    dataset, model_name, model_config, config, mode
  )
  items = next(f.num_rows for f in dataset.features if f.name == 'item')
  if jax.local_devices()[0].platform == 'cpu':
    placement = choose_placement(dataset, config_of_mode(config, mode))
    needed *= placement.num_shards * HEAP_FACTOR
    needed += WORKLOAD_BYTES * items * makes_data
  available = available_bytes()
  if available is not None and needed > available:
    raise InputError(
      f'{model_name} with {items - NUM_RESERVED:,} items has {parameters:,} '
      f'parameters and needs about {needed / 1e9:.1f} GB to {mode}, '
      f'optimizer and data included; {available / 1e9:.1f} GB are free'
    )
