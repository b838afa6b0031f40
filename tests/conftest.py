"""What every test runs under: 8 CPU devices, checked array types, no display.

JAX is configured here, before anything creates its backend. The devices are set through JAX's own configuration and
not through the environment, so that processes which tests start choose for themselves.
"""

import os

import jax
from jaxtyping import install_import_hook

os.environ.setdefault("MPLBACKEND", "Agg")

if "JAX_PLATFORMS" not in os.environ:
    jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# Shapes and dtypes in signatures are checked under pytest only; in a run they cost nothing.
install_import_hook("wamjax", "beartype.beartype")
