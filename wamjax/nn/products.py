"""The product of activations and a kernel, with gradients written out so that they run at the speed of the product.

JAX derives the gradient of a kernel as a transposed product, which XLA on a CPU runs at a third of the speed of a plain
one, and behind which it computes the whole chain of elementwise gradients a second time, column by column.

In explicit blocks activations and their gradients enter and leave a product row-major: a TPU's compiler otherwise lets
products choose the layout of heads, and copies them between product, exchange and attention kernel.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from wamjax.config.choices import Matmul
from wamjax.nn.quantised import quantised_einsum
from wamjax.parallel.explicit import row_major

PRODUCT = "product"  # name by which a rematerialisation policy keeps what a product returns

TO_HEADS = "bnd,dke->bkne"  # tokens to heads: one product writes them heads first at no cost on a TPU
FROM_HEADS = "bkne,ked->bnd"

_MATMUL: contextvars.ContextVar[Matmul] = contextvars.ContextVar("wamjax_matmul", default="")


@contextlib.contextmanager
def multiplying_in(matmul: Matmul) -> Iterator[None]:
    """Makes ``project`` round operands to a format while tracing, but for products that name a precision.

    The product and the gradient of the activations are of rounded operands; the gradient of the kernel is not. It sums
    over all tokens, few of which have large gradients: the others would be lost.

    Args:
      matmul: The format; "" for none.
    """
    token = _MATMUL.set(matmul)
    try:
        yield
    finally:
        _MATMUL.reset(token)


def project(
    x: jax.Array, kernel: jax.Array, spec: str | None = None, precision: jax.lax.Precision | None = None
) -> jax.Array:
    """Multiplies ``x`` with a kernel.

    Args:
      x: Activations.
      kernel: In the dtype of ``x``.
      spec: einsum of the two in which every dim is in two of the three terms; None for ``[... i] [i o] -> [... o]``.
      precision: Of an fp32 product, where accelerators would multiply in fewer bits.

    Returns:
      The product in the dtype of ``x``.
    """
    matmul = _MATMUL.get() if precision is None else ""
    product = row_major(_project(row_major(x), kernel, spec or _dense(x.ndim), precision, matmul))
    named: jax.Array = checkpoint_name(product, PRODUCT)
    return named


def _dense(num_dims: int) -> str:
    """Returns the einsum of a dense layer on ``num_dims`` dims."""
    lead = "abcdefgh"[: num_dims - 1]
    return f"{lead}i,io->{lead}o"


def _product(
    x: jax.Array, kernel: jax.Array, spec: str, precision: jax.lax.Precision | None, matmul: Matmul
) -> jax.Array:
    if matmul:
        return quantised_einsum(spec, x, kernel, matmul, is_gradient=False)
    return jnp.einsum(spec, x, kernel, precision=precision)


_project = jax.custom_vjp(_product, nondiff_argnums=(2, 3, 4))


def _forward(
    x: jax.Array, kernel: jax.Array, spec: str, precision: jax.lax.Precision | None, matmul: Matmul
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x, kernel, spec, precision, matmul), (x, kernel)


def _backward(
    spec: str,
    precision: jax.lax.Precision | None,
    matmul: Matmul,
    kept: tuple[jax.Array, jax.Array],
    grad: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    operands, out = spec.split("->")
    left, right = operands.split(",")
    if matmul:
        grad_x = quantised_einsum(f"{out},{right}->{left}", grad, kernel, matmul, is_gradient=True)
    else:
        grad_x = jnp.einsum(f"{out},{right}->{left}", grad, kernel, precision=precision)
    grad_kernel = jnp.einsum(f"{left},{out}->{right}", x, grad, precision=precision)
    return grad_x, grad_kernel


_project.defvjp(_forward, _backward)
