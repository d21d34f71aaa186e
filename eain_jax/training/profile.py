"""A trace of some steps of a run, for Perfetto or TensorBoard."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

# Calls of the device, since this process began. The first ones compile.
CALLS_BEFORE, CALLS_TRACED = 10, 20


class Profile:
  """Traces the 11th to the 30th call of a run, or those of them that it makes.

  Python's own calls are left out: tracing them slows a step down. What shows is
  each step, each wait for its input, and every operation of XLA.

  Use it as a context manager.

  Args:
    folder: that the trace goes into, beside earlier ones; None: no trace.
    say: takes a line for a person.
  """

  def __init__(self, folder: Path | None, say: Callable[[str], None]):
    self._folder, self._say = folder, say
    self._calls, self._is_on = 0, False

  def __enter__(self) -> 'Profile':
    return self

  def __exit__(self, *exc_info: object) -> None:
    if self._is_on:
      self._end()
    elif self._folder and self._calls <= CALLS_BEFORE:
      self._say(
        f'no profile: there were {self._calls} calls of the device, and the '
        f'first {CALLS_BEFORE} are not traced'
      )

  def call(
    self, step: int, state: Any
  ) -> contextlib.AbstractContextManager[Any]:
    """Goes around a call that begins with `step`; `state` is the one before."""
    if self._folder is None:
      return contextlib.nullcontext()
    if self._calls == CALLS_BEFORE:
      jax.block_until_ready(state)
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0
      jax.profiler.start_trace(
        self._folder, create_perfetto_trace=True, profiler_options=options
      )
      self._is_on = True
    elif self._is_on and self._calls == CALLS_BEFORE + CALLS_TRACED:
      jax.block_until_ready(state)
      self._end()
    self._calls += 1
    return jax.profiler.StepTraceAnnotation('train', step_num=step)

  def _end(self) -> None:
    assert self._folder is not None
    self._is_on = False
    jax.profiler.stop_trace()
    # A folder is named by its time, so the last one is this one.
    trace = sorted(self._folder.rglob('perfetto_trace.json.gz'))[-1]
    self._say(
      f'profile of {self._calls - CALLS_BEFORE} calls: {trace}, for '
      'https://ui.perfetto.dev'
    )
