"""How training scales over devices: the same steps on one, two, four, ...

  strong   the batch is fixed, and each device has a part of it
  weak     a device's part is fixed, and the batch grows

Efficiency is a device's examples per second over those of one device alone: 1
where n devices are n times as fast.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from eain_jax.benchmark.row import (
  Case,
  Data,
  machine,
  row_or_reason,
  whole_batches,
)
from eain_jax.benchmark.trace import collective_time
from eain_jax.config import (
  ModelConfig,
  ScalingConfig,
  TrainConfig,
  WorkloadConfig,
)
from eain_jax.errors import InputError
from eain_jax.training.setup import set_up

# Of an idle core: the devices of one CPU may come late to a collective.
_PATIENCE = '--xla_cpu_collective_call_terminate_timeout_seconds'
PATIENCE_SECONDS = 300


@dataclasses.dataclass(frozen=True)
class ScalingPlan:
  """All settings of a measurement.

  Attributes:
    config: what is measured.
    workload: the data's shape.
    model: the settings of the model.
    train: how it is trained; `batch_size` is that of strong scaling, and of a
      device in weak scaling.
  """

  config: ScalingConfig
  workload: WorkloadConfig
  model: ModelConfig
  train: TrainConfig


def make_virtual_devices(count: int) -> None:
  """Cuts the CPU into so many devices; before jax starts its backends."""
  jax.config.update('jax_num_cpu_devices', count)
  flags = os.environ.get('XLA_FLAGS', '')
  if _PATIENCE not in flags:
    os.environ['XLA_FLAGS'] = f'{flags} {_PATIENCE}={PATIENCE_SECONDS}'.strip()


def train_config(plan: ScalingPlan, scaling: str, devices: int) -> TrainConfig:
  """How a row is trained; one device runs as it would for its own sake."""
  each = devices if scaling == 'weak' else 1
  return dataclasses.replace(
    plan.train,
    batch_size=plan.train.batch_size * each,
    parallelism=plan.config.parallelism if devices > 1 else 'none',
    num_devices=devices if devices > 1 else 0,
    # As of several devices, or their row would have another input.
    data_placement='host',
  )


def full_workload(plan: ScalingPlan) -> WorkloadConfig:
  """The workload with as many sequences as fill the largest batches."""
  largest = max(
    train_config(plan, scaling, devices).batch_size
    for scaling, devices in _places(plan.config)
  )
  return whole_batches(plan.workload, largest)


def _places(config: ScalingConfig) -> Iterator[tuple[str, int]]:
  for scaling in config.scaling:
    for devices in config.counts:
      yield scaling, devices


def efficiencies(
  row: Mapping[str, Any], alone: Mapping[str, Any] | None, cores: int | None
) -> dict[str, float | None]:
  """What a row's devices reach of what they would without each other.

  Args:
    row: with `batch`, `devices`, `step_ms` and `cpu_ms`.
    alone: the row of one device; None: it was not measured.
    cores: that virtual devices share; None: devices are real.

  Returns:
    `efficiency`: t_1 / (n t_n) where the batch is fixed and t_1 / t_n where it
    grows; `efficiency_of_cores`: by what n devices on c cores could reach if
    one device kept one core busy, min(1, c / n); `efficiency_of_cpu_time`: CPU
    time of an example on one device over that on n, which hardly feels what
    else the machine does. None: unknown.
  """
  found: dict[str, float | None] = dict.fromkeys(
    ('efficiency', 'efficiency_of_cores', 'efficiency_of_cpu_time')
  )
  if alone is None:
    return found
  of_device = lambda r: r['batch'] / r['step_ms'] / r['devices']
  efficiency = of_device(row) / of_device(alone)
  found['efficiency'] = efficiency
  if cores is not None:
    of_cpu = lambda r: r['batch'] / r['cpu_ms']
    found['efficiency_of_cores'] = efficiency / min(1, cores / row['devices'])
    found['efficiency_of_cpu_time'] = of_cpu(row) / of_cpu(alone)
  return found


def _check(plan: ScalingPlan, data: Data) -> None:
  """Raises InputError for what no row could say before hours are spent."""
  available, most = jax.device_count(), plan.config.counts[-1]
  if most > available:
    raise InputError(
      f'--devices={most} is more than the {available} '
      f'{jax.devices()[0].platform} device(s) that are here'
    )
  for scaling, devices in _places(plan.config):
    train = train_config(plan, scaling, devices)
    set_up(data.tables, plan.config.model, plan.model, train)


def _notes(plan: ScalingPlan, result: Mapping[str, Any]) -> list[str]:
  """What a person must know to read the rows, a sentence or two each."""
  added = '' if 1 in plan.config.devices else ' It was not in --devices.'
  notes = [
    'Efficiency is relative to one device, which runs with '
    f'--parallelism=none as it would alone.{added}'
  ]
  rows = result['rows']
  cores = rows[0]['cores'] if rows else None
  if cores is not None:
    notes.append(
      f'These are virtual devices of one CPU, which share {cores} core(s): n '
      f'devices cannot be faster than {cores}/n each, so "of cores" is '
      f'efficiency / min(1, {cores}/n). "of CPU time" is CPU time an example '
      'on one device over that on n: what the other devices cost, whatever '
      'else the machine does. None of it says how fast an accelerator is.'
    )
    if rows[0]['devices'] == 1:
      busy = rows[0]['cpu_ms'] / rows[0]['step_ms']
      lost = ': what is beyond one core the others can gain no more'
      notes.append(
        f'One device alone kept {busy:.1f} core(s) busy'
        f'{lost if busy > 1.1 else ""}.'
      )
  waits = (
    'a wait for the slowest device counts, and that is most of it where '
    'devices share cores'
    if cores is not None
    else 'a wait for the slowest device counts, and so does what overlaps with '
    'other work'
  )
  notes.append(
    'Collectives: time in them on average of the devices, and its share of a '
    f'step, both of traced steps; {waits}.'
  )
  if plan.workload.sequences != (made := full_workload(plan).sequences):
    notes.append(f'{made:,} sequences were made, so that all batches are full.')
  batches_by_update: dict[str, set[int]] = {}
  for row in rows:
    update = row['train_config']['table_update']
    batches_by_update.setdefault(update, set()).add(row['batch'])
  if len(batches_by_update) > 1:
    chosen = '; '.join(
      f'{update} for batches of {", ".join(f"{n:,}" for n in sorted(batches))}'
      for update, batches in batches_by_update.items()
    )
    notes.append(
      f'--table_update was chosen by the batch, {chosen}: name one to compare '
      'like with like.'
    )
  if any(row['collective_ms'] is None for row in rows):
    notes.append('The profiler of this backend shows no collectives.')
  return notes


def run_scaling(
  plan: ScalingPlan,
  report: Callable[[str], None],
  save: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any]:
  """Measures every row; the content of `scaling.json`.

  Args:
    plan: what to measure.
    report: is told in a sentence what is going on.
    save: is given the result so far after every row.

  Raises:
    InputError: there are too few devices, a batch does not suit them, or no
      row fits into memory.
  """
  config = plan.config
  workload = full_workload(plan)
  data = Data(workload, None)
  _check(plan, data)
  here = machine()
  cores = here['threads'] if here['platform'] == 'cpu' else None
  result: dict[str, Any] = {
    **here,
    'settings': {
      'scaling': config.to_dict(),
      'workload': workload.to_dict(),
      'train': plan.train.to_dict(),
      'model': plan.model.to_dict(),
    },
    'rows': [],
    'skipped': [],
    'notes': [],
  }
  # One device's row is the same in both, and measured once.
  alone: dict[str, Any] | str | None = None
  for scaling, devices in _places(config):
    train = train_config(plan, scaling, devices)
    title = f'{config.model} {scaling} {devices} device(s)'
    place = {
      'scaling': scaling,
      'parallelism': train.parallelism,
      'cores': cores,
    }
    row = alone if devices == 1 else None
    if row is None:
      report(f'{title}, batch {train.batch_size:,}')
      case = Case(data, config.model, plan.model, train, 'train')
      row = row_or_reason(title, case, config, collective_time)
    if devices == 1:
      alone = row
    if isinstance(row, str):
      report(f'{title} is left out: {row}')
      result['skipped'].append({**place, 'devices': devices, 'reason': row})
      continue
    first = None if isinstance(alone, str) else alone
    row = {**place, **row, **efficiencies(row, first, cores)}
    result['rows'].append(row)
    result['notes'] = _notes(plan, result)
    save(result)
  if not result['rows']:
    raise InputError(f'no row was measured: {result["skipped"][0]["reason"]}')
  return result
