"""UniPi: a video transformer that goes on from a frame and a prompt, and a small network that reads actions off it.

Command:   wamjax plan --config=experiments/systems/unipi.py --topology=v4:4x4x4
Second:    wamjax plan --config=experiments/systems/unipi.py:inverse_dynamics --topology=v5e:1x1
Paper:     UniPi (arXiv 2302.00111)
Sequence:  16 frames x 12 x 20 = 3,840 tokens, padded to 3,840
Mesh:      64 chips of TPU v4: fsdp 64
Differs:   the base model alone, 16 frames of 24 x 40 pixels, as a transformer of Wan's blocks (1.7B) where the paper
           has a cascade of video U-Nets; the first frame is held clean at t = 0 where theirs is repeated along the
           channels; flow matching for their diffusion. It denoises pixels (config.clip.stride is 1), in patches of
           2 x 2: an autoencoder of 4 x 8 x 8 would leave 3 x 5 latents of such a frame. Actions are read off these
           frames, with no super-resolution before. Unverified: the second stage's batch and channels, the first
           stage's 64 text tokens, learning rate, noise schedule and share of dropped prompts, and how both are
           warmed up.
Cost:      182.6 ZFLOP (model FLOPs of the first stage; the second's are 0.0013), as both plans print
Acting:    wamjax eval --workdir=VIDEO_RUN --inverse_dynamics=INVERSE_DYNAMICS_RUN composes a run of each stage.
"""

import dataclasses

from ml_collections import config_dict

from wamjax.config.backbone import ClipConfig
from wamjax.config.bridge import to_config_dict
from wamjax.config.inverse_dynamics import UNIPI
from wamjax.config.presets import WAN_2_1_T2V_1_3B
from wamjax.config.schema import (
    DataConfig,
    LayoutConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
)

STAGES = ("video", "inverse_dynamics")
FRAMES, HEIGHT, WIDTH = 16, 24, 40
DATA = DataConfig(
    canvas=(HEIGHT, WIDTH), action_dim=7, state_dim=7, frame_stride=1, video_statistics="none", decoded_frames_mib=0
)


def get_config(stage: str = "video") -> config_dict.ConfigDict:
    if stage not in STAGES:
        raise ValueError(f"stage {stage!r} is none of {', '.join(STAGES)}; write --config=FILE:STAGE")
    return to_config_dict(_video() if stage == "video" else _inverse_dynamics())


def _video() -> RunConfig:
    block = dataclasses.replace(WAN_2_1_T2V_1_3B.block, compute_dtype="bfloat16")
    return RunConfig(
        name="unipi",
        backbone=dataclasses.replace(
            WAN_2_1_T2V_1_3B, block=block, num_layers=36, in_channels=3, out_channels=3, remat="products"
        ),
        clip=ClipConfig(num_frames=FRAMES, height=HEIGHT, width=WIDTH, stride=(1, 1, 1), text_tokens=64),
        layout=LayoutConfig(formulation="video", noisy_first_frame=False, pad_multiple=128),
        data=DATA,
        optimizer=OptimizerConfig(peak_lr=1e-4, warmup_steps=10_000, ema_decay=0.0),
        parallel=ParallelConfig(fsdp=-1, blocks="explicit"),
        train=TrainConfig(num_steps=2_000_000, global_batch_size=2048, accumulate=8),
        objective=ObjectiveConfig(prompt_dropout=0.1),
        sampling=SamplingConfig(steps=20, guidance=5.0),
    )


def _inverse_dynamics() -> RunConfig:
    return RunConfig(
        name="unipi_inverse_dynamics",
        inverse_dynamics=dataclasses.replace(UNIPI, compute_dtype="bfloat16"),
        layout=LayoutConfig(
            formulation="frame_pairs", num_blocks=1, frames_per_block=1, actions_per_block=1, states_per_block=0
        ),
        data=DATA,
        optimizer=OptimizerConfig(
            peak_lr=1e-4, schedule="constant", warmup_steps=10_000, clip_norm=1.0, weight_decay=0.0, ema_decay=0.0
        ),
        train=TrainConfig(num_steps=2_000_000, global_batch_size=256),
    )
