"""Interpolating a video stack's weights for a narrower expert, by hand and against PyTorch."""

import importlib.util

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from wamjax.weights.recipe import interpolate_expert, resize_linear, torch_linear


@pytest.mark.parametrize(
    ("values", "shape", "expected"),
    [
        ([0, 1, 2, 3], (3,), [0, 1.5, 3]),
        ([0, 6], (4,), [0, 2, 4, 6]),
        ([5, 6, 7], (1,), [5]),
        ([5], (2,), [5, 5]),
        ([[0, 2, 4], [10, 12, 14]], (3, 2), [[0, 4], [5, 9], [10, 14]]),
    ],
)
def test_resizing_equals_the_hand_computed_case(values, shape, expected):
    np.testing.assert_allclose(resize_linear(np.array(values, np.float32), shape), expected, rtol=1e-6)


def test_expert_weight_is_scaled_where_the_summed_dim_shrinks_and_nowhere_else():
    weight = np.array([[0, 2, 4, 6], [8, 10, 12, 14]], np.float32)
    # sqrt(4 / 2) for two inputs instead of four; a change of outputs, or a vector, is not scaled.
    np.testing.assert_allclose(interpolate_expert(weight, (2, 2)), np.sqrt(2) * np.array([[0, 6], [8, 14]]), rtol=1e-6)
    np.testing.assert_allclose(interpolate_expert(weight, (3, 4))[1], [4, 6, 8, 10], rtol=1e-6)
    np.testing.assert_allclose(interpolate_expert(weight[0], (2,)), [0, 6], rtol=1e-6)
    np.testing.assert_array_equal(interpolate_expert(weight, weight.shape), weight)


def test_half_precision_weight_is_interpolated_in_fp32():
    weight = np.array([1, 1.0078125], ml_dtypes.bfloat16)  # neighbours in bfloat16
    resized = resize_linear(weight, (3,))
    assert resized.dtype == np.float32
    np.testing.assert_array_equal(resized, [1, 1.00390625, 1.0078125])


def test_linear_layer_is_drawn_within_the_bound_of_its_inputs():
    values = torch_linear(16).init(jax.random.key(0), (16, 200), jnp.float32)
    assert jnp.abs(values).max() <= 0.25
    assert jnp.std(values) == pytest.approx(0.5 / 12**0.5, rel=0.05)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the parity extra (torch)")
@pytest.mark.parametrize("shapes", [((96, 48), (32, 17)), ((1, 6, 64), (1, 6, 20)), ((5, 7), (11, 13)), ((40,), (9,))])
def test_resizing_equals_torch_interpolate_dim_by_dim(shapes):
    import torch

    source, wanted = shapes
    array = np.random.default_rng(0).normal(size=source).astype(np.float32)
    tensor = torch.from_numpy(array)
    for dim, size in enumerate(wanted):
        last = tensor.movedim(dim, -1)
        flat = last.reshape(-1, 1, last.shape[-1])
        if flat.shape[-1] != size:
            flat = torch.nn.functional.interpolate(flat, size=size, mode="linear", align_corners=True)
        tensor = flat.reshape(*last.shape[:-1], size).movedim(-1, dim)
    np.testing.assert_allclose(resize_linear(array, wanted), tensor.numpy(), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the parity extra (torch)")
def test_linear_layer_is_drawn_as_torch_draws_it():
    import torch

    torch.manual_seed(0)
    layer = torch.nn.Linear(50, 4000)
    for ours, theirs in (((50, 4000), layer.weight), ((4000,), layer.bias)):
        values = np.asarray(torch_linear(50).init(jax.random.key(0), ours, jnp.float32))
        reference = theirs.detach().numpy()
        quantiles = np.linspace(0, 1, 11)
        np.testing.assert_allclose(
            np.quantile(values, quantiles), np.quantile(reference, quantiles), atol=0.02 * np.abs(reference).max() * 2
        )
