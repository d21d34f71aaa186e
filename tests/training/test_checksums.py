"""Checksums: what they see, and what they do not depend on."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from eain_jax.errors import InputError
from eain_jax.training import checksums
from eain_jax.training.checksums import check_finite, take_checksums

NUM_ROWS = {'item': 50}


def tree(seed=0, spare=0):
  rng = np.random.default_rng(seed)
  # As a cut table has them: what lies beyond the rows says nothing.
  table = np.full((50 + spare, 4), 0.25, np.float32)
  table[:50] = rng.normal(size=(50, 4))
  return {
    'tables': {'item': table},
    'net': {
      'bias': rng.normal(size=7).astype(np.float32),
      'scale': np.float32(1.5),
      'kernel': rng.normal(size=(2, 3, 4)).astype(np.float32),
    },
    'step': np.int32(seed),
  }


def taken(values):
  return take_checksums(jax.tree.map(jnp.asarray, values), NUM_ROWS)


def sums_by_loop(rows):
  """Each element by Python integers: MurmurHash3's finalizer over its place."""

  def mix(bits):
    bits ^= bits >> 16
    bits = bits * 0x85EBCA6B % 2**32
    bits ^= bits >> 13
    bits = bits * 0xC2B2AE35 % 2**32
    return bits ^ (bits >> 16)

  first = second = 0
  for r, row in enumerate(rows):
    for c, bits in enumerate(row.view(np.uint32).tolist()):
      key = mix((r * 0x9E3779B1 + c * 0x27D4EB2F + 0x243F6A88) % 2**32)
      mixed = mix(bits ^ key)
      first, second = first + mixed, second + mixed * (key | 1)
  return f'{first % 2**32:08x}{second % 2**32:08x}'


@pytest.mark.parametrize('on_host', [True, False])
def test_sums_are_those_of_plain_integers(monkeypatch, on_host):
  if not on_host:
    monkeypatch.setattr(checksums, 'HOST_BYTES', 0)
  values = tree()
  found = taken(values).of_leaf
  assert found['tables/item'] == sums_by_loop(values['tables']['item'])
  assert found['net/kernel'] == sums_by_loop(
    values['net']['kernel'].reshape(2, 12)
  )
  assert found['net/bias'] == sums_by_loop(values['net']['bias'][:, None])
  assert found['step'] == sums_by_loop(np.array([[0]], np.int32))


@pytest.mark.parametrize('on_host', [True, False])
@pytest.mark.parametrize('num_devices', [1, 2, 4, 8])
def test_neither_devices_nor_spare_rows_matter(
  monkeypatch, on_host, num_devices
):
  if not on_host:
    monkeypatch.setattr(checksums, 'HOST_BYTES', 0)
  expected = taken(tree())
  padded = tree(spare=-50 % num_devices)
  mesh = Mesh(np.array(jax.devices()[:num_devices]), ('data',))
  cut, whole = (
    NamedSharding(mesh, PartitionSpec(*axes)) for axes in (['data'], [])
  )
  placed = {
    name: jax.device_put(value, cut if name == 'tables' else whole)
    for name, value in padded.items()
  }
  assert take_checksums(placed, NUM_ROWS) == expected


@hypothesis.given(
  st.integers(0, 199), st.integers(0, 31), st.sampled_from(['item', 'kernel'])
)
@hypothesis.settings(max_examples=200, deadline=None)
def test_every_flipped_bit_shows(element, bit, name):
  values = tree()
  expected = taken(values)
  group = 'tables' if name == 'item' else 'net'
  bits = values[group][name].reshape(-1).view(np.uint32)
  bits[element % bits.size] ^= np.uint32(1 << bit)
  found = taken(values)
  assert found.differing(expected.of_leaf) == [f'{group}/{name}']


def test_rows_that_change_places_show():
  values = tree()
  expected = taken(values).of_leaf
  values['tables']['item'][[3, 4]] = values['tables']['item'][[4, 3]]
  assert taken(values).differing(expected) == ['tables/item']


def test_a_leaf_that_is_missing_or_new_differs():
  found = taken(tree())
  expected = {**found.of_leaf, 'net/more': '0' * 16}
  del expected['step']
  assert found.differing(expected) == ['net/more', 'step']


@pytest.mark.parametrize('odd', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_with_its_step(odd):
  values = tree(spare=3)
  values['tables']['item'][50:] = odd
  check_finite(taken(values), 'before step 7')
  values['net']['bias'][2] = values['tables']['item'][1, 1] = odd
  with pytest.raises(InputError, match='before step 7, net/bias is not finite'):
    check_finite(taken(values), 'before step 7')
