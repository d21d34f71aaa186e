"""Runs that differ in their seeds alone, trained together on one device."""

import dataclasses
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from eain_jax.config import ModelConfig, TrainConfig
from eain_jax.data.dataset import Dataset
from eain_jax.data.skip_above import with_skip_above
from eain_jax.errors import Interrupted, InUse
from eain_jax.stopping import Stop, stop_signals
from eain_jax.training.device_memory import (
  available_bytes,
  bytes_of_run,
  check_memory,
)
from eain_jax.training.lockstep import LockstepRunner, in_lockstep
from eain_jax.training.loop import fit_set_up
from eain_jax.training.run_log import Report
from eain_jax.training.setup import Setup, set_up


@dataclasses.dataclass(frozen=True)
class Member:
  """A run among those of other seeds.

  Attributes:
    work_dir: keeps it, as of `loop.fit`.
    report: as of `loop.fit`.
  """

  work_dir: Path
  report: Report | None


def fit_seeds(
  dataset: Dataset,
  model_name: str,
  model_config: ModelConfig,
  config: TrainConfig,
  members: Mapping[int, Member],
) -> list[int]:
  """Trains a model with several seeds, as `loop.fit` would one after another.

  With the data on the device one program makes a step of all of them, see
  `lockstep`, or of as many as the device has memory for; what a run comes to
  then differs from the same run alone as sums in another order do. A run's
  seconds are those of all. Where the data stays on the host each is trained
  alone.

  Args:
    dataset: an open dataset.
    model_name: of `models.MODELS`.
    model_config: its settings.
    config: how to train; its seed does not count.
    members: by seed.

  Returns:
    The seeds that other processes train.

  Raises:
    InputError: as `loop.fit`; the others have saved their state.
    Interrupted: told to stop; all have saved their state.
  """
  with stop_signals() as stop:
    dataset = with_skip_above(dataset, config.skip_above)
    seeds = list(members)
    first = dataclasses.replace(config, seed=seeds[0])
    setup = set_up(dataset, model_name, model_config, first)
    # Where one seed does not fit, it is told here.
    check_memory(setup.state_shapes, setup.placement, saves=True)
    at_once = min(_most_at_once(setup), len(seeds))

    def setup_of(seed: int) -> Setup:
      return setup if seed == seeds[0] else setup.with_seed(seed)

    def train(setup: Setup, stop: Stop, num_together: int) -> None:
      member = members[setup.config.seed]
      fit_set_up(
        dataset,
        model_name,
        model_config,
        setup,
        stop,
        member.work_dir,
        member.report,
        num_together=num_together,
      )

    left = []
    for begin in range(0, len(seeds), at_once):
      setups = [setup_of(seed) for seed in seeds[begin : begin + at_once]]
      if len(setups) > 1:
        left += _together(setups, train, stop)
        continue
      try:
        train(setups[0], stop, 1)
      except InUse:
        left.append(seeds[begin])
  return left


def _most_at_once(setup: Setup) -> int:
  """How many seeds the device has room for; 1 with the data on the host."""
  if setup.device_runner is None:
    return 1
  available = available_bytes()
  if available is None:
    return sys.maxsize
  placement, state = setup.placement, setup.state_shapes
  # A call takes the states as they are and makes one array of all.
  each = bytes_of_run(state, placement, saves=True)
  return max(1, available // (each + placement.bytes_a_device(state)))


def _together(
  setups: list[Setup], train: Callable[[Setup, Stop, int], None], stop: Stop
) -> list[int]:
  """Runs `train` of each on a thread; the seeds that others train."""
  runners = in_lockstep(
    [setup.device_runner for setup in setups if setup.device_runner]
  )
  # Where one fails, the others save what they have and end.
  stop_of_all = Stop(follows=stop)
  failures: dict[int, BaseException] = {}

  def run(setup: Setup, runner: LockstepRunner) -> None:
    seed = setup.config.seed
    own = dataclasses.replace(setup, device_runner=runner)
    try:
      train(own, Stop(follows=stop_of_all), len(setups))
    # On a thread an exception would be printed, and lost.
    except BaseException as error:
      failures[seed] = error
      if not isinstance(error, InUse):
        stop_of_all.ask()
    finally:
      runner.leave()

  # A second signal ends the process, and they do not hold that up.
  threads = [
    threading.Thread(
      target=run, args=both, name=f'seed {both[0].config.seed}', daemon=True
    )
    for both in zip(setups, runners, strict=True)
  ]
  with stop.held(), stop.may_end():
    # What the threads do would be lost, and this one would not hear of it.
    stop.can_end = False
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  left = [seed for seed, error in failures.items() if isinstance(error, InUse)]
  others = [error for seed, error in failures.items() if seed not in left]
  # That it was told to stop may be because another one failed.
  others.sort(key=lambda error: isinstance(error, Interrupted))
  if others:
    raise others[0]
  return left
