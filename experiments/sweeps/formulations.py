"""Which formulation is best per FLOP: the systems at one small size, trained with equal FLOPs on the quickstart's data.

Command:   wamjax compare --config=experiments/sweeps/formulations.py --flops=2e12 --output=runs/formulations
Members:   wamjax compare --config=experiments/sweeps/formulations.py --members=fast_wam,dreamzero ...
Data:      datasets/metaworld, two cameras on a canvas of 24 x 48, or one below the other where a system reads pictures
           of single cameras; patches of 6 x 6 pixels are the latents (no autoencoder) and the features (no image
           encoder), every prompt has a random embedding of its own, and where prompts are token ids they are bytes.
Systems:   as they are but for sizes: 2 layers 128 wide (4 of Kairos, whose pattern has as many), chunks of 2 latent
           frames and 8 actions (GR-1: of one action, 8 steps looked back on), 10 solver steps at most. How they are
           denoised stays theirs. UniPi is two runs, of a video and of an inverse-dynamics model, which has three tenths
           of the budget.
"""

import dataclasses

from ml_collections import config_dict

from experiments import quickstart
from experiments.systems import (
    cosmos3_nano,
    cosmos_policy_libero,
    dreamzero_5b,
    fast_wam_idm,
    fast_wam_joint,
    fast_wam_libero,
    gr1,
    hybrid_vla_wam,
    kairos_4b,
    latent_plan,
    lingbot_va_mot,
    lingbot_va_robotwin,
    pi05_droid,
    unipi,
)
from wamjax.config.backbone import VideoTransformerConfig
from wamjax.config.bridge import from_config_dict, to_config_dict
from wamjax.config.reporting import CheckpointConfig, EvaluateConfig
from wamjax.config.schema import DataConfig, OptimizerConfig, RunConfig, TrainConfig
from wamjax.config.twin import tiny_twin

SYSTEMS = {
    "fast_wam": fast_wam_libero,
    "fast_wam_joint": fast_wam_joint,
    "fast_wam_idm": fast_wam_idm,
    "dreamzero": dreamzero_5b,
    "cosmos3": cosmos3_nano,
    "hybrid": hybrid_vla_wam,
    "kairos": kairos_4b,
    "lingbot_va": lingbot_va_robotwin,
    "lingbot_va_mot": lingbot_va_mot,
    "cosmos_policy": cosmos_policy_libero,
    "latent_plan": latent_plan,
    "pi05": pi05_droid,
    "gr1": gr1,
    "unipi": unipi,
}
MEMBERS = tuple(SYSTEMS)
# Of a system of two runs the second, and its share of the budget: with 0.3 both see about as many samples.
SECOND_STAGES = {"unipi": ("unipi_inverse_dynamics", 0.3)}
STRIDE = (1, 6, 6)
CANVAS = (24, 48)
PICTURE = 24  # height and width of a camera's picture
ACTIONS = 8  # of a chunk, one per dataset step


def get_config(member: str = MEMBERS[0]) -> config_dict.ConfigDict:
    seconds = {second: first for first, (second, _) in SECOND_STAGES.items()}
    if member not in SYSTEMS and member not in seconds:
        raise ValueError(f"member {member!r} is none of {', '.join(MEMBERS)}; write --config=FILE:MEMBER")
    if member in seconds:
        system = SYSTEMS[seconds[member]].get_config(member.removeprefix(f"{seconds[member]}_"))
    else:
        system = SYSTEMS[member].get_config()
    twin = tiny_twin(from_config_dict(system))
    config = dataclasses.replace(
        twin,
        name=f"formulations_{member}",
        actions=dataclasses.replace(twin.actions, hidden_width=64, expert_width=64, expert_ffn_width=128),
        prefix=dataclasses.replace(twin.prefix, width=64 if twin.prefix.width else 0, ffn_width=128),
        data=from_config_dict(quickstart.get_config()).data,
        optimizer=OptimizerConfig(peak_lr=2e-3, warmup_steps=20, ema_decay=0.0),
        train=TrainConfig(num_steps=400, global_batch_size=16),
        checkpoint=CheckpointConfig(every_steps=0),
        evaluate=EvaluateConfig(every_steps=0, num_windows=48, rollout_tasks=("reach-v3",), rollout_trials=10),
    )
    return to_config_dict(_of_few_steps(_SIZES.get(twin.layout.formulation, _of_clip)(config)))


def _of_clip(config: RunConfig) -> RunConfig:
    """A clip of both cameras beside each other: one frame and blocks of 2, of ``alternating`` the blocks alone."""
    assert config.backbone is not None, "clips are a backbone's"
    layout = dataclasses.replace(config.layout, frames_per_block=2, actions_per_block=ACTIONS)
    first = int(layout.formulation != "alternating")
    return dataclasses.replace(
        config,
        backbone=_backbone(config.backbone),
        clip=dataclasses.replace(
            config.clip,
            num_frames=first + layout.num_blocks * layout.frames_per_block,
            height=CANVAS[0],
            width=CANVAS[1],
            stride=STRIDE,
            text_tokens=2,
        ),
        layout=layout,
        data=_data(config.data, (0, PICTURE)),
    )


