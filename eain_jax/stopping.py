"""Told to stop, by SIGTERM or Ctrl-C, a command ends in order, and soon.

`Interrupted` is raised where the main thread stands, and what is half done is
undone on its way out. Work that must first be finished, a training step, holds
it off and asks by itself. A main thread that is deep in a compiler hears of
nothing: where nothing would be lost, a thread beside it ends the process.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from eain_jax.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# BSD's EX_TEMPFAIL: start it again.
STOPPED = 75
# How long the main thread may take to hear of a signal; launchers give a
# process 10 to 30 seconds.
GRACE_SECONDS = 6.0


class Stop:
  """Whether a command was told to stop.

  Attributes:
    can_end: the process may be ended as it stands, for nothing would be lost
      and it is ours.

  Args:
    follows: where that one is asked, so is this one, which is for work on
      another thread.
  """

  def __init__(self, follows: 'Stop | None' = None):
    self._follows = follows
    self._is_asked = self.can_end = False
    self._is_held = False
    self._is_heard = threading.Event()
    self._before: dict[int, signal._HANDLER] = {}

  @property
  def asked(self) -> bool:
    """A signal has come, or `ask` was called."""
    return self._is_asked or (self._follows is not None and self._follows.asked)

  def ask(self) -> None:
    """Does what a signal does where it is held."""
    self._is_asked = True

  def held(self) -> contextlib.AbstractContextManager[None]:
    """Within, where something would be lost a signal sets `asked` alone."""
    return self._holding(True)

  def released(self) -> contextlib.AbstractContextManager[None]:
    """Within, nothing is held, whatever holds it outside."""
    return self._holding(False)

  @contextlib.contextmanager
  def _holding(self, holds: bool) -> Iterator[None]:
    before, self._is_held = self._is_held, holds
    try:
      yield
    finally:
      self._is_held = before

  @contextlib.contextmanager
  def may_end(self) -> Iterator[None]:
    """Within, `can_end` may be set; it is afterwards as it was before."""
    before = self.can_end
    try:
      yield
    finally:
      self.can_end = before

  def check(self) -> None:
    """Raises Interrupted where a signal has come."""
    if self.asked:
      raise Interrupted('told to stop')

  def ignore(self) -> None:
    """From now on signals do nothing: the command is about to end."""
    self._before = {}
    for number in SIGNALS:
      signal.signal(number, signal.SIG_IGN)

  def _install(self) -> None:
    for number in SIGNALS:
      # Not `end_on_signals`, by which a second signal would say that all is
      # saved.
      self._before[number] = _at_start.get(number, signal.getsignal(number))
      signal.signal(number, self._hear)

  def _restore(self) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}

  def _hear(self, number: int, frame: FrameType | None) -> None:
    """Runs on the main thread, between two of its instructions."""
    self.ask()
    self._is_heard.set()
    # A second signal ends the process as it would any other.
    self._restore()
    if self.can_end or not self._is_held:
      raise Interrupted('told to stop')

  def _watch(self, wakeup: int) -> None:
    """Ends the process where a signal comes that the main thread misses."""
    while number := os.read(wakeup, 1):
      if number[0] in SIGNALS:
        break
    if not number or self._is_heard.wait(GRACE_SECONDS) or not self.can_end:
      return
    name = os.path.basename(sys.argv[0]).removesuffix('.py')
    print(f'{name}: told to stop; the same command goes on', file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(STOPPED)


_at_start: dict[int, Any] = {}


def end_on_signals() -> None:
  """Until `stop_signals` nothing has begun: a signal ends the process.

  One that is ignored, as Ctrl-C is by jobs in the background, stays so.
  """
  for number in SIGNALS:
    _at_start[number] = signal.getsignal(number)
    if _at_start[number] is not signal.SIG_IGN:
      signal.signal(number, lambda *_: os._exit(STOPPED))


_current: Stop | None = None


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
  """Hears SIGTERM and SIGINT; within another one, that one.

  Python lets the main thread alone handle signals: elsewhere nothing changes.
  """
  global _current
  if _current is not None:
    yield _current
    return
  stop = Stop()
  if threading.current_thread() is not threading.main_thread():
    yield stop
    return
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  # The signal itself writes here, whatever the main thread does.
  before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
  watcher = threading.Thread(target=stop._watch, args=[reading], daemon=True)
  watcher.start()
  stop._install()
  _current = stop
  try:
    yield stop
  finally:
    _current = None
    stop._restore()
    signal.set_wakeup_fd(before)
    os.close(writing)  # The watcher reads its end, and ends.
    stop._is_heard.set()
    watcher.join()
    os.close(reading)
