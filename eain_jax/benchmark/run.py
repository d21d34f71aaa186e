"""The benchmark: a row for every model, mode and value of the sweep."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

import eain_jax
from eain_jax.benchmark import host
from eain_jax.benchmark.ceilings import measure_ceilings
from eain_jax.benchmark.measure import (
  Batches,
  compile_all,
  measure_end_to_end,
  measure_step,
  shares_of_ceilings,
)
from eain_jax.benchmark.memory import check_memory
from eain_jax.benchmark.subject import Subject
from eain_jax.benchmark.trace import top_operations
from eain_jax.config import (
  BenchmarkConfig,
  ModelConfig,
  TrainConfig,
  WorkloadConfig,
)
from eain_jax.data.dataset import Dataset
from eain_jax.data.workload import make_workload
from eain_jax.errors import InputError

SWEEP_VALUES = {
  'items': (10_000, 100_000, 1_000_000, 10_000_000),
  'batch_size': (256, 1024, 4096, 16_384),
}
_DEVICE_MEMORY = ('bytes_in_use', 'peak_bytes_in_use', 'bytes_limit')


@dataclasses.dataclass(frozen=True)
class Plan:
  """All settings of a benchmark.

  Attributes:
    config: what is measured.
    workload: the data's shape; None where a dataset is given.
    dataset: a prepared one, or None.
    models: the settings of each model.
    train: how they are trained.
  """

  config: BenchmarkConfig
  workload: WorkloadConfig | None
  dataset: Dataset | None
  models: Mapping[str, ModelConfig]
  train: TrainConfig


def _points(plan: Plan) -> Iterator[tuple[int | None, Dataset, TrainConfig]]:
  """The sweep's value, dataset and training settings of each point."""
  sweep = plan.config.sweep
  values = plan.config.sweep_values or SWEEP_VALUES.get(sweep, (None,))
  dataset = plan.dataset
  for value in values:
    workload, train = plan.workload, plan.train
    if sweep == 'items' and workload:
      workload = dataclasses.replace(workload, items=value)
    if sweep == 'batch_size':
      train = dataclasses.replace(train, batch_size=value)
    if workload and (dataset is None or sweep == 'items'):
      dataset = make_workload(workload)
    assert dataset is not None
    yield value, dataset, train


def _device_memory() -> dict[str, int] | None:
  """What the first device tells of its memory, in bytes; a CPU tells none."""
  stats = jax.local_devices()[0].memory_stats()
  if not stats:
    return None
  return {name: stats[name] for name in _DEVICE_MEMORY if name in stats}


def machine() -> dict[str, Any]:
  """Versions and devices."""
  device = jax.local_devices()[0]
  return {
    'versions': {
      'eain_jax': eain_jax.__version__,
      'jax': jax.__version__,
      'jaxlib': version('jaxlib'),
      'numpy': np.__version__,
    },
    'platform': device.platform,
    'device_kind': device.device_kind,
    'devices': jax.local_device_count(),
    'threads': host.num_cores(),
  }


def measure_row(
  dataset: Dataset,
  model: str,
  model_config: ModelConfig,
  train: TrainConfig,
  mode: str,
  config: BenchmarkConfig,
  ceilings: Mapping[str, float],
  trace_dir: Path | None,
) -> dict[str, Any]:
  """All that is known of one model's steps.

  Raises:
    InputError: it needs more memory than there is, or the batch does not suit
      the devices.
  """
  host.reset_peak_rss()
  check_memory(dataset, model, model_config, train, mode)
  subject = Subject(dataset, model, model_config, train, mode)
  batches = Batches(subject, config)
  compiled = compile_all(subject, batches)
  hlo = compiled.pop('hlo')
  stream = subject.stream
  row: dict[str, Any] = {
    'model': model,
    'mode': mode,
    'batch': stream.num_requests * stream.num_candidates,
    'threads': host.num_cores(),
    'devices': subject.num_devices,
    'items': dataset.num_items,
    'parameters': subject.num_parameters,
    **measure_step(subject, batches, config),
    'end_to_end': measure_end_to_end(subject, config),
    'input_examples_per_second': batches.examples_per_second,
    **compiled,
    'peak_rss_mb': host.peak_rss_mb(),
    'device_memory': _device_memory(),
    'model_config': model_config.to_dict(),
    'train_config': subject.config.to_dict(),
  }
  dtype = getattr(model_config, 'compute_dtype', 'float32')
  row |= shares_of_ceilings(row, ceilings, dtype)
  if trace_dir:
    row['top_operations'] = top_operations(subject, batches, trace_dir, hlo)
  return row


def run_benchmark(
  plan: Plan,
  report: Callable[[str], None],
  save: Callable[[Mapping[str, Any]], None],
  trace_dir: Path | None = None,
) -> dict[str, Any]:
  """Measures everything; the content of `benchmark.json`.

  Args:
    plan: what to measure.
    report: is told in a sentence what is going on.
    save: is given the result so far after every row.
    trace_dir: gets a profile of every row.

  Raises:
    InputError: there is no row that can be measured.
  """
  config = plan.config
  result: dict[str, Any] = {
    **machine(),
    'settings': {
      'benchmark': config.to_dict(),
      'workload': plan.workload.to_dict() if plan.workload else None,
      'dataset': str(plan.dataset.path) if plan.dataset else None,
      'train': plan.train.to_dict(),
      'models': {name: c.to_dict() for name, c in plan.models.items()},
    },
    'ceilings': {},
    'rows': [],
    'skipped': [],
  }
  if config.ceilings and config.modes:
    report('ceilings of the machine')
    result['ceilings'] = measure_ceilings(
      {getattr(c, 'compute_dtype', 'float32') for c in plan.models.values()}
    )
  if not config.modes:
    return result
  for value, dataset, train in _points(plan):
    for model, model_config in plan.models.items():
      for mode in config.modes:
        place = {} if value is None else {config.sweep: value}
        title = ' '.join(
          [model, mode, *(f'{name} {n:,}' for name, n in place.items())]
        )
        report(title)
        try:
          row = measure_row(
            dataset,
            model,
            model_config,
            train,
            mode,
            config,
            result['ceilings'],
            trace_dir / title.replace(' ', '-') if trace_dir else None,
          )
        except InputError as error:
          if config.sweep == 'none':
            raise
          report(f'{title} is left out: {error}')
          result['skipped'].append(
            {'model': model, 'mode': mode, **place, 'reason': str(error)}
          )
          continue
        result['rows'].append(row)
        save(result)
  if not result['rows']:
    raise InputError(f'no row was measured: {result["skipped"][0]["reason"]}')
  return result
