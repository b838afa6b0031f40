"""Sizes of the world-action model's kernels, by the path they have in it: what FLOPs and update sizes follow from."""

from __future__ import annotations

from typing import NamedTuple

from wamjax.config.geometry import derive_geometry
from wamjax.config.schema import RunConfig

_PROJECTIONS = ("query.kernel", "key.kernel", "value.kernel", "out_kernel")


class Kernel(NamedTuple):
    """A kernel ``[fan_in fan_out]``, heads folded, of which the model has ``copies`` (layers of a stack)."""

    fan_in: int
    fan_out: int
    copies: int = 1


def model_kernels(config: RunConfig) -> dict[str, Kernel]:
    """Returns the kernels of the model of ``config`` by dotted path."""
    model, data, channels = config.model, config.data, derive_geometry(config).token_channels
    d, f, hidden, depth = model.width, model.ffn_width, model.action_hidden, model.num_layers
    attentions = (f"blocks.{kind}_attention.{name}" for kind in ("self", "cross") for name in _PROJECTIONS)
    return {
        "patch_embed.kernel": Kernel(channels, d),
        "action_encoder.lift.kernel": Kernel(data.action_dim, d),
        "action_encoder.mix.kernel": Kernel(2 * d, d),
        "action_encoder.out.kernel": Kernel(d, d),
        "state_encoder.hidden.kernel": Kernel(data.state_dim, hidden),
        "state_encoder.out.kernel": Kernel(hidden, d),
        "time_embedding.hidden.kernel": Kernel(model.time_width, d),
        "time_embedding.out.kernel": Kernel(d, d),
        "time_embedding.project.kernel": Kernel(d, 6 * d),
        "prompts.hidden.kernel": Kernel(model.text_width, d),
        "prompts.out.kernel": Kernel(d, d),
        **dict.fromkeys(attentions, Kernel(d, d, depth)),
        "blocks.mlp.up.kernel": Kernel(d, f, depth),
        "blocks.mlp.down.kernel": Kernel(f, d, depth),
        "video_head.kernel": Kernel(d, channels),
        "action_decoder.hidden.kernel": Kernel(d, hidden),
        "action_decoder.out.kernel": Kernel(hidden, data.action_dim),
    }
