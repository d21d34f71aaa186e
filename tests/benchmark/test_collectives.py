"""What is sent, read from HLO: by hand, and of the real step on a mesh."""

import jax
import pytest

from eain_jax.benchmark.collectives import collective_bytes, collectives
from eain_jax.config import TrainConfig, WorkloadConfig
from eain_jax.data.batches import make_train_stream
from eain_jax.data.workload import make_workload
from eain_jax.training.setup import set_up

HLO = """
ENTRY %main (p: f32[8,16]) -> f32[8,16] {
  %a = s32[4,96]{1,0} all-to-all(%x), replica_groups={{0,1}}
  %b = (f32[96,16]{1,0}, /*index=1*/bf16[2]{0}) all-to-all(%x, %y), channel_id=1
  %all-reduce.1 = (f32[10]{0}, pred[8]{0}) all-reduce(%u, %v), to_apply=%add
  %all-reduce.2 = (f32[10]{0}, pred[8]{0}) all-reduce(%u, %v), to_apply=%add
  %s = (f32[4]{0}, f32[8]{0}) all-gather-start(%x), dimensions={0}
  ROOT %d = f32[8]{0:T(256)} all-gather-done(%s)
  %f = f32[99]{0} fusion(%x), calls=%c, metadata={op_name="all-reduce(x)"}
  %g = f32[] add(%all-reduce.1, %all-to-all.3)
}
"""


def test_a_program_by_hand():
  assert collectives(HLO) == [
    {'op': 'all-to-all', 'bytes': 96 * 16 * 4 + 2 * 2, 'count': 1},
    {'op': 'all-to-all', 'bytes': 4 * 96 * 4, 'count': 1},
    {'op': 'all-reduce', 'bytes': 10 * 4 + 8, 'count': 2},
    {'op': 'all-gather', 'bytes': 8 * 4, 'count': 1},
  ]
  assert collective_bytes(HLO) == 6148 + 1536 + 96 + 32
  assert collectives('ENTRY %main () -> f32[] {\n}') == []


@pytest.fixture(scope='module')
def workload():
  return make_workload(
    WorkloadConfig(users=3_000, items=5_000, sequences=4_000)
  )


@pytest.mark.parametrize('table_update', ['dense', 'rowwise'])
@pytest.mark.parametrize('num_devices', [4, 8])
def test_a_step_sends_rows_once_each_way(
  workload, small_config, num_devices, table_update
):
  """Collective bytes <= 2.2 x distinct rows x W x 4 + 1.1 x dense x 4.

  No table crosses the network, however it is updated.
  """
  config = TrainConfig(
    batch_size=512,
    parallelism='mesh',
    num_devices=num_devices,
    table_update=table_update,
  )
  model_config = small_config('din', embedding_dim=32)
  setup = set_up(workload, 'din', model_config, config)
  batch = setup.placement.place_batch(setup.stream.batch(0))
  compiled = setup.train_step.lower(setup.state_shapes, batch).compile()
  found = collectives(compiled.as_text())
  # Ids and answers; and gradients back.
  exchanges = [row for row in found if row['op'] == 'all-to-all']
  assert sum(row['count'] for row in exchanges) == 3
  whole = make_train_stream(workload, 512, 0).batch(0)
  ids = {'user': whole['user'], **whole['items'], **whole['context']}
  distinct = sum(len({0, *rows.ravel().tolist()}) for rows in ids.values())
  dense = sum(
    leaf.size for leaf in jax.tree.leaves(setup.state_shapes.params['net'])
  )
  bound = 2.2 * distinct * 32 * 4 + 1.1 * dense * 4
  assert 0 < collective_bytes(compiled.as_text()) <= bound
  table = setup.state_shapes.params['tables']['item']
  assert max(row['bytes'] for row in exchanges) < 4 * table.size
