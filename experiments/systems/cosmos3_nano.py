"""Cosmos 3 Nano as a policy on DROID: a language tower and a diffusion tower of equal size that share one softmax.

Command:   wamjax plan --config=experiments/systems/cosmos3_nano.py --topology=v5p:4x4x4 --compile
Paper:     Cosmos 3 (arXiv 2606.02800): 36 layers of 4,096 in both towers, 16B in all, action loss x 10, shift 5,
           32 actions at 15 Hz
Sequence:  512 text, first frame and 8 noisy x 11 x 20, 32 actions = 2,524 tokens, padded to 2,524
Mesh:      64 chips of TPU v5p: fsdp 64
Differs:   the paper gives depth, width and size. Feed-forward width 12,288, 32 heads and 8 of keys are our reading,
           which the size fits; canvas, batch, steps and learning rate are ours. Units are GELU, timesteps modulate the
           diffusion tower as in Wan, text has no loss and no vocabulary here, and frame rates do not move positions.
"""

from ml_collections import config_dict

from wamjax.config.backbone import ActionsConfig, BlockConfig, ClipConfig, PrefixConfig, VideoTransformerConfig
from wamjax.config.bridge import to_config_dict
from wamjax.config.sampling import SamplingConfig
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
    block = BlockConfig(
        width=4096,
        num_heads=32,
        num_key_heads=8,
        ffn_width=12_288,
        cross_attention=False,
        context_width=4096,
        gated_mlp=True,
        qk_norm="head",
        use_bias=False,
        compute_dtype="bfloat16",
    )
    config = RunConfig(
        name="cosmos3_nano",
        backbone=VideoTransformerConfig(
            block=block,
            num_layers=36,
            in_channels=48,
            out_channels=48,
            text_width=4096,
            text_embedding="none",
            remat="attention",
        ),
        prefix=PrefixConfig(width=4096, ffn_width=12_288, num_key_heads=8, is_causal=True),
        # 33 frames; one latent for 16 x 16 pixels, one token for 2 x 2 latents.
        clip=ClipConfig(num_frames=33, height=352, width=640, stride=(4, 16, 16), text_tokens=512),
        actions=ActionsConfig(modules="linear"),
        layout=LayoutConfig(
            formulation="joint",
            num_blocks=1,
            frames_per_block=8,
            actions_per_block=32,
            states_per_block=0,
            noisy_first_frame=False,
            clean_last_block=False,
        ),
        objective=ObjectiveConfig(shift=5.0, weighting="uniform", action_weight=10.0),
        data=DataConfig(action_dim=8),
        sampling=SamplingConfig(steps=4, guidance=3.0, action_guidance=3.0),
        optimizer=OptimizerConfig(peak_lr=1e-4, warmup_steps=1000, ema_decay=0.0),
        parallel=ParallelConfig(fsdp=-1, blocks="explicit"),
        train=TrainConfig(num_steps=20_000, global_batch_size=256),
    )
    return to_config_dict(config)
