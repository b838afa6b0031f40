"""The stack of blocks that a run's work goes through, whichever model it trains."""

from __future__ import annotations

import dataclasses

from wamjax.config.backbone import BlockConfig, VideoTransformerConfig
from wamjax.config.choices import Remat
from wamjax.config.gpt import GptPolicyConfig
from wamjax.config.inverse_dynamics import InverseDynamicsConfig
from wamjax.config.schema import ModelConfig, RunConfig
from wamjax.config.vla import VlaConfig
from wamjax.errors import ConfigError


def main_block(config: RunConfig) -> BlockConfig:
    """Returns the block of the main stack: the backbone's, the language tower's, the GPT's, or the small model's.

    An inverse-dynamics model has none; what is returned has its width and dtype.
    """
    if config.vla is not None:
        return config.vla.language_block
    if config.gpt is not None:
        return config.gpt.block
    if config.inverse_dynamics is not None:
        return config.inverse_dynamics.block
    return block_config(config.model) if config.backbone is None else config.backbone.block


def main_depth(config: RunConfig) -> int:
    """Returns the blocks of the main stack, and of every stack that attends with it."""
    return _main(config).num_layers


def main_remat(config: RunConfig) -> Remat:
    """Returns what the backward pass of a block finds."""
    return _main(config).remat


def with_remat(config: RunConfig, remat: Remat) -> RunConfig:
    """Returns ``config`` whose backward pass finds ``remat`` of a block."""
    name = next(
        (name for name in ("vla", "gpt", "inverse_dynamics", "backbone") if getattr(config, name) is not None), "model"
    )
    return dataclasses.replace(config, **{name: dataclasses.replace(_main(config), remat=remat)})


def is_small(config: RunConfig) -> bool:
    """Whether a run trains the small world-action model, on pixels."""
    return _main(config) is config.model


def reads_pixels(config: RunConfig) -> bool:
    """Whether a run's samples are the windows of a dataset as they are; all others read cached samples."""
    return is_small(config) or _main(config) is config.inverse_dynamics


def _main(
    config: RunConfig,
) -> VlaConfig | GptPolicyConfig | InverseDynamicsConfig | VideoTransformerConfig | ModelConfig:
    return config.vla or config.gpt or config.inverse_dynamics or config.backbone or config.model


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
