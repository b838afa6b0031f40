"""The product with a kernel: value and gradients equal einsum's, in the dtypes they came in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.nn.products import FROM_HEADS, TO_HEADS, project


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("pattern", "x_shape", "kernel_shape", "spec"),
    [
        ("i,io->o", (3,), (3, 4), None),
        ("bni,io->bno", (2, 5, 3), (3, 4), None),
        ("bnd,dke->bkne", (2, 5, 3), (3, 2, 4), TO_HEADS),
        ("bkne,ked->bnd", (2, 2, 5, 3), (2, 3, 4), FROM_HEADS),
    ],
)
def test_project_equals_einsum_with_gradients(pattern, x_shape, kernel_shape, spec, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = (jax.random.normal(k, shape, dtype) for k, shape in zip(keys, (x_shape, kernel_shape), strict=False))
    out, pull = jax.vjp(lambda x, kernel: project(x, kernel, spec), x, kernel)
    expected, expected_pull = jax.vjp(lambda x, kernel: jnp.einsum(pattern, x, kernel), x, kernel)
    probe = jax.random.normal(keys[2], out.shape, dtype)
    for ours, theirs in zip((out, *pull(probe)), (expected, *expected_pull(probe)), strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(
            ours.astype(jnp.float32), theirs.astype(jnp.float32), rtol=1e-5 if dtype == jnp.float32 else 2e-2, atol=1e-5
        )