def _of_pictures(config: RunConfig) -> RunConfig:
    """Pictures of both cameras now and a chunk later, each a latent frame."""
    assert config.backbone is not None, "pictures are a backbone's"
    clip = dataclasses.replace(config.clip, num_frames=4, height=PICTURE, width=PICTURE, stride=STRIDE, text_tokens=2)
    return dataclasses.replace(
        config,
        backbone=_backbone(config.backbone),
        clip=clip,
        layout=dataclasses.replace(config.layout, frames_per_block=2, actions_per_block=ACTIONS),
        data=_data(config.data, (PICTURE, 0), frame_stride=ACTIONS),
    )


def _of_policy(config: RunConfig) -> RunConfig:
    assert config.vla is not None, "formulation policy is of a vision-language-action model"
    vision = dataclasses.replace(
        config.vla.vision, width=64, num_heads=4, ffn_width=128, image_size=PICTURE, patch_size=STRIDE[1]
    )
    vla = dataclasses.replace(
        config.vla,
        vision=vision,
        width=128,
        ffn_width=256,
        expert_width=64,
        expert_ffn_width=128,
        num_heads=4,
        head_dim=32,
        vocab_size=256,
        text_tokens=96,
    )
    return dataclasses.replace(
        config,
        vla=vla,
        layout=dataclasses.replace(config.layout, frames_per_block=1, actions_per_block=ACTIONS),
        data=_data(config.data, (PICTURE, 0), frame_stride=ACTIONS),
    )


def _of_queries(config: RunConfig) -> RunConfig:
    assert config.gpt is not None, "formulation queries is of a GPT"
    gpt = dataclasses.replace(
        config.gpt,
        width=128,
        num_heads=4,
        ffn_width=256,
        image_size=PICTURE,
        patch_size=STRIDE[1],
        image_width=3 * STRIDE[1] * STRIDE[2],
        num_latents=4,
        resampler_heads=4,
        resampler_head_dim=16,
        decoder_heads=4,
        ahead=3,
    )
    return dataclasses.replace(
        config,
        gpt=gpt,
        layout=dataclasses.replace(config.layout, num_blocks=ACTIONS),
        data=_data(config.data, (PICTURE, 0), frame_stride=1),
    )


def _of_video(config: RunConfig) -> RunConfig:
    return _of_clip(dataclasses.replace(config, layout=dataclasses.replace(config.layout, num_blocks=1)))


def _of_pairs(config: RunConfig) -> RunConfig:
    """Pairs of the frames of a clip, with the actions between two."""
    assert config.inverse_dynamics is not None, "formulation frame_pairs is of an inverse-dynamics model"
    return dataclasses.replace(
        config,
        inverse_dynamics=dataclasses.replace(
            config.inverse_dynamics, width=32, num_layers=3, hidden_width=64, stride=2
        ),
        layout=dataclasses.replace(config.layout, num_blocks=2, actions_per_block=ACTIONS // 2),
        data=_data(config.data, (0, PICTURE)),
    )


_SIZES = {
    "latent_frames": _of_pictures,
    "policy": _of_policy,
    "queries": _of_queries,
    "video": _of_video,
    "frame_pairs": _of_pairs,
}


def _data(data: DataConfig, beside: tuple[int, int], *, frame_stride: int = 4) -> DataConfig:
    """Lays the side camera's picture ``beside`` (rows, columns) the front one's."""
    (front, *_), (side, *_) = data.views
    size = (PICTURE, PICTURE)
    return dataclasses.replace(
        data,
        canvas=(PICTURE + beside[0], PICTURE + beside[1]),
        views=((front, 0, 0, *size), (side, *beside, *size)),
        frame_stride=frame_stride,
        window_stride=4,
        video_statistics="none",
    )


def _backbone(backbone: VideoTransformerConfig) -> VideoTransformerConfig:
    channels = 3 * STRIDE[1] * STRIDE[2]
    beside = backbone.in_channels - backbone.out_channels
    return dataclasses.replace(
        backbone,
        block=dataclasses.replace(backbone.block, width=128, num_heads=4, ffn_width=256),
        in_channels=channels + beside,
        out_channels=channels,
        patch=(1, 1, 1),
        time_width=128 if backbone.block.modulation == "low_rank" else 64,
    )


def _of_few_steps(config: RunConfig) -> RunConfig:
    """Guides nothing, and so drops no prompts in training: there would be little to learn of either."""
    sampling = dataclasses.replace(config.sampling, guidance=1.0, action_guidance=1.0)
    if sampling.evaluated_steps:
        # Every step is run: 8 of DreamZero's 16 would be as many.
        sampling = dataclasses.replace(sampling, steps=len(sampling.evaluated_steps), evaluated_steps=())
    sampling = dataclasses.replace(sampling, steps=min(sampling.steps, 10))
    objective = dataclasses.replace(config.objective, prompt_dropout=0.0)
    return dataclasses.replace(config, sampling=sampling, objective=objective)
