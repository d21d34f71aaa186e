"""A trace of some steps of a run, for Perfetto or TensorBoard."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

# Calls of the device, since this process began. The first ones compile.
CALLS_BEFORE, CALLS_TRACED = 10, 20


class Profile:
  """Traces the 11th to the 30th call of a run, or those of them that it makes.

  Python's own calls are left out: tracing them slows a step down. What shows is
  each step, each wait for its input, and every operation of XLA. A trace that
  cannot be taken or written costs a line, never the run.

  Use it as a context manager.

  Args:
    folder: that the trace goes into, beside earlier ones; None: no trace.
    say: takes a line for a person.
  """

  def __init__(self, folder: Path | None, say: Callable[[str], None]):
    self._folder, self._say = folder, say
    self._calls, self._is_on, self._is_over = 0, False, folder is None

  def __enter__(self) -> 'Profile':
    return self

  def __exit__(self, kind: object, *exc_info: object) -> None:
    if self._is_on:
      self.end()
    elif not self._is_over and kind is None:
      self._say(
        f'no profile: there were {self._calls} calls of the device, and the '
        f'first {CALLS_BEFORE} are not traced'
      )

  @property
  def turns(self) -> bool:
    """Before the next call the trace begins, or ends: `turn` does it."""
    if self._is_over:
      return False
    return self._calls == CALLS_BEFORE + CALLS_TRACED * self._is_on

  def turn(self) -> None:
    """Begins the trace, or ends it; all calls before must have ended."""
    if self._is_on:
      self.end()
      return
    assert self._folder is not None
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with self._said():
      jax.profiler.start_trace(
        self._folder, create_perfetto_trace=True, profiler_options=options
      )
      self._is_on = True

  @contextlib.contextmanager
  def call(self, step: int) -> Iterator[None]:
    """Goes around a call of the device that begins with `step`."""
    with jax.profiler.StepTraceAnnotation('train', step_num=step):
      yield
    self._calls += 1

  def end(self) -> None:
    """Writes the trace, if one is being taken, and says where it is."""
    if not self._is_on:
      return
    assert self._folder is not None
    self._is_on, self._is_over = False, True
    with self._said():
      jax.profiler.stop_trace()
      # A folder is named by its time, so the last one is this one.
      trace = sorted(self._folder.rglob('perfetto_trace.json.gz'))[-1]
      self._say(
        f'profile of {self._calls - CALLS_BEFORE} calls: {trace}, for '
        'https://ui.perfetto.dev'
      )

  @contextlib.contextmanager
  def _said(self) -> Iterator[None]:
    try:
      yield
    # As jax has it: a full disk, another trace, a folder that is not whole.
    except (OSError, RuntimeError, ValueError, IndexError) as error:
      self._is_on, self._is_over = False, True
      self._say(f'no profile: {error}')
