"""Rotary tables against the formula, written out position by position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.layout import video_layout
from wamjax.nn.rotary import apply_rotary, rotary_table, split_head_dim


@pytest.mark.parametrize(
    ("head_dim", "dims"), [(128, (44, 42, 42)), (64, (24, 20, 20)), (20, (8, 6, 6)), (24, (8, 8, 8))]
)
def test_split_of_head_dims_is_that_of_wan(head_dim, dims):
    assert split_head_dim(head_dim) == dims


@pytest.mark.parametrize(("scale", "step"), [((1.0, 1.0, 1.0), 1.0), ((2.0, 3.0, 1.5), 2.4)])
def test_rotary_table_equals_the_formula_whether_the_frame_step_is_traced_or_not(scale, step):
    layout_pass = video_layout((3, 2, 4)).full_pass()
    expected = []
    for position in np.ndindex(3, 2, 4):
        row = []
        for axis, (width, place) in enumerate(zip((8, 6, 6), position, strict=True)):
            theta = 10_000.0 * scale[axis] ** (width / (width - 2))
            place = place * step if axis == 0 else place
            row += [place * theta ** (-2 * pair / width) for pair in range(width // 2)]
        expected.append(row)
    table = rotary_table(layout_pass, 20, 10_000.0, scale=scale, frame_step=step)
    np.testing.assert_allclose(table.cos, np.cos(expected), atol=1e-7)
    np.testing.assert_allclose(table.sin, np.sin(expected), atol=1e-7)
    traced = jax.jit(lambda s: rotary_table(layout_pass, 20, 10_000.0, scale=scale, frame_step=s))(jnp.asarray(step))
    np.testing.assert_allclose(traced.cos, table.cos, atol=1e-6)
    np.testing.assert_allclose(traced.sin, table.sin, atol=1e-6)


def test_apply_rotary_scores_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    vector = jnp.asarray(rng.standard_normal(20), jnp.float32)
    table = rotary_table(video_layout((4, 3, 2)).full_pass(), 20, 10_000.0)
    rotated = apply_rotary(jnp.broadcast_to(vector, (1, 1, 24, 20)), table, "float32")[0, 0].reshape(4, 3, 2, 20)
    scores = jnp.einsum("thwe,THWe->thwTHW", rotated, rotated)
    np.testing.assert_allclose(scores[0, 0, 0, 1, 2, 1], scores[2, 0, 0, 3, 2, 1], rtol=1e-5)
    assert abs(float(scores[0, 0, 0, 1, 0, 0] - scores[0, 0, 0, 2, 0, 0])) > 1e-2
