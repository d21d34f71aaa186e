"""absl binaries: flags to a config to one call."""

import sys

from eain_jax.stopping import end_on_signals
from eain_jax.training.compile_cache import keep_programs
from eain_jax.training.memory import keep_freed_memory

# Before any other import: libraries start threads when they are imported, and
# each thread that exists by then has an arena of its own; and jax reads its
# variables when it is imported.
keep_freed_memory()
keep_programs()
# While `python -m` looks for the module, whose imports take seconds.
if sys.argv[:1] == ['-m']:
  end_on_signals()
