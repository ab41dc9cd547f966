"""Goku's joint image and video flow models, trained in JAX."""

__version__ = "0.1.0"
