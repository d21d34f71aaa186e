"""Efficiency, collectives, rows: by hand, and on the tests' own devices."""

import gc
import itertools

import jax
import pytest

from eain_jax.benchmark.scaling import (
  ScalingPlan,
  efficiencies,
  full_workload,
  run_scaling,
  train_config,
)
from eain_jax.benchmark.trace import collective_names, sum_collectives
from eain_jax.config import (
  LogisticRegressionConfig,
  ScalingConfig,
  TrainConfig,
  WorkloadConfig,
)
from eain_jax.errors import InputError

WORKLOAD = WorkloadConfig(users=50, items=3_000, sequences=300, mean_length=5)


def make_plan(batch_size=60, **settings):
  config = ScalingConfig(
    model='lr', steps=4, warmup=1, repeats=2, batches=2, **settings
  )
  model = LogisticRegressionConfig(use_user=True, table_l2=0.0)
  train = TrainConfig(batch_size=batch_size, table_update='dense')
  return ScalingPlan(config, WORKLOAD, model, train)


# devices, batch, step ms, CPU ms; efficiency, of 2 cores, of CPU time. One
# device: 100 examples in 10 ms, of 12 ms CPU time.
@pytest.mark.parametrize(
  ('devices', 'batch', 'step_ms', 'cpu_ms', 'efficiency', 'of_cores', 'of_cpu'),
  [
    (1, 100, 10.0, 12.0, 1.0, 1.0, 1.0),
    # Strong: t_1 / (n t_n) = 10 / (4 * 5); 2 cores for 4 devices allow 1/2.
    (4, 100, 5.0, 15.0, 0.5, 1.0, 0.8),
    # Weak: t_1 / t_n = 10 / 12.5.
    (2, 200, 12.5, 24.0, 0.8, 0.8, 1.0),
    (8, 800, 50.0, 192.0, 0.2, 0.8, 0.5),
  ],
)
def test_efficiency_by_hand(
  devices, batch, step_ms, cpu_ms, efficiency, of_cores, of_cpu
):
  alone = {'devices': 1, 'batch': 100, 'step_ms': 10.0, 'cpu_ms': 12.0}
  row = {
    'devices': devices,
    'batch': batch,
    'step_ms': step_ms,
    'cpu_ms': cpu_ms,
  }
  assert efficiencies(row, alone, 2) == {
    'efficiency': pytest.approx(efficiency),
    'efficiency_of_cores': pytest.approx(of_cores),
    'efficiency_of_cpu_time': pytest.approx(of_cpu),
  }
  # Real devices share no cores.
  assert [*efficiencies(row, alone, None).values()] == [
    pytest.approx(efficiency),
    None,
    None,
  ]
  assert [*efficiencies(row, None, 2).values()] == [None, None, None]


HLO = """
HloModule jit__lambda

%region_1.2 (a: f32[], b: f32[]) -> f32[] {
  ROOT %add.1 = f32[] add(%a, %b), metadata={op_name="all-reduce(psum)"}
}

ENTRY %main {
  %psum.7 = f32[80]{0} all-reduce(%dot.1), channel_id=1, to_apply=%region_1.2
  %all-reduce = (f32[40]{0:T(8,128)}, /*index=5*/f32[]) all-reduce(%x, %y)
  %ask.1 = ((s32[2]{0}), s32[4]{0}) all-gather-start(%ids), dimensions={0}
  %ask.2 = s32[4]{0} all-gather-done(%ask.1)
  %fusion.3 = f32[4]{0} fusion(%all-reduce), kind=kLoop, calls=%fused
  ROOT all-to-all.1 = (f32[1], f32[1]) all-to-all(%c, %d), channel_id=2
}
"""


def _event(name, micros, tid):
  return {'pid': 7, 'tid': tid, 'dur': micros, 'args': {'hlo_op': name}}


def test_collectives_are_found_by_what_they_do():
  names = {'psum.7', 'all-reduce', 'ask.1', 'ask.2', 'all-to-all.1'}
  assert collective_names(HLO) == names


