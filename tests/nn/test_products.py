"""The product with a kernel: value and gradients equal einsum's, in the dtypes they came in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.nn.products import project


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("pattern", "x_shape", "kernel_shape", "num_in"),
    [
        ("i,io->o", (3,), (3, 4), 1),
        ("bni,io->bno", (2, 5, 3), (3, 4), 1),
        ("bni,ike->bnke", (2, 5, 3), (3, 2, 4), 1),
        ("bnke,keo->bno", (2, 5, 2, 3), (2, 3, 4), 2),
    ],
)
def test_project_equals_einsum_with_gradients(pattern, x_shape, kernel_shape, num_in, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = (jax.random.normal(k, shape, dtype) for k, shape in zip(keys, (x_shape, kernel_shape), strict=False))
    out, pull = jax.vjp(lambda x, kernel: project(x, kernel, num_in), x, kernel)
    expected, expected_pull = jax.vjp(lambda x, kernel: jnp.einsum(pattern, x, kernel), x, kernel)
    probe = jax.random.normal(keys[2], out.shape, dtype)
    for ours, theirs in zip((out, *pull(probe)), (expected, *expected_pull(probe)), strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(
            ours.astype(jnp.float32), theirs.astype(jnp.float32), rtol=1e-5 if dtype == jnp.float32 else 2e-2, atol=1e-5
        )
