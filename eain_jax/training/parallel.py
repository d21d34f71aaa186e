"""Where a run's state and batches lie: the one place that knows of devices.

  none   one device
  pmap   parameters replicated; `lax.psum` over 'data' adds gradients up
  mesh   embedding tables and their optimizer state cut by rows over 'data';
         all else replicated

One step function runs in all three. Under `mesh` it runs inside `shard_map`, so
that it says itself what crosses the network; see `table_access`.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from eain_jax.data.batches import Shards
from eain_jax.errors import InputError
from eain_jax.training import table_layout
from eain_jax.training.checksums import leaf_name
from eain_jax.training.state import TrainState
from eain_jax.training.step import ScoreFn, StepFn

AXIS = 'data'
CUT, WHOLE = PartitionSpec(AXIS), PartitionSpec()

# What lies where under `mesh`: the first pattern that is found in the name of a
# leaf decides, and a leaf that none names is an error.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
  (r'^params/tables/', CUT),
  (r'^opt_state/.*/tables/', CUT),
  (r'^params/net/', WHOLE),
  (r'^opt_state/.*/net/', WHOLE),
  (r'^opt_state/.*(count|step_size)$', WHOLE),
  (r'^stats/', WHOLE),
  (r'^step$', WHOLE),
)


def match_rules(
  tree: Any, rules: Sequence[tuple[str, PartitionSpec]] = RULES
) -> Any:
  """A PartitionSpec for each leaf of a state, or of its parts by their names.

  Raises:
    InputError: no rule names a leaf.
  """

  def spec(path, leaf):
    name = leaf_name(path)
    for pattern, found in rules:
      if re.search(pattern, name):
        return found
    raise InputError(
      f'no rule says where {name} lies on a mesh, shape {leaf.shape}: add one '
      'to RULES in training/parallel.py'
    )

  return jax.tree_util.tree_map_with_path(spec, tree)


def device_notes(platform: str, jaxlib_version: str) -> tuple[str, ...]:
  """What a person should know of the devices, a line each.

  Args:
    platform: of the devices: cpu, gpu or tpu.
    jaxlib_version: as '0.10.2'.
  """
  numbers = tuple(int(n) for n in jaxlib_version.split('.')[:3] if n.isdigit())
  if platform == 'gpu' and (0, 10, 2) <= numbers <= (0, 11, 0):
    return (
      f'jaxlib {jaxlib_version} adds float32 updates to few rows hundreds of '
      'times slower than others do on GPUs (openxla/xla issue 46225): tables '
      'of few rows may dominate a step; jaxlib 0.11.1 or newer is said not to',
    )
  return ()


def _in_shard(tree):
  """A stacked tree as its one shard sees it."""
  return jax.tree.map(lambda x: x[0], tree)


@dataclasses.dataclass(frozen=True)
class Placement:
  """The devices of a run, and how it uses them.

  Attributes:
    parallelism: none, pmap or mesh.
    devices: that take part, those of a process one after another.
    num_rows: by feature the rows of its table, which cut tables round up.
  """

  parallelism: str
  devices: tuple[Any, ...]
  num_rows: Mapping[str, int]

  @property
  def num_shards(self) -> int:
    """Shards that a batch is cut into: one a device."""
    return len(self.devices)

  @property
  def axis_name(self) -> str | None:
    """The mapped axis that a model takes its statistics over."""
    return None if self.parallelism == 'none' else AXIS

  @property
  def cuts_tables(self) -> bool:
    return self.parallelism == 'mesh'

  @property
  def spans_processes(self) -> bool:
    return len({device.process_index for device in self.devices}) > 1

  @functools.cached_property
  def mesh(self) -> Mesh:
    """All devices."""
    return Mesh(np.array(self.devices), (AXIS,), axis_types=(AxisType.Auto,))

  @functools.cached_property
  def _own_mesh(self) -> Mesh:
    """This process' devices, on which pmap keeps its state."""
    own = [self.devices[shard] for shard in self.shards('none').own]
    return Mesh(np.array(own), (AXIS,), axis_types=(AxisType.Auto,))

  def meet(self) -> None:
    """Connects the devices of several processes; all of them call it.

    gloo, of CPUs, waits half a minute for a first meeting of devices, and one
    process may compile the step, where they would meet, so much longer.
    """
    if not self.spans_processes:
      return
    cut, whole = (
      NamedSharding(self.mesh, PartitionSpec(*axes)) for axes in ((AXIS,), ())
    )
    ones = jax.make_array_from_callback(
      (self.num_shards,), cut, lambda index: np.ones(1, np.int32)
    )
    jax.block_until_ready(jax.jit(jnp.sum, out_shardings=whole)(ones))

  def shards(self, plan: str) -> Shards:
    """How a batch is cut, and which shards this process makes."""
    mine = jax.process_index()
    own = [
      place
      for place, device in enumerate(self.devices)
      if device.process_index == mine
    ]
    return Shards(
      self.num_shards,
      range(own[0], own[-1] + 1),
      self.parallelism != 'none',
      plan,
    )

  def train_shards(self, table_update: str) -> Shards:
    """As `shards`, with the plan that a training step needs."""
    if self.cuts_tables:
      return self.shards('exchange')
    return self.shards('rows' if table_update == 'rowwise' else 'none')

  @property
  def eval_shards(self) -> Shards:
    """As `shards`, with the plan that scoring needs."""
    return self.shards('exchange' if self.cuts_tables else 'none')

  def _specs(self, tree: Any) -> Any:
    if self.cuts_tables:
      return match_rules(tree)
    return jax.tree.map(lambda _: WHOLE, tree)

  def _shardings(self, tree: Any, mesh: Mesh) -> Any:
    return jax.tree.map(
      lambda spec: NamedSharding(mesh, spec), self._specs(tree)
    )

  def shardings(self, tree: Any) -> Any:
    """Where each leaf of a state lies."""
    return self._shardings(tree, self._state_mesh)

  @property
  def _state_mesh(self) -> Mesh:
    return self.mesh if self.cuts_tables else self._own_mesh

  @property
  def num_owners(self) -> int:
    """Devices that a table is cut over."""
    return self.num_shards if self.cuts_tables else 1

  def table_from_draw(self, drawn: jax.Array) -> jax.Array:
    """A table, as it lies here, from [L, owners, W] in the order of rows."""
    if not self.cuts_tables:
      return drawn.reshape(-1, drawn.shape[-1])
    # So the draw itself is cut: each device makes its own rows.
    by_owner = NamedSharding(self.mesh, PartitionSpec(None, AXIS))
    drawn = jax.lax.with_sharding_constraint(drawn, by_owner)
    return drawn.swapaxes(0, 1).reshape(-1, drawn.shape[-1])

  def make_state(self, make, *args) -> TrainState:
    """The state that `make(*args)` returns, made where it is to lie.

    No device ever holds more of it than its own part.
    """
    if self.parallelism == 'none':
      return jax.jit(make)(*args)
    shapes = jax.eval_shape(make, *args)
    shardings = self._shardings(shapes, self._state_mesh)
    return jax.jit(make, out_shardings=shardings)(*args)

  def compile_train_step(self, step: StepFn, state: TrainState) -> StepFn:
    """The step, compiled; `state`, or its shapes, says what lies where.

    The state is donated: its buffers are reused for the new one. Batches are
    those of `place_batch`.
    """
    if self.parallelism == 'none':
      return jax.jit(step, donate_argnums=0)
    if self.parallelism == 'pmap':
      # The state goes in and comes out without a device axis.
      return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=(None, None),
        donate_argnums=0,
      )
    specs = self._specs(state)
    on_shards = jax.shard_map(
      lambda state, batch: step(state, _in_shard(batch)),
      mesh=self.mesh,
      in_specs=(specs, CUT),
      out_specs=(specs, WHOLE),
      # As under pmap, gradients are those of a device until they are added.
      check_vma=False,
    )
    return jax.jit(on_shards, donate_argnums=0)

  def compile_score_step(self, score: ScoreFn, state: TrainState) -> ScoreFn:
    """Scoring, compiled: logits [R, C], or [own shards, R, C] and more."""
    if self.parallelism == 'none':
      return jax.jit(score)
    specs = self._specs(state)

    def on_shard(params, stats, batch):
      return score(params, stats, _in_shard(batch))[None]

    # Of pmap each process scores its own shards, from its own parameters.
    on_shards = jax.shard_map(
      on_shard,
      mesh=self._state_mesh,
      in_specs=(specs.params, specs.stats, CUT),
      out_specs=CUT,
      check_vma=False,
    )
    return jax.jit(on_shards)

  def place_batch(self, batch: Mapping) -> Mapping:
    """This process' shards of a batch, for the compiled train step."""
    if self.parallelism == 'mesh':
      return self._on_mesh(batch, self.mesh)
    return batch

  def place_eval_batch(self, batch: Mapping) -> Mapping:
    """As `place_batch`, for the compiled score step."""
    if self.parallelism == 'none':
      return batch
    return self._on_mesh(batch, self._state_mesh)

  def _on_mesh(self, batch: Mapping, mesh: Mesh) -> Mapping:
    cut = NamedSharding(mesh, CUT)
    if mesh is self.mesh and self.spans_processes:
      return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(cut, x), batch
      )
    return jax.device_put(batch, cut)

  def put_batch(self, batch: Mapping) -> Mapping:
    """A batch on its devices before it is needed, for the benchmark."""
    if self.parallelism == 'none':
      return jax.device_put(batch)
    return self._on_mesh(batch, self._state_mesh)

  def own_logits(self, logits: jax.Array) -> np.ndarray:
    """float32 [own shards, R, C] of what the compiled score step returned."""
    if self.parallelism == 'none':
      return np.asarray(logits)[None]
    parts = sorted(logits.addressable_shards, key=lambda s: s.index[0].start)
    return np.concatenate([np.asarray(part.data) for part in parts])

  def to_canonical(self, tree: Any) -> Any:
    """Copies to be saved: tables in the order of their rows.

    The steps that follow may reuse the buffers of `tree`. On a mesh tables
    stay cut, each device with a block of rows, some beyond the end.
    """
    if self.parallelism == 'none':
      return jax.tree.map(jnp.copy, tree)
    if self.parallelism == 'pmap':
      if not self.spans_processes:
        return jax.tree.map(lambda x: jnp.copy(x.addressable_data(0)), tree)
      copies = jax.tree.map(jnp.copy, tree)
      return jax.tree.map(
        lambda x: multihost_utils.host_local_array_to_global_array(
          x, self.mesh, WHOLE
        ),
        copies,
      )
    blocks = self._to_blocks(tree)
    if self.spans_processes:
      # Whoever saves makes the processes meet: not while this program does.
      jax.block_until_ready(blocks)
    return blocks

  @functools.cached_property
  def _to_blocks(self):
    def convert(tree):
      return jax.tree.map(
        lambda leaf, spec: (
          table_layout.to_blocks(leaf, self.mesh)
          if spec == CUT
          else jnp.copy(leaf)
        ),
        tree,
        self._specs(tree),
      )

    return jax.jit(convert)

  @functools.cached_property
  def _to_owners(self):
    def of_leaf(path, leaf, spec):
      if spec != CUT:
        return leaf
      num_rows = self.num_rows[leaf_name(path).rsplit('/', 1)[-1]]
      return table_layout.to_owners(leaf, self.mesh, num_rows)

    def convert(tree):
      return jax.tree_util.tree_map_with_path(of_leaf, tree, self._specs(tree))

    return jax.jit(convert)

  def canonical_shapes(self, tree: Any) -> Any:
    """Shapes, types and shardings that `from_canonical` takes.

    Args:
      tree: a state or parts of one by their names, as it lies here, or its
        shapes.
    """
    if self.parallelism == 'none':
      alone = jax.sharding.SingleDeviceSharding(self.devices[0])
      return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=alone), tree
      )

    def shape(leaf, spec):
      rows = leaf.shape
      if spec == CUT:
        blocks = table_layout.canonical_rows(leaf.shape[0], self.num_shards)
        rows = (blocks, *leaf.shape[1:])
      sharding = NamedSharding(self.mesh, spec)
      return jax.ShapeDtypeStruct(rows, leaf.dtype, sharding=sharding)

    return jax.tree.map(shape, tree, self._specs(tree))

  def from_canonical(self, tree: Any) -> Any:
    """What was restored in the shapes of `canonical_shapes`, as it is to lie.

    Whatever a step finds elsewhere makes it compile once more. Takes arrays of
    the host too.
    """
    if self.parallelism == 'none':
      return tree
    if self.parallelism == 'pmap':
      if not self.spans_processes:
        return jax.device_put(tree, self._shardings(tree, self._own_mesh))
      return jax.tree.map(
        lambda x: multihost_utils.global_array_to_host_local_array(
          x, self.mesh, WHOLE
        ),
        tree,
      )
    return self._to_owners(
      jax.device_put(tree, self._shardings(tree, self.mesh))
    )

  def bytes_a_device(self, tree: Any) -> int:
    """Of a state, or its shapes, on each device."""
    total = 0
    for leaf, spec in zip(
      jax.tree.leaves(tree), jax.tree.leaves(self._specs(tree)), strict=True
    ):
      size = leaf.size * leaf.dtype.itemsize
      total += size // self.num_shards if spec == CUT else size
    return total

  def describe(self) -> tuple[str, ...]:
    """A line for a person on what lies where, if there is a choice."""
    if self.parallelism == 'none':
      return ()
    lies = 'tables cut by rows, the rest replicated'
    if self.parallelism == 'pmap':
      lies = 'parameters replicated'
    processes = len({device.process_index for device in self.devices})
    return (
      f'{self.parallelism} over {self.num_shards} {self.devices[0].platform} '
      f'device(s) of {processes} process(es): {lies}',
    )


