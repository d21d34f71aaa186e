"""Joining a cluster: what the environment says, and what it must not say."""

import socket

import numpy as np
import pytest

from eain_jax.errors import InputError
from eain_jax.training import processes


def named(**variables):
  whole = {
    'JAX_COORDINATOR_ADDRESS': 'localhost:1234',
    'JAX_NUM_PROCESSES': '2',
    'JAX_PROCESS_ID': '1',
  }
  given = {**whole, **variables}
  return {name: value for name, value in given.items() if value is not None}


def never(why):
  raise AssertionError(why)


def test_without_variables_there_is_no_cluster():
  assert not processes.join_cluster(never, {})


@pytest.mark.parametrize(
  ('variables', 'message'),
  [
    ({'JAX_PROCESS_ID': None}, 'JAX_PROCESS_ID is not set'),
    ({'JAX_COORDINATOR_ADDRESS': None}, 'ADDRESS is not set'),
    ({'JAX_COORDINATOR_ADDRESS': 'host'}, 'host is not host:port'),
    ({'JAX_COORDINATOR_ADDRESS': 'host:99999'}, 'not host:port'),
    ({'JAX_NUM_PROCESSES': 'two'}, 'JAX_NUM_PROCESSES=two is not a number'),
    ({'JAX_PROCESS_ID': '2'}, 'JAX_PROCESS_ID=2 must be below'),
    ({'EAIN_START_SECONDS': 'soon'}, 'EAIN_START_SECONDS=soon'),
    ({'EAIN_DISTRIBUTED': 'slurm'}, 'EAIN_DISTRIBUTED=slurm is unknown'),
  ],
)
def test_variables_that_contradict_each_other(variables, message):
  with pytest.raises(InputError, match=message):
    processes.join_cluster(never, named(**variables))


def test_nobody_at_the_address():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  environment = named(
    JAX_COORDINATOR_ADDRESS=f'localhost:{port}', EAIN_START_SECONDS='1'
  )
  with pytest.raises(InputError, match=rf'nobody listens at .*:{port}'):
    processes.join_cluster(never, environment)


@pytest.mark.parametrize('address', ['nowhere.invalid:80', '192.0.2.1:4321'])
def test_the_first_process_is_elsewhere(address):
  """A name that is none; an address that no machine has (RFC 5737)."""
  environment = named(
    JAX_COORDINATOR_ADDRESS=address, JAX_PROCESS_ID='0', EAIN_START_SECONDS='1'
  )
  with pytest.raises(InputError, match=r'host is unknown|cannot listen'):
    processes.join_cluster(never, environment)


def test_one_process_is_all():
  np.testing.assert_array_equal(processes.gather(np.arange(3)), [[0, 1, 2]])
  assert processes.together(lambda: 5) == 5
  assert processes.first_then_others(lambda: 6) == 6
  assert processes.is_first()
