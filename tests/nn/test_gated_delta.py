"""The gated delta rule in chunks against its recurrence, one token after the other, and against other people's."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny import QUICK_COMPILE
from wamjax.config.backbone import BlockConfig, LayerAttention
from wamjax.layout.kernels import DELTA_CHUNK
from wamjax.nn.gated_delta import gated_delta_rule
from wamjax.nn.gated_delta_net import GatedDeltaNet

GOLDEN = Path(__file__).resolve().parents[1] / "golden/gated_delta.npz"
NUM_TOKENS = 2 * DELTA_CHUNK + 22  # two chunks, and a third that is not full
RULE = jax.jit(gated_delta_rule, compiler_options=QUICK_COMPILE)


def recurrence(q, k, v, log_decay, strength):
    """The definition, token by token in fp64."""
    batch, heads, tokens, dim = q.shape
    out = np.zeros(v.shape)
    for sample in range(batch):
        for head in range(heads):
            state = np.zeros((dim, v.shape[-1]))
            for t in range(tokens):
                state *= np.exp(log_decay[sample, head, t])
                key = k[sample, head, t]
                state += np.outer(key, strength[sample, head, t] * (v[sample, head, t] - key @ state))
                out[sample, head, t] = q[sample, head, t] @ state / np.sqrt(dim)
    return out


def inputs(num_tokens=NUM_TOKENS, seed=0, alike=0.0):
    """Returns fp64 operands of the rule; ``alike`` of every key is the same vector."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((2, 2, num_tokens, dim)) for dim in (6, 6, 10))
    k = (1 - alike) * k + alike * 3.0
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    shape = (2, 2, num_tokens)
    return q, k, v, -rng.uniform(0.0, 0.3, shape), rng.uniform(0.0, 1.0, shape)


@pytest.mark.parametrize("num_tokens", [1, NUM_TOKENS])
def test_chunks_read_what_the_recurrence_reads(num_tokens):
    args = inputs(num_tokens)
    ours = RULE(*(jnp.asarray(part, jnp.float32) for part in args))
    np.testing.assert_allclose(ours, recurrence(*args), atol=2e-6)


def test_keys_that_are_all_alike_lose_no_digits():
    q, k, v, log_decay, _ = inputs(alike=0.97)
    args = (q, k, v, 0.01 * log_decay, np.ones(log_decay.shape))
    ours = RULE(*(jnp.asarray(part, jnp.float32) for part in args))
    np.testing.assert_allclose(ours, recurrence(*args), atol=2e-4)


def test_gradients_are_those_of_the_recurrence():
    args, rng = inputs(), np.random.default_rng(1)
    probe = rng.standard_normal(args[2].shape)
    small = tuple(jnp.asarray(part, jnp.float32) for part in args)
    summed = jax.grad(lambda parts: jnp.sum(gated_delta_rule(*parts) * probe.astype(np.float32)))
    grads = jax.jit(summed, compiler_options=QUICK_COMPILE)(small)
    for place, grad in enumerate(grads):
        direction, step = rng.standard_normal(args[place].shape), 1e-5
        values = []
        for sign in (1, -1):
            moved = list(args)
            moved[place] = args[place] + sign * step * direction
            values.append(np.sum(recurrence(*moved) * probe))
        expected = (values[0] - values[1]) / (2 * step)
        scale = np.linalg.norm(np.asarray(grad)) * np.linalg.norm(direction)
        assert abs(np.sum(np.asarray(grad, np.float64) * direction) - expected) < 1e-5 * scale, place


def test_bf16_operands_stay_near_the_recurrence():
    args = inputs()
    ours = RULE(*(jnp.asarray(part, jnp.bfloat16) for part in args[:3]), *map(jnp.float32, args[3:]))
    assert ours.dtype == jnp.bfloat16
    reference = recurrence(*args)
    assert np.abs(np.asarray(ours, np.float64) - reference).max() < 0.03 * np.abs(reference).max()


def test_rule_is_that_of_transformers():
    golden = np.load(GOLDEN)
    ours = RULE(*(jnp.asarray(golden[name]) for name in ("query", "key", "value", "log_decay", "strength")))
    for name in ("chunked", "recurrent"):
        np.testing.assert_allclose(ours, golden[name], atol=2e-6)


def golden_layer() -> tuple[GatedDeltaNet, np.lib.npyio.NpzFile]:
    golden = np.load(GOLDEN)
    _, heads, dim, value_dim = golden["sizes"]
    attention = LayerAttention(kind="gated_delta", key_dim=int(dim), value_dim=int(value_dim))
    config = BlockConfig(width=int(golden["sizes"][0]), num_heads=int(heads), ffn_width=4, attention=(attention,))
    layer = GatedDeltaNet(jax.random.key(0), config)
    state = nnx.state(layer, nnx.Param)
    for path, variable in nnx.to_flat_state(state):
        variable.set_value(jnp.asarray(golden["layer." + ".".join(map(str, path))]))
    nnx.update(layer, state)
    return layer, golden


def test_layer_is_that_of_transformers_and_reads_no_padding_and_nothing_later():
    layer, golden = golden_layer()
    x = jnp.asarray(golden["layer_in"])
    holes = jnp.concatenate([x[:, :9], jnp.full_like(x[:, :4], 7.0), x[:, 9:], jnp.full_like(x[:, :3], 7.0)], axis=1)
    spans = ((0, 9), (13, x.shape[1] + 4))

    def read(x):
        out = layer(x, spans)
        return jnp.sum(out[:, 20]), out

    run = jax.jit(jax.grad(read, has_aux=True), compiler_options=QUICK_COMPILE)
    grad, out = run(holes)
    np.testing.assert_allclose(jnp.concatenate([out[:, :9], out[:, 13:-3]], axis=1), golden["layer_out"], atol=2e-5)
    assert np.isfinite(out).all()
    is_read = np.arange(holes.shape[1]) <= 20
    is_read[9:13] = False
    np.testing.assert_array_equal((np.asarray(grad) != 0).any(axis=(0, 2)), is_read)
