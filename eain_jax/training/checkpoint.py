"""What a run keeps on disk, through Orbax; nothing else imports Orbax.

    checkpoints/latest/   state before batch `step`, and the loop's record
    checkpoints/best/     parameters of the best validation GAUC

A checkpoint at step s is the state before batch s.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from eain_jax.errors import InputError
from eain_jax.training.parallel import Placement
from eain_jax.training.state import TrainState


class Checkpoints:
  """The two series of checkpoints of a run.

  Use as a context manager: leaving it waits for saves that are under way.
  """

  def __init__(self, work_dir: Path, placement: Placement):
    self._placement = placement
    folder = work_dir.resolve() / 'checkpoints'

    def series(name: str, keep: int) -> ocp.CheckpointManager:
      options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=True,
        enable_async_checkpointing=True,
        # Both may save at once, and processes meet at places with names.
        multiprocessing_options=ocp.options.MultiprocessingOptions(
          barrier_sync_key_prefix=name
        ),
      )
      return ocp.CheckpointManager(folder / name, options=options)

    self._latest, self._best = series('latest', 2), series('best', 1)

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
      state=ocp.args.StandardSave(self._placement.to_canonical(state)),
      record=ocp.args.JsonSave(dict(record)),
    )
    if not self._latest.save(step, args=args):
      raise RuntimeError(f'the checkpoint of step {step} was not saved')

  def restore_latest(
    self, state: TrainState
  ) -> tuple[TrainState, dict[str, Any]]:
    """The newest state, in the shape of `state`, and the loop's record."""
    args = ocp.args.Composite(
      state=self._standard_restore(state), record=ocp.args.JsonRestore()
    )
    step = self._latest.latest_step()
    restored = self._latest.restore(step, args=args)
    state = self._placement.from_canonical(restored['state'])
    return state, restored['record']

  def _standard_restore(self, tree):
    """Tables were saved with as many spare rows as their devices had."""
    shapes = self._placement.canonical_shapes(tree)
    return ocp.args.StandardRestore(shapes, strict=False)

  def save_best(self, step: int, params, stats) -> None:
    """Saves the parameters of the best evaluation so far."""
    if step == self._best.latest_step():
      return
    tree = self._placement.to_canonical({'params': params, 'stats': stats})
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
    args = self._standard_restore({'params': params, 'stats': stats})
    tree = self._best.restore(self._best.latest_step(), args=args)
    tree = self._placement.from_canonical(tree)
    return tree['params'], tree['stats']
