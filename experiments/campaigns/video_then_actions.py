"""Pretraining on video, tuning on actions, adaptation by video alone: three runs on the quickstart's data.

Command:   wamjax train --config=experiments/campaigns/video_then_actions.py:video --workdir=runs/campaign/video
     then  wamjax train --config=experiments/campaigns/video_then_actions.py:actions --workdir=runs/campaign/actions
     then  wamjax train --config=experiments/campaigns/video_then_actions.py:adapt --workdir=runs/campaign/adapt
           wamjax ledger runs/campaign/video runs/campaign/actions runs/campaign/adapt
Data:      datasets/metaworld. ``video`` reads its cameras and nothing else; ``adapt`` too, with the two cameras in each
           other's place, the nearest thing to another robot in a dataset of one.
Order:     each run starts from the newest checkpoint of the one before (``config.finetune.base``).
"""

import dataclasses

from ml_collections import config_dict

from experiments import quickstart
from wamjax.config.bridge import from_config_dict, to_config_dict
from wamjax.config.schema import FinetuneConfig, RunConfig

STAGES = ("video", "actions", "adapt")
RUNS = "runs/campaign"


def get_config(stage: str = "video") -> config_dict.ConfigDict:
    if stage not in STAGES:
        raise ValueError(f"stage {stage!r} is none of {', '.join(STAGES)}; write --config=FILE:STAGE")
    config = from_config_dict(quickstart.get_config())
    return to_config_dict(dataclasses.replace(_stage(config, stage), name=f"video_then_actions_{stage}"))


def _stage(config: RunConfig, stage: str) -> RunConfig:
    without_actions = dataclasses.replace(config.data, state_key="", action_key="")
    if stage == "video":
        return _of_steps(dataclasses.replace(config, data=without_actions), 400)
    if stage == "actions":
        return _of_steps(dataclasses.replace(config, finetune=FinetuneConfig(base=f"{RUNS}/video")), 400)
    (front, *rectangle), (side, *other_rectangle) = config.data.views
    swapped = dataclasses.replace(without_actions, views=((side, *rectangle), (front, *other_rectangle)))
    base = FinetuneConfig(base=f"{RUNS}/actions", frozen=("action_*", "state_*"))
    return _of_steps(dataclasses.replace(config, data=swapped, finetune=base), 100)


def _of_steps(config: RunConfig, num_steps: int) -> RunConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=num_steps))
