"""Published figures of TPU chips, and how long their networks take.

Figures: Google Cloud's pages on each generation's architecture. They are what a
chip can do at most; nothing here was measured.
"""

import dataclasses
import math

# Of a collective, beside its bytes: a hop from chip to chip.
HOP_SECONDS = 1e-6


@dataclasses.dataclass(frozen=True)
class Chip:
  """A generation of TPU.

  Attributes:
    flops: matrix products a second, bfloat16.
    memory_bytes: HBM.
    memory_bandwidth: of HBM, bytes a second.
    link_bandwidth: of one link to a neighbour, one way, bytes a second.
    dimensions: of the torus; a chip has two links in each.
    pod_chips: of the largest slice.
    network_bandwidth: between slices, a chip's share, bytes a second; None
      where a pod holds more chips than are predicted for.
  """

  flops: float
  memory_bytes: float
  memory_bandwidth: float
  link_bandwidth: float
  dimensions: int
  pod_chips: int
  network_bandwidth: float | None


# Links: the chip's interconnect, one way, over its ports: 2400 Gbps over 6,
# 1600 over 4, 4800 over 6, 3200 over 4. Networks: 6.4 and 25.6 Tbps a pod of
# 256; of v4 and v5p, whose pods hold more than a thousand chips, none is used.
CHIPS = {
  'v4': Chip(275e12, 32 * 2**30, 1.228e12, 50e9, 3, 4096, None),
  'v5e': Chip(197e12, 16e9, 0.819e12, 50e9, 2, 256, 3.125e9),
  'v5p': Chip(459e12, 95e9, 2.765e12, 100e9, 3, 8960, None),
  'v6e': Chip(918e12, 32e9, 1.6e12, 100e9, 2, 256, 12.5e9),
}


def slice_shape(chip: Chip, num_chips: int) -> tuple[int, ...]:
  """The sides of a slice of so many chips, as nearly equal as powers of two.

  Of more chips than a pod has, those of one pod.
  """
  left = int(math.log2(min(num_chips, chip.pod_chips)))
  sides = []
  for dimension in range(chip.dimensions, 0, -1):
    own = left // dimension
    sides.append(2**own)
    left -= own
  return tuple(sides)


def _wraps(chip: Chip, side: int) -> bool:
  """Whether the ends of a side are joined: rings need whole sides."""
  return side >= 16 if chip.dimensions == 2 else side >= 4 and side % 4 == 0


def collective_seconds(
  chip: Chip, shape: tuple[int, ...], num_slices: int, op: str, size: int
) -> float:
  """The least time of a collective whose result is `size` bytes on a chip.

  All-reduce: every byte leaves and enters a chip twice, over all of its links.
  All others, as an all-to-all: of what is sent, half crosses the middle of the
  longest side. Between slices: what leaves a slice, over its network.

  Args:
    chip: the generation.
    shape: sides of a slice.
    num_slices: of that shape.
    op: of `collectives.OPERATIONS`.
    size: bytes.
  """
  chips = math.prod(shape)
  if chips * num_slices == 1:
    return 0.0
  longest = max(shape)
  links = sum((2 if _wraps(chip, side) else 1) for side in shape if side > 1)
  hops = sum(side // 2 if _wraps(chip, side) else side - 1 for side in shape)
  seconds = hops * HOP_SECONDS
  if chips > 1:
    if op == 'all-reduce':
      share = (chips - 1) / chips
      seconds += 2 * size * share / (links * chip.link_bandwidth)
    else:
      middle = chips // longest * (2 if _wraps(chip, longest) else 1)
      seconds += size * chips / 4 / (middle * chip.link_bandwidth)
  if num_slices > 1:
    assert chip.network_bandwidth is not None
    leaves = (num_slices - 1) / num_slices
    if op == 'all-reduce':
      # Each chip sends on its share of what its slice has added up.
      leaves = 2 * leaves / chips
    seconds += size * leaves / chip.network_bandwidth + 10 * HOP_SECONDS
  return seconds
