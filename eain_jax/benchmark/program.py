"""What a compiled step asks of the machine: products, bytes, memory.

XLA's own counts know nothing of products that a backend has fused into calls
of a library, so products are counted in the step's jaxpr too.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def _inner_jaxprs(value: Any) -> Iterator[Jaxpr]:
  """The jaxprs in a parameter of an equation."""
  if isinstance(value, ClosedJaxpr):
    yield value.jaxpr
  elif isinstance(value, Jaxpr):
    yield value
  elif isinstance(value, (tuple, list)):
    for entry in value:
      yield from _inner_jaxprs(entry)


def _product_flops(equation) -> int:
  """2 x (rows x columns of the result) x (length of the sums).

  Products with a vector, as in a penalty's norm or a sum over rows, are no work
  for a matrix unit: they count nothing.
  """
  if min(len(factor.aval.shape) for factor in equation.invars) < 2:
    return 0
  (contracting, _), _ = equation.params['dimension_numbers']
  left = equation.invars[0].aval.shape
  summed = math.prod(left[axis] for axis in contracting)
  return 2 * math.prod(equation.outvars[0].aval.shape) * summed


def _runs(equation) -> int:
  """How often the body of an equation runs, on all devices together."""
  params = equation.params
  if equation.primitive.name == 'scan':
    return params['length']
  if equation.primitive.name == 'shard_map':
    return params['mesh'].size
  return params.get('axis_size', 1)


def _jaxpr_flops(jaxpr: Jaxpr) -> int:
  flops = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      flops += _product_flops(equation)
      continue
    inner = [
      _jaxpr_flops(body)
      for value in equation.params.values()
      for body in _inner_jaxprs(value)
    ]
    # Of several branches one runs; of while's two bodies both do.
    is_choice = equation.primitive.name == 'cond'
    total = max(inner, default=0) if is_choice else sum(inner)
    flops += _runs(equation) * total
  return flops


def matmul_flops(function, *args, static_argnums: tuple[int, ...] = ()) -> int:
  """FLOPs of the matrix products of `function(*args)`, over all devices.

  A while loop counts as one turn, because nobody knows how many it takes.
  """
  trace = jax.make_jaxpr(function, static_argnums=static_argnums)
  return _jaxpr_flops(trace(*args).jaxpr)


# Names for what is there already, or what is written where it is used.
_FREE = {
  'broadcast_in_dim',
  'convert_element_type',
  'iota',
  'reshape',
  'squeeze',
  'stop_gradient',
}


def _size(variable) -> int:
  aval = variable.aval
  return math.prod(aval.shape) * getattr(aval.dtype, 'itemsize', 0)


def _traffic(equation) -> int:
  """Bytes that one operation reads and writes if it is fused with no other."""
  name = equation.primitive.name
  if name in _FREE:
    return 0
  if name == 'gather':
    return _size(equation.invars[1]) + 2 * _size(equation.outvars[0])
  if name.startswith('scatter'):
    # Rows are read, changed and written where they lie.
    return _size(equation.invars[1]) + 3 * _size(equation.invars[2])
  variables = [*equation.invars, *equation.outvars]
  return sum(_size(variable) for variable in variables)


def _jaxpr_traffic(jaxpr: Jaxpr) -> int:
  total = 0
  for equation in jaxpr.eqns:
    inner = [
      _jaxpr_traffic(body)
      for value in equation.params.values()
      for body in _inner_jaxprs(value)
    ]
    name = equation.primitive.name
    if not inner or name.startswith('scatter'):
      # A scatter's body is one addition.
      total += _traffic(equation)
      continue
    runs = equation.params['length'] if name == 'scan' else 1
    total += runs * (max(inner) if name == 'cond' else sum(inner))
  return total


def unfused_bytes(function, *args) -> int:
  """Bytes that `function(*args)` moves on one device, if nothing is fused.

  Each operation reads what it is given and writes its result; gathers and
  scatters touch the rows that they name, where XLA's count has them touch whole
  tables. Of a `shard_map` it is what one device moves.
  """
  return _jaxpr_traffic(jax.make_jaxpr(function)(*args).jaxpr)


def xla_counts(compiled: Any) -> dict[str, int | None]:
  """XLA's own counts of a compiled program, on one device.

  `flops` and `bytes_accessed` of the optimised program, and the bytes of its
  `argument`, `output` and `temporary` buffers, of which `aliased` are both
  argument and output. None where a backend does not tell.
  """
  cost = compiled.cost_analysis() or {}
  memory = compiled.memory_analysis()
  size = lambda name: getattr(memory, f'{name}_size_in_bytes', None)
  count = lambda name: int(cost[name]) if name in cost else None
  return {
    'flops': count('flops'),
    'bytes_accessed': count('bytes accessed'),
    'argument_bytes': size('argument'),
    'output_bytes': size('output'),
    'temporary_bytes': size('temp'),
    'aliased_bytes': size('alias'),
  }
