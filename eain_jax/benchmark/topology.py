"""The training step for a TPU slice that is not there.

The compiler of TPUs runs without any (libtpu, the extra `tpu`), so what a chip
holds, computes and sends is read from the real program. How long that takes is
predicted from published figures, under assumptions: never a measurement.
"""

import dataclasses
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

import eain_jax
from eain_jax.benchmark.chips import (
  CHIPS,
  HOP_SECONDS,
  collective_seconds,
  slice_shape,
)
from eain_jax.benchmark.collectives import collectives
from eain_jax.benchmark.program import (
  matmul_flops,
  unfused_bytes,
  xla_counts,
)
from eain_jax.config import ModelConfig, TrainConfig, WorkloadConfig
from eain_jax.data.batches import (
  Sizes,
  capacity_for,
  shapes_of_batch,
)
from eain_jax.data.features import NUM_RESERVED, Feature
from eain_jax.data.row_plan import owned_rows
from eain_jax.data.workload import CONTEXT_VALUES, NUM_CATEGORIES
from eain_jax.errors import InputError
from eain_jax.models import make_model
from eain_jax.training.optimizer import make_optimizer
from eain_jax.training.parallel import CUT, make_placement
from eain_jax.training.state import init_state
from eain_jax.training.step import make_train_step
from eain_jax.training.table_update import measure_update

CURVE_CHIPS = tuple(4**n for n in range(6))  # 1 to 1,024


def _quiet_libtpu() -> None:
  """What libtpu would else ask a metadata server for, and complain about."""
  for name, value in {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'TPU_STDERR_LOG_LEVEL': '3',
    'TPU_MIN_LOG_LEVEL': '3',
  }.items():
    os.environ.setdefault(name, value)


def open_topology(name: str) -> tuple[Any, str]:
  """The devices of a slice, such as 'v5e:16x16', and its generation.

  Raises:
    InputError: there is no such slice, or no compiler for it.
  """
  match = re.fullmatch(r'(v\d+[a-z]*):(\d+(?:x\d+){1,2})', name)
  if not match or match[1] not in CHIPS:
    raise InputError(
      f'--topology={name} is unknown: write generation:sides, such as '
      f'v5e:16x16 or v4:4x4x8, of {", ".join(CHIPS)}'
    )
  generation, sides = match[1], match[2].split('x')
  dimensions = CHIPS[generation].dimensions
  if len(sides) != dimensions:
    raise InputError(
      f'--topology={name} has {len(sides)} sides; slices of {generation} have '
      f'{dimensions}'
    )
  if find_spec('libtpu') is None:
    raise InputError(
      f'--topology={name} needs the compiler of TPUs, which is not installed: '
      "pip install -e '.[tpu]'"
    )
  _quiet_libtpu()
  # Here, for the module is experimental.
  from jax.experimental import topologies

  # As TPU VMs run them: the two cores of a v4 chip are one device.
  chip = {'chip_config_name': 'megacore'} if generation == 'v4' else {}
  try:
    topology = topologies.get_topology_desc(
      topology_name=name, platform='tpu', **chip
    )
  except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
    reason = str(error).strip().splitlines()[0][:200]
    raise InputError(
      f'--topology={name} is no slice that the compiler knows: {reason}'
    ) from error
  return topology.devices, generation


def workload_features(workload: WorkloadConfig) -> tuple[Feature, ...]:
  """The features of `data.workload`, without its data."""
  rows = {
    'user': workload.users,
    'item': workload.items,
    'category': NUM_CATEGORIES,
    **CONTEXT_VALUES,
  }
  kind = {'user': 'user', 'item': 'item', 'category': 'item'}
  return tuple(
    Feature(name, kind.get(name, 'context'), count + NUM_RESERVED)
    for name, count in rows.items()
  )


