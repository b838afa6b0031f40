"""Kernels in parts: normalisers, merging over parts of the keys, and gradients of every part."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from tests.layout.random_layouts import random_layout
from wamjax.errors import ConfigError
from wamjax.layout import joint_layout
from wamjax.layout.parts import cut, even_parts
from wamjax.models.remat import REMAT_POLICIES
from wamjax.nn import blockwise, rectangles
from wamjax.nn.cudnn import attend_cudnn
from wamjax.nn.kernel import attend_kernel, merge
from wamjax.nn.splash import attend_splash, make_splash

KERNELS = {"blockwise": blockwise.BLOCKWISE, "rectangles": rectangles.RECTANGLES, "splash": make_splash(interpret=True)}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 16)
    monkeypatch.setattr(rectangles, "QUERY_CHUNK", 16)


def _inputs(num_queries, num_keys, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    return tuple(
        jax.random.normal(key, (1, 2, n, 8))
        for key, n in zip(keys, (num_queries, num_keys, num_keys, num_queries), strict=True)
    )


def _dense(q, k, v, mask):
    scores = jnp.where(mask, jnp.einsum("bkne,bkme->bknm", q, k) / np.sqrt(q.shape[-1]), -1e30)
    weights = jnp.where(mask, jnp.exp(scores - scores.max(-1, keepdims=True)), 0.0)
    weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
    return jnp.einsum("bknm,bkme->bkne", weights, v)


def _close(a, b):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), tuple(a), tuple(b))


def _layout(kernel, seed, parts):
    """A random layout; where blocks have 128 tokens, one with something in each of two."""
    if kernel != "splash":
        return random_layout(seed, multiple=parts)
    return joint_layout(
        num_blocks=2,
        frames_per_block=1,
        grid=(6, 8),
        actions_per_block=3,
        states_per_block=1,
        pad_multiple=128 * parts,
        token_causal_context=seed % 2 == 0,
    )


# Seed 1 has a triangle in its layout.
CASES = [
    ("rectangles", 1),
    ("blockwise", 1),
    ("splash", 0),
    *(
        pytest.param(kernel, seed, marks=pytest.mark.slow)
        for kernel in ("rectangles", "blockwise")
        for seed in range(6)
    ),
]


@pytest.mark.parametrize("as_parts", [pytest.param(False, marks=pytest.mark.slow), True])
def test_splash_completes_the_last_128_tokens(as_parts):
    layout = joint_layout(num_blocks=2, frames_per_block=1, grid=(2, 5), actions_per_block=3, states_per_block=1)
    schedule = layout.full_pass().schedule
    q, k, v, weights = _inputs(schedule.num_queries, schedule.num_keys)
    mask = schedule.dense_mask()
    assert schedule.num_queries % 128

    def splash(q, k, v):
        if as_parts:
            return attend_kernel(q, k, v, schedule, KERNELS["splash"])
        return attend_splash(q, k, v, schedule, name="attention", interpret=True)

    got, expected = (
        jax.value_and_grad(lambda q, k, v, attend=attend: jnp.sum(weights * attend(q, k, v)), argnums=(0, 1, 2))
        for attend in (splash, lambda q, k, v: _dense(q, k, v, mask))
    )
    _close(jax.tree.leaves(got(q, k, v)), jax.tree.leaves(expected(q, k, v)))


@pytest.mark.parametrize(("kernel", "seed"), CASES)
def test_kernel_equals_dense_softmax_with_gradients(kernel, seed):
    schedule = _layout(kernel, seed, 1).full_pass().schedule
    mask = schedule.dense_mask()
    live = np.any(mask, axis=-1, keepdims=True)  # what a padding query returns has no meaning

    @functools.partial(jax.jit, static_argnums=0)
    def run(attend, q, k, v, probe):
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v) * live, q, k, v)
        return out, *pull(probe)

    inputs = _inputs(schedule.num_queries, schedule.num_keys)
    ours = run(lambda q, k, v: attend_kernel(q, k, v, schedule, KERNELS[kernel]), *inputs)
    _close(ours, run(lambda q, k, v: _dense(q, k, v, mask), *inputs))


@pytest.mark.parametrize(("kernel", "seed"), CASES)
def test_parts_of_the_keys_merge_into_the_whole_with_gradients(kernel, seed):
    schedule = _layout(kernel, seed, 2).full_pass().schedule
    mask = schedule.dense_mask()
    everything, parts = ((0, schedule.num_queries),), even_parts(schedule.num_keys, 2)
    cuts = [(start, stop, cut(schedule, everything, ((start, stop),))) for start, stop in parts]
    forward, backward = KERNELS[kernel]

    @jax.jit
    def ours(q, k, v, probe):
        whole = functools.reduce(merge, [forward(q, k[:, :, a:b], v[:, :, a:b], part) for a, b, part in cuts])
        grads = [backward(q, k[:, :, a:b], v[:, :, a:b], whole, probe, part) for a, b, part in cuts]
        by_keys = (jnp.concatenate([g[i] for g in grads], axis=2) for i in (1, 2))
        return whole.out, grads[0][0] + grads[1][0], *by_keys

    @jax.jit
    def dense(q, k, v, probe):
        out, pull = jax.vjp(lambda q, k, v: _dense(q, k, v, mask), q, k, v)
        return out, *pull(probe)

    inputs = _inputs(schedule.num_queries, schedule.num_keys)
    _close(ours(*inputs), dense(*inputs))


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 2, 3))])
def test_cudnn_calls_cover_the_schedule(seed):
    # The calls themselves by XLA: which queries, keys and modes they have is what is ours.
    layout = random_layout(seed)
    schedule = layout.full_pass().schedule
    lengths = [(r.num_queries, r.num_keys) for r in schedule.rectangles]
    assert any(n % 2 or m % 2 for n, m in lengths), "odd lengths, which are padded"

    def with_gradients(attend):
        def run(q, k, v, probe):
            out, pull = jax.vjp(attend, q, k, v)
            return out, *pull(probe)

        return jax.jit(run)(*_inputs(schedule.num_queries, schedule.num_keys))

    ours = with_gradients(lambda q, k, v: attend_cudnn(q, k, v, schedule, implementation="xla"))
    _close(ours, with_gradients(lambda q, k, v: _dense(q, k, v, schedule.dense_mask())))


def test_cudnn_refuses_float32_and_names_the_ways_out():
    schedule = random_layout(0).full_pass().schedule
    q, k, v, _ = _inputs(schedule.num_queries, schedule.num_keys)
    with pytest.raises(ConfigError, match=r"got float32 and 8; .*compute_dtype=bfloat16 .*attention_kernel=rectangles"):
        attend_cudnn(q, k, v, schedule)


def test_cudnn_runs_forward_once_for_both_passes_and_takes_no_mask(monkeypatch):
    # As on a GPU: cuDNN's presence and the card are asked for while tracing.
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    schedule = random_layout(3).full_pass().schedule
    q, k, v, probe = (x.astype(jnp.bfloat16) for x in _inputs(schedule.num_queries, schedule.num_keys))
    attend = jax.checkpoint(lambda q, k, v: attend_cudnn(q, k, v, schedule), policy=REMAT_POLICIES["attention"])
    text = str(jax.make_jaxpr(lambda q, k, v: jax.vjp(attend, q, k, v)[1](probe))(q, k, v))
    calls = [len(re.findall(rf"= dot_product_attention_{kind}_wrapper", text)) for kind in ("fwd", "bwd")]
    assert calls == [len(schedule.rectangles)] * 2
    assert f"{schedule.num_queries},{schedule.num_keys}]" not in text  # neither scores nor a mask of all pairs
