"""Closed forms of the video transformer against published counts and the jaxpr of the module."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from wamjax.config.backbone import BlockConfig, VideoTransformerConfig
from wamjax.config.presets import (
    COSMOS_PREDICT2_2B_VIDEO2WORLD,
    WAN_2_1_I2V_14B,
    WAN_2_1_T2V_14B,
    WAN_2_2_TI2V_5B,
)
from wamjax.flops import layers
from wamjax.flops.jaxpr import trace_flops
from wamjax.flops.video_transformer import video_transformer_flops
from wamjax.models.video_transformer import VideoTransformer

WAN = VideoTransformerConfig(
    block=BlockConfig(width=24, num_heads=2, ffn_width=40, image_branch=True),
    num_layers=3,
    in_channels=7,
    out_channels=5,
    time_width=10,
    text_width=18,
    image_width=14,
)
COSMOS = VideoTransformerConfig(
    block=BlockConfig(
        width=24,
        num_heads=2,
        ffn_width=40,
        context_width=11,
        qk_norm="head",
        use_bias=False,
        modulation="low_rank",
        modulation_rank=5,
        gelu="exact",
    ),
    num_layers=3,
    in_channels=7,
    out_channels=5,
    use_patch_bias=False,
    time_width=24,
    text_width=18,
    text_embedding="projection",
    padding_mask=True,
)
T2V = dataclasses.replace(WAN, block=dataclasses.replace(WAN.block, image_branch=False), image_width=None)
WIDE_ATTENTION = dataclasses.replace(WAN, block=dataclasses.replace(WAN.block, attention_width=32))


@pytest.mark.parametrize(
    ("grid", "flops"), [((21, 30, 52), 1_678_370_283_192_320), ((21, 45, 80), 6_523_436_592_005_120)]
)
def test_wan_14b_forward_equals_the_hand_count(grid, flops):
    # 81 frames at 480p and 720p, 512 text tokens, one timestep.
    tokens = grid[0] * grid[1] * grid[2]
    assert sum(video_transformer_flops(WAN_2_1_T2V_14B, tokens=tokens, text_tokens=512).values()) == flops


def test_wan_720p_training_step_is_near_the_figure_maxdiffusion_logs():
    # MaxDiffusion logs 4,893.27 TFLOP per device for this step on 4 devices; it counts the cross-attention keys and
    # values three times forward instead of twice overall, and leaves embeddings out.
    forward = sum(video_transformer_flops(WAN_2_1_T2V_14B, tokens=75_600, text_tokens=512).values())
    assert 3 * forward / 4 == pytest.approx(4_893.27e12, rel=2e-4)


def test_dreamzero_14b_forward_equals_the_hand_count():
    # 9 latent frames of 880 tokens, clean and noisy; 4 x (24 actions of 32 dims + 1 state of 64); time per token.
    actions, states, d = 96, 4, 5120
    counts = video_transformer_flops(
        WAN_2_1_I2V_14B,
        tokens=15_940,
        text_tokens=512,
        image_tokens=257,
        slots=15_940,
        pairs=76_576_484,
        patch_tokens=2 * 9 * 880,
        head_tokens=9 * 880,
    )
    extra = layers.linear(actions, 32, d) + layers.mlp(actions, (2 * d, d, d)) + layers.mlp(actions, (d, 1024, 32))
    extra += layers.mlp(states, (64, 1024, d))
    assert sum(counts.values()) + extra == 463_073_641_365_504


def test_fast_wam_video_expert_forward_equals_the_hand_count():
    # 3 x 120 tokens that see 100,800 pairs, 129 text tokens, time per token.
    counts = video_transformer_flops(WAN_2_2_TI2V_5B, tokens=360, text_tokens=129, slots=360, pairs=100_800)
    assert sum(counts.values()) == 3_380_621_672_448


def test_cosmos_2b_components_equal_hand_counts():
    d, n, text, depth = 2048, 24 * 44 * 80, 512, 28
    counts = video_transformer_flops(COSMOS_PREDICT2_2B_VIDEO2WORLD, tokens=n, text_tokens=text, slots=24)
    assert counts["patch"] == 2 * n * (17 + 1) * 4 * d
    assert counts["cross_kv"] == depth * 2 * 2 * text * 1024 * d
    assert counts["text_embed"] == counts["image_embed"] == 0
    low_rank = 3 * depth * (d * 256 + 256 * 3 * d) + (d * 256 + 256 * 2 * d)
    assert counts["time_embed"] == 2 * 24 * (d * d + d * 3 * d + low_rank)


@pytest.mark.parametrize(
    ("config", "slots", "image_tokens"),
    [(WAN, 1, 9), (T2V, 2, 0), (T2V, 2 * 6, 0), (WIDE_ATTENTION, 1, 9), (COSMOS, 1, 0), (COSMOS, 2, 0)],
    ids=["i2v", "t2v per frame", "t2v per token", "attention wider than the width", "cosmos", "cosmos per frame"],
)
def test_forward_flops_equal_the_jaxpr_of_the_module(config, slots, image_tokens):
    graphdef, state = nnx.split(nnx.eval_shape(lambda: VideoTransformer(jax.random.key(0), config)))

    def forward(params, latents, ids, text, image, mask):
        return nnx.merge(graphdef, params)(latents, ids, text, image=image, padding_mask=mask)

    b, text = 2, 13
    arguments = [(b, 2, 4, 6, config.in_channels), (b, slots), (b, text, config.text_width)]
    spec = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in arguments]
    image = jax.ShapeDtypeStruct((b, image_tokens, 14), jnp.float32) if image_tokens else None
    mask = jax.ShapeDtypeStruct((b, 2, 4, 6, 1), jnp.float32) if config.padding_mask else None
    traced = trace_flops(forward, nnx.to_pure_dict(state), *spec, image, mask).total
    counted = video_transformer_flops(
        config, tokens=2 * 2 * 3, text_tokens=text, image_tokens=image_tokens, slots=slots
    )
    assert traced == b * sum(counted.values())