@dataclasses.dataclass(frozen=True)
class Job:
  """What is to be trained.

  Attributes:
    workload: tables, lengths of histories, negatives.
    model_name: of `models.MODELS`.
    model_config: its settings.
    train: batch, optimizer, how tables are updated.
  """

  workload: WorkloadConfig
  model_name: str
  model_config: ModelConfig
  train: TrainConfig

  @property
  def features(self) -> tuple[Feature, ...]:
    """Those that the model has tables of."""
    model = make_model(self.model_name, self.model_config)
    return model.reads(workload_features(self.workload))

  @property
  def num_candidates(self) -> int:
    return 1 + self.workload.negatives

  @property
  def items_a_request(self) -> int:
    """Of its history and its candidates."""
    return self.workload.history_length + self.num_candidates

  def requests_a_chip(self, num_chips: int) -> int:
    return self.train.batch_size // self.num_candidates // num_chips

  def sizes(self, num_requests: int, num_chips: int) -> Sizes:
    """Static sizes of one chip's batch, if its ids were uniform draws.

    Every history is full. No other distribution of ids has more distinct ones,
    and these are what is sent.
    """
    num_events = num_requests * self.workload.history_length
    most_items = num_events + num_requests * self.num_candidates
    features = self.features
    item_rows = next(f.num_rows for f in features if f.name == 'item')
    num_items = 1 + min(most_items, item_rows)
    capacity = {}
    for feature in features:
      ids = num_items if feature.kind == 'item' else num_requests
      distinct = feature.num_rows * -np.expm1(-ids / feature.num_rows)
      capacity[feature.name] = min(
        capacity_for(1 + distinct / num_chips),
        owned_rows(feature.num_rows, num_chips),
      )
    return Sizes(num_events, num_items, capacity)

  def distinct_rows(self, num_requests: int) -> int:
    """Distinct rows of all tables in so many requests, uniform draws."""
    total = 0.0
    for feature in self.features:
      ids = num_requests * (
        self.items_a_request if feature.kind == 'item' else 1
      )
      total += feature.num_rows * -np.expm1(-ids / feature.num_rows)
    return int(total)

  def asked_rows(self, num_requests: int, num_chips: int) -> int:
    """Rows that a chip asks for in a step, unused places included."""
    sizes = self.sizes(num_requests, num_chips)
    return num_chips * sum(sizes.capacity.values())

  def resolved(self) -> 'Job':
    """With the update of tables chosen as training chooses it."""
    if self.train.table_update != 'auto':
      return self
    model = make_model(self.model_name, self.model_config)
    requests = self.requests_a_chip(1)
    ids = requests * self.items_a_request
    planned = {
      f.name: min(f.num_rows, 1 + (ids if f.kind == 'item' else requests))
      for f in self.features
    }
    train = self.train
    update = measure_update(
      self.features,
      planned,
      model.table_width,
      bool(
        train.l2 or self.model_config.table_l2 or train.optimizer == 'adamw'
      ),
    )
    train = dataclasses.replace(train, table_update=update.choice)
    return dataclasses.replace(self, train=train)


