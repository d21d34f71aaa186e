"""Where a step runs: the one place that compiles it and knows of devices."""

from collections.abc import Mapping

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from eain_jax.training.state import TrainState
from eain_jax.training.step import StepFn

AXIS = 'data'


def num_shards(parallelism: str) -> int:
  """Shards that a batch is cut into: one a device that takes part."""
  return jax.local_device_count() if parallelism == 'pmap' else 1


def axis_name(parallelism: str) -> str | None:
  """The mapped axis that a model takes its statistics over."""
  return AXIS if parallelism == 'pmap' else None


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


def compile_train_step(step: StepFn, parallelism: str) -> StepFn:
  """The step, compiled: `jit` on one device, `pmap` over all local ones.

  Under pmap the state goes in and comes out without a device axis: it is the
  same on all devices, because gradients are averaged over 'data'. The state
  is donated: its buffers are reused for the new one.
  """
  if parallelism == 'none':
    return jax.jit(step, donate_argnums=0)
  return jax.pmap(
    step,
    axis_name=AXIS,
    in_axes=(None, 0),
    out_axes=(None, None),
    donate_argnums=0,
  )


def place_state(
  state: TrainState, parallelism: str, num_shards: int
) -> TrainState:
  """The state where the compiled step will leave it, on `num_shards` devices.

  A step that meets its state elsewhere is traced and compiled once more. The
  first device's buffers are shared with the state that is given, so both are
  gone after the first step.
  """
  if parallelism == 'none':
    return state
  mesh = jax.make_mesh(
    (num_shards,),
    (AXIS,),
    axis_types=(AxisType.Auto,),
    devices=jax.local_devices()[:num_shards],
  )
  return jax.device_put(state, NamedSharding(mesh, PartitionSpec()))


def shard_of(batch: Mapping, parallelism: str) -> Mapping:
  """The first shard of a global batch, for its shapes."""
  if parallelism == 'none':
    return batch
  return jax.tree.map(lambda x: x[0], batch)