def test_time_in_collectives_by_hand():
  names = collective_names(HLO)
  # Two devices, two steps: 3 + 1 + .5 and 1 + 1 + .5 ms.
  events = [
    _event('psum.7', 3000, 1),
    _event('psum.7', 1000, 2),
    _event('all-to-all.1', 1000, 1),
    _event('all-to-all.1', 1000, 2),
    _event('ask.1', 200, 1),
    _event('ask.2', 300, 1),
    _event('ask.2', 500, 2),
    _event('fusion.3', 9000, 1),
    # What collectives do inside carries no name of an operation.
    {'pid': 7, 'tid': 1, 'dur': 2500, 'name': 'Rendezvous'},
  ]
  assert sum_collectives(events, names, 2, 2) == pytest.approx(7 / 4)
  assert sum_collectives(events, (), 2, 2) == 0
  assert sum_collectives(events[-2:], names, 2, 2) is None


def test_one_device_runs_alone_and_weak_batches_grow():
  plan = make_plan(devices=(2, 8), parallelism='pmap')
  assert plan.config.counts == (1, 2, 8)
  rows = {
    (scaling, devices): train_config(plan, scaling, devices)
    for scaling, devices in itertools.product(('strong', 'weak'), (1, 2, 8))
  }
  assert {k: (t.batch_size, t.parallelism) for k, t in rows.items()} == {
    ('strong', 1): (60, 'none'),
    ('strong', 2): (60, 'pmap'),
    ('strong', 8): (60, 'pmap'),
    ('weak', 1): (60, 'none'),
    ('weak', 2): (120, 'pmap'),
    ('weak', 8): (480, 'pmap'),
  }
  assert [t.num_devices for t in rows.values()] == [0, 2, 8] * 2
  assert {t.data_placement for t in rows.values()} == {'host'}
  # 300 sequences are no whole number of batches of 480.
  assert full_workload(plan).sequences == 480
  assert full_workload(make_plan(scaling=('strong',))) == WORKLOAD


@pytest.mark.parametrize(
  ('settings', 'sentence'),
  [
    ({'devices': (0, 2)}, 'devices=0 must be at least 1'),
    ({'devices': (2, 4, 2)}, 'devices=2,4,2 names a value twice'),
    ({'devices': ()}, 'nothing to measure'),
    ({'scaling': ('both',)}, 'scaling=both is unknown'),
    ({'parallelism': 'none'}, "parallelism='none' is not one of mesh, pmap"),
    ({'repeats': 3}, 'repeats=3 windows need as many steps, steps=2'),
  ],
)
def test_bad_settings_are_refused_in_a_sentence(settings, sentence):
  with pytest.raises(InputError, match=sentence):
    ScalingConfig(**({'steps': 2, 'repeats': 2} | settings))


@pytest.mark.parametrize(
  ('settings', 'sentence'),
  [
    ({'devices': (1, 99)}, r'--devices=99 is more than the 8 cpu device'),
    ({'batch_size': 3, 'devices': (4,)}, 'batch_size 3 .* for 4 device'),
  ],
)
def test_what_no_device_can_do_is_refused_before_a_row(settings, sentence):
  said = []
  with pytest.raises(InputError, match=sentence):
    run_scaling(make_plan(**settings), said.append, said.append)
  assert not said


def _tables():
  """Live arrays with as many rows as there are items."""
  gc.collect()
  return [x for x in jax.live_arrays() if x.size >= WORKLOAD.items]


@pytest.mark.slow
@pytest.mark.parametrize('parallelism', ['mesh', 'pmap'])
def test_rows_follow_each_other_and_leave_nothing_behind(parallelism):
  before, saved = len(_tables()), []

  def save(result):
    assert len(_tables()) == before
    saved.append(len(result['rows']))

  plan = make_plan(devices=(2,), parallelism=parallelism)
  result = run_scaling(plan, lambda text: None, save)
  assert saved == [1, 2, 3, 4]
  rows = result['rows']
  assert [(r['scaling'], r['devices'], r['batch']) for r in rows] == [
    ('strong', 1, 60),
    ('strong', 2, 60),
    ('weak', 1, 60),
    ('weak', 2, 120),
  ]
  # One device is measured once.
  assert rows[0]['step_ms'] == rows[2]['step_ms']
  for row in rows:
    assert row['timed_compilations'] == 0
    assert row['end_to_end']['timed_compilations'] == 0
    if row['devices'] == 1:
      assert row['parallelism'] == 'none'
      assert row['efficiency'] == 1
      assert row['collective_ms'] == 0
    else:
      assert row['parallelism'] == parallelism
      assert row['efficiency'] > 0
      assert 0 < row['collective_share'] < 1
  assert any('It was not in --devices' in note for note in result['notes'])
  assert any('virtual devices of one CPU' in note for note in result['notes'])
