"""pmap and mesh over several devices are the same training as on one."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from eain_jax.config import TrainConfig
from eain_jax.data.batches import make_train_stream
from eain_jax.errors import InputError
from eain_jax.models import make_model
from eain_jax.training import parallel
from eain_jax.training.device_memory import check_memory
from eain_jax.training.optimizer import evaluated_params, make_optimizer
from eain_jax.training.parallel import make_placement
from eain_jax.training.setup import choose_placement, set_up
from eain_jax.training.step import make_train_step
from eain_jax.training.table_layout import canonical_rows

BATCH_SIZE = 500  # 100 requests; 13 a device of eight, the last has 9
NUM_STEPS = 50  # of 15 an epoch: the last of an epoch has 42 requests


def with_spare_rows(state, placement):
  """The state with the rows that a mesh adds to tables; see `table_layout`."""
  if not placement.cuts_tables:
    return state

  def padded(leaf, spec):
    if spec != parallel.CUT:
      return leaf
    rows = canonical_rows(len(leaf), placement.num_shards)
    return np.pad(leaf, [(0, rows - len(leaf)), (0, 0)])

  return jax.tree.map(padded, state, parallel.match_rules(state))


@pytest.fixture(scope='module')
def train(dataset, small_config, random_state):
  """train(name, settings, config): losses, last state, its placement."""

  def run(name, settings, config):
    placement = choose_placement(dataset, config)
    model = make_model(
      name, small_config(name, **settings), placement.axis_name
    )
    read = model.reads(dataset.features)
    alone = make_train_stream(dataset, BATCH_SIZE, 0, features=read)
    shards = placement.train_shards(config.table_update)
    stream = make_train_stream(dataset, BATCH_SIZE, 0, shards, read)
    optimizer = make_optimizer(config, NUM_STEPS)
    state = random_state(model, dataset, alone.batch(0), optimizer)
    state = placement.from_canonical(with_spare_rows(state, placement))
    traces = []
    train_step = make_train_step(
      model,
      dataset.features,
      optimizer,
      config,
      tables_are_cut=placement.cuts_tables,
    )

    def counted(state, batch):
      traces.append(batch['history'].shape)
      return train_step(state, batch)

    step = placement.compile_train_step(counted, state)
    losses = []
    for number in range(NUM_STEPS):
      batch = placement.place_batch(stream.batch(number))
      state, metrics = step(state, batch)
      losses.append([float(metrics[m]) for m in ('loss', 'total_loss')])
    # Three epochs, each with an uneven last batch.
    assert len(traces) == 1
    return np.array(losses), state, placement

  return run


CASES = {
  'eain_dropout': ('eain', {'dropout': 0.3}),
  'din_dice_everywhere': ('din', {'dropout': 0.3, 'activation': 'dice'}),
  # Not all of the features have tables.
  'mf': ('mf', {}),
  'lr_no_user': ('lr', {'use_user': False}),
}
# Clipped at every step, so that the norm counts: of parts that lie apart.
CONFIG = TrainConfig(l2=1e-5, clip_norm=0.05, ema_decay=0.9)


@pytest.fixture(scope='module')
def one_device(train):
  """one_device(case, table_update): training on one device, once each."""
  made = {}

  def get(case, table_update):
    if (case, table_update) not in made:
      config = dataclasses.replace(CONFIG, table_update=table_update)
      made[case, table_update] = train(*CASES[case], config)
    return made[case, table_update]

  return get


def tables_in_order(tree, placement, num_rows):
  """Copies of all leaves on the host, tables without their spare rows."""
  saved = placement.to_canonical({'params': tree})['params']
  tree = jax.tree.map(np.asarray, saved)
  tree['tables'] = {
    name: table[: num_rows[name]] for name, table in tree['tables'].items()
  }
  return tree


@pytest.mark.slow
@pytest.mark.parametrize('table_update', ['dense', 'rowwise'])
@pytest.mark.parametrize(
  ('parallelism', 'num_devices'), [('pmap', 4), ('mesh', 4), ('mesh', 8)]
)
@pytest.mark.parametrize('case', list(CASES))
def test_losses_are_those_of_one_device(
  dataset, train, one_device, case, parallelism, num_devices, table_update
):
  assert jax.local_device_count() == 8
  expected, one, alone = one_device(case, table_update)
  config = dataclasses.replace(
    CONFIG,
    parallelism=parallelism,
    num_devices=num_devices,
    table_update=table_update,
  )
  losses, state, placement = train(*CASES[case], config)
  np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
  assert losses[-1, 0] < losses[0, 0] - 0.01
  num_rows = {f.name: f.num_rows for f in dataset.features}
  # Adam divides by the size of a gradient, so where it is nearly nothing the
  # rounding decides.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-3),
    tables_in_order(state.params, placement, num_rows),
    tables_in_order(one.params, alone, num_rows),
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-3),
    tables_in_order(evaluated_params(state), placement, num_rows),
    tables_in_order(evaluated_params(one), alone, num_rows),
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-3),
    state.stats,
    one.stats,
  )
  assert len(state.step.devices()) == num_devices


def test_devices_differ_in_what_they_hold(dataset):
  """The last batch of an epoch leaves devices empty: weights must count."""
  shards = make_placement('pmap', {}).shards('none')
  batch = make_train_stream(dataset, BATCH_SIZE, 0, shards).batch(14)
  np.testing.assert_array_equal(
    batch['weight'].sum((1, 2)), [65, 65, 65, 15, 0, 0, 0, 0]
  )
  np.testing.assert_array_equal(batch['row'].reshape(-1), np.arange(8 * 13))


@pytest.mark.parametrize('name', ['lr', 'eain'])
def test_no_device_holds_a_whole_table_on_a_mesh(dataset, small_config, name):
  """Of parameters and moments; and the state is that of one device."""
  made = {}
  for parallelism in ('none', 'mesh'):
    config = TrainConfig(
      parallelism=parallelism,
      num_devices=4 * (parallelism == 'mesh'),
      batch_size=BATCH_SIZE,
    )
    setup = set_up(dataset, name, small_config(name), config)
    made[parallelism] = setup, setup.make_state()
  setup, state = made['mesh']
  num_rows = {f.name: f.num_rows for f in dataset.features}
  adam = state.opt_state[0]
  for tree in (state.params, adam.mu, adam.nu):
    for feature, table in tree['tables'].items():
      owned = -(-num_rows[feature] // 4)
      assert {shard.data.shape[0] for shard in table.addressable_shards} == {
        owned
      }
      assert owned < num_rows[feature]
    for leaf in jax.tree.leaves(tree['net']):
      assert leaf.sharding.is_fully_replicated
  alone, expected = made['none']
  jax.tree.map(
    np.testing.assert_array_equal,
    tables_in_order(state.params, setup.placement, num_rows),
    tables_in_order(expected.params, alone.placement, num_rows),
  )


def test_a_row_lies_with_the_owner_of_its_number(dataset, small_config):
  """r mod D: ids follow frequency, so blocks would load one device."""
  config = TrainConfig(parallelism='mesh', num_devices=4, batch_size=BATCH_SIZE)
  setup = set_up(dataset, 'dnn', small_config('dnn'), config)
  table = setup.make_state().params['tables']['item']
  in_order = np.asarray(
    setup.placement.to_canonical({'params': {'tables': {'item': table}}})[
      'params'
    ]['tables']['item']
  )
  for device, shard in enumerate(table.addressable_shards):
    owned = np.asarray(shard.data)
    np.testing.assert_array_equal(owned, in_order[device::4][: len(owned)])
  # Rows beyond the last one are zeros.
  assert in_order[81].any()
  assert not in_order[82:].any()


def test_a_leaf_that_no_rule_names_is_an_error():
  tree = {'params': {'tables': {'item': np.ones((4, 2))}, 'new': np.ones(3)}}
  with pytest.raises(InputError, match=r'no rule says where params/new lies'):
    parallel.match_rules(tree)
  first = parallel.match_rules(
    tree, [('item', PartitionSpec()), ('', PartitionSpec('data'))]
  )
  assert first['params']['tables']['item'] == PartitionSpec()
  assert first['params']['new'] == PartitionSpec('data')


@pytest.mark.parametrize('parallelism', ['none', 'pmap', 'mesh'])
def test_the_state_is_donated(dataset, small_config, parallelism):
  """Training holds one copy of the tables, not two."""
  config = TrainConfig(parallelism=parallelism, batch_size=BATCH_SIZE)
  setup = set_up(dataset, 'lr', small_config('lr'), config)
  place = setup.placement.place_batch
  state = setup.make_state()
  second, _ = setup.train_step(state, place(setup.stream.batch(0)))
  third, _ = setup.train_step(second, place(setup.stream.batch(1)))
  assert second.params['tables']['item'].is_deleted()
  assert not third.params['tables']['item'].is_deleted()


def test_devices_that_are_not_there():
  assert make_placement('mesh', {}).num_shards == 8
  assert make_placement('none', {}).num_shards == 1
  with pytest.raises(InputError, match=r'num_devices=16 does not fit.*8 cpu'):
    make_placement('mesh', {}, 16)
  with pytest.raises(InputError, match='needs --parallelism'):
    make_placement('none', {}, 2)


def test_a_batch_of_fewer_requests_than_devices(dataset, small_config):
  config = TrainConfig(parallelism='mesh', batch_size=20)
  with pytest.raises(InputError, match=r'4 request\(s\).*8 device\(s\)'):
    set_up(dataset, 'lr', small_config('lr'), config)


def test_a_state_beyond_a_device(dataset, small_config):
  """A table that pmap copies to each device, and mesh cuts up."""
  needed = {}
  for parallelism in ('mesh', 'pmap'):
    config = TrainConfig(
      parallelism=parallelism, batch_size=BATCH_SIZE, ema_decay=0.0
    )
    setup = set_up(dataset, 'lr', small_config('lr'), config)
    needed[parallelism] = setup.placement.bytes_a_device(setup.state_shapes)
    # Three arrays of the tables: parameters and two moments.
    rows = [f.num_rows for f in dataset.features]
    owned = [-(-n // 8) for n in rows] if parallelism == 'mesh' else rows
    assert needed[parallelism] == pytest.approx(3 * 4 * sum(owned), abs=40)
    # And the parameters of the best evaluation, a third of that.
    enough = 1.34 * needed[parallelism]
    check_memory(setup.state_shapes, setup.placement, int(enough))
    with pytest.raises(InputError, match='the run needs'):
      check_memory(setup.state_shapes, setup.placement, int(enough), saves=True)
    with pytest.raises(InputError, match=rf'--parallelism={parallelism}'):
      check_memory(setup.state_shapes, setup.placement, needed['mesh'] - 1)
  assert needed['mesh'] < needed['pmap'] / 6.5


@pytest.mark.parametrize(
  ('platform', 'version', 'is_warned'),
  [
    ('gpu', '0.10.2', True),
    ('gpu', '0.11.0', True),
    ('gpu', '0.11.1', False),
    ('gpu', '0.10.1', False),
    ('cpu', '0.10.2', False),
    ('tpu', '0.10.2', False),
  ],
)
def test_a_slow_pair_of_device_and_version_is_said(
  platform, version, is_warned
):
  assert bool(parallel.device_notes(platform, version)) == is_warned
