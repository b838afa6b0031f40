"""Configuration of GPT-style policies that also predict frames: ``GR1``; the modules are ``models.gpt_policy``."""

from __future__ import annotations

import dataclasses

from wamjax.config.backbone import BlockConfig
from wamjax.config.choices import DType, Remat
from wamjax.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class GptPolicyConfig:
    """A causal transformer over steps of an episode, which learned queries ask for actions and for later frames.

    What it reads of pictures and of the instruction are features of frozen encoders, made beforehand.

    Attributes:
      width: Residual width d.
      num_layers: Blocks.
      num_heads: Attention heads.
      ffn_width: Hidden width of the feed-forward layer (ReLU).
      num_views: Cameras.
      image_size: Height and width of a camera's picture in pixels.
      patch_size: Height and width of a patch, of the frozen encoder and of the prediction alike.
      image_width: Width of the image encoder's tokens: one of the whole picture, then one per patch.
      text_width: Width of the text encoder's one token.
      num_latents: Tokens that the resampler makes of a picture's patches.
      resampler_layers: Layers of the resampler.
      resampler_heads: Its attention heads.
      resampler_head_dim: Their dim.
      decoder_layers: Blocks that make a frame of its queries.
      decoder_heads: Their attention heads.
      ahead: Steps from a picture to the one that its queries ask for.
      norm_eps: Epsilon of every norm.
      compute_dtype: Dtype of matrix products. Norms stay fp32.
      remat: What the backward pass of a block finds (``models.remat``).
    """

    width: int
    num_layers: int
    num_heads: int
    ffn_width: int
    num_views: int = 2
    image_size: int = 224
    patch_size: int = 16
    image_width: int = 768
    text_width: int = 512
    num_latents: int = 9
    resampler_layers: int = 3
    resampler_heads: int = 4
    resampler_head_dim: int = 128
    decoder_layers: int = 2
    decoder_heads: int = 16
    ahead: int = 3
    norm_eps: float = 1e-5
    compute_dtype: DType = "float32"
    remat: Remat = "none"

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"config.gpt.image_size={self.image_size} is no multiple of config.gpt.patch_size={self.patch_size}"
            )
        if self.width % 4:
            raise ConfigError(f"config.gpt.width={self.width}; places of patches need a multiple of 4")

    @property
    def num_patches(self) -> int:
        """Patches of a picture."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_values(self) -> int:
        """Values of one patch."""
        return 3 * self.patch_size**2

    @property
    def view_tokens(self) -> int:
        """Tokens of a picture, and queries of one: the latents, and one of the whole picture."""
        return self.num_latents + 1

    @property
    def observed_tokens(self) -> int:
        """Tokens of what a step shows: instruction, state and pictures."""
        return 2 + self.num_views * self.view_tokens

    @property
    def block(self) -> BlockConfig:
        """The block of the transformer: GPT-2's, without rotary embedding."""
        return BlockConfig(
            width=self.width,
            num_heads=self.num_heads,
            ffn_width=self.ffn_width,
            cross_attention=False,
            qk_norm="none",
            modulation="none",
            norm="layer",
            norm_eps=self.norm_eps,
            activation="relu",
            compute_dtype=self.compute_dtype,
        )

    @property
    def decoder_block(self) -> BlockConfig:
        """The block that makes frames: a vision transformer's."""
        return dataclasses.replace(
            self.block, num_heads=self.decoder_heads, ffn_width=4 * self.width, activation="gelu", gelu="exact"
        )


# Source: bytedance/GR-1, logs/configs.json and models/gr1.py (decoder of 2 blocks of 16 heads, mlp x 4).
GR1 = GptPolicyConfig(width=384, num_layers=12, num_heads=12, ffn_width=1536)
