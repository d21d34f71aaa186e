"""Windows, quartiles, examples, shares, ceilings, compilations."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eain_jax.benchmark.ceilings import matmul_ceiling, memory_ceiling
from eain_jax.benchmark.compilations import CompilationCounter
from eain_jax.benchmark.measure import (
  Batches,
  compile_all,
  describe_program,
  measure_end_to_end,
  measure_step,
  shares_of_ceilings,
  summarize,
)
from eain_jax.benchmark.memory import check_memory, state_bytes, tables_of
from eain_jax.benchmark.subject import Subject
from eain_jax.config import (
  BenchmarkConfig,
  DinConfig,
  LogisticRegressionConfig,
  TrainConfig,
  WorkloadConfig,
)
from eain_jax.data.workload import make_workload
from eain_jax.errors import InputError

WORKLOAD = WorkloadConfig(users=50, items=200, sequences=300, mean_length=5)
SHORT = BenchmarkConfig(steps=4, warmup=1, repeats=2, batches=2)


@pytest.fixture(scope='module')
def workload():
  return make_workload(WORKLOAD)


def test_quartiles_and_windows_by_hand():
  # Two windows: 30 examples in 6 s and 30 in 12 s.
  values = summarize([1.0, 2.0, 3.0, 3.0, 4.0, 5.0], [10] * 6, 2)
  assert values['ex_s_min'] == pytest.approx(2.5)
  assert values['ex_s_max'] == pytest.approx(5.0)
  assert values['ex_s'] == pytest.approx(3.75)
  # Sorted 1 2 3 3 4 5: the quartiles lie at places 1.25, 2.5 and 3.75.
  assert values['step_ms_q1'] == pytest.approx(2250)
  assert values['step_ms'] == pytest.approx(3000)
  assert values['step_ms_q3'] == pytest.approx(3750)


def test_the_last_batch_of_an_epoch_holds_fewer_examples(workload):
  train = TrainConfig(batch_size=128)
  subject = Subject(workload, 'lr', LogisticRegressionConfig(), train, 'train')
  # 300 = 128 + 128 + 44, and again.
  assert [subject.num_examples(n) for n in range(4)] == [
    128,
    128,
    44,
    128,
  ]
  for number in range(4):
    weight = subject.stream.batch(number)['weight']
    assert subject.num_examples(number) == np.count_nonzero(weight)


def test_shares_are_of_time_and_ceiling():
  row = {
    'step_ms': 500.0,
    'devices': 2,
    'program': {'matmul_flops': 3e9, 'bytes_accessed': 4e9},
  }
  ceilings = {'matmul_float32': 12e9, 'memory': 16e9}
  shares = shares_of_ceilings(row, ceilings, 'float32')
  # 6 of 24 GFLOP/s on two devices, 8 of 16 GB/s on each.
  assert shares['share_of_matmul_ceiling'] == pytest.approx(0.25)
  assert shares['share_of_memory_ceiling'] == pytest.approx(0.5)
  # Virtual ones share the machine: 6 of 12 GFLOP/s, twice 8 of 16 GB/s.
  shares = shares_of_ceilings(row, ceilings, 'float32', are_virtual=True)
  assert shares['share_of_matmul_ceiling'] == pytest.approx(0.5)
  assert shares['share_of_memory_ceiling'] == pytest.approx(1.0)
  assert shares_of_ceilings(row, {}, 'float32') == {
    'share_of_matmul_ceiling': None,
    'share_of_memory_ceiling': None,
  }


def test_ceilings_are_positive_and_finite():
  for value in (
    matmul_ceiling('float32', 64),
    matmul_ceiling('bfloat16', 64),
    memory_ceiling(1 << 16),
  ):
    assert 0 < value < np.inf


def test_a_compilation_is_seen():
  double = jax.jit(lambda x: 2 * x)
  small, large = jnp.zeros(3), jnp.zeros(4)
  with CompilationCounter() as counter:
    double(small)
    assert counter.count == 1
    double(small)
    assert counter.count == 1
    double(large)
    assert counter.count == 2
  double(jnp.zeros(5))
  assert counter.count == 2


@pytest.mark.parametrize('parallelism', ['none', 'pmap'])
@pytest.mark.parametrize('mode', ['train', 'score'])
def test_nothing_is_compiled_while_time_is_taken(workload, mode, parallelism):
  # 300 examples are three batches, and packed sizes may differ.
  train = TrainConfig(batch_size=128, parallelism=parallelism)
  config = DinConfig(embedding_dim=4, mlp=(8,), attention=(8,))
  subject = Subject(workload, 'din', config, train, mode)
  batches = Batches(subject, SHORT)
  compiled = compile_all(subject, batches)
  assert compiled['compilations'] == len(batches.by_signature)
  program, hlo = describe_program(subject, batches)
  assert program['matmul_flops'] > 0
  assert 'HloModule' in hlo
  for values in (
    measure_step(subject, batches, SHORT),
    measure_end_to_end(subject, SHORT),
  ):
    assert values['timed_compilations'] == 0
    assert 0 < values['ex_s_min'] <= values['ex_s'] <= values['ex_s_max']
    assert values['step_ms_q1'] <= values['step_ms'] <= values['step_ms_q3']
    assert 0 <= values.get('input_wait_share', 0.0) <= 1


def test_state_of_lr_by_hand(workload):
  # A weight a row: 50 users, 200 items, 801 categories, 24 + 7 + 3000 + 20
  # context values, two reserved rows each; and a bias.
  parameters = 50 + 200 + 801 + 24 + 7 + 3000 + 20 + 7 * 2 + 1
  config = LogisticRegressionConfig(use_user=True)
  train = TrainConfig(ema_decay=0.0)
  count, size = state_bytes(workload, 'lr', config, train, 'train')
  assert count == parameters
  # Parameters, two moments, gradient and update, but for some counters.
  assert 5 * 4 * parameters <= size <= 5 * 4 * parameters + 64
  _, scoring = state_bytes(workload, 'lr', config, train, 'score')
  assert size - scoring == 2 * 4 * parameters
  averaged = dataclasses.replace(train, ema_decay=0.9)
  _, with_average = state_bytes(workload, 'lr', config, averaged, 'train')
  assert 4 * parameters <= with_average - size <= 4 * parameters + 64


def test_a_state_that_cannot_fit_is_refused_in_a_sentence(workload):
  huge = tables_of(WorkloadConfig(items=2 * 10**9, sequences=100))
  with pytest.raises(InputError, match=r'2,000,000,000 items .* GB are free'):
    check_memory(
      huge, 'lr', LogisticRegressionConfig(), TrainConfig(batch_size=8), 'train'
    )


def test_many_steps_a_call_count_as_steps(workload):
  """The data on the device: a call of sixteen steps, each of 100 examples."""
  train = TrainConfig(batch_size=100, data_placement='device')
  config = DinConfig(embedding_dim=4, mlp=(8,), attention=(8,))
  subject = Subject(workload, 'din', config, train, 'train')
  assert subject.steps_a_call == 16
  assert subject.num_examples(0) == 16 * 100
  config = BenchmarkConfig(batches=2, steps=4, warmup=1, repeats=2)
  batches = Batches(subject, config)
  compile_all(subject, batches)
  start = time.perf_counter()
  values = measure_step(subject, batches, config)
  seconds = time.perf_counter() - start
  # Four timed calls of sixteen steps cannot have taken longer than all of it.
  assert 4 * 16 * 100 / values['ex_s_max'] < seconds
  assert values['step_ms'] / 1e3 < seconds / (4 * 16) * 4
  assert values['ex_s_min'] <= 100 / (values['step_ms_q1'] / 1e3) * 1.01
  program, _ = describe_program(subject, batches)
  host = dataclasses.replace(train, data_placement='host')
  alone = Subject(
    workload,
    'din',
    DinConfig(embedding_dim=4, mlp=(8,), attention=(8,)),
    host,
    'train',
  )
  its_batches = Batches(alone, config)
  expected, _ = describe_program(alone, its_batches)
  # Products grow with the static number of events, which calls share.
  assert program['matmul_flops'] == pytest.approx(
    expected['matmul_flops'], rel=0.3
  )


def test_scoring_reads_whole_tables(workload):
  """A planned batch has local ids, which mean nothing in a whole table."""
  train = TrainConfig(batch_size=128, table_update='rowwise')
  config = DinConfig(embedding_dim=4, mlp=(8,), attention=(8,))
  trained = Subject(workload, 'din', config, train, 'train')
  scored = Subject(workload, 'din', config, train, 'score')
  assert 'rows' in trained.batch(0)
  assert 'rows' not in scored.batch(0)
