"""Keeps compiled programs between processes, in the user's cache folder.

A step takes seconds to compile and is the same in every run of one shape. What
is set here are jax's own variables, where the user has not set them, so jax
need not be imported and can still be told otherwise.
"""

import hashlib
import os
import platform
from collections.abc import MutableMapping
from pathlib import Path

# Shorter compilations are not worth a file.
MIN_SECONDS = '0.5'


def _machine() -> str:
  """A name for machines that can run each other's programs.

  A program for a CPU uses the instructions that its compiler found; in a home
  folder that several machines share, another one may not have them.
  """
  told = platform.machine() + platform.processor()
  cpuinfo = Path('/proc/cpuinfo')
  if cpuinfo.is_file():
    lines = cpuinfo.read_text(errors='replace').splitlines()
    names = ('flags', 'Features', 'model name')
    told += ''.join(sorted({line for line in lines if line.startswith(names)}))
  return hashlib.sha256(told.encode()).hexdigest()[:12]


def keep_programs(environment: MutableMapping[str, str] = os.environ) -> None:
  """Names jax a folder for its compilation cache; call before it is imported.

  `$XDG_CACHE_HOME/eain-jax`, or `~/.cache/eain-jax`. Nothing happens where
  JAX_COMPILATION_CACHE_DIR is set, or where the user has no home folder;
  JAX_ENABLE_COMPILATION_CACHE=false turns the cache off.
  """
  if 'JAX_COMPILATION_CACHE_DIR' in environment:
    return
  try:
    home = environment.get('XDG_CACHE_HOME') or Path.home() / '.cache'
  except RuntimeError:
    return  # A user without a home, as in some containers, has no cache.
  folder = Path(home) / 'eain-jax' / f'programs-{_machine()}'
  environment['JAX_COMPILATION_CACHE_DIR'] = str(folder)
  environment.setdefault(
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', MIN_SECONDS
  )
