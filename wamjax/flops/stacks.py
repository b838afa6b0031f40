"""The stacks of a run's model: those that attend together, by expert, and a tower that runs before them."""

from __future__ import annotations

import dataclasses

from wamjax.config.blocks import block_config
from wamjax.config.plan import find_plan
from wamjax.config.schema import RunConfig
from wamjax.config.systems import ActionExpertConfig, find_system, prefix_block
from wamjax.flops.backbone import Anatomy, Work
from wamjax.flops.execution import AttentionWork
from wamjax.flops.parameters import list_parameters
from wamjax.layout import image_layout
from wamjax.layout.kernels import computed_pairs, exactly


def find_anatomies(config: RunConfig) -> dict[str, Anatomy]:
    """Returns the stacks of the model of ``config`` by expert (``Segment.expert``); one is ``shared``."""
    parameters, backbone, vla = list_parameters(config), config.backbone, config.vla
    if vla is not None:
        language = Anatomy(
            block=vla.language_block,
            num_layers=vla.num_layers,
            parameters=parameters,
            root="prefix.",
            modules="expert.",
        )
        return {"prefix": language, "action": dataclasses.replace(language, block=vla.expert_block, root="expert.")}
    if config.gpt is not None:
        gpt = Anatomy(block=config.gpt.block, num_layers=config.gpt.num_layers, parameters=parameters, rotates=False)
        return {"shared": gpt}
    if backbone is None:
        block, depth = block_config(config.model), config.model.num_layers
        own = Anatomy(block=block, num_layers=depth, parameters=parameters, text="prompts", head="video_head")
        return {"shared": own}
    root = "" if config.layout.is_plain_clip else "video."
    video = Anatomy(block=backbone.block, num_layers=backbone.num_layers, parameters=parameters, root=root)
    if config.layout.is_plain_clip or config.layout.formulation == "plan":
        return {"shared": video}
    system, found = find_system(config), {"shared": video}
    if isinstance(system, ActionExpertConfig):
        expert = dataclasses.replace(video, block=system.expert, root="expert.", modules="expert.")
        found = {"video": video, "action": expert}
    tower = prefix_block(config)
    if tower is not None:
        found["prefix"] = dataclasses.replace(video, block=tower, root="prefix.")
    return found


def find_decoder(config: RunConfig) -> Anatomy:
    """Returns the stack that decodes actions from plans, of a run of formulation ``plan``."""
    plan = find_plan(config)
    return Anatomy(
        block=plan.decoder, num_layers=plan.decoder_layers, parameters=list_parameters(config), root="decoder."
    )


def find_vision(config: RunConfig, *, is_executed: bool = False) -> tuple[Anatomy, Work] | None:
    """Returns the vision tower of ``config`` and what goes through it for one sample; None without one.

    Args:
      config: The run.
      is_executed: Whether attention's pairs are those that plain XLA computes, not those that are needed.
    """
    vla = config.vla
    if vla is None:
        return None
    schedule = image_layout(vla.vision.num_patches).full_pass().schedule
    pairs = computed_pairs("rectangles", schedule) if is_executed else (exactly(schedule.num_pairs),)
    anatomy = Anatomy(
        block=vla.vision.block(vla.compute_dtype),
        num_layers=vla.vision.num_layers,
        parameters=list_parameters(config),
        root="vision.",
        rotates=False,
    )
    work = Work(
        tokens=vla.image_tokens,
        patches=vla.image_tokens,
        predicted=0,
        text=0,
        image=0,
        slots=0,
        attention=(AttentionWork(own=vla.num_images * pairs, text=(), image=()),),
    )
    return anatomy, work
