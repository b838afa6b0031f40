"""What a device holds of every parameter: the closed-form list of ``flops.parameters`` under the rules of a mesh.

Owns the logical names of kernels by the module they are in; what is no kernel in the table is whole on every device
but for heads and feed-forward units. A test holds the result equal to the program's own shardings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from wamjax.config.blocks import is_small, main_block
from wamjax.config.finetune import is_trained, is_update
from wamjax.config.geometry import statistics_canvas
from wamjax.config.schema import RunConfig
from wamjax.flops.parameters import Parameter, list_parameters
from wamjax.parallel.rule_tables import Rules, partition

Names = tuple[str | None, str | None]

_IN, _OUT, _TO_HEADS = (None, "embed"), ("embed", None), ("embed", "heads")

# Module (the last parts of its path) -> logical names of its kernel's (fan in, fan out).
_KERNELS: Mapping[str, Names] = {
    **dict.fromkeys(("query", "key", "value", "image_key", "image_value"), _TO_HEADS),
    **dict.fromkeys(("patch_embed", "text_embedding.hidden", "image_embedding.hidden", "prompts.hidden"), _IN),
    **dict.fromkeys(("time_embedding.hidden", "action_encoder.lift"), _IN),
    **dict.fromkeys(("action_embed", "action_text.hidden", "action_time.hidden"), _IN),
    **dict.fromkeys(("action_out", "action_text.out", "action_time.out", "action_time.project"), _OUT),
    **dict.fromkeys(("text_embedding.out", "image_embedding.out", "prompts.out", "head_out", "video_head"), _OUT),
    **dict.fromkeys(("time_embedding.out", "time_embedding.project", "action_encoder.mix", "action_encoder.out"), _OUT),
    **dict.fromkeys(("self_modulation.down", "cross_modulation.down", "mlp_modulation.down"), _OUT),
    **dict.fromkeys(("self_modulation.up", "cross_modulation.up", "mlp_modulation.up"), _IN),
    "head_modulation.down": _OUT,
    "head_modulation.up": _IN,
    "state_embed": (None, None),
    "embed_tokens": _IN,
    **dict.fromkeys(("text_embed", "arm_embed", "gripper_embed", "state_mix", "decoder.embed"), _IN),
    **dict.fromkeys(("views.latents", "views.whole", "plan_embed"), _IN),
    **dict.fromkeys(("action_hidden", "decoder.out", "prior_head", "posterior_head"), _OUT),
    "action_mix": (None, None),
    "layers.up": ("embed", "mlp"),
    "layers.down": ("mlp", "embed"),
    **dict.fromkeys(("self_norm.vectors", "mlp_norm.vectors", "out_norm.vectors", "vision.out"), _OUT),
    "mlp.gate": ("embed", "mlp"),
    **dict.fromkeys(("self_attention.gate", "self_attention.decay", "self_attention.strength"), _TO_HEADS),
    "mlp.up": ("embed", "mlp"),
    "mlp.down": ("mlp", "embed"),
    "state_encoder.hidden": (None, "mlp"),
    "state_encoder.out": ("mlp", "embed"),
    "action_decoder.hidden": ("embed", "mlp"),
    "action_decoder.out": ("mlp", None),
}
_OUT_KERNEL: Names = ("heads", "embed")  # ``out_kernel`` of an attention layer
_TABLES = ("grid_embedding", "learned_positions.frames", "learned_positions.rows", "learned_positions.columns")
_TOWER_TABLES = ("vision.positions", "prefix.table")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placed:
    """A parameter on a mesh; fp32.

    Attributes:
      path: Dotted path.
      size: Values in all.
      local: Values on one device.
      gathered: Values of it as a product reads it: whole but for heads and units.
      copies: Layers it is stacked over, or embodiments.
      is_gathered: Whether devices hold parts that a product must gather.
      is_in_blocks: Whether it belongs to the stack of blocks.
      is_matrix: Whether it is a kernel of the blocks (Muon's matrices).
      is_trained: Whether it is trained.
    """

    path: str
    size: int
    local: int
    gathered: int
    copies: int
    is_gathered: bool
    is_in_blocks: bool
    is_matrix: bool
    is_trained: bool


def place_parameters(config: RunConfig, mesh: Mapping[str, int], rules: Rules) -> tuple[Placed, ...]:
    """Returns every parameter of ``config``'s model, the codec's constants included, on a mesh of such sizes.

    Args:
      config: The run.
      mesh: Size of each mesh axis.
      rules: Of parameters.

    Raises:
      ConfigError: A dim does not divide over the mesh.
    """
    head_dim = None if config.backbone is None else config.backbone.block.head_dim
    is_per_head = config.backbone is not None and config.backbone.block.qk_norm == "head"
    placed = []
    for path, parameter in list_parameters(config).items():
        names = _names(path, parameter, config)
        is_head_scale = path.endswith("_scale") and "attention" in path and parameter.shape == (head_dim,)
        if is_head_scale and (is_per_head or path.startswith("prefix.")):
            names = (None,)
        placed.append(_place(path, parameter, names, mesh, rules, config))
    if is_small(config):  # statistics of the codec: saved with the parameters, never trained
        for path, size in (("codec.mean", 3 * math.prod(statistics_canvas(config))), ("codec.std", 1)):
            placed.append(_place(path, Parameter((size,)), (None,), mesh, rules, config))
    return tuple(placed)


def _place(
    path: str,
    parameter: Parameter,
    names: tuple[str | None, ...],
    mesh: Mapping[str, int],
    rules: Rules,
    config: RunConfig,
) -> Placed:
    heads = _num_heads(path, config)
    entries = partition(names, _checked_shape(parameter.shape, names, heads), mesh, rules, f"parameter {path}")
    ways = [
        math.prod(mesh[axis] for axis in ((entry,) if isinstance(entry, str) else entry or ())) for entry in entries
    ]
    by_name = dict(zip(names, ways, strict=True))
    gather = by_name.get("embed", 1)
    is_in_blocks = path.startswith(
        ("blocks.", "video.blocks.", "expert.blocks.", "prefix.blocks.", "vision.blocks.", "decoder.blocks.")
    )
    return Placed(
        path=path,
        size=parameter.size,
        local=parameter.size // math.prod(ways),
        gathered=parameter.size // (math.prod(ways) // gather),
        copies=parameter.copies,
        is_gathered=gather > 1,
        is_in_blocks=is_in_blocks,
        is_matrix=is_in_blocks and parameter.takes_update,
        is_trained=not path.startswith("codec.") and is_trained(path, config.finetune),
    )


def _num_heads(path: str, config: RunConfig) -> int:
    if config.vla is not None and path.startswith("vision."):
        return config.vla.vision.num_heads
    if config.gpt is not None and path.startswith(("resampler.", "decoder.")):
        return config.gpt.resampler_heads if path.startswith("resampler.") else config.gpt.decoder_heads
    return main_block(config).num_heads


def _checked_shape(shape: tuple[int, ...], names: tuple[str | None, ...], heads: int) -> tuple[int, ...]:
    """Returns ``shape`` with heads counted whole: a device holds no part of one."""
    return tuple(heads if name == "heads" else size for name, size in zip(names, shape, strict=True))


def _names(path: str, parameter: Parameter, config: RunConfig) -> tuple[str | None, ...]:
    """Returns the logical names of a parameter's dims, heads folded into one."""
    if path.removeprefix("video.") in _TABLES or path in _TOWER_TABLES:
        return (*(None,) * (len(parameter.shape) - 1), "embed")
    module, _, name = path.rpartition(".")
    if is_update(path):
        module, _, attribute = module.rpartition(".")
        fan_in, fan_out = _OUT_KERNEL if attribute == "out_lora" else _kernel_names(module)
        return (fan_in, None) if name == "down" else (None, fan_out)
    if name == "out_kernel":
        return _OUT_KERNEL
    if name == "kernel":
        return _kernel_names(module)
    if name == "bias":
        fan_out = _kernel_names(module)[1] if _has_kernel(module) else None
        # The model width of a vector is whole, but for those of layers with a copy per embodiment.
        is_per_category = config.actions.modules == "category" and module.split(".")[0] in _PER_CATEGORY
        return (fan_out if fan_out != "embed" or is_per_category else None,)
    if name.endswith("_taps"):
        return (None, "heads")
    if (name.endswith("_scale") or name in ("log_rate", "decay_bias")) and "attention" in module:
        return ("heads",)
    return (None,) * len(parameter.shape)


_PER_CATEGORY = ("action_encoder", "state_encoder", "action_decoder")


def _has_kernel(module: str) -> bool:
    return any(module == known or module.endswith(f".{known}") for known in _KERNELS)


def _kernel_names(module: str) -> Names:
    """Returns the names of the kernel in ``module``; the longest match holds."""
    found = [known for known in _KERNELS if module == known or module.endswith(f".{known}")]
    assert found, f"no names are known for the kernel of {module}"
    return _KERNELS[max(found, key=len)]
