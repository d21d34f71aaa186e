"""Processes that start, and end, together.

One loop sees what they write, which signals come and which of them end, in the
order in which it happens.
"""

import collections
import contextlib
import ctypes
import dataclasses
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

# A run that was told to stop, and has saved (EX_TEMPFAIL).
SAVED = 75
FORWARDED = (
  signal.SIGINT,
  signal.SIGTERM,
  signal.SIGHUP,
  signal.SIGUSR1,
  signal.SIGUSR2,
)
MAX_LINE_BYTES = 1 << 20
# prctl(2): the signal that a process gets when its parent dies.
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == 'linux' else None


def die_with_parent(parent: int) -> None:
  """Has this process killed when its parent is; on Linux."""
  if _LIBC is not None:
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
  # It may have died before the call.
  if os.getppid() != parent:
    os._exit(1)


@dataclasses.dataclass
class Process:
  """One of the processes; `status` as in Popen.returncode."""

  rank: int
  popen: subprocess.Popen[bytes]
  status: int | None = None
  last_error: str = ''
  # The last lines that were not shown: (stream's number, line).
  hidden: collections.deque[tuple[int, bytes]] = dataclasses.field(
    default_factory=lambda: collections.deque(maxlen=200)
  )

  def signal(self, number: int) -> None:
    """Sends a signal to the process and to what it started."""
    # They mean that nothing is left of it (macOS: but a zombie).
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self.popen.pid, number)


