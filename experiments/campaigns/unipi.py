"""UniPi's two stages on the quickstart's data: a video model, an inverse-dynamics model, and the system of both.

Command:   wamjax data cache --config=experiments/campaigns/unipi.py:video --patches --out=runs/unipi/latents
     then  wamjax train --config=experiments/campaigns/unipi.py:video --workdir=runs/unipi/video
     then  wamjax train --config=experiments/campaigns/unipi.py:inverse_dynamics --workdir=runs/unipi/inverse_dynamics
     then  wamjax eval --workdir=runs/unipi/video --inverse_dynamics=runs/unipi/inverse_dynamics
           wamjax ledger runs/unipi/video runs/unipi/inverse_dynamics
Data:      datasets/metaworld, both cameras. The first stage reads no actions.
Order:     either stage first: they are trained apart.
"""

import dataclasses

from ml_collections import config_dict

from experiments import quickstart
from experiments.systems import unipi
from wamjax.config.bridge import from_config_dict, to_config_dict
from wamjax.config.reporting import CheckpointConfig, EvaluateConfig
from wamjax.config.schema import OptimizerConfig, RunConfig, SamplingConfig, TrainConfig
from wamjax.config.twin import tiny_twin

STAGES = unipi.STAGES
RUNS = "runs/unipi"
CANVAS, PATCH, FRAMES = (24, 48), 6, 5


def get_config(stage: str = "video") -> config_dict.ConfigDict:
    if stage not in STAGES:
        raise ValueError(f"stage {stage!r} is none of {', '.join(STAGES)}; write --config=FILE:STAGE")
    config = tiny_twin(from_config_dict(unipi.get_config(stage)))
    config = _video(config) if stage == "video" else _inverse_dynamics(config)
    data = from_config_dict(quickstart.get_config()).data
    (front, *_), (side, *_) = data.views
    height, width = CANVAS[0], CANVAS[1] // 2
    data = dataclasses.replace(
        data,
        latents=f"{RUNS}/latents" if stage == "video" else "",
        canvas=CANVAS,
        views=((front, 0, 0, height, width), (side, 0, width, height, width)),
        video_statistics="none",
    )
    config = dataclasses.replace(
        config,
        name=f"unipi_{stage}",
        data=data,
        checkpoint=CheckpointConfig(every_steps=0),
        evaluate=EvaluateConfig(every_steps=0, num_windows=48, rollout_tasks=("reach-v3",), rollout_trials=10),
    )
    return to_config_dict(config)


def _video(config: RunConfig) -> RunConfig:
    backbone = config.backbone
    assert backbone is not None, "the first stage has a backbone"
    channels = 3 * PATCH**2
    return dataclasses.replace(
        config,
        backbone=dataclasses.replace(
            backbone,
            block=dataclasses.replace(backbone.block, width=128, num_heads=4, ffn_width=256),
            in_channels=channels,
            out_channels=channels,
            patch=(1, 1, 1),
            time_width=64,
        ),
        clip=dataclasses.replace(
            config.clip, num_frames=FRAMES, height=CANVAS[0], width=CANVAS[1], stride=(1, PATCH, PATCH), text_tokens=2
        ),
        optimizer=OptimizerConfig(peak_lr=2e-3, warmup_steps=20, ema_decay=0.0),
        train=TrainConfig(num_steps=400, global_batch_size=16),
        # Nothing is guided, and so no prompts are dropped.
        objective=dataclasses.replace(config.objective, prompt_dropout=0.0),
        sampling=SamplingConfig(steps=10),
    )


def _inverse_dynamics(config: RunConfig) -> RunConfig:
    model = config.inverse_dynamics
    assert model is not None, "the second stage reads actions"
    return dataclasses.replace(
        config,
        inverse_dynamics=dataclasses.replace(model, width=32, num_layers=3, hidden_width=64, stride=2),
        layout=dataclasses.replace(config.layout, num_blocks=FRAMES - 1, actions_per_block=4),
        optimizer=OptimizerConfig(peak_lr=1e-3, warmup_steps=20, ema_decay=0.0),
        train=TrainConfig(num_steps=400, global_batch_size=16),
    )