def compile_step(job: Job, devices: Sequence[Any]) -> dict[str, Any]:
  """Compiles the training step of `--parallelism=mesh` for some devices.

  Returns:
    what one chip holds, computes and sends in a step: see `xla_counts` and
    `collectives`; `matmul_flops`; `memory_traffic_bytes`; `requests` and
    `events` of a chip's batch, `asked_rows`; `parameters` of the model, of
    which `dense_parameters` are not in tables; `state_bytes`; `compile_s`.

  Raises:
    InputError: the batch holds less than one request a chip, or the program
      does not compile, as where it does not fit.
  """
  features, config = job.features, job.train
  num_rows = {feature.name: feature.num_rows for feature in features}
  placement = make_placement('mesh', num_rows, devices=devices)
  num_chips = placement.num_shards
  num_requests = job.requests_a_chip(num_chips)
  if not num_requests:
    raise InputError(
      f'batch_size {config.batch_size} holds less than one request of '
      f'{job.num_candidates} example(s) for each of {num_chips} chips'
    )
  sizes = job.sizes(num_requests, num_chips)
  batch = shapes_of_batch(
    features, num_requests, job.num_candidates, sizes, num_chips
  )
  model = make_model(job.model_name, job.model_config, placement.axis_name)
  optimizer = make_optimizer(config, 1)
  state = jax.eval_shape(
    lambda: init_state(
      model,
      features,
      optimizer,
      batch,
      jax.random.key(0),
      num_owners=num_chips,
      place_table=lambda x: x.reshape(-1, x.shape[-1]),
    )
  )
  step = placement.compile_train_step(
    make_train_step(model, features, optimizer, config, tables_are_cut=True),
    state,
  )
  cut = NamedSharding(placement.mesh, CUT)
  arguments = (
    jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=sharding
      ),
      state,
      placement.shardings(state),
    ),
    jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        (num_chips, *x.shape), x.dtype, sharding=cut
      ),
      batch,
    ),
  )
  start = time.perf_counter()
  try:
    compiled = step.lower(*arguments).compile()
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).strip().splitlines()[0][:300]
    raise InputError(
      f'the step does not compile for {num_chips} of these chips: {reason}'
    ) from error
  seconds = time.perf_counter() - start
  net = sum(leaf.size for leaf in jax.tree.leaves(state.params['net']))
  found = collectives(compiled.as_text())
  counts = xla_counts(compiled)
  traffic = [unfused_bytes(step, *arguments)]
  if counts['bytes_accessed'] is not None:
    traffic.append(counts['bytes_accessed'])
  return {
    **counts,
    # Two counts that are both too high, each for reasons of its own.
    'memory_traffic_bytes': min(traffic),
    'matmul_flops': matmul_flops(step, *arguments) // num_chips,
    'collectives': found,
    'collective_bytes': sum(row['bytes'] * row['count'] for row in found),
    'requests': num_requests,
    'events': sizes.num_events,
    'asked_rows': job.asked_rows(num_requests, num_chips),
    'parameters': net + model.table_width * sum(num_rows.values()),
    'dense_parameters': net,
    'table_width': model.table_width,
    'state_bytes': placement.bytes_a_device(state),
    'compile_s': seconds,
  }


ASSUMPTIONS = (
  'Ids of a batch are uniform draws and every history is full: the most rows '
  'to send, and the longest work.',
  'Matrix products run at the peak of the chip in bfloat16, to which JAX '
  'rounds float32 on a TPU by default; memory at its peak bandwidth. A step '
  'takes the longer of the two.',
  'Traffic of memory is the lower of two counts that are both too high: as if '
  'no operation were fused with another, gathers and scatters touching the '
  "rows that they name; and XLA's, in which these touch whole tables.",
  "Collectives run at the links' peak, one after another, and nothing is "
  f'computed meanwhile; each hop costs {1e6 * HOP_SECONDS:g} us more. Sides of '
  '16 chips (v5e, v6e) or multiples of 4 (v4, v5p) are rings, shorter ones are '
  'not.',
  'Beyond a pod, slices of one pod each are joined by the data center network, '
  'each chip with its share.',
  'Work of a chip is proportional to the requests in its batch; with a dense '
  'update of tables its traffic of memory is to its share of them.',
  'Input keeps up; nothing is saved, logged or evaluated.',
)


