"""A binary as a user runs it, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from launch.local import merge_device_count

ROOT = Path(__file__).parents[2]


def call(name, *flags, devices=1, as_shipped=False):
  """What `python -m experiments.NAME FLAGS` prints, and its exit code.

  Args:
    name: of the binary.
    *flags: as they are written; a path is one.
    devices: that the CPU has.
    as_shipped: without the flags by which tests compile faster.
  """
  base = '' if as_shipped else os.environ['XLA_FLAGS']
  environment = {
    **os.environ,
    'XLA_FLAGS': merge_device_count(base, devices),
    'JAX_PLATFORMS': 'cpu',
  }
  return subprocess.run(
    [sys.executable, '-m', f'experiments.{name}', *map(str, flags)],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )


def succeed(name, *flags, **kwargs):
  """What it prints, where it must not fail."""
  done = call(name, *flags, **kwargs)
  assert done.returncode == 0, done.stderr
  return done.stdout
