"""A batch taken in parts: the loss and gradient of the whole, whatever the masks; nothing drawn differently."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import TINY, tiny_batch
from wamjax.batch import fake_batch
from wamjax.config.schema import ParallelConfig
from wamjax.errors import ConfigError
from wamjax.flops.jaxpr import trace_flops
from wamjax.layout import build_layout
from wamjax.objectives.stream_loss import StreamLoss
from wamjax.objectives.world_action import loss_counts
from wamjax.parallel.mesh import batch_sharding, build_mesh, make_global_batch
from wamjax.parallel.rules import placing
from wamjax.training.accumulate import accumulate_gradients
from wamjax.training.program import build_program


def regress(params, part, count):
    """A masked mean of squared errors, as an objective of a stream computes it."""
    error = jnp.square(part["x"] @ params["w"] - part["y"]) * part["mask"]
    loss = StreamLoss(total=jnp.sum(error, 1), count=jnp.sum(part["mask"], 1, dtype=jnp.float32))
    mean = (loss if count is None else loss.as_part(count)).mean()
    return mean, {"stream": mean}


def make_rows(seed, rows=16):
    """Rows with very uneven masks: the first part alone would have another mean than the last."""
    rng = np.random.default_rng(seed)
    mask = rng.random((rows, 5)) < np.linspace(0.05, 1, rows)[:, None]
    return {
        "x": rng.normal(size=(rows, 3)).astype(np.float32),
        "y": rng.normal(size=(rows, 5)).astype(np.float32),
        "mask": mask,
    }


@pytest.mark.parametrize("devices", [1, 4])
def test_parts_add_up_to_the_whole_with_uneven_masks(devices):
    params, rows = {"w": jnp.ones((3, 5))}, make_rows(0)
    mesh = build_mesh(ParallelConfig(fsdp=devices), jax.devices()[:devices])
    placed = jax.device_put(rows, batch_sharding(mesh))

    def gradients(num_parts, rows):
        def run(params, rows):
            count = jnp.sum(rows["mask"], dtype=jnp.float32)
            with placing(mesh):
                return accumulate_gradients(lambda p, part: regress(p, part, count), params, rows, num_parts)

        return jax.jit(run)(params, rows)

    whole = gradients(1, rows)
    for num_parts in (2, 4):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), gradients(num_parts, placed), whole)
    mean_of_means = np.mean([regress(params, jax.tree.map(lambda x, i=i: x[i::4], rows), None)[0] for i in range(4)])
    assert abs(mean_of_means - whole[0]) > 1e-2 * whole[0], "masks so uneven that means of means would show"


def test_parts_are_taken_where_their_rows_are():
    mesh = build_mesh(ParallelConfig(fsdp=4), jax.devices()[:4])
    sharding = batch_sharding(mesh)

    def run(params, rows):
        with placing(mesh):
            return accumulate_gradients(lambda p, part: regress(p, part, jnp.float32(1)), params, rows, 2)

    text = jax.jit(run, in_shardings=(None, sharding)).lower({"w": jnp.ones((3, 5))}, make_rows(0)).compile().as_text()
    assert text is not None
    assert "all-reduce" in text, "the gradient is summed over devices"
    assert not [op for op in ("all-gather", "all-to-all", "collective-permute") if op in text], "no row is moved"


def test_counts_of_a_batch_are_those_its_losses_have():
    batch, layout = tiny_batch(batch_size=3), build_layout(TINY)
    counts = loss_counts(batch, TINY, layout)
    action = batch.action_mask[:, :, None] * batch.action_dim_mask[:, None] * batch.has_action[:, None, None]
    assert counts["action"] == np.sum(action)
    assert 0 < counts["video"] < np.prod(batch.video[:, 1:].shape)


def test_batch_that_does_not_divide_into_parts_is_refused():
    config = dataclasses.replace(
        TINY, parallel=ParallelConfig(fsdp=4), train=dataclasses.replace(TINY.train, accumulate=4)
    )
    with pytest.raises(ConfigError, match=r"global_batch_size=8 is not a multiple of the 16 ways .*accumulate=4"):
        build_program(config, build_mesh(config.parallel, jax.devices()[:4]))


@pytest.mark.slow
def test_step_of_the_model_in_parts_equals_the_whole_one_in_less_memory():
    """Same noise, same loss, same update, same products; activations of a part instead of the batch."""
    results = []
    for accumulate in (1, 4):
        train = dataclasses.replace(TINY.train, accumulate=accumulate, global_batch_size=16)
        config = dataclasses.replace(TINY, train=train, parallel=ParallelConfig(fsdp=4))
        program = build_program(config, build_mesh(config.parallel, jax.devices()[:4]))
        batch = make_global_batch(fake_batch(config, 16), program.mesh)
        compiled = program.step.lower(program.abstract_state, batch).compile()  # pyright: ignore[reportFunctionMemberAccess]
        flops = trace_flops(program.step, program.abstract_state, batch).total
        state, metrics = compiled(program.init(), batch)
        memory = compiled.memory_analysis()
        results.append((flops, memory.temp_size_in_bytes, jax.device_get(metrics), jax.device_get(state)))
    (flops, memory, metrics, state), (other_flops, less_memory, others, other_state) = results
    assert other_flops == flops
    assert less_memory < 0.6 * memory
    for name, value in metrics.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-5, err_msg=name)
    moments, other_moments = (s["opt"][1][0].mu for s in (state, other_state))
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(moments))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), moments, other_moments)
