"""The benchmark: a row for every model, mode and value of the sweep."""

import dataclasses
import itertools
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
  describe_program,
  measure_end_to_end,
  measure_step,
  shares_of_ceilings,
)
from eain_jax.benchmark.memory import check_memory, tables_of
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


def _points(plan: Plan) -> Iterator[Plan]:
  """The plan of each value of the sweep, or the plan itself."""
  sweep = plan.config.sweep
  for value in plan.config.sweep_values or SWEEP_VALUES.get(sweep, ()):
    if sweep == 'batch_size':
      train = dataclasses.replace(plan.train, batch_size=value)
      yield dataclasses.replace(plan, train=train)
    elif plan.workload:
      workload = dataclasses.replace(plan.workload, items=value)
      yield dataclasses.replace(plan, workload=workload)
  if sweep == 'none':
    yield plan


def _place(plan: Plan) -> dict[str, int]:
  """Where in the sweep a plan stands."""
  match plan.config.sweep:
    case 'items' if plan.workload:
      return {'items': plan.workload.items}
    case 'batch_size':
      return {'batch_size': plan.train.batch_size}
  return {}


class _Data:
  """The data of a plan, made when the first row needs it.

  A workload of too many items must be refused before it fills the memory.
  """

  def __init__(self, plan: Plan):
    self._workload, self._made = plan.workload, plan.dataset
    self.tables = plan.dataset or tables_of(plan.workload or WorkloadConfig())

  def __call__(self) -> Dataset:
    if self._made is None:
      self._made = make_workload(self._workload or WorkloadConfig())
    return self._made


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
  point: Plan,
  data: _Data,
  model: str,
  mode: str,
  trace_dir: Path | None,
) -> dict[str, Any]:
  """All that is known of one model's steps.

  Raises:
    InputError: it needs more memory than there is, or the batch does not suit
      the devices.
  """
  config, model_config = point.config, point.models[model]
  host.reset_peak_rss()
  check_memory(
    data.tables,
    model,
    model_config,
    point.train,
    mode,
    makes_data=point.workload is not None,
  )
  dataset = data()
  host.reset_peak_rss()
  subject = Subject(dataset, model, model_config, point.train, mode)
  batches = Batches(subject, config)
  compiled = compile_all(subject, batches)
  stream = subject.stream
  row: dict[str, Any] = {
    'model': model,
    'mode': mode,
    'batch': stream.num_requests * stream.num_candidates,
    'threads': host.num_cores(),
    'devices': subject.num_devices,
    'steps_a_call': subject.steps_a_call,
    'items': dataset.num_items,
    'parameters': subject.num_parameters,
    **measure_step(subject, batches, config),
    'peak_rss_mb': host.peak_rss_mb(),
    'end_to_end': {
      **measure_end_to_end(subject, config),
      'peak_rss_mb': host.peak_rss_mb(),
    },
    'input_examples_per_second': batches.examples_per_second,
    **compiled,
    'device_memory': _device_memory(),
    'model_config': model_config.to_dict(),
    'train_config': subject.config.to_dict(),
  }
  row['program'], hlo = describe_program(subject, batches)
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
  if not config.modes:
    return result
  # All of them now: a value that no workload takes must not end a long run.
  for point in list(_points(plan)):
    data, place = _Data(point), _place(point)
    for model, mode in itertools.product(plan.models, config.modes):
      title = ' '.join(
        [model, mode, *(f'{name} {n:,}' for name, n in place.items())]
      )
      report(title)
      folder = trace_dir / title.replace(' ', '-') if trace_dir else None
      try:
        row = measure_row(point, data, model, mode, folder)
      except (InputError, jax.errors.JaxRuntimeError) as error:
        reason = str(error)
        if not isinstance(error, InputError):
          if 'RESOURCE_EXHAUSTED' not in reason:
            raise
          reason = f'{title} does not fit into the memory of the device'
        if config.sweep == 'none':
          raise InputError(reason) from error
        report(f'{title} is left out: {reason}')
        result['skipped'].append(
          {'model': model, 'mode': mode, **place, 'reason': reason}
        )
        continue
      result['rows'].append(row)
      save(result)
  if not result['rows']:
    raise InputError(f'no row was measured: {result["skipped"][0]["reason"]}')
  # Last, for their arrays would count as memory of the first row.
  dtypes = [
    row['model_config'].get('compute_dtype', 'float32')
    for row in result['rows']
  ]
  if config.ceilings:
    report('ceilings of the machine')
    result['ceilings'] = measure_ceilings(set(dtypes))
  for row, dtype in zip(result['rows'], dtypes, strict=True):
    row |= shares_of_ceilings(row, result['ceilings'], dtype)
  return result
