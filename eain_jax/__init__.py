"""EAIN and its baselines for click and purchase prediction, in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from eain_jax.serving.model import load_model

__version__ = '0.1.0'
__all__ = ['__version__', 'load_model']


def __getattr__(name: str) -> Any:
  # When it is asked for: what reads files alone needs no jax.
  if name == 'load_model':
    from eain_jax.serving.model import load_model

    return load_model
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
