"""Which formulation is best per FLOP: the systems at one small size, trained with equal FLOPs on the quickstart's data.

Command:   wamjax compare --config=experiments/sweeps/formulations.py --flops=2e12 --output=runs/formulations
Members:   wamjax compare --config=experiments/sweeps/formulations.py --members=fast_wam,dreamzero ...
Data:      datasets/metaworld, two cameras on a canvas of 24 x 48; patches of 6 x 6 pixels are the latents (no
           autoencoder), and every prompt has a random embedding of its own.
Systems:   every system whose windows are cut from datasets (``MEMBERS``), as it is but for sizes: 2 layers 128 wide,
           chunks of 2 latent frames and 8 actions, 10 solver steps at most. How they are denoised stays theirs.
"""

import dataclasses

from ml_collections import config_dict

from experiments import quickstart
from experiments.systems import (
    cosmos3_nano,
    dreamzero_5b,
    fast_wam_idm,
    fast_wam_joint,
    fast_wam_libero,
    hybrid_vla_wam,
)
from wamjax.config.backbone import VideoTransformerConfig
from wamjax.config.bridge import from_config_dict, to_config_dict
from wamjax.config.reporting import CheckpointConfig, EvaluateConfig
from wamjax.config.schema import OptimizerConfig, RunConfig, TrainConfig
from wamjax.config.twin import tiny_twin

SYSTEMS = {
    "fast_wam": fast_wam_libero,
    "fast_wam_joint": fast_wam_joint,
    "fast_wam_idm": fast_wam_idm,
    "dreamzero": dreamzero_5b,
    "cosmos3": cosmos3_nano,
    "hybrid": hybrid_vla_wam,
}
MEMBERS = tuple(SYSTEMS)
STRIDE = (1, 6, 6)
CANVAS = (24, 48)


def get_config(member: str = MEMBERS[0]) -> config_dict.ConfigDict:
    if member not in SYSTEMS:
        raise ValueError(f"member {member!r} is none of {', '.join(MEMBERS)}; write --config=FILE:MEMBER")
    twin = tiny_twin(from_config_dict(SYSTEMS[member].get_config()))
    data = from_config_dict(quickstart.get_config()).data
    (front, *_), (side, *_) = data.views
    assert twin.backbone is not None, "every system here has a backbone"
    layout = dataclasses.replace(twin.layout, frames_per_block=2, actions_per_block=8)
    config = dataclasses.replace(
        twin,
        name=f"formulations_{member}",
        backbone=_backbone(twin.backbone),
        clip=dataclasses.replace(
            twin.clip,
            num_frames=1 + layout.num_blocks * layout.frames_per_block,
            height=CANVAS[0],
            width=CANVAS[1],
            stride=STRIDE,
            text_tokens=2,
        ),
        actions=dataclasses.replace(twin.actions, hidden_width=64, expert_width=64, expert_ffn_width=128),
        prefix=dataclasses.replace(twin.prefix, width=64 if twin.prefix.width else 0, ffn_width=128),
        layout=layout,
        data=dataclasses.replace(
            data,
            canvas=CANVAS,
            views=((front, 0, 0, CANVAS[0], CANVAS[0]), (side, 0, CANVAS[0], CANVAS[0], CANVAS[0])),
            window_stride=4,
            video_statistics="none",
        ),
        optimizer=OptimizerConfig(peak_lr=2e-3, warmup_steps=20, ema_decay=0.0),
        train=TrainConfig(num_steps=400, global_batch_size=16),
        checkpoint=CheckpointConfig(every_steps=0),
        evaluate=EvaluateConfig(every_steps=0, num_windows=48, rollout_tasks=("reach-v3",), rollout_trials=10),
    )
    return to_config_dict(_of_few_steps(config))


def _backbone(backbone: VideoTransformerConfig) -> VideoTransformerConfig:
    channels = 3 * STRIDE[1] * STRIDE[2]
    beside = backbone.in_channels - backbone.out_channels
    return dataclasses.replace(
        backbone,
        block=dataclasses.replace(backbone.block, width=128, num_heads=4, ffn_width=256),
        in_channels=channels + beside,
        out_channels=channels,
        patch=(1, 1, 1),
        time_width=64,
    )


def _of_few_steps(config: RunConfig) -> RunConfig:
    """Guides nothing: prompts are always shown in training here, so that there is nothing to lead away from."""
    sampling = dataclasses.replace(config.sampling, guidance=1.0, action_guidance=1.0)
    if sampling.evaluated_steps:
        # Every step is run: 8 of DreamZero's 16 would be as many.
        sampling = dataclasses.replace(sampling, steps=len(sampling.evaluated_steps), evaluated_steps=())
    return dataclasses.replace(config, sampling=sampling)
