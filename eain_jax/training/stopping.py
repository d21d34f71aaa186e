"""A run that is told to stop saves first: SIGTERM, or Ctrl-C once."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
  """Whether a signal has asked to stop; a second one ends the process.

  Python lets the main thread alone handle signals: elsewhere nothing changes.
  """
  asked = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield asked.is_set
    return
  before = {number: signal.getsignal(number) for number in SIGNALS}

  def restore(*_) -> None:
    for number, handler in before.items():
      signal.signal(number, handler)

  def ask(number, frame) -> None:
    asked.set()
    restore()

  for number in SIGNALS:
    signal.signal(number, ask)
  try:
    yield asked.is_set
  finally:
    restore()