class ProcessGroup:
  """The processes of one run, from their start to the end of the last.

  Where one fails, the others get SIGTERM, and SIGKILL `grace_seconds` later.
  Where all are told to stop, they have `save_seconds`. `only_first` shows
  process 0 alone, and the last lines of one that fails. From its making to the
  end of `run` it takes this process' signals.
  """

  def __init__(
    self, grace_seconds: float, save_seconds: float, only_first: bool = False
  ):
    self.grace_seconds, self.save_seconds = grace_seconds, save_seconds
    self.only_first = only_first
    self.processes: list[Process] = []
    self.failed: Process | None = None
    self.num_ended_with_it = 0
    self.received: list[int] = []
    self.terminated = False
    self.overdue = False
    self.kill_at = math.inf
    self.partial: dict[int, bytes] = {}
    self.selector = selectors.DefaultSelector()
    # Signals come as bytes of a socket, one more event of the loop; the
    # handlers only have to exist.
    self.signals, sender = socket.socketpair()
    sender.setblocking(False)
    self.selector.register(self.signals, selectors.EVENT_READ)
    self.handlers: dict[int, Any] = {}
    for number in (signal.SIGCHLD, *FORWARDED):
      # Under nohup a hang-up stays ignored.
      if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
        self.handlers[number] = signal.signal(number, lambda *_: None)
    self.sender = sender
    self.wakeup_before = signal.set_wakeup_fd(sender.fileno())

  def start(
    self,
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    forks: bool = True,
  ) -> None:
    """Starts one more process.

    In a session of its own, so that a terminal's Ctrl-C reaches it once.

    Args:
      command: any program; it dies with this process.
      environment: its own.
      forks: without, nothing of this process runs in it, which may have
        threads: the program has to call `die_with_parent` itself.

    Raises:
      OSError: the command cannot be run.
    """
    parent = os.getpid()
    popen = subprocess.Popen(
      command,
      env=environment,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      start_new_session=True,
      preexec_fn=(lambda: die_with_parent(parent)) if forks else None,
    )
    process = Process(len(self.processes), popen)
    self.processes.append(process)
    for stream, pipe in ((1, popen.stdout), (2, popen.stderr)):
      assert pipe is not None
      self.partial[pipe.fileno()] = b''
      self.selector.register(pipe, selectors.EVENT_READ, (process, stream))

  def run(self) -> tuple[int, str]:
    """Waits for all; the exit code, and in words what happened ('' if well)."""
    try:
      self._wait()
    finally:
      self.close()
    return self._outcome()

  def _wait(self) -> None:
    while running := self._running():
      seconds = self.kill_at - time.monotonic()
      self._read(None if seconds == math.inf else max(seconds, 0.0))
      self._collect()
      if time.monotonic() >= self.kill_at and running:
        self.overdue |= self.failed is None
        self.kill()
    # What is still in the pipes. One that left its group may hold them open.
    while len(self.selector.get_map()) > 1 and self._read(1.0):
      pass

  def close(self) -> None:
    """Kills what is left, and gives this process its signals back.

    Signals that came meanwhile are in `received`.
    """
    self.kill()
    signal.set_wakeup_fd(self.wakeup_before)
    for number, handler in self.handlers.items():
      signal.signal(number, handler)
    self.signals.setblocking(False)
    with contextlib.suppress(BlockingIOError):
      left = self.signals.recv(4096)
      self.received += [n for n in left if n != signal.SIGCHLD]
    self.selector.close()
    self.signals.close()
    self.sender.close()

  def kill(self) -> None:
    self.kill_at = math.inf
    for process in self._running():
      process.signal(signal.SIGKILL)

  def _running(self) -> list[Process]:
    return [process for process in self.processes if process.status is None]

  def _stop(self, seconds: float) -> None:
    """SIGTERM to all, but not twice, and SIGKILL in `seconds` at the latest."""
    self.kill_at = min(self.kill_at, time.monotonic() + seconds)
    if not self.terminated:
      self.terminated = True
      for process in self._running():
        process.signal(signal.SIGTERM)

  def _forward(self, number: int) -> None:
    """Sends a signal on to all; what asks to stop must succeed in it."""
    if number == signal.SIGINT and number in self.received:
      self.kill()
      return
    self.received.append(number)
    if number == signal.SIGTERM:
      self._stop(self.save_seconds)
    else:
      for process in self._running():
        process.signal(number)

  def _collect(self) -> None:
    """Looks who has ended, and does what follows for the others."""
    for process in self._running():
      process.status = process.popen.poll()
      if process.status is None:
        continue
      # What it has left behind.
      process.signal(signal.SIGKILL)
      if process.status == SAVED:
        # All are told to stop, or this one alone was. None is hurried.
        self._stop(self.save_seconds)
      elif process.status and self.failed is None:
        self.failed = process
        self.num_ended_with_it = len(self._running())
        self._stop(self.grace_seconds)

  def _read(self, timeout: float | None) -> bool:
    """Handles what has come by `timeout`: output and signals."""
    events = self.selector.select(timeout)
    for key, _ in events:
      if key.fileobj is self.signals:
        for number in self.signals.recv(4096):
          if number != signal.SIGCHLD:
            self._forward(number)
        continue
      process, stream = key.data
      chunk = os.read(key.fd, 1 << 16)
      *lines, rest = (self.partial[key.fd] + chunk).split(b'\n')
      if rest and (not chunk or len(rest) > MAX_LINE_BYTES):
        lines, rest = [*lines, rest], b''
      self.partial[key.fd] = rest
      if not chunk:
        self.selector.unregister(key.fileobj)
      for line in lines:
        self._take(process, stream, line)
    return bool(events)

  def _take(self, process: Process, stream: int, line: bytes) -> None:
    if stream == 2 and line.strip():
      process.last_error = line.decode(errors='replace').strip()
    if self.only_first and process.rank:
      process.hidden.append((stream, line))
    else:
      self._show(process, stream, line)

  def _show(self, process: Process, stream: int, line: bytes) -> None:
    """Writes a line, in bytes: what is no UTF-8 stays as it is."""
    prefix = f'[{process.rank}]'
    if os.isatty(stream) and 'NO_COLOR' not in os.environ:
      prefix = f'\x1b[{31 + (process.rank + 1) % 6}m{prefix}\x1b[0m'
    text = prefix.encode() + b' ' + line + b'\n'
    try:
      while text:
        text = text[os.write(stream, text) :]
    except BrokenPipeError:
      # As in `... | head`: nobody reads on, which ends most programs.
      os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
      self.received.append(signal.SIGPIPE)
      self._stop(self.save_seconds)

  def _outcome(self) -> tuple[int, str]:
    failed = self.failed
    if failed is None or failed.status is None:
      if any(process.status == SAVED for process in self.processes):
        return SAVED, 'stopped and saved; the same command goes on from there'
      return 0, ''
    for stream, line in failed.hidden:
      self._show(failed, stream, line)
    name = f'process {failed.rank}'
    if signal.SIGPIPE in self.received:
      return 128 + signal.SIGPIPE, 'stopped, for nobody reads the output'
    if failed.status > 0:
      said = f': {failed.last_error}' if failed.last_error else ''
      return failed.status, f'{name} ended with exit code {failed.status}{said}'
    number = -failed.status
    signal_name = signal.Signals(number).name
    if self.overdue:
      reason = (
        f'{name} was killed: no end {self.save_seconds:g} s after SIGTERM'
      )
    elif number in self.received:
      reason = f'stopped by {signal_name}'
    else:
      reason = f'{name} was killed by {signal_name}'
      if others := self.num_ended_with_it:
        reason += (
          f'; the other {others} {"was" if others == 1 else "were"} ended'
        )
    return 128 + number, reason
