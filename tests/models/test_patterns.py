"""Stacks whose layers differ: windows, and a recurrence in place of self-attention."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.layout.test_systems import first_frame
from tests.models.test_mixture import conditioning, rows
from tests.tiny import QUICK_COMPILE
from wamjax.config.backbone import BlockConfig, LayerAttention
from wamjax.errors import ConfigError
from wamjax.layout import Layout, Pass, Role
from wamjax.layout.windows import layer_schedule
from wamjax.models.mixture import scan_mixture
from wamjax.models.stack import Period, Stack, check_has_no_cache, layers_of, stack_blocks
from wamjax.nn import gated_delta

NEAR = LayerAttention(kind="window", reach=1)
MEMORY = LayerAttention(kind="gated_delta", key_dim=4, value_dim=6)
WIDE = BlockConfig(width=12, num_heads=2, ffn_width=10, attention=(NEAR, MEMORY))
NARROW = dataclasses.replace(WIDE, width=8, ffn_width=6, attention_width=12, attention=WIDE.attention_beside)
CONFIGS = {"video": WIDE, "action": NARROW}
LAYOUT = first_frame(frames=6, grid=(1, 2), num_actions=3).with_experts(
    {Role.CLEAN_VIDEO: "video", Role.NOISY_VIDEO: "video", Role.ACTION: "action"}
)
NAMES = tuple(CONFIGS)


def randomised(config: BlockConfig, num_layers: int, seed: int) -> Period:
    blocks, rng = stack_blocks(jax.random.key(seed), config, num_layers), np.random.default_rng(seed)
    assert isinstance(blocks, Period)
    for _, variable in nnx.to_flat_state(nnx.state(blocks)):
        variable.set_value(jnp.asarray(rng.normal(0, 0.3, variable.shape), jnp.float32))
    return blocks


def tokens(layout: Layout) -> dict[str, jax.Array]:
    rng = np.random.default_rng(4)
    return {
        name: jnp.asarray(rng.normal(size=(2, rows(layout, name).sum(), config.width)), jnp.float32)
        for name, config in CONFIGS.items()
    }


def told(layout: Layout) -> dict:
    return {name: conditioning(config, layout, name, 3) for name, config in CONFIGS.items()}


def run(stacks: dict, x: dict[str, jax.Array], layout_pass: Pass, layout: Layout) -> dict[str, jax.Array]:
    return scan_mixture(stacks, x, layout_pass, told(layout), remat="none")[0]


def one_of(stack: Period, period: int) -> Period:
    return jax.tree.map(lambda leaf: leaf[period : period + 1], stack)


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three chunks of a sequence that compiles fast."""
    monkeypatch.setattr(gated_delta, "DELTA_CHUNK", 4)


@pytest.mark.slow
def test_periods_run_one_after_the_other_and_layers_in_their_order() -> None:
    stacks = {name: randomised(config, 4, seed) for seed, (name, config) in enumerate(CONFIGS.items())}

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
    def both(x: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        whole, alone = run(stacks, x, LAYOUT.full_pass(), LAYOUT), x
        for period in range(2):
            steps = {name: layers_of(one_of(stack, period)) for name, stack in stacks.items()}
            for place in range(2):
                # A stack of one layer, of the same kind.
                layer = {name: steps[name][place] for name in NAMES}
                alone = run(layer, alone, LAYOUT.full_pass(), LAYOUT)
        return whole, alone

    whole, alone = both(tokens(LAYOUT))
    for name in NAMES:
        np.testing.assert_allclose(whole[name], alone[name], atol=1e-5)


@pytest.mark.slow
def test_gradients_of_a_pattern_are_zero_exactly_where_its_masks_are() -> None:
    stacks = {name: randomised(config, 2, seed) for seed, (name, config) in enumerate(CONFIGS.items())}

    def read(x: dict[str, jax.Array], query: jax.Array) -> jax.Array:
        out = run(stacks, x, LAYOUT.full_pass(), LAYOUT)
        return jnp.concatenate([out[name].sum(axis=(0, 2)) for name in NAMES])[query]

    gradient = jax.jit(jax.grad(read), compiler_options=QUICK_COMPILE)
    count, video = LAYOUT.num_tokens, rows(LAYOUT, "video")
    window = layer_schedule(LAYOUT.full_pass(), NEAR).dense_mask()
    in_order = np.tri(count, dtype=bool) & video[:, None] & video
    memory = in_order | (~video[:, None] & ~video)
    reached = ((memory | np.eye(count, dtype=bool)) @ (window | np.eye(count, dtype=bool))) > 0
    for query in range(count):
        found = gradient(tokens(LAYOUT), jnp.int32(query))
        seen = np.concatenate([(np.asarray(found[name]) != 0).any(axis=(0, 2)) for name in NAMES])
        np.testing.assert_array_equal(seen, reached[query], err_msg=str(query))
    # History reads history alone, and so do actions, besides each other.
    history = np.arange(count) < 2
    assert not reached[history][:, ~history].any()
    assert not reached[~video][:, video & ~history].any()


def test_actions_are_the_same_without_the_video_that_is_denoised() -> None:
    stacks = {name: randomised(config, 2, seed) for seed, (name, config) in enumerate(CONFIGS.items())}
    seen = tuple(s for s in LAYOUT.segments if s.role is not Role.NOISY_VIDEO)
    alone, x = Layout(seen, LAYOUT.visibility), tokens(LAYOUT)

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
    def both(x: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        seen = x | {"video": x["video"][:, :2]}
        return run(stacks, x, LAYOUT.full_pass(), LAYOUT), run(stacks, seen, alone.full_pass(), alone)

    whole, acting = both(x)
    np.testing.assert_allclose(acting["action"], whole["action"], atol=1e-5)
    np.testing.assert_allclose(acting["video"], whole["video"][:, :2], atol=1e-5)


def test_a_cache_of_keys_is_refused() -> None:
    def stack(attention: tuple[LayerAttention, ...]) -> Stack:
        config = dataclasses.replace(WIDE, attention=attention)
        return nnx.eval_shape(lambda: stack_blocks(jax.random.key(0), config, 2))

    for attention in ((NEAR, MEMORY), (MEMORY,)):
        with pytest.raises(ConfigError, match="without a cache"):
            check_has_no_cache(stack(attention), None, return_cache=True)
    check_has_no_cache(stack((NEAR,)), None, return_cache=True)
