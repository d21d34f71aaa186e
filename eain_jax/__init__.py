"""EAIN and its baselines for click and purchase prediction, in JAX."""

__version__ = '0.1.0'
