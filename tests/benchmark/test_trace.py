"""The longest operations of a trace, by hand."""

import pytest

from eain_jax.benchmark.trace import operation_scopes, sum_operations


def _event(name, micros, tid=1):
  return {'pid': 7, 'tid': tid, 'dur': micros, 'args': {'hlo_op': name}}


def test_durations_are_summed_by_operation():
  events = [
    _event('dot.1', 3000),
    _event('add.2', 1000),
    _event('dot.1', 4000),
    {'pid': 7, 'tid': 1, 'dur': 9000, 'name': 'python'},
  ]
  first, second = sum_operations(events, {'dot.1': 'jit(f)/mlp/dot'}, 2)
  assert first == {
    'name': 'dot.1',
    'scope': 'jit(f)/mlp/dot',
    'ms': pytest.approx(3.5),
    'share': pytest.approx(7 / 8),
    'runs': pytest.approx(1.0),
  }
  assert (second['name'], second['scope']) == ('add.2', '')


def test_one_line_counts_where_a_device_has_several():
  events = [
    {
      'pid': 7,
      'tid': 2,
      'name': 'thread_name',
      'args': {'name': 'XLA Ops'},
    },
    _event('dot.1', 3000),
    _event('dot.1', 2000, tid=2),
  ]
  assert sum_operations(events, {}, 1)[0]['ms'] == pytest.approx(2.0)


def test_scopes_are_read_from_the_program():
  hlo = """
ENTRY %main {
  %dot.1 = f32[2]{0} dot(%a, %b), metadata={op_name="jit(f)/mlp/dot"}
  ROOT add.2 = f32[2]{0} add(%dot.1, %c), metadata={op_name="jit(f)/add" x=1}
  %copy = f32[2]{0} copy(%a)
}
"""
  assert operation_scopes(hlo) == {
    'dot.1': 'jit(f)/mlp/dot',
    'add.2': 'jit(f)/add',
  }
