"""Every parameter of a model in closed form, by the path it has in it: sizes, and which are kernels.

What FLOPs, update sizes, 6NT and memory follow from. Tests hold the lists equal to the real models', path by path.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from wamjax.config.backbone import BlockConfig, VideoTransformerConfig
from wamjax.config.blocks import block_config
from wamjax.config.finetune import UPDATE_OF, is_trained, matches
from wamjax.config.geometry import derive_geometry
from wamjax.config.gpt import GptPolicyConfig
from wamjax.config.plan import LatentPlanConfig, find_plan
from wamjax.config.schema import FinetuneConfig, RunConfig
from wamjax.config.systems import ActionExpertConfig, CategoryActionConfig, SharedActionConfig, find_system
from wamjax.config.vla import VlaConfig
from wamjax.layout.kernels import DELTA_TAPS


class Parameter(NamedTuple):
    """A parameter, heads folded into one dim.

    Attributes:
      shape: Of one copy; a kernel's is (fan in, fan out).
      copies: Layers of a stack, or embodiments.
      takes_update: Whether it is a kernel that can take a low-rank update.
    """

    shape: tuple[int, ...]
    copies: int = 1
    takes_update: bool = False

    @property
    def size(self) -> int:
        """Values, of all copies."""
        return self.copies * math.prod(self.shape)


def list_parameters(config: RunConfig) -> dict[str, Parameter]:
    """Returns the parameters of the model of ``config``, trained or kept, by dotted path; low-rank updates included.

    The codec's statistics are constants of the data and not among them.
    """
    if config.vla is not None:
        found = _vla_parameters(config.vla, config.data.action_dim)
    elif config.gpt is not None:
        found = _gpt_parameters(config, config.gpt)
    elif config.backbone is None:
        found = _world_action_parameters(config)
    elif config.layout.is_plain_clip:
        found = video_parameters(config.backbone)
    elif config.layout.formulation == "plan":
        found = _plan_parameters(find_plan(config))
    else:
        system = find_system(config)
        if isinstance(system, CategoryActionConfig):
            found = _category_parameters(system)
        else:
            found = _shared_parameters(system) if isinstance(system, SharedActionConfig) else _expert_parameters(system)
            if system.prefix is not None:
                found |= _prefix_parameters(system.prefix, system.video)
    return found | _updates(found, config.finetune)


def count_parameters(config: RunConfig) -> dict[str, int]:
    """Returns the number of parameters of ``config`` by part, trained or kept; their sum is N of 6NT."""
    parts: collections.Counter[str] = collections.Counter()
    for path, parameter in list_parameters(config).items():
        parts[path.removeprefix("video.").split(".")[0]] += parameter.size
    return dict(parts)


def count_trained_parameters(config: RunConfig) -> int:
    """Returns the number of parameters that ``config`` trains."""
    return sum(p.size for path, p in list_parameters(config).items() if is_trained(path, config.finetune))


def video_parameters(config: VideoTransformerConfig, root: str = "", *, has_head: bool = True) -> dict[str, Parameter]:
    """Returns the parameters of ``models.video_transformer.VideoTransformer``, their paths below ``root``."""
    block, d, use_bias = config.block, config.block.width, config.use_patch_bias
    context, seen = block.context_width or d, config.image_width
    found = _linear("patch_embed", config.patch_channels, d, use_bias=use_bias)
    if config.text_embedding != "none":
        found |= _linear("text_embedding.hidden", config.text_width, context)
    if config.text_embedding == "mlp":
        found |= _linear("text_embedding.out", context, context)
    if seen is not None:
        found |= _norm("image_embedding.norm_in", seen) | _linear("image_embedding.hidden", seen, seen)
        found |= _linear("image_embedding.out", seen, d) | _norm("image_embedding.norm_out", d)
        if config.image_positions is not None:
            found["image_embedding.positions"] = Parameter((config.image_positions, seen))
    for axis, size in zip(("frames", "rows", "columns"), config.learned_positions or (), strict=False):
        found[f"learned_positions.{axis}"] = Parameter((size, d))
    if block.modulation == "table":
        found |= _time_embedding(config.time_width, d) | {"head_modulation": Parameter((2, d))}
    else:
        found |= _linear("time_embedding.hidden", d, d, use_bias=False) | {"time_embedding.scale": Parameter((d,))}
        found |= _linear("time_embedding.project", d, 3 * d, use_bias=False)
        found |= _low_rank("head_modulation", d, block.modulation_rank, 2)
    found |= _linear("head_out", d, config.out_patch_channels, use_bias=use_bias)
    if not has_head:
        found = {path: parameter for path, parameter in found.items() if not path.startswith("head_")}
    return {f"{root}{path}": parameter for path, parameter in found.items()} | _stack(
        f"{root}blocks", block, config.num_layers
    )


def _world_action_parameters(config: RunConfig) -> dict[str, Parameter]:
    """Returns the parameters of ``models.world_action.WorldActionModel``."""
    model, data, geometry = config.model, config.data, derive_geometry(config)
    d, hidden, channels = model.width, model.action_hidden, geometry.token_channels
    found = _linear("patch_embed", channels, d)
    if model.grid_embedding == "learned":
        found["grid_embedding"] = Parameter((*geometry.grid, d))
    found |= _action_modules(d, data.action_dim, data.state_dim, hidden, _linear)
    found |= _time_embedding(model.time_width, d)
    found["prompts.table"] = Parameter((model.max_prompts, model.text_tokens, model.text_width))
    found |= _linear("prompts.hidden", model.text_width, d) | _linear("prompts.out", d, d)
    found |= _stack("blocks", block_config(model), model.num_layers)
    return found | {"head_modulation": Parameter((2, d))} | _linear("video_head", d, channels)


def _category_parameters(config: CategoryActionConfig) -> dict[str, Parameter]:
    """Returns the parameters of ``models.action_transformers.CategoryActionTransformer``."""

    def per_category(path: str, fan_in: int, fan_out: int) -> dict[str, Parameter]:
        shapes = {"kernel": (fan_in, fan_out), "bias": (fan_out,)}
        return {f"{path}.{name}": Parameter(shape, config.num_categories) for name, shape in shapes.items()}

    sizes = (config.video.block.width, config.action_dim, config.state_dim, config.hidden_width)
    return video_parameters(config.video, "video.") | _action_modules(*sizes, per_category)


def _shared_parameters(config: SharedActionConfig) -> dict[str, Parameter]:
    """Returns the parameters of ``models.action_transformers.SharedActionTransformer``."""
    video, d = config.video, config.video.block.width
    found = _linear("action_embed", config.action_dim, d) | _linear("action_out", d, config.action_dim)
    found |= _linear("action_text.hidden", video.text_width, d) | _linear("action_text.out", d, d)
    return video_parameters(video, "video.") | found | _time_embedding(video.time_width, d, "action_time")


def _expert_parameters(config: ActionExpertConfig) -> dict[str, Parameter]:
    """Returns the parameters of ``models.action_expert.ActionExpertTransformer``."""
    video, block = config.video, config.expert
    d = block.width
    found = _linear("action_embed", config.action_dim, d) | _linear("action_out", d, config.action_dim)
    if block.cross_attention:
        found |= _linear("text_embedding.hidden", video.text_width, d) | _linear("text_embedding.out", d, d)
    found |= _time_embedding(video.time_width, d) | _stack("blocks", block, video.num_layers)
    own = {f"expert.{path}": parameter for path, parameter in found.items()}
    if config.state_dim is not None:
        own |= _linear("state_embed", config.state_dim, video.text_width)
    return video_parameters(video, "video.") | own


def _plan_parameters(config: LatentPlanConfig) -> dict[str, Parameter]:
    """Returns the parameters of ``models.latent_plan.LatentPlanTransformer``."""
    width, d = config.video.block.width, config.decoder.width
    found: dict[str, Parameter] = {}
    for name in ("prior", "posterior"):
        found |= {f"{name}_query": Parameter((1, width))} | _linear(f"{name}_head", width, 2 * config.plan_dim)
    if config.state_dim is not None:
        found |= _linear("state_encoder.hidden", config.state_dim, config.hidden_width)
        found |= _linear("state_encoder.out", config.hidden_width, width)
    found |= _linear("decoder.embed", width, d) | _linear("decoder.plan_embed", config.plan_dim, d)
    found |= {"decoder.action_queries": Parameter((config.num_actions, d))} | _norm("decoder.norm", d)
    found |= _stack("decoder.blocks", config.decoder, config.decoder_layers)
    found |= _linear("decoder.out", d, config.action_dim)
    return video_parameters(config.video, "video.", has_head=False) | found


def _prefix_parameters(block: BlockConfig, video: VideoTransformerConfig) -> dict[str, Parameter]:
    """Returns the parameters of ``models.prefix.PrefixTower``."""
    embed = _linear("prefix.embed_tokens", video.text_width, block.width)
    return embed | _stack("prefix.blocks", block, video.num_layers)


def _vla_parameters(config: VlaConfig, action_dim: int) -> dict[str, Parameter]:
    """Returns the parameters of ``models.vision_language_action.VisionLanguageActionModel``."""
    vision, d = config.vision, config.expert_width
    found = _linear("vision.patch_embed", vision.patch_values, vision.width)
    found["vision.positions"] = Parameter((vision.num_patches, vision.width))
    found |= _stack("vision.blocks", vision.block(config.compute_dtype), vision.num_layers)
    found |= _norm("vision.norm", vision.width) | _linear("vision.out", vision.width, config.width)
    found["prefix.table"] = Parameter((config.vocab_size, config.width))
    found |= _stack("prefix.blocks", config.language_block, config.num_layers)
    found |= _linear("expert.action_embed", action_dim, d) | _linear("expert.action_out", d, action_dim)
    for name in ("hidden", "out"):
        found |= _linear(f"expert.time_embedding.{name}", d, d)
    found |= _stack("expert.blocks", config.expert_block, config.num_layers)
    return found | _linear("expert.out_norm.vectors", d, 3 * d)


def _gpt_parameters(config: RunConfig, gpt: GptPolicyConfig) -> dict[str, Parameter]:
    """Returns the parameters of ``models.gpt_policy.GptPolicy``."""
    d, c, data = gpt.width, gpt.image_width, config.data
    inner = gpt.resampler_heads * gpt.resampler_head_dim
    layer: dict[str, Parameter] = {"out_kernel": Parameter((inner, c))}
    for name in ("token_norm", "latent_norm", "mlp_norm"):
        layer |= _norm(name, c)
    for name in ("query", "key", "value"):
        layer |= _linear(name, c, inner, use_bias=False)
    layer |= _linear("up", c, 4 * c, use_bias=False) | _linear("down", 4 * c, c, use_bias=False)
    found = {
        f"resampler.layers.{name}": parameter._replace(copies=gpt.resampler_layers) for name, parameter in layer.items()
    }
    found |= {"resampler.latents": Parameter((gpt.num_latents, c)), "resampler.place": Parameter((c,))}
    found |= _norm("resampler.norm", c)
    for name, width in (("text", gpt.text_width), ("arm", data.state_dim - 1), ("gripper", 2)):
        found |= _linear(f"{name}_embed", width, d)
    found |= _linear("state_mix", 2 * d, d)
    views = _linear("views.latents", c, d) | _linear("views.whole", c, d)
    found |= {path: parameter._replace(copies=gpt.num_views) for path, parameter in views.items()}
    found |= {"steps": Parameter((config.layout.num_blocks, d)), "action_query": Parameter((1, d))}
    found["frame_queries"] = Parameter((gpt.num_views * gpt.view_tokens, d))
    found |= _norm("input_norm", d) | _stack("blocks", gpt.block, gpt.num_layers) | _norm("output_norm", d)
    found |= _linear("action_hidden", d, d // 2) | _linear("action_mix", d // 2, d // 2)
    found |= _linear("action_out", d // 2, data.action_dim)
    found |= _linear("decoder.embed", d, d) | {"decoder.mask_token": Parameter((d,))}
    found |= _stack("decoder.blocks", gpt.decoder_block, gpt.decoder_layers)
    return found | _norm("decoder.norm", d) | _linear("decoder.out", d, gpt.patch_values)


def _action_modules(
    d: int, action: int, state: int, hidden: int, linear: Callable[[str, int, int], dict[str, Parameter]]
) -> dict[str, Parameter]:
    """Returns encoders and decoder of actions and states, of layers that ``linear`` lists."""
    found: dict[str, Parameter] = {}
    for path, fan_in, fan_out in (
        ("action_encoder.lift", action, d),
        ("action_encoder.mix", 2 * d, d),
        ("action_encoder.out", d, d),
        ("state_encoder.hidden", state, hidden),
        ("state_encoder.out", hidden, d),
        ("action_decoder.hidden", d, hidden),
        ("action_decoder.out", hidden, action),
    ):
        found |= linear(path, fan_in, fan_out)
    return found


def _stack(path: str, block: BlockConfig, num_layers: int) -> dict[str, Parameter]:
    """Returns the parameters of ``num_layers`` of ``models.block.Block``, by a pattern or all alike."""
    copies = num_layers // len(block.layers)
    found: dict[str, Parameter] = {}
    for root, layer in zip(layer_paths(path, block), block.layers, strict=True):
        found |= {f"{root}.{name}": part._replace(copies=copies) for name, part in _block(layer).items()}
    return found


def layer_paths(path: str, block: BlockConfig) -> tuple[str, ...]:
    """Returns the path of each layer of one period of the stack at ``path`` (``models.stack.stack_blocks``)."""
    count = len(block.layers)
    return (path,) if count == 1 else tuple(f"{path}.layer_{place}" for place in range(count))


def _block(block: BlockConfig) -> dict[str, Parameter]:
    """Returns the parameters of one ``models.block.Block``."""
    d, use_bias = block.width, block.use_bias
    found = _gated_delta("self_attention", block) if block.is_recurrent else _attention("self_attention", block, d)
    if block.cross_attention:
        found |= _attention("cross_attention", block, block.context_width or d, image=block.image_branch)
    if block.gated_mlp:
        found |= _linear("mlp.gate", d, block.ffn_width, use_bias=use_bias)
    found |= _linear("mlp.up", d, block.ffn_width, use_bias=use_bias)
    found |= _linear("mlp.down", block.ffn_width, d, use_bias=use_bias)
    if block.modulation == "low_rank":
        for part in ("self", "cross", "mlp"):
            found |= _low_rank(f"{part}_modulation", d, block.modulation_rank, 3)
    elif block.modulation == "adaptive_rms":
        for part in ("self", "mlp"):
            found |= _linear(f"{part}_norm.vectors", d, 3 * d)
    elif block.modulation == "none":
        names = ("scale", "bias") if block.norm == "layer" else ("scale",)
        found |= {f"{part}_norm_{name}": Parameter((d,)) for part in ("self", "mlp") for name in names}
    else:
        found["modulation"] = Parameter((6, d))
        if block.cross_attention and block.cross_norm == "affine":
            found |= {f"cross_norm_{name}": Parameter((d,)) for name in ("scale", "bias")}
    return found


def _gated_delta(path: str, block: BlockConfig) -> dict[str, Parameter]:
    """Returns the parameters of ``nn.gated_delta_net.GatedDeltaNet``."""
    d, heads, own = block.width, block.num_heads, block.own_attention
    keys, values = heads * own.key_dim, heads * own.value_dim
    found = {f"{path}.out_kernel": Parameter((values, d), takes_update=True)}
    widths = {"query": keys, "key": keys, "value": values, "gate": values, "decay": heads, "strength": heads}
    for name, width in widths.items():
        found |= _linear(f"{path}.{name}", d, width, use_bias=False)
    found |= {f"{path}.{name}_taps": Parameter((DELTA_TAPS, widths[name])) for name in ("query", "key", "value")}
    found |= {f"{path}.{name}": Parameter((heads,)) for name in ("log_rate", "decay_bias")}
    return found | {f"{path}.output_norm": Parameter((own.value_dim,))}


def _attention(path: str, block: BlockConfig, seen: int, *, image: bool = False) -> dict[str, Parameter]:
    """Returns the parameters of ``nn.multihead.Attention`` to tokens of width ``seen``."""
    d, inner, use_bias = block.width, block.inner_width, block.use_bias
    keys = block.key_heads * block.head_dim
    scale, key_scale = (Parameter((w if block.qk_norm == "width" else block.head_dim,)) for w in (inner, keys))
    found = {}
    if block.qk_norm != "none":
        found = {f"{path}.query_scale": scale, f"{path}.key_scale": key_scale}
    found[f"{path}.out_kernel"] = Parameter((inner, d), takes_update=True)
    if use_bias:
        found[f"{path}.out_bias"] = Parameter((d,))
    fans = {"query": d, "key": seen, "value": seen} | ({"image_key": d, "image_value": d} if image else {})
    for name, fan_in in fans.items():
        found |= _linear(f"{path}.{name}", fan_in, inner if name == "query" else keys, use_bias=use_bias)
    if image:
        found[f"{path}.image_key_scale"] = key_scale
    return found


def _time_embedding(time_width: int, d: int, path: str = "time_embedding") -> dict[str, Parameter]:
    found = _linear(f"{path}.hidden", time_width, d) | _linear(f"{path}.out", d, d)
    return found | _linear(f"{path}.project", d, 6 * d)


def _low_rank(path: str, d: int, rank: int, num_vectors: int) -> dict[str, Parameter]:
    down = _linear(f"{path}.down", d, rank, use_bias=False)
    return down | _linear(f"{path}.up", rank, num_vectors * d, use_bias=False)


def _norm(path: str, width: int) -> dict[str, Parameter]:
    return {f"{path}.scale": Parameter((width,)), f"{path}.bias": Parameter((width,))}


def _linear(path: str, fan_in: int, fan_out: int, *, use_bias: bool = True) -> dict[str, Parameter]:
    kernel = {f"{path}.kernel": Parameter((fan_in, fan_out), takes_update=True)}
    return kernel | ({f"{path}.bias": Parameter((fan_out,))} if use_bias else {})


def _updates(parameters: Mapping[str, Parameter], finetune: FinetuneConfig) -> dict[str, Parameter]:
    """Returns the low-rank updates of the kernels that ``finetune`` targets."""
    found = {}
    for path, parameter in parameters.items():
        module, _, name = path.rpartition(".")
        if parameter.takes_update and matches(path, finetune.lora_targets):
            fan_in, fan_out = parameter.shape
            for part, shape in (("down", (fan_in, finetune.lora_rank)), ("up", (finetune.lora_rank, fan_out))):
                found[f"{module}.{UPDATE_OF[name]}.{part}"] = Parameter(shape, parameter.copies)
    return found
