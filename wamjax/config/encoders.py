"""Shapes of the frozen encoders of prompts and images, and the published ones.

The modules are ``models.umt5`` and ``models.clip_vision``, the FLOPs ``flops.encoders``.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Umt5Config:
    """Shape of an encoder.

    Attributes:
      vocab_size: Rows of the token table.
      width: Model width d.
      num_layers: Blocks.
      num_heads: Attention heads k.
      head_dim: Width e of a head; k e need not be d.
      ffn_width: Hidden units of the feed-forward layer.
      num_buckets: Rows of a table of relative position biases; half for keys before the query, half after.
      max_distance: Distance in tokens beyond which all keys share a bucket.
      norm_eps: Added to the mean square by every norm.
      compute_dtype: Dtype of activations and products; norms, scores and softmax stay fp32.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    head_dim: int
    ffn_width: int
    num_buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6
    compute_dtype: str = "float32"


# Source: huggingface.co/google/umt5-xxl, config.json; wan/modules/t5.py, umt5_xxl.
UMT5_XXL = Umt5Config(vocab_size=256_384, width=4096, num_layers=24, num_heads=64, head_dim=64, ffn_width=10_240)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipVisionConfig:
    """Shape of an encoder.

    Attributes:
      width: Model width d.
      num_layers: Blocks.
      num_heads: Attention heads k.
      ffn_width: Hidden units of the feed-forward layer.
      image_size: Height and width of an image in pixels.
      patch_size: Height and width of a patch in pixels.
      num_channels: Channels of an image.
      activation: Key of ``models.clip_vision.ACTIVATIONS``.
      norm_eps: Added to the variance by every norm.
      compute_dtype: Dtype of activations and products; norms, scores and softmax stay fp32.
    """

    width: int
    num_layers: int
    num_heads: int
    ffn_width: int
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    activation: str = "gelu"
    norm_eps: float = 1e-5
    compute_dtype: str = "float32"

    @property
    def num_patches(self) -> int:
        """Returns the number of patches of an image; with the class token one more token."""
        return (self.image_size // self.patch_size) ** 2


# Source: wan/modules/clip.py of Wan 2.1, clip_xlm_roberta_vit_h_14; laion/CLIP-ViT-H-14-laion2B-s32B-b79K, config.json.
CLIP_VIT_H_14 = ClipVisionConfig(width=1280, num_layers=32, num_heads=16, ffn_width=5120)
# Source: facebookresearch/mae, models_vit.py, vit_base_patch16: the encoder alone, one class token and all patches.
MAE_VIT_B_16 = ClipVisionConfig(width=768, num_layers=12, num_heads=12, ffn_width=3072, patch_size=16, norm_eps=1e-6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextConfig:
    """Shape of CLIP's text encoder, whose FLOPs are counted; it runs outside this library.

    Attributes:
      width: Model width d.
      num_layers: Blocks.
      ffn_width: Hidden units of the feed-forward layer.
      max_tokens: Tokens of a prompt, padding included.
      out_width: Width of the one token that it gives.
    """

    width: int
    num_layers: int
    ffn_width: int
    max_tokens: int
    out_width: int


# Source: huggingface.co/openai/clip-vit-base-patch32, config.json.
CLIP_B_32_TEXT = ClipTextConfig(width=512, num_layers=12, ffn_width=2048, max_tokens=77, out_width=512)
