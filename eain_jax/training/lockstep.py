"""Runs of several seeds, whose steps are made by one program.

Each run has a thread of its own, and does there all that it does alone. Where
it would call the device it waits until all the others call it too, and one
call makes the steps of all: the runs' step under `vmap`. A small step leaves
most of a GPU idle, so five cost little more than one.
"""

import dataclasses
import functools
import threading
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from eain_jax.training.device_data import DeviceRunner, StepInputs


def _together(function: Any) -> Any:
  """`DeviceRunner.function` of many states and the steps of each."""

  def run(states, columns, steps, count, num_events):
    stack = lambda *leaves: jnp.stack(leaves)
    one = functools.partial(function, num_events=num_events)
    found = jax.vmap(lambda state, steps: one(state, columns, steps, count))(
      jax.tree.map(stack, *states), jax.tree.map(stack, *steps)
    )
    return [
      jax.tree.map(lambda leaf, place=place: leaf[place], found)
      for place in range(len(states))
    ]

  return run


class Lockstep:
  """Makes the calls of several runs, when all that still train have come.

  The program is always that of all runs: of one that has ended another one's
  state takes the place, for a program of fewer would have to be compiled.

  Args:
    runners: of the runs; they differ in their streams' seeds alone.
  """

  def __init__(self, runners: Sequence[DeviceRunner]):
    self._columns = runners[0].columns
    self._run = jax.jit(
      _together(runners[0].function), donate_argnums=0, static_argnums=4
    )
    self._size = len(runners)
    self._left: set[int] = set()
    self._changed = threading.Condition()
    self._waiting: dict[int, tuple[Any, StepInputs]] = {}
    # By run what its call came to, an exception where that is what it did.
    self._done: dict[int, Any] = {}

  def call(self, number: int, state: Any, inputs: StepInputs) -> Any:
    """As `DeviceRunner.__call__`, for the run of that number."""
    with self._changed:
      self._waiting[number] = state, inputs
      self._run_if_all_wait()
      while number not in self._done:
        self._changed.wait()
      found = self._done.pop(number)
    if isinstance(found, BaseException):
      raise found
    return found

  def leave(self, number: int) -> None:
    """A run calls no more; those that wait for it go on. Twice is once."""
    with self._changed:
      self._left.add(number)
      self._run_if_all_wait()

  def _run_if_all_wait(self) -> None:
    if not self._waiting or len(self._waiting) + len(self._left) < self._size:
      return
    waiting, self._waiting = self._waiting, {}
    # Runs that were interrupted at different steps may ask for more or less.
    by_count: dict[int, list[int]] = {}
    for number, (_, inputs) in waiting.items():
      by_count.setdefault(int(inputs.count), []).append(number)
    for numbers in by_count.values():
      try:
        found = self._call([waiting[number] for number in numbers])
      except Exception as error:
        # All of them hear of it: none can go on without its state.
        found = [error] * len(numbers)
      self._done.update(zip(numbers, found, strict=True))
    self._changed.notify_all()

  def _call(self, calls: list[tuple[Any, StepInputs]]) -> list[Any]:
    states, inputs = (list(values) for values in zip(*calls, strict=True))
    num_events = max(one.num_events for one in inputs)
    steps = [one.steps for one in inputs]
    for _ in range(self._size - len(calls)):
      # A copy, for the program takes each state's buffers.
      states.append(jax.tree.map(jnp.copy, states[0]))
      steps.append(steps[0])
    found = self._run(states, self._columns, steps, inputs[0].count, num_events)
    return found[: len(calls)]


@dataclasses.dataclass(frozen=True)
class LockstepRunner(DeviceRunner):
  """One run's place in a `Lockstep`.

  Attributes:
    lockstep: makes its calls.
    number: of the run in it.
  """

  lockstep: Lockstep
  number: int

  def leave(self) -> None:
    """As of `DeviceRunner`; the other runs do not wait for this one."""
    self.lockstep.leave(self.number)

  def __call__(self, state: Any, inputs: StepInputs) -> Any:
    """As of `DeviceRunner`, when the other runs have come."""
    return self.lockstep.call(self.number, state, inputs)


def in_lockstep(runners: Sequence[DeviceRunner]) -> list[LockstepRunner]:
  """What takes the places of the runners."""
  lockstep = Lockstep(runners)
  return [
    LockstepRunner(**vars(runner), lockstep=lockstep, number=number)
    for number, runner in enumerate(runners)
  ]
