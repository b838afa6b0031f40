"""Products of rounded operands: how far off they are, what their gradients are, what is asked for without the extra."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.config.choices import Matmul
from wamjax.errors import ConfigError
from wamjax.nn import quantised
from wamjax.nn.products import FROM_HEADS, TO_HEADS, multiplying_in, project

needs_qwix = pytest.mark.skipif(importlib.util.find_spec("qwix") is None, reason="needs the quantised extra")


def operands(shape, kernel, seed=0):
    """Rows and columns of very different sizes, as activations have."""
    first, second = jax.random.split(jax.random.key(seed))
    rows = 10.0 ** jnp.linspace(-3, 3, shape[1])[None, :, None]
    return jax.random.normal(first, shape) * rows, jax.random.normal(second, kernel)


# Half a unit in the last place of the largest of a row: 1/254 for int8, 1/16 for E4M3 and 1/8 for E5M2 of each value.
@needs_qwix
@pytest.mark.parametrize(("matmul", "error", "gradient_error"), [("int8", 0.015, 0.015), ("fp8", 0.06, 0.08)])
@pytest.mark.parametrize(
    ("shape", "kernel", "spec"),
    [((2, 6, 64), (64, 32), None), ((2, 6, 64), (64, 4, 8), TO_HEADS)],
    ids=["dense", "heads"],
)
def test_rows_of_any_size_are_equally_exact_and_so_are_gradients(matmul, error, gradient_error, shape, kernel, spec):
    x, w = operands(shape, kernel)

    def run(x, w):
        y, pull = jax.vjp(lambda x, w: project(x, w, spec), x, w)
        return y, *pull(jnp.ones_like(y) * jax.random.normal(jax.random.key(2), y.shape))

    exact = run(x, w)
    with multiplying_in(matmul):
        rounded = run(x, w)
    token_dim = 2 if spec else 1
    for value, expected, tolerance, dim in zip(
        rounded[:2], exact[:2], (error, gradient_error), (token_dim, 1), strict=True
    ):
        norms = [
            np.linalg.norm(np.moveaxis(np.asarray(a), dim, 0).reshape(6, -1), axis=1)
            for a in (value - expected, expected)
        ]
        assert np.all(norms[0] < tolerance * norms[1])
        assert np.all(norms[0] > 0), "operands really are rounded"
    np.testing.assert_array_equal(rounded[2], exact[2], "the gradient of a kernel is not rounded")


@needs_qwix
def test_products_run_in_eight_bits():
    x, w = operands((2, 6, 64), (64, 32))
    formats: tuple[tuple[Matmul, str], ...] = (("int8", "i8"), ("fp8", "f8_e4m3fn"))
    for matmul, name in formats:
        with multiplying_in(matmul):
            text = str(jax.make_jaxpr(lambda x, w: project(x, w))(x, w))
        assert f"{name}[2,6,64]" in text
        assert f"{name}[64,32]" in text


@needs_qwix
def test_products_that_name_a_precision_are_not_rounded():
    heads, kernel = jnp.ones((1, 2, 3, 4)) / 3, jnp.ones((2, 4, 8)) / 7
    exact = project(heads, kernel, FROM_HEADS, jax.lax.Precision.HIGHEST)
    with multiplying_in("int8"):
        np.testing.assert_array_equal(project(heads, kernel, FROM_HEADS, jax.lax.Precision.HIGHEST), exact)


def test_without_the_extra_the_option_is_refused(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "qwix", None)
    quantised.require_qwix.cache_clear()
    with multiplying_in("int8"), pytest.raises(ConfigError, match=r"matmul=int8 needs the quantised extra"):
        project(jnp.ones((2, 3)), jnp.ones((3, 4)))
