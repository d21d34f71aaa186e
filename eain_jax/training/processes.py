"""Several processes as one: joining, agreeing, failing together.

JAX's own runtime does the work. Launchers say where it is in the environment:

  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
      process 0 listens at host:port, and the others find it there
  EAIN_DISTRIBUTED=detect
      JAX finds the cluster by itself, as on TPU pods
  EAIN_START_SECONDS
      how long a process waits for the others to start; 50 where it is not set
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from eain_jax.errors import InputError, Interrupted

START_SECONDS = 50
HEARTBEAT_SECONDS = 60
MAX_MESSAGE = 2_000
# Begins the message of a process that was told to stop.
_INTERRUPTED = b'\x01'
_VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')

T = TypeVar('T')


def _cluster(
  environment: Mapping[str, str],
) -> tuple[str, int, int] | None:
  """Address, number of processes and own number; None: there is no cluster."""
  given = {name: environment.get(name) for name in _VARIABLES}
  if not any(given.values()):
    return None
  for name, value in given.items():
    if not value:
      raise InputError(
        f'{name} is not set, but another of {", ".join(_VARIABLES)} is: set '
        'all three, or none'
      )
  address = given[_VARIABLES[0]] or ''
  host, _, port = address.rpartition(':')
  if not host or not port.isdigit() or not 0 < int(port) < 65_536:
    raise InputError(f'JAX_COORDINATOR_ADDRESS={address} is not host:port')
  numbers = []
  for name in _VARIABLES[1:]:
    value = given[name] or ''
    if not value.isdigit():
      raise InputError(f'{name}={value} is not a number')
    numbers.append(int(value))
  count, own = numbers
  if own >= count:
    raise InputError(
      f'JAX_PROCESS_ID={own} must be below JAX_NUM_PROCESSES={count}'
    )
  return address, count, own


def _wait_for(address: str, seconds: float) -> None:
  """Returns when somebody listens at an address.

  JAX would end the whole process where nobody does.
  """
  host, _, port = address.rpartition(':')
  end = time.monotonic() + seconds
  while True:
    try:
      with socket.create_connection((host.strip('[]'), int(port)), 2):
        return
    except OSError as error:
      if time.monotonic() > end:
        raise InputError(
          f'nobody listens at the coordinator address {address} '
          f'({error.strerror or error}): check JAX_COORDINATOR_ADDRESS, and '
          'that process 0 runs'
        ) from error
      time.sleep(0.2)


def _start_seconds(environment: Mapping[str, str]) -> int:
  value = environment.get('EAIN_START_SECONDS') or str(START_SECONDS)
  if not value.isdigit() or not int(value):
    raise InputError(f'EAIN_START_SECONDS={value} is not a number of seconds')
  return int(value)


def join_cluster(
  give_up: Callable[[str], None],
  environment: Mapping[str, str] = os.environ,
) -> bool:
  """Joins the cluster that the environment names; False where it names none.

  Call it before anything else of jax runs.

  Args:
    give_up: is told, on a thread of its own, that the other processes did not
      come, and ends the process: JAX would end it with a stack of its own.
    environment: where the cluster is named.

  Raises:
    InputError: the variables contradict each other, or nobody listens at the
      address.
  """
  detects = environment.get('EAIN_DISTRIBUTED', '')
  if detects not in ('', 'detect'):
    raise InputError(f'EAIN_DISTRIBUTED={detects} is unknown: use detect')
  cluster = _cluster(environment)
  if cluster is None and not detects:
    return False
  seconds = _start_seconds(environment)
  begin = time.monotonic()
  where = 'the cluster that JAX has found'
  arguments: dict[str, Any] = {}
  if cluster is not None:
    address, count, own = cluster
    where = f'{address}, as process {own} of {count},'
    arguments = {
      'coordinator_address': address,
      'num_processes': count,
      'process_id': own,
      'cluster_detection_method': 'deactivate',
    }
    if own:
      _wait_for(address, seconds)
    else:
      _check_own_address(address, seconds)
  sentence = (
    f'not all processes met at {where} within {seconds} s: check that each of '
    'them runs, and their number; EAIN_START_SECONDS waits longer'
  )
  left = max(1.0, seconds - (time.monotonic() - begin))
  timer = threading.Timer(left, give_up, [sentence])
  timer.daemon = True
  timer.start()
  # It would catch SIGTERM, and the process would not end.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      **arguments,
      initialization_timeout=seconds + 60,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    reason = str(error).strip().splitlines()[0][:200]
    raise InputError(f'joining {where} failed: {reason}') from error
  finally:
    timer.cancel()
  # Processes that first meet when one of them has much to do first would give
  # up: gloo, of CPUs, waits half a minute for a first meeting alone.
  multihost_utils.sync_global_devices('joined')
  gather(np.zeros(1))
  return True


def _check_own_address(address: str, seconds: float) -> None:
  """Raises InputError where process 0 cannot be the one at an address.

  A cluster may give it a name some seconds after its start.
  """
  host, _, port = address.rpartition(':')
  end = time.monotonic() + seconds
  while True:
    try:
      found = socket.getaddrinfo(host.strip('[]'), int(port))
      break
    except OSError as error:
      if time.monotonic() > end:
        raise InputError(
          f'JAX_COORDINATOR_ADDRESS={address}: the host is unknown '
          f'({error.strerror or error})'
        ) from error
      time.sleep(0.2)
  for family, kind, protocol, _, where in found:
    if kind != socket.SOCK_STREAM:
      continue
    with socket.socket(family, kind, protocol) as trial:
      trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      try:
        trial.bind(where)
        return
      except OSError as error:
        reason = error.strerror
  raise InputError(
    f'process 0 cannot listen at JAX_COORDINATOR_ADDRESS={address} ({reason}): '
    'name an address of its own machine, and a free port'
  )


def is_first() -> bool:
  """Whether this process writes what the run leaves behind."""
  return jax.process_index() == 0


def gather(values: np.ndarray) -> np.ndarray:
  """[processes, ...]: an array of each process, of one shape, at all."""
  if jax.process_count() == 1:
    return np.asarray(values)[None]
  return np.asarray(multihost_utils.process_allgather(values, tiled=False))


def together(act: Callable[[], T]) -> T:
  """`act()`, or an exception in all processes where one of them raises it.

  In the others it is an InputError, or Interrupted as it is. Without that they
  would wait for ever for the one that failed.
  """
  if jax.process_count() == 1:
    return act()
  result: Any = None
  message, failure = b'', None
  try:
    result = act()
  except (Exception, Interrupted) as error:
    failure = error
    is_plain = isinstance(error, InputError | Interrupted)
    name = '' if is_plain else f'{type(error).__name__}: '
    message = f'{name}{error}'.encode()[: MAX_MESSAGE - 1] or b'?'
    if isinstance(error, Interrupted):
      message = _INTERRUPTED + message
  padded = np.zeros(MAX_MESSAGE, np.uint8)
  padded[: len(message)] = np.frombuffer(message, np.uint8)
  told = gather(padded)
  if failure is not None:
    raise failure
  for process, text in enumerate(told):
    raw = bytes(text).rstrip(b'\0')
    said = raw.removeprefix(_INTERRUPTED).decode(errors='replace')
    if raw.startswith(_INTERRUPTED):
      raise Interrupted(said)
    if said:
      raise InputError(f'process {process}: {said}')
  return result


def first_then_others(act: Callable[[], T]) -> T:
  """As `together`, the first process before all others."""
  if jax.process_count() == 1:
    return act()
  kept: list[T] = []

  def of_first() -> None:
    if is_first():
      kept.append(act())

  def of_others() -> None:
    if not is_first():
      kept.append(act())

  together(of_first)
  together(of_others)
  return kept[0]
