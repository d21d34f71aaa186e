"""absl binaries: flags to a config to one call."""

from eain_jax.training.compile_cache import keep_programs
from eain_jax.training.memory import keep_freed_memory

# Before any other import: libraries start threads when they are imported, and
# each thread that exists by then has an arena of its own; and jax reads its
# variables when it is imported.
keep_freed_memory()
keep_programs()
