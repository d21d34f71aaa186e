"""Equation (15) against loops over rows of a table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eain_jax.data.features import NUM_RESERVED, Feature
from eain_jax.layers import embedding

FEATURES = (
  Feature('user', 'user', 6),
  Feature('item', 'item', 9),
  Feature('tags', 'item', 7, 3, multi_valued=True),
  Feature('hour', 'context', 5),
)
WIDTH = 4


def random_tables(seed=0):
  rng = np.random.default_rng(seed)
  return {f.name: rng.normal(size=(f.num_rows, WIDTH)) for f in FEATURES}


def hand_batch():
  """Two requests of two candidates, then a padding one; U = 5, N = 5."""
  return {
    'items': {
      'item': np.array([0, 5, 2, 8, 0], np.int32),
      'tags': np.array(
        [[0, 0, 0], [3, 0, 0], [2, 6, 4], [0, 0, 0], [0, 0, 0]], np.int32
      ),
    },
    'user': np.array([4, 1, 0], np.int32),
    'context': {'hour': np.array([2, 0, 0], np.int32)},
    'target': np.array([[1, 2], [3, 1], [0, 0]], np.int32),
    'history': np.array([2, 3, 2, 0, 0], np.int32),
    'segment': np.array([0, 0, 1, 3, 3], np.int32),
    'age': np.array([4, 0, 1, 0, 0], np.int32),
    'position': np.array([2, 1, 0], np.int32),
    'row': np.array([10, 11, 12], np.int32),
  }


def test_embed_is_the_row_of_each_id_and_zero_for_padding():
  table = random_tables()['item']
  ids = np.array([[8, 0, 3], [1, 1, 0]], np.int32)
  expected = np.zeros((2, 3, WIDTH))
  for i in range(2):
    for j in range(3):
      if ids[i, j]:
        expected[i, j] = table[ids[i, j]]
  with jax.enable_x64():
    found = embedding.embed(jnp.asarray(table), ids)
  np.testing.assert_array_equal(found, expected)


def test_gradient_counts_the_uses_of_a_row_and_never_moves_padding():
  ids = np.array([3, 0, 3, 5, 0, 3], np.int32)
  grad = jax.grad(lambda t: embedding.embed(t, ids).sum())(jnp.ones((6, 2)))
  np.testing.assert_array_equal(grad, [[n] * 2 for n in (0, 0, 0, 3, 0, 1)])


def test_embed_mean_is_the_mean_over_the_values_that_there_are():
  table = random_tables()['tags']
  ids = np.array([[2, 6, 4], [3, 0, 0], [0, 0, 0], [1, 0, 5]], np.int32)
  expected = [
    np.mean([table[i] for i in row if i], axis=0) if any(row) else np.zeros(4)
    for row in ids
  ]
  with jax.enable_x64():
    found = embedding.embed_mean(jnp.asarray(table), ids)
  np.testing.assert_allclose(found, expected, rtol=1e-15)


def test_more_padding_values_change_no_mean():
  table = jnp.asarray(random_tables()['tags'], jnp.float32)
  ids = np.array([[2, 6, 0], [3, 0, 0]], np.int32)
  wider = np.pad(ids, ((0, 0), (0, 5)))
  np.testing.assert_array_equal(
    embedding.embed_mean(table, ids), embedding.embed_mean(table, wider)
  )


def test_initial_tables():
  features = (*FEATURES, Feature('many', 'item', 20_000))
  make = lambda seed, columns=1: {
    feature.name: embedding.init_table(
      jax.random.fold_in(jax.random.key(seed), number),
      feature.num_rows,
      WIDTH,
      0.05,
      columns,
    )
    for number, feature in enumerate(features)
  }
  tables = {name: table[:, 0] for name, table in make(3).items()}
  for feature in features:
    table = np.asarray(tables[feature.name])
    assert table.shape == (feature.num_rows, WIDTH)
    assert table.dtype == np.float32
    assert not table[:NUM_RESERVED].any()
    assert table[NUM_RESERVED:].all()
  # 80,000 normal values: the standard error of their deviation is 1.3e-4.
  many = np.asarray(tables['many'][NUM_RESERVED:])
  assert many.std() == pytest.approx(0.05, abs=6e-4)
  assert many.mean() == pytest.approx(0.0, abs=9e-4)
  other = make(4)['item'][:, 0]
  assert not np.allclose(other[2:], tables['item'][2:])
  # Two tables never start as copies of each other.
  assert not np.allclose(tables['user'][2:], tables['item'][2:6])
  # Dealt out over columns, rows are what they were; the spare ones are zeros.
  for name, dealt in make(3, columns=3).items():
    rows = np.asarray(dealt).reshape(-1, WIDTH)
    np.testing.assert_array_equal(rows[: len(tables[name])], tables[name])
    assert not rows[len(tables[name]) :].any()
    assert dealt.shape[1] == 3


def test_embed_batch_against_a_loop():
  tables, batch = random_tables(), hand_batch()
  row = lambda name, i: tables[name][i] if i else np.zeros(WIDTH)
  item_vectors = []
  for unique in range(5):
    tags = [t for t in batch['items']['tags'][unique] if t]
    mean = sum(tables['tags'][t] for t in tags) / max(len(tags), 1)
    item_vectors.append(
      [row('item', batch['items']['item'][unique]), mean + np.zeros(WIDTH)]
    )
  with jax.enable_x64():
    tables_64 = jax.tree.map(jnp.asarray, tables)
    inputs = embedding.embed_batch(tables_64, batch, FEATURES, 'float64')
  assert inputs.shape_RC == (3, 2)
  for r in range(3):
    np.testing.assert_array_equal(
      inputs.user_RW[r], row('user', batch['user'][r])
    )
    np.testing.assert_array_equal(
      inputs.context_RKW[r], [row('hour', batch['context']['hour'][r])]
    )
    for c in range(2):
      np.testing.assert_allclose(
        inputs.target_RCAW[r, c], item_vectors[batch['target'][r, c]]
      )
  for n in range(5):
    np.testing.assert_allclose(
      inputs.history_NAW[n], item_vectors[batch['history'][n]]
    )
  expected = np.array([[True] * 2, [True] * 2, [False] * 2])
  np.testing.assert_array_equal(inputs.valid_RC, expected)
  weight = np.float32([[1, 0], [1, 1], [1, 1]])
  tables = jax.tree.map(jnp.asarray, tables)
  inputs = embedding.embed_batch(tables, {**batch, 'weight': weight}, FEATURES)
  np.testing.assert_array_equal(inputs.valid_RC, expected & (weight > 0))
  for name in ('segment_N', 'position_R', 'row_R'):
    np.testing.assert_array_equal(getattr(inputs, name), batch[name[:-2]])


def test_embed_batch_without_users():
  """Their ids still tell who is padding."""
  tables, batch = random_tables(), hand_batch()
  without = [f for f in FEATURES if f.kind != 'user']
  inputs = embedding.embed_batch(tables, batch, without)
  assert inputs.user_RW is None
  expected = np.array([[True] * 2, [True] * 2, [False] * 2])
  np.testing.assert_array_equal(inputs.valid_RC, expected)


def test_embed_batch_without_context():
  batch = hand_batch() | {'context': {}}
  tables = {k: jnp.asarray(v, 'float32') for k, v in random_tables().items()}
  inputs = embedding.embed_batch(tables, batch, FEATURES[:-1])
  assert inputs.context_RKW.shape == (3, 0, WIDTH)


def test_tables_stay_float32_where_inputs_are_bfloat16():
  tables = {k: jnp.asarray(v, 'float32') for k, v in random_tables().items()}

  def total(tables):
    inputs = embedding.embed_batch(tables, hand_batch(), FEATURES, jnp.bfloat16)
    assert inputs.target_RCAW.dtype == jnp.bfloat16
    return inputs.history_NAW.astype(jnp.float32).sum()

  grads = jax.grad(total)(tables)
  assert {g.dtype for g in grads.values()} == {jnp.dtype('float32')}
