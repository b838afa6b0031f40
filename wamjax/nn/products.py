"""The product of activations and a kernel, with gradients written out so that they run at the speed of the product.

JAX derives the gradient of a kernel as a transposed product, which XLA on a CPU runs at a third of the speed of a plain
one, and behind which it computes the whole chain of elementwise gradients a second time, column by column.
"""

from __future__ import annotations

import jax
from jax.ad_checkpoint import checkpoint_name

PRODUCT = "product"  # name by which a rematerialisation policy keeps what a product returns


def project(x: jax.Array, kernel: jax.Array, num_in: int = 1, precision: jax.lax.Precision | None = None) -> jax.Array:
    """Multiplies the last dims of ``x`` with the first of ``kernel``.

    Args:
      x: ``[... in]``, or with several in-dims.
      kernel: ``[in out]``, or with several of either, in the dtype of ``x``.
      num_in: Number of in-dims.
      precision: Of an fp32 product, where accelerators would multiply in fewer bits.

    Returns:
      ``[... out]``.
    """
    product: jax.Array = checkpoint_name(_project(x, kernel, num_in, precision), PRODUCT)
    return product


def _product(x: jax.Array, kernel: jax.Array, num_in: int, precision: jax.lax.Precision | None) -> jax.Array:
    dims = (tuple(range(x.ndim - num_in, x.ndim)), tuple(range(num_in)))
    return jax.lax.dot_general(x, kernel, (dims, ((), ())), precision=precision)


_project = jax.custom_vjp(_product, nondiff_argnums=(2, 3))


def _forward(
    x: jax.Array, kernel: jax.Array, num_in: int, precision: jax.lax.Precision | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x, kernel, num_in, precision), (x, kernel)


def _backward(
    num_in: int, precision: jax.lax.Precision | None, kept: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    leading = tuple(range(x.ndim - num_in))
    out_dims = (tuple(range(len(leading), grad.ndim)), tuple(range(num_in, kernel.ndim)))
    grad_x = jax.lax.dot_general(grad, kernel, (out_dims, ((), ())), precision=precision)
    grad_kernel = jax.lax.dot_general(x, grad, ((leading, leading), ((), ())), precision=precision)
    return grad_x, grad_kernel


_project.defvjp(_forward, _backward)
