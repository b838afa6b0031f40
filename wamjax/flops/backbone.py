"""FLOPs of one forward pass of a video transformer, per sample, from its configuration and what it is run on.

Same convention as everywhere: 1 multiply-add = 2 FLOPs, matrix products only. Components are named as in
``flops.model``; low-rank modulation, which depends on the timestep alone, is part of ``time_embed``.
"""

from __future__ import annotations

from wamjax.config.backbone import BlockConfig, VideoTransformerConfig
from wamjax.config.systems import CategoryActionConfig
from wamjax.flops import layers


def video_transformer_flops(
    config: VideoTransformerConfig,
    *,
    tokens: int,
    text_tokens: int,
    image_tokens: int = 0,
    slots: int = 1,
    pairs: int | None = None,
    patch_tokens: int | None = None,
    head_tokens: int | None = None,
) -> dict[str, int]:
    """Returns the forward FLOPs by component.

    Args:
      config: The model.
      tokens: Tokens that go through the blocks.
      text_tokens: Text tokens, padding included where it is attended.
      image_tokens: Tokens of all images of a sample.
      slots: Timesteps that are embedded: 1, one per latent frame, or one per token.
      pairs: Attended query-key pairs of self-attention; None for all of them.
      patch_tokens: Tokens that are embedded from latents; None for ``tokens``.
      head_tokens: Tokens that the head predicts; None for ``tokens``.
    """
    block, width = config.block, config.block.width
    patched = tokens if patch_tokens is None else patch_tokens
    predicted = tokens if head_tokens is None else head_tokens
    per_layer = _block_flops(block, tokens, tokens**2 if pairs is None else pairs, text_tokens, image_tokens)
    return {
        **{name: config.num_layers * flops for name, flops in per_layer.items()},
        "patch": layers.linear(patched, config.patch_channels, width),
        "head": layers.linear(predicted, width, config.out_patch_channels),
        "text_embed": _text_flops(config, text_tokens),
        "image_embed": layers.mlp(image_tokens, (config.image_width, config.image_width, width))
        if config.image_width is not None
        else 0,
        "time_embed": _time_flops(config, slots),
    }


def category_action_flops(config: CategoryActionConfig, *, actions: int, states: int) -> int:
    """Returns the forward FLOPs of encoders and decoder around the video transformer, for so many tokens."""
    width, hidden = config.video.block.width, config.hidden_width
    return (
        layers.linear(actions, config.action_dim, width)
        + layers.mlp(actions, (2 * width, width, width))
        + layers.mlp(actions, (width, hidden, config.action_dim))
        + layers.mlp(states, (config.state_dim, hidden, width))
    )


def _block_flops(block: BlockConfig, tokens: int, pairs: int, text_tokens: int, image_tokens: int) -> dict[str, int]:
    width, inner, context = block.width, block.inner_width, block.context_width or block.width
    return {
        "self_projections": 4 * layers.linear(tokens, width, inner),
        "self_scores": layers.attention_scores(pairs, inner),
        "cross_qo": 2 * layers.linear(tokens, width, inner),
        "cross_kv": 2 * layers.linear(text_tokens, context, inner) + 2 * layers.linear(image_tokens, width, inner),
        "cross_scores": layers.cross_scores(tokens, text_tokens + image_tokens, inner),
        "ffn": layers.ffn(tokens, width, block.ffn_width),
    }


def _text_flops(config: VideoTransformerConfig, text_tokens: int) -> int:
    context = config.block.context_width or config.block.width
    widths = {"mlp": (config.text_width, context, context), "projection": (config.text_width, context), "none": ()}
    return layers.mlp(text_tokens, widths[config.text_embedding])


def _time_flops(config: VideoTransformerConfig, slots: int) -> int:
    width, rank = config.block.width, config.block.modulation_rank
    if config.block.modulation == "table":
        return layers.mlp(slots, (config.time_width, width, width, 6 * width))
    shared = layers.mlp(slots, (config.time_width, width, 3 * width))
    per_block = 3 * layers.mlp(slots, (width, rank, 3 * width))
    return shared + config.num_layers * per_block + layers.mlp(slots, (width, rank, 2 * width))