def predict(
  job: Job,
  program: Mapping[str, Any],
  generation: str,
  compiled_for: int,
  num_chips: int,
  num_requests: int,
  shape: tuple[int, ...] | None = None,
) -> dict[str, Any]:
  """A step on some chips, from a program that was compiled for others.

  Args:
    job: what is trained.
    program: of `compile_step`.
    generation: of `CHIPS`.
    compiled_for: chips of the program.
    num_chips: for which to predict, a power of two.
    num_requests: of a chip.
    shape: sides of the slice; by default as nearly equal as can be.
  """
  chip = CHIPS[generation]
  shape = shape or slice_shape(chip, num_chips)
  slices = max(1, num_chips // chip.pod_chips)
  work = num_requests / program['requests']
  asked = job.asked_rows(num_requests, num_chips)
  sent = asked / job.asked_rows(program['requests'], compiled_for)
  seconds = 0.0
  for row in program['collectives']:
    size = row['bytes'] * (sent if row['op'] == 'all-to-all' else 1)
    seconds += row['count'] * collective_seconds(
      chip, shape, slices, row['op'], int(size)
    )
  compute = work * program['matmul_flops'] / chip.flops
  # Dense, a chip streams its part of the tables at every step.
  is_dense = job.train.table_update == 'dense'
  share = compiled_for / num_chips if is_dense else work
  memory = share * program['memory_traffic_bytes'] / chip.memory_bandwidth
  tables = sum(f.num_rows for f in job.features) * program['table_width']
  dense = program['dense_parameters']
  # Parameters and the moments beside them, of which the state's bytes tell.
  copies = program['state_bytes'] / (4 * (tables / compiled_for + dense))
  state = 4 * copies * (tables / num_chips + dense)
  step = max(compute, memory) + seconds
  examples = num_chips * num_requests * job.num_candidates
  return {
    'chips': num_chips,
    'shape': (f'{slices} of ' * (slices > 1)) + 'x'.join(map(str, shape)),
    'batch': examples,
    'products_ms': 1e3 * compute,
    'memory_ms': 1e3 * memory,
    'collectives_ms': 1e3 * seconds,
    'step_ms': 1e3 * step,
    'ex_s': examples / step,
    'state_bytes': int(state),
    # Of the batch, or of gradients of a part of the tables, whichever is more.
    'fits': bool(
      state + max(work, share) * program['temporary_bytes'] <= chip.memory_bytes
    ),
  }


def predict_topology(
  job: Job, name: str, report: Callable[[str], None]
) -> dict[str, Any]:
  """Compiles the step for a slice; predicts it there and on 1 to 1,024 chips.

  Returns:
    `program`, of the compiler; `prediction`, and curves `strong` (the batch
    stays) and `weak` (a chip's batch stays); `collective_bytes_bound`, 2.2 x
    distinct rows of the global batch x W x 4 + 1.1 x dense parameters x 4;
    `collective_bytes_of_own_rows`, the distinct rows of a chip's own shard once
    each way, and the dense parameters once;
    `assumptions`.

  Raises:
    InputError: see `open_topology` and `compile_step`.
  """
  devices, generation = open_topology(name)
  job, chip, count = job.resolved(), CHIPS[generation], len(devices)
  report(f'{job.model_name} is compiled for {count} chips of {generation}')
  program = compile_step(job, devices)
  requests = program['requests']
  at = lambda chips, own: predict(job, program, generation, count, chips, own)
  sides = tuple(int(side) for side in name.partition(':')[2].split('x'))
  here = predict(job, program, generation, count, count, requests, sides)
  strong = [
    at(chips, job.requests_a_chip(chips))
    for chips in CURVE_CHIPS
    if job.requests_a_chip(chips)
  ]
  weak = [at(chips, requests) for chips in CURVE_CHIPS]
  for curve in (strong, weak):
    first = curve[0]
    for row in curve:
      speedup = row['ex_s'] / first['ex_s']
      row['efficiency'] = speedup / (row['chips'] / first['chips'])
  distinct = job.distinct_rows(requests * count)
  own = job.distinct_rows(requests)
  width, dense = program['table_width'], program['dense_parameters']
  bound = lambda rows: int(4 * (2.2 * rows * width + 1.1 * dense))
  return {
    'version': eain_jax.__version__,
    'jax': jax.__version__,
    'settings': {
      'model_name': job.model_name,
      'model': job.model_config.to_dict(),
      'workload': job.workload.to_dict(),
      'train': job.train.to_dict(),
    },
    'topology': name,
    'generation': generation,
    'chips': count,
    'table_update': job.train.table_update,
    'compiler': f'libtpu {version("libtpu")}',
    'chip': dataclasses.asdict(chip),
    'program': program,
    'distinct_rows': distinct,
    'distinct_rows_of_a_chip': own,
    'collective_bytes_bound': bound(distinct),
    'collective_bytes_of_own_rows': 4 * (2 * own * width + dense),
    'prediction': here,
    'strong': strong,
    'weak': weak,
    'assumptions': list(ASSUMPTIONS),
  }
