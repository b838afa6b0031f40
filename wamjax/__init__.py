"""wamjax: train World-Action Models in JAX, from one laptop to TPU pods."""

__version__ = "0.1.0"
