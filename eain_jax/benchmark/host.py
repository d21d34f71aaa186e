"""The process and its machine: cores, CPU time, memory."""

import gc
import math
import os
import resource
import sys
import time
from pathlib import Path

from eain_jax.errors import InputError
from eain_jax.training.memory import release_freed_memory

_STATUS, _STAT = Path('/proc/self/status'), Path('/proc/stat')
_CPUS = Path('/proc/cpuinfo')
_CLEAR = Path('/proc/self/clear_refs')


def num_cores() -> int:
  """Cores that this process may use."""
  if sys.platform == 'linux':
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def cpu_model() -> str | None:
  """As Linux names it; None elsewhere."""
  if not _CPUS.is_file():
    return None
  for line in _CPUS.read_text().splitlines():
    name, _, value = line.partition(':')
    if name.strip() == 'model name':
      return value.strip()
  return None


def limit_cores(threads: int) -> None:
  """Keeps the process to so many cores; before jax starts its threads.

  Raises:
    InputError: there are fewer, or the system cannot do it.
  """
  if not threads:
    return
  if sys.platform != 'linux':
    raise InputError(
      f'--threads={threads} needs Linux: this system cannot keep a process to '
      'some cores'
    )
  cores = sorted(os.sched_getaffinity(0))
  if threads > len(cores):
    raise InputError(
      f'--threads={threads} is more than the {len(cores)} core(s) that this '
      'process may use'
    )
  os.sched_setaffinity(0, cores[:threads])


def others_seconds() -> float:
  """CPU seconds that all other processes have used; NaN without /proc.

  In a container this may count the whole machine.
  """
  if not _STAT.is_file():
    return math.nan
  ticks = [int(x) for x in _STAT.read_text().splitlines()[0].split()[1:9]]
  idle = ticks[3] + ticks[4]
  busy = (sum(ticks) - idle) / os.sysconf('SC_CLK_TCK')
  return busy - time.process_time()


def _kilobytes(path: Path, name: str) -> int | None:
  """A value of a file in the format of /proc/self/status."""
  if not path.is_file():
    return None
  for line in path.read_text().splitlines():
    if line.startswith(f'{name}:'):
      return int(line.split()[1])
  return None


def peak_rss_mb() -> float:
  """Peak resident memory in MiB, since `reset_peak_rss` where Linux has it."""
  peak = _kilobytes(_STATUS, 'VmHWM')
  if peak is None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == 'darwin':  # in bytes there
      peak /= 1024
  return peak / 1024


def reset_peak_rss() -> None:
  """Frees what nothing refers to, and starts the peak anew where it can.

  Memory that the process keeps for reuse goes back to the system first, so
  one measurement does not carry the peak of the one before.
  """
  gc.collect()
  release_freed_memory()
  try:
    _CLEAR.write_text('5')
  except OSError:
    return  # The peak is that of the whole process, then.
