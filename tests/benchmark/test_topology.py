"""Predictions for TPUs: arithmetic by hand, and the compiler where it is."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from eain_jax.benchmark import topology
from eain_jax.benchmark.chips import CHIPS, collective_seconds, slice_shape
from eain_jax.benchmark.program import unfused_bytes
from eain_jax.benchmark.topology import Job, compile_step, open_topology
from eain_jax.config import MODEL_CONFIGS, TrainConfig, WorkloadConfig
from eain_jax.data.batches import shapes_of_batch, sizes_of
from eain_jax.data.workload import make_workload
from eain_jax.errors import InputError
from eain_jax.training.setup import set_up

SMALL = MODEL_CONFIGS['din'](
  embedding_dim=16, mlp=(16,), attention=(8,), table_l2=0.0
)


def job_of(**train):
  workload = WorkloadConfig(
    items=5_000, users=1_000, history_length=8, mean_length=4.0
  )
  settings = {'batch_size': 512, 'table_update': 'rowwise', **train}
  return Job(workload, 'din', SMALL, TrainConfig(**settings))


def test_published_figures_of_a_pod_of_v5e():
  """All-reduce 51.2 TB/s and bisection 1.6 TB/s a pod, as Google states."""
  chip, shape = CHIPS['v5e'], (16, 16)
  size = 2**30
  seconds = collective_seconds(chip, shape, 1, 'all-reduce', size)
  # Each chip sends and receives almost twice the size over its links.
  assert 256 * 2 * size * 255 / 256 / 51.2e12 == pytest.approx(
    seconds, rel=0.01
  )
  # A quarter of all that is exchanged crosses the middle in each direction.
  seconds = collective_seconds(chip, shape, 1, 'all-to-all', size)
  assert 256 * size / 4 / 1.6e12 == pytest.approx(seconds, rel=0.01)


def test_small_slices_have_no_rings_and_slices_share_a_network():
  chip = CHIPS['v5e']
  assert collective_seconds(chip, (1, 1), 1, 'all-to-all', 10**9) == 0
  # 4 x 4: four links cross the middle, three hops each way.
  assert collective_seconds(chip, (4, 4), 1, 'all-to-all', 10**9) == (
    pytest.approx(1e9 * 16 / 4 / (4 * 50e9) + 6e-6)
  )
  one = collective_seconds(chip, (16, 16), 1, 'all-to-all', 10**9)
  four = collective_seconds(chip, (16, 16), 4, 'all-to-all', 10**9)
  assert four - one == pytest.approx(0.75 * 1e9 / 3.125e9, rel=1e-3)


@pytest.mark.parametrize(
  ('generation', 'chips', 'shape'),
  [
    ('v5e', 1, (1, 1)),
    ('v5e', 64, (8, 8)),
    ('v5e', 1024, (16, 16)),
    ('v4', 1024, (8, 8, 16)),
    ('v5p', 256, (4, 8, 8)),
  ],
)
def test_slices(generation, chips, shape):
  found = slice_shape(CHIPS[generation], chips)
  assert found == shape
  assert math.prod(found) == min(chips, CHIPS[generation].pod_chips)


def test_the_shapes_are_those_of_the_real_batches():
  """Of every array, for the sizes that a stream has."""
  job = job_of()
  config = dataclasses.replace(job.train, parallelism='mesh', num_devices=4)
  workload = dataclasses.replace(job.workload, sequences=2_000)
  setup = set_up(make_workload(workload), 'din', SMALL, config)
  batch = setup.stream.batch(0)
  shapes = shapes_of_batch(job.features, 128, 1, sizes_of(batch), 4)
  expected = jax.tree.map(lambda x: (x.shape[1:], x.dtype), batch)
  found = jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
  assert found == expected
  assert [dataclasses.replace(f, max_values=1) for f in job.features] == list(
    setup.stream.packer.features
  )


def test_a_step_for_devices_that_are_there():
  """The same code, compiled for the CPU devices of this process."""
  job = job_of()
  program = compile_step(job, jax.devices()[:4])
  # Two moments beside each parameter, a quarter of the tables on each device.
  rows = sum(f.num_rows for f in job.features)
  dense = program['dense_parameters']
  assert program['parameters'] == 16 * rows + dense
  assert program['state_bytes'] == pytest.approx(
    3 * 4 * (16 * rows / 4 + dense), rel=0.01
  )
  assert program['requests'] == 128
  sent = {row['op'] for row in program['collectives']}
  assert sent == {'all-to-all', 'all-reduce'}
  exchanged = [
    row['bytes']
    for row in program['collectives']
    if row['op'] == 'all-to-all'
    for _ in range(row['count'])
  ]
  asked = job.asked_rows(128, 4)
  assert sorted(exchanged) == [4 * asked, 64 * asked, 64 * asked]
  here = topology.predict(job, program, 'v5e', 4, 4, 128)
  assert here['batch'] == 512
  assert here['step_ms'] == pytest.approx(
    max(here['products_ms'], here['memory_ms']) + here['collectives_ms']
  )
  # Half of the requests are half of the work, and fewer rows to ask for.
  half = topology.predict(job, program, 'v5e', 4, 4, 64)
  assert half['products_ms'] == pytest.approx(here['products_ms'] / 2)
  assert half['collectives_ms'] < here['collectives_ms']
  # Twice the chips hold half of the tables each.
  more = topology.predict(job, program, 'v5e', 4, 8, 128)
  assert more['state_bytes'] == pytest.approx(
    12 * (16 * rows / 8 + dense), rel=0.01
  )


def test_a_batch_of_fewer_requests_than_chips():
  with pytest.raises(InputError, match='less than one request'):
    compile_step(job_of(batch_size=3), jax.devices()[:4])


def test_traffic_of_memory_by_hand():
  """A gather of 3 rows, a product, a scatter of 3 rows, an addition."""

  def f(table, ids, kernel):
    rows = table[ids] @ kernel
    return table.at[ids].add(rows, mode='drop') + 1.0

  table, ids = np.ones((100, 4), np.float32), np.zeros(3, np.uint32)
  kernel = np.ones((4, 4), np.float32)
  base = unfused_bytes(f, table, ids, kernel)
  larger = unfused_bytes(f, np.ones((200, 4), np.float32), ids, kernel)
  # Of the table only the addition reads and writes it whole; its 1.0 is free.
  assert larger - base == 2 * 100 * 4 * 4
  gathered, product, scattered = 2 * 48, 48 + 64 + 48, 3 * 48
  assert base - 2 * 100 * 4 * 4 == pytest.approx(
    gathered + product + scattered, abs=40
  )


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('v5e', 'is unknown'),
    ('v9z:4x4', 'is unknown'),
    ('v5e:16x', 'is unknown'),
    ('v5e:2x2x2', 'has 3 sides; slices of v5e have 2'),
    ('v4:4x4', 'has 2 sides; slices of v4 have 3'),
  ],
)
def test_topologies_that_do_not_exist(name, message):
  with pytest.raises(InputError, match=message):
    open_topology(name)


def test_without_a_compiler(monkeypatch):
  monkeypatch.setattr(topology, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match=r"pip install -e '\.\[tpu\]'"):
    open_topology('v5e:4x4')


needs_compiler = pytest.mark.skipif(
  topology.find_spec('libtpu') is None,
  reason="needs the compiler of TPUs: pip install -e '.[tpu]'",
)


@needs_compiler
def test_a_slice_that_the_compiler_does_not_know():
  with pytest.raises(InputError, match='is no slice that the compiler knows'):
    open_topology('v5e:3x5')


@needs_compiler
@pytest.mark.parametrize(
  ('name', 'chips'),
  [('v4:2x2x4', 16), ('v5e:4x4', 16), ('v5p:2x2x2', 8), ('v6e:8x8', 64)],
)
def test_a_device_is_a_chip(name, chips):
  devices, generation = open_topology(name)
  assert len(devices) == chips
  assert generation == name.split(':')[0]


@pytest.fixture
def no_cache():
  """Programs of the other compiler cannot be read back here."""
  jax.config.update('jax_enable_compilation_cache', False)
  yield
  jax.config.update('jax_enable_compilation_cache', True)


@needs_compiler
@pytest.mark.slow
@pytest.mark.usefixtures('no_cache')
def test_a_sixteenth_of_a_billion_rows_on_a_sixteenth_of_a_pod():
  """Each chip has what it has of a billion rows and 65,536 examples on 256.

  The whole pod is BUILD.md's command: it compiles three times as long.
  """
  devices, _ = open_topology('v5e:4x4')
  job = Job(
    WorkloadConfig(items=62_500_000, history_length=50),
    'din',
    MODEL_CONFIGS['din'](embedding_dim=16, table_l2=0.0),
    TrainConfig(batch_size=4_096),
  ).resolved()
  assert job.train.table_update == 'rowwise'
  program = compile_step(job, devices)
  assert program['parameters'] > 1e9
  held = program['argument_bytes'] + program['temporary_bytes']
  assert held < 1.1e9
  # The state is updated where it lies.
  assert program['aliased_bytes'] > 0.99 * program['output_bytes']
  distinct = 4_096 * 51
  bound = 2.2 * distinct * 16 * 4 + 1.1 * program['dense_parameters'] * 4
  assert program['collective_bytes'] < bound
  # A chip sends its share, and room for how unevenly rows fall on owners.
  assert program['collective_bytes'] < 2.5 / 16 * bound
