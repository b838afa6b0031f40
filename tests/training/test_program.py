"""One program on every mesh: the same losses, gradients and parameters; and an optimizer that matches optax."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from tests.tiny import TINY
from wamjax.batch import VideoStatistics, fake_batch
from wamjax.config.schema import ParallelConfig
from wamjax.errors import ConfigError
from wamjax.parallel.axes import resolve_axis_sizes
from wamjax.parallel.mesh import build_mesh, make_global_batch
from wamjax.training.program import build_program, describe_sharding

STATISTICS = VideoStatistics(mean=np.full((16, 24, 3), 100.0, np.float32), std=50.0)


@functools.cache
def _run(parallel, num_devices, num_steps=2):
    config = dataclasses.replace(TINY, parallel=parallel)
    mesh = build_mesh(parallel, jax.devices()[:num_devices])
    program = build_program(config, mesh)
    state, metrics, compiled = program.init(STATISTICS), [], None
    for step in range(num_steps):
        batch = make_global_batch(fake_batch(config, 8, seed=step), mesh)
        compiled = compiled or program.step.lower(state, batch).compile()  # pyright: ignore[reportFunctionMemberAccess] - jitted
        state, values = compiled(state, batch)
        metrics.append(jax.device_get(values))
    assert compiled is not None
    return program, jax.device_get(state), metrics, compiled.as_text()


@pytest.fixture(scope="module")
def single():
    return _run(ParallelConfig(fsdp=1), 1)


SPLIT_THREE_WAYS: dict[str, Any] = {"fsdp": 2, "context": 2, "tensor": 2}


@pytest.mark.parametrize(
    "axes",
    [
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"fsdp": 8}, marks=pytest.mark.slow),
        pytest.param({"context": 4, "data": 2}, marks=pytest.mark.slow),
        pytest.param({"tensor": 4, "fsdp": 2}, marks=pytest.mark.slow),
        SPLIT_THREE_WAYS,
    ],
    ids=str,
)
def test_eight_devices_equal_one_device(axes, single):
    _, state, metrics, _ = _run(ParallelConfig(**{"fsdp": 1, **axes}), 8)
    _, expected_state, expected, _ = single
    for ours, theirs in zip(metrics, expected, strict=True):
        for name in ("loss/total", "loss/video", "loss/action", "optimizer/grad_norm"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, err_msg=name)
    # The first moment is (1 - b1) x the clipped gradient mixed over two steps: equal moments are equal gradients.
    moments, expected_moments = (s["opt"][1][0].mu for s in (state, expected_state))
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_moments))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale), moments, expected_moments)


def test_fsdp_context_and_tensor_really_shard():
    program, _, _, text = _run(ParallelConfig(**SPLIT_THREE_WAYS), 8)
    up = program.abstract_state["params"]["blocks"]["mlp"]["up"]["kernel"]
    assert up.shape == (2, 16, 32)
    assert up.sharding.shard_shape(up.shape) == (2, 8, 16)
    assert "all-to-all" in text, "the context axis exchanges tokens for heads inside attention"
    assert "mesh: data=1  fsdp=2  context=2  tensor=2" in describe_sharding(program)


def test_codec_statistics_are_kept_and_never_trained(single):
    _, state, _, _ = single
    codec = state["frozen"]["codec"]
    np.testing.assert_array_equal(codec["std"], [50.0])
    np.testing.assert_array_equal(codec["mean"], np.full_like(codec["mean"], 100.0))
    assert "codec" not in state["params"]


def test_evaluation_is_deterministic_in_its_index(single):
    program, state, _, _ = single
    params, batch = program.evaluation_params(state), make_global_batch(fake_batch(TINY, 8), program.mesh)
    first, again, other = (float(program.evaluate(params, batch, i)["loss/total"]) for i in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize(
    ("num_devices", "expected"), [(8, (4, 2)), (4, (2, 2)), (2, (2, 1)), (1, (1, 1)), (12, (6, 2))]
)
def test_free_axes_share_what_is_left(num_devices, expected):
    sizes = resolve_axis_sizes(ParallelConfig(fsdp=-1, context=-1), num_devices)
    assert (sizes["fsdp"], sizes["context"]) == expected


@pytest.mark.parametrize(
    ("num_devices", "batch_size", "expected"),
    [(64, 16, (16, 4)), (256, 16, (16, 16)), (128, 128, (128, 1)), (8, 12, (4, 2)), (1, 16, (1, 1))],
)
def test_context_of_zero_is_what_the_batch_leaves(num_devices, batch_size, expected):
    sizes = resolve_axis_sizes(ParallelConfig(fsdp=-1, context=0), num_devices, batch_size)
    assert (sizes["fsdp"], sizes["context"]) == expected


@pytest.mark.parametrize(
    ("parallel", "batch_size", "message"),
    [
        (ParallelConfig(fsdp=4, context=0), 8, "needs fsdp=-1 and sizes of data and tensor; found data=1, fsdp=4"),
        (ParallelConfig(fsdp=-1, context=0), None, "needs the batch"),
        (ParallelConfig(fsdp=-1, context=0, data=3), 6, r"data=3.* there are 8"),
    ],
)
def test_context_of_zero_without_what_it_needs_is_refused(parallel, batch_size, message):
    with pytest.raises(ConfigError, match=message):
        resolve_axis_sizes(parallel, 8, batch_size)


def test_mesh_that_does_not_divide_names_the_axes_and_the_devices():
    with pytest.raises(ConfigError, match=r"context=3.* there are 8"):
        build_mesh(ParallelConfig(context=3))


def test_heads_that_do_not_divide_name_the_setting_and_the_ring():
    parallel = ParallelConfig(fsdp=1, context=8, context_method="ulysses")
    with pytest.raises(ConfigError, match=r"context_method=ring.*config\.model\.num_heads"):
        build_program(dataclasses.replace(TINY, parallel=parallel), build_mesh(parallel))


def test_tokens_that_do_not_divide_say_the_padding_it_takes():
    parallel = ParallelConfig(fsdp=1, context=4)
    layout = dataclasses.replace(TINY.layout, pad_multiple=6)
    with pytest.raises(ConfigError, match=r"tokens do not divide .*context=4; it would take . padding tokens"):
        build_program(
            dataclasses.replace(TINY, layout=layout, parallel=parallel), build_mesh(parallel, jax.devices()[:4])
        )
