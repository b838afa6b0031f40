"""A mixture of transformers: one softmax over the tokens of all experts, and nothing else shared."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny import QUICK_COMPILE
from wamjax.config.backbone import BlockConfig
from wamjax.layout import Layout, Role, alternating_layout
from wamjax.models.block import Conditioning
from wamjax.models.mixture import scan_mixture
from wamjax.models.stack import Stack, scan_blocks, stack_blocks
from wamjax.nn.rotary import rotary_table

WIDE = BlockConfig(width=12, num_heads=2, ffn_width=10)
NARROW = dataclasses.replace(WIDE, width=8, ffn_width=6, attention_width=12)
LAYOUT = alternating_layout(num_chunks=2, frames_per_chunk=1, grid=(1, 2), actions_per_frame=2)
VIDEO = {Role.NOISY_VIDEO: "video", Role.CLEAN_VIDEO: "video", Role.ACTION: "action", Role.CLEAN_ACTION: "action"}
# Neither expert's tokens lie together.
PIECES = {Role.NOISY_VIDEO: "video", Role.CLEAN_VIDEO: "action", Role.ACTION: "video", Role.CLEAN_ACTION: "action"}


def randomised(config: BlockConfig, seed: int) -> Stack:
    blocks, rng = stack_blocks(jax.random.key(seed), config, 2), np.random.default_rng(seed)
    for _, variable in nnx.to_flat_state(nnx.state(blocks)):
        variable.set_value(jnp.asarray(rng.normal(0, 0.3, variable.shape), jnp.float32))
    return blocks


def conditioning(config: BlockConfig, layout: Layout, name: str | None, seed: int) -> Conditioning:
    """Returns one slot's conditioning of the tokens of ``name``; of all for None."""
    part = layout.full_pass() if name is None else layout.full_pass().of_expert(name)
    rng, width = np.random.default_rng(seed), config.width
    noise = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 1, width), (2, 1, 6, width))]
    text = jnp.asarray(rng.normal(size=(2, 3, width)), jnp.float32)
    return Conditioning(
        noise[0], noise[1], ((0, part.num_tokens),), rotary_table(part, config.head_dim, 10_000.0), text
    )


def rows(layout: Layout, name: str) -> np.ndarray:
    return np.concatenate([np.full(s.num_tokens, s.expert == name) for s in layout.segments])


@pytest.mark.parametrize("experts", [VIDEO, PIECES])
def test_equal_widths_and_shared_weights_are_the_single_model(experts: dict[Role, str]) -> None:
    layout, blocks = LAYOUT.with_experts(experts), randomised(WIDE, 0)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, LAYOUT.num_tokens, 12)), jnp.float32)
    whole = conditioning(WIDE, layout, None, 2)

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
    def both(x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        single, _ = scan_blocks(blocks, x, LAYOUT.full_pass(), whole, None, remat="none", return_cache=False)
        names: tuple[str, ...] = ("video", "action")
        mixed = scan_mixture(
            dict.fromkeys(names, blocks),
            {name: x[:, rows(layout, name)] for name in names},
            layout.full_pass(),
            {name: conditioning(WIDE, layout, name, 2) for name in names},
            remat="none",
        )
        return single, mixed

    single, mixed = both(x)
    for name, part in mixed.items():
        np.testing.assert_allclose(part, single[:, rows(layout, name)], atol=2e-5)


def test_gradients_of_a_mixture_are_zero_exactly_where_the_mask_is() -> None:
    layout = LAYOUT.with_experts(VIDEO)
    stacks = {"video": randomised(WIDE, 0), "action": randomised(NARROW, 1)}
    configs = {"video": WIDE, "action": NARROW}
    told = {name: conditioning(config, layout, name, 3) for name, config in configs.items()}
    rng = np.random.default_rng(4)
    x = {
        name: jnp.asarray(rng.normal(size=(2, rows(layout, name).sum(), config.width)), jnp.float32)
        for name, config in configs.items()
    }
    # One layer: what a token reads directly. Of two layers it would be what it reaches.
    first = {name: jax.tree.map(lambda leaf: leaf[:1], blocks) for name, blocks in stacks.items()}

    def read(x: dict[str, jax.Array], query: jax.Array) -> jax.Array:
        out = scan_mixture(first, x, layout.full_pass(), told, remat="none")
        sums = {name: part.sum(axis=(0, 2)) for name, part in out.items()}
        whole = jnp.zeros(layout.num_tokens)
        for name, part in sums.items():
            whole = whole.at[np.flatnonzero(rows(layout, name))].set(part)
        return whole[query]

    gradient = jax.jit(jax.grad(read), compiler_options=QUICK_COMPILE)
    mask = layout.dense_mask()
    for query in range(layout.num_tokens):
        seen = np.zeros(layout.num_tokens, bool)
        for name, part in gradient(x, jnp.int32(query)).items():
            seen[rows(layout, name)] = (np.asarray(part) != 0).any(axis=(0, 2))
        np.testing.assert_array_equal(seen, mask[query] | (np.arange(layout.num_tokens) == query))
