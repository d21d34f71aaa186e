"""One row of a measurement: everything that is known of one model's steps."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import numpy as np

import eain_jax
from eain_jax.benchmark import host
from eain_jax.benchmark.collectives import collectives
from eain_jax.benchmark.measure import (
  Batches,
  compile_all,
  describe_program,
  measure_end_to_end,
  measure_step,
)
from eain_jax.benchmark.memory import check_memory, tables_of
from eain_jax.benchmark.subject import Subject
from eain_jax.config import (
  ModelConfig,
  TimingConfig,
  TrainConfig,
  WorkloadConfig,
)
from eain_jax.data.dataset import Dataset
from eain_jax.data.workload import make_workload
from eain_jax.errors import InputError
from eain_jax.training.device_memory import is_out_of_memory

_PLUGINS = ('jax-cuda12-plugin', 'jax-cuda13-plugin', 'libtpu')
_DEVICE_MEMORY = ('bytes_in_use', 'peak_bytes_in_use', 'bytes_limit')

# Adds to a row what its subject, its batches and its program's text tell.
Inspect = Callable[[Subject, Batches, str], Mapping[str, Any]]


def whole_batches(workload: WorkloadConfig, batch_size: int) -> WorkloadConfig:
  """The workload with so many sequences that all batches are full.

  The short last batch of an epoch costs little less than a full one, and would
  be met more often the larger batches are.
  """
  requests = max(1, batch_size // (1 + workload.negatives))
  sequences = -(-workload.sequences // requests) * requests
  return dataclasses.replace(workload, sequences=sequences)


class Data:
  """The data of a row, made when the first row needs it.

  A workload of too many items must be refused before it fills the memory.

  Attributes:
    tables: a dataset with its tables, which is made in no time.
    is_made_here: it is a workload.
  """

  def __init__(self, workload: WorkloadConfig | None, dataset: Dataset | None):
    self._workload, self._made = workload, dataset
    self.tables = dataset or tables_of(workload or WorkloadConfig())
    self.is_made_here = dataset is None

  def __call__(self) -> Dataset:
    if self._made is None:
      self._made = make_workload(self._workload or WorkloadConfig())
    return self._made


@dataclasses.dataclass(frozen=True)
class Case:
  """What a row measures.

  Attributes:
    data: that it runs on.
    model: its name.
    model_config: its settings.
    train: how it is trained, and on which devices.
    mode: train or score.
  """

  data: Data
  model: str
  model_config: ModelConfig
  train: TrainConfig
  mode: str


def _device_memory() -> dict[str, int] | None:
  """What the first device tells of its memory, in bytes; a CPU tells none."""
  stats = jax.local_devices()[0].memory_stats()
  if not stats:
    return None
  return {name: stats[name] for name in _DEVICE_MEMORY if name in stats}


def _versions(names: Iterable[str]) -> dict[str, str]:
  """Of those packages that are installed."""
  found = {}
  for name in names:
    with contextlib.suppress(PackageNotFoundError):
      found[name] = version(name)
  return found


def machine() -> dict[str, Any]:
  """Versions, devices, and what else decides how fast a program is."""
  device = jax.local_devices()[0]
  return {
    'versions': {
      'eain_jax': eain_jax.__version__,
      'jax': jax.__version__,
      'jaxlib': version('jaxlib'),
      'numpy': np.__version__,
      **_versions(_PLUGINS),
    },
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'cpu': host.cpu_model(),
    'platform': device.platform,
    'device_kind': device.device_kind,
    'devices': jax.local_device_count(),
    'threads': host.num_cores(),
  }


def measure_row(
  case: Case, timing: TimingConfig, inspect: Inspect | None = None
) -> dict[str, Any]:
  """All that is known of one model's steps; its state is let go.

  Raises:
    InputError: it needs more memory than there is, or the batch does not suit
      the devices.
  """
  host.reset_peak_rss()
  check_memory(
    case.data.tables,
    case.model,
    case.model_config,
    case.train,
    case.mode,
    makes_data=case.data.is_made_here,
  )
  dataset = case.data()
  host.reset_peak_rss()
  subject = Subject(
    dataset, case.model, case.model_config, case.train, case.mode
  )
  batches = Batches(subject, timing)
  compiled = compile_all(subject, batches)
  stream = subject.stream
  row: dict[str, Any] = {
    'model': case.model,
    'mode': case.mode,
    'batch': stream.num_requests * stream.num_candidates,
    'threads': host.num_cores(),
    'devices': subject.num_devices,
    'steps_a_call': subject.steps_a_call,
    'items': dataset.num_items,
    'sequences': len(stream.packer.part),
    'parameters': subject.num_parameters,
    **measure_step(subject, batches, timing),
    'peak_rss_mb': host.peak_rss_mb(),
    'end_to_end': {
      **measure_end_to_end(subject, timing),
      'peak_rss_mb': host.peak_rss_mb(),
    },
    'input_examples_per_second': batches.examples_per_second,
    **compiled,
    'device_memory': _device_memory(),
    'model_config': case.model_config.to_dict(),
    'train_config': subject.config.to_dict(),
  }
  row['program'], hlo = describe_program(subject, batches)
  row['collectives'] = collectives(hlo)
  if inspect:
    row |= inspect(subject, batches, hlo)
  return row


def row_or_reason(
  title: str,
  case: Case,
  timing: TimingConfig,
  inspect: Inspect | None = None,
) -> dict[str, Any] | str:
  """`measure_row`, or in a sentence why it cannot be measured."""
  try:
    return measure_row(case, timing, inspect)
  except InputError as error:
    return str(error)
  except jax.errors.JaxRuntimeError as error:
    if not is_out_of_memory(error):
      raise
    return f'{title} does not fit into the memory of the device'
