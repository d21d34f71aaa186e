"""Runs a command as several processes of one JAX cluster, on this machine.

  python -m launch.local --processes=2 --devices_per_process=2 -- \\
      python -m experiments.train --dataset_dir=DS --work_dir=W

Each process learns its place from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES
and JAX_PROCESS_ID. When one fails, the others are ended, the exit code is that
of the first failure and the last line on stderr its reason. SIGINT, SIGTERM,
SIGHUP, SIGUSR1 and SIGUSR2 go to all; a second SIGINT kills. Exit code 75 means
stopped and saved: the same command goes on from there.

A process ends with all that it started in its process group, so a script around
the command should `exec` it. Where SIGKILL ends this program, Linux kills the
processes too, but not what they started.
"""

import os
import re
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence

from absl import app, flags

from launch.processes import ProcessGroup

PROCESSES = flags.DEFINE_integer(
  'processes', 1, 'How many processes to start.', lower_bound=1
)
DEVICES_PER_PROCESS = flags.DEFINE_integer(
  'devices_per_process',
  0,
  'CPU devices of each process; 0: the devices that the environment gives.',
  lower_bound=0,
)
GPUS_PER_PROCESS = flags.DEFINE_integer(
  'gpus_per_process',
  0,
  'GPUs of each process; 0: each sees all of them.',
  lower_bound=0,
)
GRACE_SECONDS = flags.DEFINE_float(
  'grace_seconds',
  5.0,
  'From SIGTERM to SIGKILL for the processes that are left when one fails.',
  lower_bound=0.0,
)
SAVE_SECONDS = flags.DEFINE_float(
  'save_seconds',
  120.0,
  'From SIGTERM to SIGKILL when all are told to stop and save.',
  lower_bound=0.0,
)
ONLY_FIRST = flags.DEFINE_bool(
  'only_first',
  False,
  "Show the output of process 0 alone, and a failed one's last lines.",
)

DEVICE_COUNT_FLAG = '--xla_force_host_platform_device_count'


class FlagError(Exception):
  """Flags that ask for what cannot be."""


def free_port() -> int:
  """A port that no process listens on now."""
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]


def merge_device_count(xla_flags: str, devices: int) -> str:
  """XLA_FLAGS with this number of CPU devices, and all else as it was."""
  others = re.sub(rf'{DEVICE_COUNT_FLAG}(=\S*)?', '', xla_flags).strip()
  return f'{others} {DEVICE_COUNT_FLAG}={devices}'.strip()


def slice_gpus(visible: str | None, processes: int, gpus: int) -> list[str]:
  """CUDA_VISIBLE_DEVICES of each process, of those that are visible now.

  Raises:
    FlagError: too few are.
  """
  needed = processes * gpus
  if visible is None:
    names = [str(i) for i in range(needed)]
  else:
    names = [name for name in visible.split(',') if name.strip()]
  if len(names) < needed:
    raise FlagError(
      f'{processes} processes with {gpus} GPUs each need {needed}, but '
      f'CUDA_VISIBLE_DEVICES={visible} has {len(names)}'
    )
  return [','.join(names[i : i + gpus]) for i in range(0, needed, gpus)]


def make_environments(
  base: Mapping[str, str],
  processes: int,
  port: int,
  devices_per_process: int = 0,
  gpus_per_process: int = 0,
) -> list[dict[str, str]]:
  """The environment of each process.

  Raises:
    FlagError: CPU devices and GPUs at once, or too few GPUs.
  """
  if devices_per_process and gpus_per_process:
    raise FlagError('--devices_per_process is for CPUs, without GPUs')
  shared = {
    **base,
    'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
    # It trusts whoever connects, so nobody from outside is to.
    'JAX_COORDINATOR_BIND_ADDRESS': f'127.0.0.1:{port}',
    'JAX_NUM_PROCESSES': str(processes),
    'PYTHONUNBUFFERED': '1',
  }
  # The address says it all; nothing is left to detect.
  shared.pop('EAIN_DISTRIBUTED', None)
  if devices_per_process:
    shared['XLA_FLAGS'] = merge_device_count(
      base.get('XLA_FLAGS', ''), devices_per_process
    )
    shared.setdefault('JAX_PLATFORMS', 'cpu')
  own = [{'JAX_PROCESS_ID': str(rank)} for rank in range(processes)]
  if gpus_per_process:
    visible = base.get('CUDA_VISIBLE_DEVICES')
    gpus = slice_gpus(visible, processes, gpus_per_process)
    for rank in range(processes):
      own[rank]['CUDA_VISIBLE_DEVICES'] = gpus[rank]
  return [shared | own[rank] for rank in range(processes)]


def main(argv: Sequence[str]) -> int:
  """Runs what follows `--` as the flags before it say; the exit code."""
  cut = argv.index('--') if '--' in argv else len(argv)
  command = argv[cut + 1 :]
  app.define_help_flags()
  try:
    # Up to the first word that is no flag: a command whose -- was forgotten
    # has flags of its own.
    flags.FLAGS.set_gnu_getopt(False)
    rest = flags.FLAGS(argv[:cut])
    if rest[1:] or not command:
      raise FlagError('write -- and then the command, after the flags')
    environments = make_environments(
      os.environ,
      PROCESSES.value,
      free_port(),
      DEVICES_PER_PROCESS.value,
      GPUS_PER_PROCESS.value,
    )
  except (flags.Error, FlagError) as error:
    print(f'local: {error}', file=sys.stderr)
    return 2
  except SystemExit:
    return 0  # --help
  if shutil.which(command[0]) is None:
    print(f'local: no such command: {command[0]}', file=sys.stderr)
    return 1
  group = ProcessGroup(
    GRACE_SECONDS.value, SAVE_SECONDS.value, ONLY_FIRST.value
  )
  try:
    for environment in environments:
      group.start(command, environment)
  except OSError as error:
    group.kill()
    group.run()
    print(f'local: {command[0]}: {error.strerror}', file=sys.stderr)
    return 1
  code, reason = group.run()
  if reason:
    print(f'local: {reason}', file=sys.stderr)
  return code


if __name__ == '__main__':
  sys.exit(main(sys.argv))
