"""The rectangles kernel against dense masked softmax attention, forward and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.layout import Rectangle, Schedule, joint_layout
from wamjax.nn import rectangles
from wamjax.nn.attention import attend


def _inputs(num_tokens, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return tuple(jax.random.normal(key, (2, 2, num_tokens, 8)) for key in keys)


def _dense(q, k, v, mask):
    """Masked softmax over all pairs; rows that see nothing are zero."""
    scores = jnp.einsum("bkne,bkme->bknm", q, k) / np.sqrt(q.shape[-1])
    scores = jnp.where(mask, scores, -1e30)
    weights = jnp.where(mask, jnp.exp(scores - scores.max(-1, keepdims=True)), 0.0)
    weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
    return jnp.einsum("bknm,bkme->bkne", weights, v)


@pytest.mark.parametrize(
    ("order", "causal", "chunk"),
    [("natural", False, 1024), ("grouped", False, 5), ("natural", True, 5), ("grouped", True, 1024)],
)
def test_attend_joint_layout_equals_dense_softmax_with_gradients(order, causal, chunk, monkeypatch):
    monkeypatch.setattr(rectangles, "QUERY_CHUNK", chunk)
    layout = joint_layout(
        num_blocks=2,
        frames_per_block=2,
        grid=(2, 2),
        actions_per_block=3,
        states_per_block=1,
        order=order,
        pad_multiple=8,
        token_causal_context=causal,
    )
    q, k, v = _inputs(layout.num_tokens)
    mask, schedule = layout.dense_mask(), layout.full_pass().schedule
    probe = jax.random.normal(jax.random.key(9), v.shape)

    def ours(args):
        return jnp.sum(attend(*args, schedule=schedule) * probe)

    def dense(args):
        return jnp.sum(_dense(*args, mask=mask) * probe)

    attended = jax.jit(lambda *args: attend(*args, schedule=schedule))(q, k, v)
    np.testing.assert_allclose(attended, _dense(q, k, v, mask), atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        jax.jit(jax.grad(ours))((q, k, v)),
        jax.jit(jax.grad(dense))((q, k, v)),
    )


def test_attend_makes_no_array_of_all_pairs():
    layout = joint_layout(num_blocks=4, frames_per_block=2, grid=(4, 4), actions_per_block=4, states_per_block=1)
    q, k, v = _inputs(layout.num_tokens)
    schedule = layout.full_pass().schedule
    jaxpr = jax.make_jaxpr(lambda *args: attend(*args, schedule=schedule))(q, k, v)
    largest = max(int(np.prod(var.aval.shape[-2:])) for eqn in jaxpr.eqns for var in eqn.outvars if var.aval.shape)
    assert largest < layout.num_tokens**2 / 4


def test_attend_unknown_kernel_names_the_known_ones():
    layout = joint_layout(num_blocks=1, frames_per_block=1, grid=(1, 1), actions_per_block=1, states_per_block=1)
    with pytest.raises(ValueError, match="rectangles"):
        attend(*_inputs(layout.num_tokens), schedule=layout.full_pass().schedule, kernel="flash")


def test_attend_sequence_of_another_length_is_refused():
    layout = joint_layout(num_blocks=1, frames_per_block=1, grid=(1, 1), actions_per_block=1, states_per_block=1)
    with pytest.raises(ValueError, match="schedule holds"):
        attend(*_inputs(layout.num_tokens + 1), schedule=layout.full_pass().schedule)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_attend_key_mask_in_chunks_equals_at_once_with_gradients(dtype, monkeypatch):
    # 13 queries over 9 keys: two chunks of 5 and a rest. One sample hides some keys, the other all of them.
    q, k, v = (x.astype(dtype) for x in _inputs(13))
    k, v = k[:, :, :9], v[:, :, :9]
    seen = jnp.array([[True, False, True, True, False, True, True, True, False], [False] * 9])
    schedule = Schedule(13, 9, (Rectangle(((0, 13),), ((0, 9),)),))
    probe = jax.random.normal(jax.random.key(9), q.shape)

    def run(chunk):
        monkeypatch.setattr(rectangles, "QUERY_CHUNK", chunk)
        out, pull = jax.vjp(lambda *args: attend(*args, schedule=schedule, key_mask=seen), q, k, v)
        return out, *pull(probe.astype(dtype))

    tolerance = 1e-5 if dtype == jnp.float32 else 5e-2
    chunked, whole = run(5), run(1024)
    for a, b in zip(chunked, whole, strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=tolerance)
    mean = jnp.broadcast_to(v[1].astype(jnp.float32).mean(1, keepdims=True), q[1].shape)
    np.testing.assert_allclose(chunked[0][1].astype(jnp.float32), mean, atol=tolerance)
    hidden = np.asarray(~seen)
    grad_k, grad_v = (np.swapaxes(np.asarray(part), 1, 2) for part in chunked[2:])
    np.testing.assert_array_equal(grad_k[hidden], 0)  # nothing reaches a hidden key
    np.testing.assert_array_equal(grad_v[0][hidden[0]], 0)


def test_chunked_attention_keeps_no_scores_for_the_backward_pass(monkeypatch):
    monkeypatch.setattr(rectangles, "QUERY_CHUNK", 8)
    q, k, v = _inputs(32)
    schedule = Schedule(32, 32, (Rectangle(((0, 32),), ((0, 32),)),))
    _, pull = jax.vjp(lambda *args: attend(*args, schedule=schedule), q, k, v)
    assert max(leaf.size for leaf in jax.tree.leaves(pull)) == q.size  # all scores would be twice that
