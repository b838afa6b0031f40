"""Kairos-4B as released for RoboTwin: windows over time, every fourth layer a gated delta rule, and an action expert.

Command:   wamjax plan --config=experiments/systems/kairos_4b.py --topology=v5p:4x4x4 --compile
Paper:     Kairos (arXiv 2606.16533) and its released code (kairos_4b_wam_config, KairosDiTV2): 32 layers of 2,560, two
           of 5 latent frames' windows, one of 5 frames four apart, one Gated DeltaNet (20 heads of 256, values of
           512); action expert of 1,024 whose layers see all that is shown; Wan 2.1's VAE, Qwen 3.5-2B's text; lr 1e-4
Sequence:  first frame and 20 noisy x 16 x 28, 32 actions = 9,440 tokens, padded to 9,440
Mesh:      64 chips of TPU v5p: fsdp 64
Differs:   horizon, batch, steps, shift and loss weights are ours. Units are GELU (there SiLU), the state enters by one
           layer (there two), text embeddings have GELU. Given frames are the first; four-step distillation is not here.
"""

from ml_collections import config_dict

from wamjax.config.backbone import ActionsConfig, BlockConfig, ClipConfig, LayerAttention, VideoTransformerConfig
from wamjax.config.bridge import to_config_dict
from wamjax.config.schema import (
    DataConfig,
    LayoutConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)


def get_config() -> config_dict.ConfigDict:
    near = LayerAttention(kind="window", reach=2)
    apart = LayerAttention(kind="window", reach=2, dilation=4)
    memory = LayerAttention(kind="gated_delta", key_dim=256, value_dim=512)
    config = RunConfig(
        name="kairos_4b",
        backbone=VideoTransformerConfig(
            block=BlockConfig(
                width=2560,
                num_heads=20,
                ffn_width=10_240,
                attention=(near, near, apart, memory),
                compute_dtype="bfloat16",
            ),
            num_layers=32,
            in_channels=16,
            out_channels=16,
            text_width=2048,
            remat="attention",
        ),
        # 81 frames; one latent for 8 x 8 pixels, one token for 2 x 2 latents.
        clip=ClipConfig(num_frames=81, height=256, width=448, text_tokens=512, masks_text=True),
        actions=ActionsConfig(modules="expert", expert_width=1024, expert_ffn_width=4096),
        layout=LayoutConfig(
            formulation="first_frame",
            family="representation",
            num_blocks=1,
            frames_per_block=20,
            actions_per_block=32,
            states_per_block=1,
        ),
        objective=ObjectiveConfig(shift=5.0, weighting="gaussian"),
        data=DataConfig(action_dim=14, state_dim=14),
        optimizer=OptimizerConfig(
            peak_lr=1e-4,
            warmup_steps=500,
            b1=0.9,
            b2=0.95,
            weight_decay=0.0,
            clip_norm=1.0,
            ema_decay=0.0,
        ),
        parallel=ParallelConfig(fsdp=-1, blocks="explicit"),
        train=TrainConfig(num_steps=30_000, global_batch_size=256),
    )
    return to_config_dict(config)
