"""FLOPs of a vision tower that is trained with what reads it (``models.siglip``): its stack, and what is around it."""

from __future__ import annotations

from wamjax.config.schema import RunConfig
from wamjax.flops.backbone import Anatomy, Work
from wamjax.flops.execution import AttentionWork
from wamjax.flops.parameters import list_parameters
from wamjax.layout import image_layout
from wamjax.layout.kernels import computed_pairs, exactly


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
        attention=AttentionWork(own=vla.num_images * pairs, text=(), image=()),
    )
    return anatomy, work
