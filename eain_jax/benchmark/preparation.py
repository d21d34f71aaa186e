"""What preparing raw Amazon files costs, measured in a process of its own.

  python -m eain_jax.benchmark.preparation REVIEWS METADATA OUTPUT_DIR

prints the figures as JSON; `measure_preparation` makes the files and runs it.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from eain_jax.benchmark import host
from eain_jax.benchmark.raw_files import write_raw_files
from eain_jax.config import PrepareConfig
from eain_jax.data.prepare import prepare
from eain_jax.errors import InputError


def _cpu_seconds() -> float:
  """Of this process and the children that it has waited for."""
  usages = (
    resource.getrusage(resource.RUSAGE_SELF),
    resource.getrusage(resource.RUSAGE_CHILDREN),
  )
  return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure_here(
  reviews: Path, metadata: Path, output_dir: Path
) -> dict[str, Any]:
  """Prepares a dataset in this process: seconds, and its peak memory."""
  config = PrepareConfig(reviews=(str(reviews),), metadata=(str(metadata),))
  start, cpu = time.perf_counter(), _cpu_seconds()
  manifest = prepare(config, output_dir)
  wall, cpu = time.perf_counter() - start, _cpu_seconds() - cpu
  lines = manifest['counts']['lines']
  megabytes = (reviews.stat().st_size + metadata.stat().st_size) / 1e6
  return {
    'lines': lines,
    'megabytes': megabytes,
    'wall_s': wall,
    'cpu_s': cpu,
    'peak_rss_mb': host.peak_rss_mb(),
    'reviews_per_second': lines / wall,
    'megabytes_per_second': megabytes / wall,
  }


def measure_preparation(num_reviews: int, seed: int) -> dict[str, Any]:
  """Makes raw files in a temporary folder and prepares them in a child.

  A child, because a peak of memory and the CPU time of threads belong to a
  whole process.

  Raises:
    InputError: the child failed.
  """
  with tempfile.TemporaryDirectory() as folder:
    reviews, metadata = write_raw_files(Path(folder), num_reviews, seed)
    done = subprocess.run(
      [
        sys.executable,
        '-m',
        'eain_jax.benchmark.preparation',
        str(reviews),
        str(metadata),
        str(Path(folder, 'dataset')),
      ],
      capture_output=True,
      text=True,
      check=False,
    )
  if done.returncode:
    reason = (done.stderr.strip().splitlines() or ['no reason given'])[-1]
    raise InputError(f'the preparation ended with {done.returncode}: {reason}')
  return json.loads(done.stdout.splitlines()[-1])


if __name__ == '__main__':
  print(json.dumps(measure_here(*map(Path, sys.argv[1:4]))))
