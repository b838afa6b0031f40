"""The block of the small world-action model, from its configuration."""

from __future__ import annotations

from wamjax.config.backbone import BlockConfig
from wamjax.config.schema import ModelConfig
from wamjax.errors import ConfigError


def block_config(model: ModelConfig) -> BlockConfig:
    """Returns the block of the world-action model: Wan's, with the sizes of ``model``.

    Raises:
      ConfigError: Heads do not divide the width, or the head dimension is odd.
    """
    if model.width % model.num_heads or (model.width // model.num_heads) % 2:
        raise ConfigError(
            f"config.model.width={model.width} over config.model.num_heads={model.num_heads} must give an even "
            "head dimension"
        )
    return BlockConfig(
        width=model.width,
        num_heads=model.num_heads,
        ffn_width=model.ffn_width,
        qk_norm_eps=model.norm_eps,
        norm_eps=model.norm_eps,
        compute_dtype=model.compute_dtype,
        matmul=model.matmul,
    )
