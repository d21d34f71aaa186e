"""What devices have of memory, what of it is used, and whether a state fits."""

import resource
import sys
from pathlib import Path

import jax

from eain_jax.errors import BadSettings, InputError
from eain_jax.training.parallel import Placement
from eain_jax.training.state import TrainState

_MEMORY_INFO, _CGROUP = Path('/proc/meminfo'), Path('/sys/fs/cgroup')
_STATUS = Path('/proc/self/status')


def _available_in_system() -> int | None:
  """Bytes that /proc/meminfo says are there."""
  if not _MEMORY_INFO.is_file():
    return None
  for line in _MEMORY_INFO.read_text().splitlines():
    if line.startswith('MemAvailable:'):
      return 1024 * int(line.split()[1])
  return None


def available_bytes() -> int | None:
  """Memory that the first device can still give; None: nobody says."""
  device = jax.local_devices()[0]
  stats = device.memory_stats()
  if stats and 'bytes_limit' in stats:
    return stats['bytes_limit'] - stats['bytes_in_use']
  if device.platform != 'cpu':
    return None
  in_system = _available_in_system()
  bounds = [] if in_system is None else [in_system]
  limit, used = _CGROUP / 'memory.max', _CGROUP / 'memory.current'
  if limit.is_file() and limit.read_text().strip() != 'max':
    # Pages of files that the system can drop count as used there.
    stats = dict(
      line.split()
      for line in (_CGROUP / 'memory.stat').read_text().splitlines()
    )
    cached = int(stats.get('inactive_file', 0))
    bounds.append(int(limit.read_text()) - int(used.read_text()) + cached)
  return min(bounds, default=None)


def peak_bytes() -> int:
  """The most that was in use at once so far, of this process' fullest device.

  Of a CPU it is the process' resident memory, its data included. Earlier runs
  of the process count.
  """
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [s['peak_bytes_in_use'] for s in stats if 'peak_bytes_in_use' in s]
  if peaks:
    return max(peaks)
  if _STATUS.is_file():
    # On Linux getrusage gives what a parent had at its fork, if that is more.
    for line in _STATUS.read_text().splitlines():
      if line.startswith('VmHWM:'):
        return 1024 * int(line.split()[1])
  most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return most if sys.platform == 'darwin' else 1024 * most


def bytes_of_run(
  state: TrainState, placement: Placement, *, saves: bool
) -> int:
  """What a run needs of each device, without its batches.

  It holds the state and the parameters of the best evaluation. Saving makes a
  copy of both, and of tables that are cut one more on the way.

  Args:
    state: or its shapes, as it is to lie.
    placement: the devices.
    saves: checkpoints are kept.
  """
  whole = placement.bytes_a_device(state)
  both = whole + placement.bytes_a_device({'params': state.params})
  if not saves:
    return both
  # The copy on the way is gone before the best is copied.
  return both + (2 * whole if placement.cuts_tables else both)


def is_out_of_memory(error: Exception) -> bool:
  """Whether a JaxRuntimeError says that a device had no room."""
  return 'RESOURCE_EXHAUSTED' in str(error)


def check_memory(
  state: TrainState,
  placement: Placement,
  available: int | None = None,
  *,
  saves: bool = False,
) -> None:
  """Raises InputError where a run cannot fit into its devices.

  It is BadSettings where the devices are the run's alone; a machine's memory is
  there for others too, and what lacks now may be there tomorrow.

  Args:
    state: or its shapes, as it is to lie.
    placement: the devices.
    available: bytes that a device can give; by default what it tells. The CPU
      devices of a process share what the machine has.
    saves: checkpoints are kept.
  """
  if available is None:
    available = available_bytes()
    if available is not None and placement.devices[0].platform == 'cpu':
      available //= len(placement.shards('none').own)
  needed = bytes_of_run(state, placement, saves=saves)
  if available is None or needed <= available:
    return
  advice = 'use --parallelism=mesh, which cuts the tables over the devices'
  if placement.cuts_tables:
    advice = 'use more devices, or a smaller --embedding_dim'
  reason = (
    f'the run needs {needed / 1e9:.2f} GB on each device under '
    f'--parallelism={placement.parallelism}, and a device has '
    f'{available / 1e9:.2f} GB left'
  )
  if placement.devices[0].platform == 'cpu':
    raise InputError(f'{reason}: {advice}')
  raise BadSettings(reason, advice)
