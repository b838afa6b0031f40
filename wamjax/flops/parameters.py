"""Closed-form number of parameters of the world-action model, by part.

Feeds the 6NT estimate; a test holds it equal to the real model.
"""

from __future__ import annotations

from wamjax.config.backbone import VideoTransformerConfig
from wamjax.config.finetune import matches
from wamjax.config.geometry import derive_geometry
from wamjax.config.schema import RunConfig
from wamjax.config.systems import CategoryActionConfig
from wamjax.errors import ConfigError
from wamjax.flops.kernels import model_kernels


def linear_parameters(fan_in: int, fan_out: int) -> int:
    """Parameters of a linear layer with bias: ``fan_in fan_out + fan_out``."""
    return fan_in * fan_out + fan_out


def count_parameters(config: RunConfig) -> dict[str, int]:
    """Returns the parameters of ``config`` by part, trained or kept; their sum is N of 6NT.

    The codec's statistics are constants of the data and not in it.
    """
    model, data = config.model, config.data
    d, f, hidden = model.width, model.ffn_width, model.action_hidden
    geometry = derive_geometry(config)
    channels, places = geometry.token_channels, geometry.tokens_per_frame if model.grid_embedding == "learned" else 0
    attention = 4 * linear_parameters(d, d) + 2 * d  # four projections; query and key norms over the full width
    block = 2 * attention + linear_parameters(d, f) + linear_parameters(f, d)
    block += 2 * d + 6 * d  # affine norm before cross-attention; six modulation offsets
    return {
        "blocks": model.num_layers * block,
        "patch": linear_parameters(channels, d) + places * d,  # with the learned embedding of rows and columns
        "head": linear_parameters(d, channels) + 2 * d,  # with its shift and scale offsets
        "prompts": model.max_prompts * model.text_tokens * model.text_width
        + linear_parameters(model.text_width, d)
        + linear_parameters(d, d),
        "time_embed": linear_parameters(model.time_width, d) + linear_parameters(d, d) + linear_parameters(d, 6 * d),
        "action_encoder": linear_parameters(data.action_dim, d) + linear_parameters(2 * d, d) + linear_parameters(d, d),
        "state_encoder": linear_parameters(data.state_dim, hidden) + linear_parameters(hidden, d),
        "action_decoder": linear_parameters(d, hidden) + linear_parameters(hidden, data.action_dim),
        "lora": sum(
            config.finetune.lora_rank * (kernel.fan_in + kernel.fan_out) * kernel.copies
            for path, kernel in model_kernels(config).items()
            if matches(path, config.finetune.lora_targets)
        ),
    }


def count_backbone_parameters(config: VideoTransformerConfig) -> int:
    """Returns the parameters of a backbone with tabled modulation (Wan).

    Raises:
      ConfigError: The backbone is of another kind, whose count is not written down.
    """
    block = config.block
    if block.modulation != "table" or config.text_embedding != "mlp" or not block.use_bias:
        raise ConfigError(
            "config.backbone: parameters are counted in closed form for Wan's models only; expected "
            "modulation=table, text_embedding=mlp and biases"
        )
    d, inner, context = block.width, block.inner_width, block.context_width or block.width
    norms = 2 * (inner if block.qk_norm == "width" else block.head_dim)
    own = 3 * linear_parameters(d, inner) + linear_parameters(inner, d) + norms
    cross = linear_parameters(d, inner) + 2 * linear_parameters(context, inner) + linear_parameters(inner, d) + norms
    image, image_kv = 0, 0
    if config.image_width is not None:
        seen = config.image_width
        # Two linear layers between two affine norms; in every block keys, values and a norm of the keys.
        image = linear_parameters(seen, seen) + linear_parameters(seen, d) + 2 * seen + 2 * d
        image += (config.image_positions or 0) * seen
        image_kv = 2 * linear_parameters(d, inner) + norms // 2
    mlp = linear_parameters(d, block.ffn_width) + linear_parameters(block.ffn_width, d)
    affine = 2 * d if block.cross_norm == "affine" else 0
    text = linear_parameters(config.text_width, context) + linear_parameters(context, context)
    time = linear_parameters(config.time_width, d) + linear_parameters(d, d) + linear_parameters(d, 6 * d)
    patch, head = (config.patch_channels, config.out_patch_channels)
    ends = linear_parameters(patch, d) + linear_parameters(d, head) - (0 if config.use_patch_bias else d + head)
    return config.num_layers * (own + cross + image_kv + mlp + affine + 6 * d) + text + image + time + ends + 2 * d


def count_category_action_parameters(config: CategoryActionConfig) -> int:
    """Returns the parameters of encoders and decoder around the video transformer, of all categories."""
    d, hidden, action, state = config.video.block.width, config.hidden_width, config.action_dim, config.state_dim
    encoder = linear_parameters(action, d) + linear_parameters(2 * d, d) + linear_parameters(d, d)
    decoder = linear_parameters(d, hidden) + linear_parameters(hidden, action)
    states = linear_parameters(state, hidden) + linear_parameters(hidden, d)
    return config.num_categories * (encoder + decoder + states)
