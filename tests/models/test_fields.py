"""What the models see of a batch, on arrays that a person can read."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from eain_jax.data.features import Feature
from eain_jax.layers.embedding import EmbeddedBatch
from eain_jax.models import fields

FEATURES = (
  Feature('user', 'user', 9),
  Feature('item', 'item', 9),
  Feature('brand', 'item', 9),
  Feature('hour', 'context', 9),
)


WITHOUT_USER = functools.partial(dataclasses.replace, user_RW=None)


def hand_inputs():
  """Two requests of three candidates; two item features, one context.

  Widths of 2; the second request has no history.
  """
  target = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
  history = 100 + np.arange(8, dtype=np.float32).reshape(2, 2, 2)
  return EmbeddedBatch(
    user_RW=jnp.array([[0.1, 0.2], [0.3, 0.4]]),
    target_RCAW=jnp.asarray(target),
    history_NAW=jnp.asarray(history),
    context_RKW=jnp.array([[[50.0, 51]], [[60, 61]]]),
    segment_N=jnp.array([0, 0]),
    age_N=jnp.array([1, 0]),
    position_R=jnp.array([2, 0]),
    row_R=jnp.array([7, 8]),
    valid_RC=jnp.ones((2, 3), bool),
  )


def test_no_two_examples_of_a_batch_share_a_row():
  """Else they would share their dropout masks."""
  np.testing.assert_array_equal(
    fields.example_rows(hand_inputs()), [21, 22, 23, 24, 25, 26]
  )


def test_events_and_targets_are_their_features_side_by_side():
  inputs = hand_inputs()
  np.testing.assert_array_equal(
    fields.flat_history(inputs, 2), [[100, 101, 102, 103], [104, 105, 106, 107]]
  )
  np.testing.assert_array_equal(
    fields.flat_target(inputs, 1)[1], [[12, 14], [16, 18], [20, 22]]
  )
  np.testing.assert_array_equal(
    fields.pooled_history(inputs, 2), [[102, 103, 104, 105], [0, 0, 0, 0]]
  )


def test_fields_are_user_target_history_context():
  inputs = hand_inputs()
  h_u = jnp.arange(24.0).reshape(6, 4)
  found = fields.make_fields(inputs, h_u, 2)
  np.testing.assert_allclose(
    found[4],  # the second request's second candidate
    [[0.3, 0.4], [16, 17], [18, 19], [16, 17], [18, 19], [60, 61]],
  )
  without = fields.make_fields(WITHOUT_USER(inputs), h_u, 2)
  np.testing.assert_array_equal(without, found[:, 1:])


def test_names_are_those_of_the_fields():
  item = ['item', 'brand', 'history item', 'history brand']
  names = fields.field_names(FEATURES)
  # As many as `hand_inputs` makes of the same features, in that order.
  assert names == ['user', *item, 'hour']
  assert fields.field_names(FEATURES[1:]) == [*item, 'hour']
  assert fields.field_names(FEATURES[1:-1]) == item


def test_features_that_are_read():
  read = lambda *switches: [
    f.name for f in fields.features_read(FEATURES, *switches)
  ]
  assert read(True) == ['user', 'item', 'brand', 'hour']
  assert read(False) == ['item', 'brand', 'hour']
  assert read(False, False) == ['item', 'brand']


def test_first_order_is_a_sum_of_one_column():
  inputs = WITHOUT_USER(hand_inputs())
  # Column 1: 17 + 19 of the target, 61 of the context, no history.
  assert float(fields.first_order(inputs, 1)[1, 1]) == 97.0
  # 1 + 3, 51, and the history's means 103 + 105.
  assert float(fields.first_order(inputs, 1)[0, 0]) == 263.0
  np.testing.assert_allclose(
    fields.first_order(hand_inputs(), 1) - fields.first_order(inputs, 1),
    [[0.2] * 3, [0.4] * 3],
    atol=1e-4,
  )
