"""What a compiled program sends between devices, read from its HLO."""

import collections
import math
import re
from typing import Any

OPERATIONS = (
  'all-reduce',
  'all-gather',
  'all-to-all',
  'reduce-scatter',
  'ragged-all-to-all',
  'collective-permute',
  'collective-broadcast',
)
_BITS = {'pred': 8, 'bf16': 16}
# `-start` is the first half of an operation whose `-done` has its result.
_LINE = re.compile(
  r'^\s*(?:ROOT )?%?[\w.\-]+ = (?P<shape>.*?) '
  rf'(?P<op>{"|".join(OPERATIONS)})(?:-done)?\(',
)
_ARRAY = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')


def _bytes(shape: str) -> int:
  """Of an HLO shape such as 'f32[8,16]{1,0}' or a tuple of them."""
  total = 0
  for dtype, dims in _ARRAY.findall(shape):
    bits = _BITS.get(dtype) or int(re.sub(r'\D', '', dtype) or 0)
    total += bits * math.prod(int(n) for n in dims.split(',') if n) // 8
  return total


def collectives(hlo: str) -> list[dict[str, Any]]:
  """The collectives of one device's program, the largest first.

  Args:
    hlo: text of the optimised program.

  Returns:
    dicts of `op`, `bytes` of one result, and `count`. What is in a loop counts
    once.
  """
  found: collections.Counter = collections.Counter()
  for line in hlo.splitlines():
    match = _LINE.match(line)
    if match:
      found[match['op'], _bytes(match['shape'])] += 1
  rows = [
    {'op': op, 'bytes': size, 'count': count}
    for (op, size), count in found.items()
  ]
  return sorted(rows, key=lambda row: -row['bytes'] * row['count'])


def collective_bytes(hlo: str) -> int:
  """Of all results of all collectives, on one device."""
  return sum(row['bytes'] * row['count'] for row in collectives(hlo))
