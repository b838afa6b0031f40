"""Configuration of vision-language-action models: pictures and a prompt in, actions out, no video generated.

Sizes of the published one are ``PI05``; the modules are ``models.vision_language_action``.
"""

from __future__ import annotations

import dataclasses

from wamjax.config.backbone import BlockConfig
from wamjax.config.choices import DType, Remat
from wamjax.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A vision transformer whose patches all become tokens (SigLIP without its pooling head).

    Attributes:
      width: Residual width d.
      num_layers: Blocks.
      num_heads: Attention heads.
      ffn_width: Hidden width of the feed-forward layer.
      image_size: Height and width of an image in pixels.
      patch_size: Height and width of a patch in pixels.
      norm_eps: Epsilon of every norm.
    """

    width: int
    num_layers: int
    num_heads: int
    ffn_width: int
    image_size: int = 224
    patch_size: int = 14
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}; change one of them in "
                "config.vla.vision"
            )

    @property
    def num_patches(self) -> int:
        """Patches, and tokens, of one image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_values(self) -> int:
        """Values of one patch."""
        return 3 * self.patch_size**2

    def block(self, compute_dtype: DType) -> BlockConfig:
        """Returns the tower's block: layer norms before both parts, biases everywhere, no rotary embedding."""
        return BlockConfig(
            width=self.width,
            num_heads=self.num_heads,
            ffn_width=self.ffn_width,
            cross_attention=False,
            qk_norm="none",
            modulation="none",
            norm="layer",
            norm_eps=self.norm_eps,
            compute_dtype=compute_dtype,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VlaConfig:
    """A vision tower, a language tower, and an action expert that shares the language tower's attention.

    Attributes:
      vision: The vision tower; one image after the other goes through it.
      width: Residual width of the language tower.
      ffn_width: Hidden width of its gated feed-forward layers.
      expert_width: Residual width of the action expert.
      expert_ffn_width: Hidden width of the expert's gated feed-forward layers.
      num_layers: Blocks of both.
      num_heads: Attention heads of both.
      num_key_heads: Heads of keys and values of both.
      head_dim: Head dimension of both.
      vocab_size: Rows of the token table.
      num_images: Images of a sample, absent ones included.
      text_tokens: Tokens of a prompt, padding included; the robot's state is written in it.
      rope_theta: Base of the rotary frequencies.
      norm_eps: Epsilon of the RMS norms.
      compute_dtype: Dtype of matrix products. Norms, modulation, rotary and timesteps stay fp32.
      remat: What the backward pass of a block finds (``models.remat``).
    """

    vision: VisionConfig
    width: int
    ffn_width: int
    expert_width: int
    expert_ffn_width: int
    num_layers: int
    num_heads: int
    num_key_heads: int
    head_dim: int
    vocab_size: int
    num_images: int = 3
    text_tokens: int = 200
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    compute_dtype: DType = "float32"
    remat: Remat = "none"

    @property
    def image_tokens(self) -> int:
        """Tokens of all images of a sample."""
        return self.num_images * self.vision.num_patches

    @property
    def language_block(self) -> BlockConfig:
        """The block of the language tower (Gemma's)."""
        return BlockConfig(
            width=self.width,
            num_heads=self.num_heads,
            num_key_heads=self.num_key_heads,
            ffn_width=self.ffn_width,
            attention_width=self.num_heads * self.head_dim,
            cross_attention=False,
            gated_mlp=True,
            qk_norm="none",
            modulation="none",
            norm_eps=self.norm_eps,
            use_bias=False,
            compute_dtype=self.compute_dtype,
        )

    @property
    def expert_block(self) -> BlockConfig:
        """The block of the action expert: the language tower's, of other widths, with adaptive norms."""
        return dataclasses.replace(
            self.language_block,
            width=self.expert_width,
            ffn_width=self.expert_ffn_width,
            modulation="adaptive_rms",
        )


# Sources: big_vision, big_vision/models/vit.py, decode_variant ("So400m/14"); openpi, src/openpi/models/gemma.py,
# get_config ("gemma_2b", "gemma_300m") and PALIGEMMA_VOCAB_SIZE; src/openpi/models/pi0_config.py (200 text tokens).
SIGLIP_SO400M_14 = VisionConfig(width=1152, num_layers=27, num_heads=16, ffn_width=4304)
PI05 = VlaConfig(
    vision=SIGLIP_SO400M_14,
    width=2048,
    ffn_width=16_384,
    expert_width=1024,
    expert_ffn_width=4096,
    num_layers=18,
    num_heads=8,
    num_key_heads=1,
    head_dim=256,
    vocab_size=257_152,
)
