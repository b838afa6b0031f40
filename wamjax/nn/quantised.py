"""Products of operands that are rounded to 8 bits just before they are multiplied.

Owns how they are rounded; which products are is ``nn.products``'s. Rounding is dynamic: every row of activations and
every column of a kernel (all that is not summed over) is divided by its own largest magnitude over that of the format.

Source: the scaling of SwitchBack (Wortsman et al., arXiv 2304.13013) for int8 and of Micikevicius et al. (arXiv
2209.05433) for fp8 (E4M3 for what is multiplied, E5M2 for gradients), by ``qwix``. What differs: fp8 scales are per row
and column, not per tensor.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp

from wamjax.config.choices import Matmul
from wamjax.errors import ConfigError

_FORMATS = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}
_GRADIENT_FORMATS = {"int8": jnp.int8, "fp8": jnp.float8_e5m2}


def quantised_einsum(spec: str, x: jax.Array, kernel: jax.Array, matmul: Matmul, *, is_gradient: bool) -> jax.Array:
    """Returns ``einsum(spec, x, kernel)`` of both operands rounded, in the dtype of ``x``; sums are fp32 or int32.

    Args:
      spec: einsum of the two in which every dim is in two of the three terms.
      x: Activations or a gradient.
      kernel: The kernel.
      matmul: Format; not "".
      is_gradient: Whether ``x`` is a gradient, whose values span more powers of two.

    Raises:
      ConfigError: The extra is not installed.
    """
    qwix = require_qwix(matmul)
    operands, out = spec.split("->")
    formats = (_GRADIENT_FORMATS if is_gradient else _FORMATS)[matmul], _FORMATS[matmul]
    rounded = [
        qwix.quantize(
            array,
            form,
            channelwise_axes=[dim for dim, name in enumerate(names) if name in out],
            scale_dtype=jnp.float32,
        )
        for array, form, names in zip((x, kernel), formats, operands.split(","), strict=True)
    ]
    return qwix.einsum(spec, *rounded, preferred_element_type=jnp.float32).astype(x.dtype)


@functools.cache
def require_qwix(matmul: Matmul) -> Any:
    """Returns the library.

    Raises:
      ConfigError: It is not installed.
    """
    try:
        return importlib.import_module("qwix")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"config.model.matmul={matmul} needs the quantised extra (pip install 'wamjax[quantised]'); install it, or "
            "leave config.model.matmul empty"
        ) from error
