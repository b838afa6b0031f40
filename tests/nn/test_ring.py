"""Context parallelism against dense attention: every method, both block modes, forward and gradients."""

import itertools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests.layout.random_layouts import random_layout
from wamjax.config.schema import ParallelConfig
from wamjax.errors import ConfigError
from wamjax.nn import attention, blockwise, rectangles
from wamjax.nn.attention import attend_self
from wamjax.nn.splash import make_splash
from wamjax.parallel.explicit import make_placement
from wamjax.parallel.mesh import build_mesh
from wamjax.parallel.rules import placing

METHODS = ("ulysses", "all_gather", "ring", "ulysses_ring")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 16)
    monkeypatch.setattr(rectangles, "QUERY_CHUNK", 16)
    monkeypatch.setitem(attention.PARTS, "splash", make_splash(interpret=True))


def _placement(blocks: Literal["sharded", "explicit"] = "sharded", **sizes: Any):
    config = ParallelConfig(blocks=blocks, **{"fsdp": 1, **sizes})
    size = config.data * config.fsdp * config.context * config.tensor
    return make_placement(config, build_mesh(config, jax.devices()[:size]))


def _attend(placement, schedule):
    """Attention of whole arrays; in explicit mode within one program per device."""

    def run(q, k, v):
        with placing(placement):
            if placement.blocks == "sharded":
                return attend_self(q, k, v, schedule)

            def local(q, k, v):
                with placing(placement.local()):
                    return attend_self(q, k, v, schedule)

            spec = PartitionSpec(("data", "fsdp"), None, "context", None)
            return jax.shard_map(local, mesh=placement.mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)(
                q, k, v
            )

    return run


def _dense(mask):
    def run(q, k, v):
        scores = jnp.where(mask, jnp.einsum("bkne,bkme->bknm", q, k) / np.sqrt(q.shape[-1]), -1e30)
        weights = jnp.where(mask, jnp.exp(scores - scores.max(-1, keepdims=True)), 0.0)
        weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
        return jnp.einsum("bknm,bkme->bkne", weights, v)

    return run


def _inputs(num_tokens, num_heads, batch_size=4):
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, (batch_size, num_heads, num_tokens, 8)) for key in keys]


def _check(placement, schedule, num_heads):
    live = schedule.dense_mask().any(-1)[:, None]

    def both(run):
        def outputs(q, k, v, probe):
            out, pull = jax.vjp(lambda *args: run(*args) * live, q, k, v)
            return out, *pull(probe)

        inputs = _inputs(schedule.num_queries, num_heads)
        compiled = jax.jit(outputs).lower(*inputs).compile()
        return compiled(*inputs), compiled.as_text() or ""

    ours, text = both(_attend(placement, schedule))
    for measured, expected in zip(ours, both(_dense(schedule.dense_mask()))[0], strict=True):
        np.testing.assert_allclose(measured, expected, atol=1e-5)
    return text


@pytest.mark.parametrize(
    ("method", "kernel", "blocks", "sizes", "num_heads"),
    [
        ("ring", "rectangles", "sharded", {"context": 2}, 3),
        ("all_gather", "blockwise", "explicit", {"context": 2}, 3),
        ("ulysses_ring", "blockwise", "explicit", {"fsdp": 2, "context": 4}, 2),
        ("ulysses", "blockwise", "sharded", {"context": 2, "tensor": 2}, 4),
    ],
)
def test_every_method_equals_dense_attention_with_gradients(method, kernel, blocks, sizes, num_heads):
    placement = _placement(blocks, context_method=method, attention_kernel=kernel, **sizes)
    _check(placement, random_layout(4, multiple=sizes["context"]).full_pass().schedule, num_heads)


def test_ring_equals_dense_attention_and_gathers_no_keys():
    placement = _placement("explicit", context=4, context_method="ring", attention_kernel="blockwise")
    text = _check(placement, random_layout(4, multiple=4).full_pass().schedule, 3)
    assert "collective-permute" in text
    for kind in ("all-gather", "all-to-all"):
        assert f" {kind}(" not in text
        assert f" {kind}-start(" not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "num_heads"),
    [({"data": 2, "fsdp": 2, "context": 2}, 4), ({"context": 8}, 8), ({"context": 4, "tensor": 2}, 8)],
)
@pytest.mark.parametrize(
    ("method", "kernel", "blocks"), [*itertools.product(METHODS, ("rectangles", "blockwise"), ("sharded", "explicit"))]
)
def test_every_method_kernel_and_mesh_equals_dense_attention(method, kernel, blocks, sizes, num_heads):
    if blocks == "explicit" and "tensor" in sizes:
        pytest.skip("explicit blocks are for tensor=1")
    if method == "ulysses_ring":
        num_heads //= 2  # so that something is left for the ring
    placement = _placement(blocks, context_method=method, attention_kernel=kernel, **sizes)
    _check(placement, random_layout(num_heads, multiple=sizes["context"]).full_pass().schedule, num_heads)


def test_heads_that_do_not_divide_are_refused_with_the_ring_as_the_way_out():
    placement = _placement(context=4, context_method="ulysses")
    schedule = random_layout(0, multiple=4).full_pass().schedule
    with pytest.raises(ConfigError, match=r"3 heads .*context=4.*config\.parallel\.context_method=ring"):
        _attend(placement, schedule)(*_inputs(schedule.num_queries, 3)[:3])


def test_tokens_that_do_not_divide_are_refused_with_the_padding_it_takes():
    placement, schedule = (
        _placement(context=4, context_method="ring"),
        random_layout(0, multiple=8).full_pass().schedule,
    )
    schedule = type(schedule)(schedule.num_queries + 2, schedule.num_keys + 2, schedule.rectangles)
    with pytest.raises(ConfigError, match=r"tokens do not divide .*context=4.* 2 padding tokens"):
        _attend(placement, schedule)(*_inputs(schedule.num_queries, 3)[:3])


def test_unknown_kernel_is_refused_with_the_known_ones():
    placement, schedule = _placement(context=2), random_layout(0, multiple=2).full_pass().schedule
    q, k, v, _ = _inputs(schedule.num_queries, 2)
    with placing(placement), pytest.raises(ConfigError, match=r"'flash' is unknown.*blockwise"):
        attend_self(q, k, v, schedule, kernel="flash")
