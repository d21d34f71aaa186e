"""The benchmark: a row for every model, mode and value of the sweep."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eain_jax.benchmark.ceilings import measure_ceilings
from eain_jax.benchmark.measure import shares_of_ceilings
from eain_jax.benchmark.row import (
  Case,
  Data,
  Inspect,
  machine,
  row_or_reason,
  whole_batches,
)
from eain_jax.benchmark.trace import top_operations
from eain_jax.config import (
  BenchmarkConfig,
  ModelConfig,
  TrainConfig,
  WorkloadConfig,
)
from eain_jax.data.dataset import Dataset
from eain_jax.errors import InputError

SWEEP_VALUES = {
  'items': (10_000, 100_000, 1_000_000, 10_000_000),
  'batch_size': (256, 1024, 4096, 16_384),
}


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


def _inspect_into(folder: Path) -> Inspect:
  """Lists a row's longest operations from a profile in `folder`."""
  return lambda subject, batches, hlo: {
    'top_operations': top_operations(subject, batches, folder, hlo)
  }


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
      'dataset': {
        'path': str(plan.dataset.path),
        'fingerprint': plan.dataset.fingerprint,
      }
      if plan.dataset
      else None,
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
    workload, batch = point.workload, point.train.batch_size
    # A batch of more than there is is refused, not filled.
    if workload and batch <= workload.sequences * (1 + workload.negatives):
      workload = whole_batches(workload, batch)
    data, place = Data(workload, point.dataset), _place(point)
    for model, mode in itertools.product(plan.models, config.modes):
      title = ' '.join(
        [model, mode, *(f'{name} {n:,}' for name, n in place.items())]
      )
      report(title)
      inspect = None
      if trace_dir:
        inspect = _inspect_into(trace_dir / title.replace(' ', '-'))
      row = row_or_reason(
        title,
        Case(data, model, point.models[model], point.train, mode),
        config,
        inspect,
      )
      if isinstance(row, str):
        if config.sweep == 'none':
          raise InputError(row)
        report(f'{title} is left out: {row}')
        result['skipped'].append(
          {'model': model, 'mode': mode, **place, 'reason': row}
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
    row |= shares_of_ceilings(
      row, result['ceilings'], dtype, result['platform'] == 'cpu'
    )
  return result
