"""Keeps freed memory with the process, where glibc would hand it back.

A training step on a CPU allocates and frees hundreds of megabytes. glibc maps
and unmaps blocks of that size, and the page faults that follow took nearly half
of a DIN step's CPU time here (76 of 163 ms; 8 of 107 with these settings).
"""

import ctypes
import sys

# Of malloc.h; values are C ints.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
  """Tells glibc to reuse large blocks; call before the first computation.

  One arena, because only the main one can hold blocks of any size. Returns
  False, and does nothing, where the C library is another.
  """
  if sys.platform != 'linux':
    return False
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is None:
    return False
  settings = [
    (_M_ARENA_MAX, 1),
    (_M_MMAP_THRESHOLD, _MOST),
    (_M_TRIM_THRESHOLD, _MOST),
  ]
  return all([mallopt(name, value) == 1 for name, value in settings])


def release_freed_memory() -> None:
  """Gives freed memory back once: call after a compilation.

  A compiler leaves a hundred megabytes in pieces that no step can use. Does
  nothing where the C library is another.
  """
  trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
  if trim is not None:
    trim(0)
