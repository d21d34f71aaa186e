"""What a run keeps on disk, through Orbax; nothing else imports Orbax.

    checkpoints/latest/   state before batch `step`, and the loop's record
    checkpoints/best/     parameters of the best validation GAUC

A checkpoint at step s is the state before batch s.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from eain_jax.errors import InputError
from eain_jax.training.state import TrainState


def _abstract(tree):
  """Shapes, dtypes and a single-device sharding of a tree of arrays."""
  device = jax.local_devices()[0]
  sharding = jax.sharding.SingleDeviceSharding(device)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
  )


def _copied(tree):
  """Copies: saves run on beside steps that reuse the buffers of the state."""
  return jax.tree.map(jnp.copy, tree)


class Checkpoints:
  """The two series of checkpoints of a run.

  Use as a context manager: leaving it waits for saves that are under way.
  """

  def __init__(self, work_dir: Path):
    options = lambda keep: ocp.CheckpointManagerOptions(
      max_to_keep=keep, create=True, enable_async_checkpointing=True
    )
    folder = work_dir.resolve() / 'checkpoints'
    self._latest = ocp.CheckpointManager(folder / 'latest', options=options(2))
    self._best = ocp.CheckpointManager(folder / 'best', options=options(1))

  def __enter__(self):
    return self

  def __exit__(self, *exc_info):
    self._latest.wait_until_finished()
    self._best.wait_until_finished()
    self._latest.close()
    self._best.close()

  @property
  def latest_step(self) -> int | None:
    return self._latest.latest_step()

  def save_latest(self, state: TrainState, record: Mapping[str, Any]) -> None:
    """Saves the state before its step, with the loop's record."""
    step = int(state.step)
    if step == self._latest.latest_step():
      return
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(_copied(state)),
      record=ocp.args.JsonSave(dict(record)),
    )
    if not self._latest.save(step, args=args):
      raise RuntimeError(f'the checkpoint of step {step} was not saved')

  def restore_latest(
    self, state: TrainState
  ) -> tuple[TrainState, dict[str, Any]]:
    """The newest state, in the shape of `state`, and the loop's record."""
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(_abstract(state)),
      record=ocp.args.JsonRestore(),
    )
    step = self._latest.latest_step()
    restored = self._latest.restore(step, args=args)
    return restored['state'], restored['record']

  def save_best(self, step: int, params, stats) -> None:
    """Saves the parameters of the best evaluation so far."""
    if step == self._best.latest_step():
      return
    tree = {'params': params, 'stats': stats}
    if not self._best.save(step, args=ocp.args.StandardSave(tree)):
      raise RuntimeError(f'the best checkpoint, step {step}, was not saved')

  def restore_best(self, params, stats) -> tuple[Any, Any]:
    """The parameters and statistics of the best evaluation.

    Raises:
      InputError: the run has not reached its first evaluation.
    """
    if self._best.latest_step() is None:
      raise InputError(
        'the run holds no evaluated checkpoint yet: train it further'
      )
    abstract = _abstract({'params': params, 'stats': stats})
    tree = self._best.restore(
      self._best.latest_step(), args=ocp.args.StandardRestore(abstract)
    )
    return tree['params'], tree['stats']
