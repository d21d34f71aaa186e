"""Runs a service until a signal comes, and answers what it has accepted."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator

import uvicorn

from eain_jax.serving.service import Service
from eain_jax.stopping import SIGNALS, stop_signals


class _Server(uvicorn.Server):
  """Drains before it shuts down, and leaves the process to its caller."""

  def __init__(
    self, config: uvicorn.Config, service: Service, drain_seconds: float
  ):
    super().__init__(config)
    self._service, self._drain_seconds = service, drain_seconds

  @contextlib.contextmanager
  def capture_signals(self) -> Iterator[None]:
    """In place of uvicorn's, which ends at once and raises them again."""
    before = {number: signal.signal(number, self._drain) for number in SIGNALS}
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)

  def _drain(self, *_) -> None:
    if self._service.is_draining:
      self.should_exit = True
      return
    self._service.is_draining = True
    loop = asyncio.get_event_loop()
    # From a signal's handler the loop has to be woken.
    loop.call_soon_threadsafe(loop.call_later, self._drain_seconds, self._exit)

  def _exit(self) -> None:
    self.should_exit = True

  async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
    """In order: nobody new, then those who have come, then the end."""
    for server in self.servers:
      server.close()
    # What lies in the sockets by now is read.
    await asyncio.sleep(0.1)
    self._service.stop_reading()
    await super().shutdown(sockets)


def serve(
  service: Service,
  listener: socket.socket,
  drain_seconds: float,
  answer_seconds: int,
  keep_alive_seconds: int,
) -> int:
  """Serves until SIGTERM or SIGINT, then drains; a second signal hurries.

  Args:
    service: warm.
    listener: that listens.
    drain_seconds: how long requests are still taken after a signal.
    answer_seconds: how long what was accepted may take after that.
    keep_alive_seconds: how long an idle connection is kept.

  Returns:
    How many requests were not answered within that time.
  """
  config = uvicorn.Config(
    service.app,
    log_level='warning',
    access_log=False,
    timeout_graceful_shutdown=answer_seconds,
    lifespan='on',
    timeout_keep_alive=keep_alive_seconds,
    h11_max_incomplete_event_size=1 << 16,
  )
  with stop_signals() as stop, stop.may_end():
    # The server hears of signals by itself.
    stop.can_end = False
    asyncio.run(_Server(config, service, drain_seconds).serve([listener]))
  return service.unanswered
