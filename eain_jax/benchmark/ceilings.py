"""What the machine can do at most, measured in this very process.

A step's share of these tells how much a better program could still gain: a
large matrix product for arithmetic, a stream over arrays that no cache holds
for memory.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Sides of the square matrices, and bytes of an array of the stream.
MATMUL_SIZE = {'cpu': 2048}
MATMUL_SIZE_ELSEWHERE = 8192
STREAM_BYTES = {'cpu': 256 * 2**20}
# Or the launch would be a good part of the time.
STREAM_BYTES_ELSEWHERE = 2**30
REPEATS = 7


def best_seconds(step: Callable[[], object], repeats: int = REPEATS) -> float:
  """The shortest of several finished runs, after one that compiles."""
  jax.block_until_ready(step())
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(step())
    seconds.append(time.perf_counter() - start)
  return min(seconds)


def matmul_ceiling(dtype: str, size: int | None = None) -> float:
  """FLOP/s of a square matrix product of `size` on one device.

  At jax's default precision, as the models' own products are.
  """
  platform = jax.local_devices()[0].platform
  size = size or MATMUL_SIZE.get(platform, MATMUL_SIZE_ELSEWHERE)
  key_a, key_b = jax.random.split(jax.random.key(0))
  a = jax.random.normal(key_a, (size, size), dtype)
  b = jax.random.normal(key_b, (size, size), dtype)
  multiply = jax.jit(jnp.matmul)
  return 2 * size**3 / best_seconds(lambda: multiply(a, b))


def memory_ceiling(num_bytes: int | None = None) -> float:
  """Bytes/s, read and written, of a <- a / 2 + b on one device, in place.

  Args:
    num_bytes: of each of the two arrays.
  """
  platform = jax.local_devices()[0].platform
  num_bytes = num_bytes or STREAM_BYTES.get(platform, STREAM_BYTES_ELSEWHERE)
  scale_and_add = jax.jit(lambda a, b: 0.5 * a + b, donate_argnums=0)
  a = jnp.ones(num_bytes // 4, jnp.float32)
  b = jnp.ones(num_bytes // 4, jnp.float32)

  def step():
    nonlocal a
    a = scale_and_add(a, b)
    return a

  return 3 * b.nbytes / best_seconds(step)


def measure_ceilings(dtypes: set[str]) -> dict[str, float]:
  """FLOP/s as `matmul_<dtype>` and bytes/s as `memory`, of one device."""
  return {
    **{f'matmul_{name}': matmul_ceiling(name) for name in sorted(dtypes)},
    'memory': memory_ceiling(),
  }