def make_placement(
  parallelism: str,
  num_rows: Mapping[str, int],
  num_devices: int = 0,
  devices: Sequence[Any] | None = None,
) -> Placement:
  """The devices of a run.

  Args:
    parallelism: none, pmap or mesh.
    num_rows: by feature, of its table.
    num_devices: that take part in pmap and mesh; 0: all.
    devices: to choose from; by default all of all processes.

  Raises:
    InputError: there are not so many devices, or more processes than one where
      one device is asked for.
  """
  if devices is None:
    devices = jax.devices()
  # A process' devices stand together, as its shards of a batch do.
  ordered = sorted(devices, key=lambda d: (d.process_index, d.id))
  processes = len({device.process_index for device in ordered})
  if parallelism == 'none':
    if processes > 1:
      raise InputError(
        f'--parallelism=none uses one device, and {processes} processes take '
        'part: use --parallelism=mesh or pmap'
      )
    if num_devices > 1:
      raise InputError(
        f'--num_devices={num_devices} needs --parallelism=mesh or pmap'
      )
    return Placement(parallelism, tuple(ordered[:1]), num_rows)
  if num_devices > len(ordered):
    raise InputError(
      f'a mesh of --num_devices={num_devices} does not fit: there are '
      f'{len(ordered)} {ordered[0].platform} device(s) in {processes} '
      'process(es)'
    )
  if num_devices and num_devices < len(ordered):
    if processes > 1:
      raise InputError(
        f'--num_devices={num_devices} leaves devices of some of the '
        f'{processes} processes out: with several processes all '
        f'{len(ordered)} take part'
      )
    ordered = ordered[:num_devices]
  return Placement(parallelism, tuple(ordered), num_rows)
