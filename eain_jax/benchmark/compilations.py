"""Counts what XLA compiles: one in the timed part would spoil the figures."""

import jax

_EVENT = '/jax/core/compile/backend_compile_duration'


class CompilationCounter:
  """A context that counts the programs that are compiled within it.

  Attributes:
    count: programs so far.
  """

  def __init__(self):
    self.count = 0

  def _listen(self, event: str, duration_secs: float, **kwargs) -> None:
    del duration_secs, kwargs
    self.count += event == _EVENT

  def __enter__(self) -> 'CompilationCounter':
    jax.monitoring.register_event_duration_secs_listener(self._listen)
    return self

  def __exit__(self, *exc_info) -> None:
    jax.monitoring.unregister_event_duration_listener(self._listen)
