"""A vision tower that is trained with what reads it: SigLIP's vision transformer without its pooling head.

Patches, learned positions, ordinary blocks (``models.block``) that see all of one image, a layer norm, and a linear
layer to the width of the tower that reads the tokens. Frozen image encoders are modules of their own
(``models.clip_vision``).

Source: SigLIP (arXiv 2303.15343); big_vision, big_vision/models/vit.py with ``pool_type="none"``; the blocks equal
``SiglipVisionModel`` of transformers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from wamjax.config.choices import DType, Remat
from wamjax.config.vla import VisionConfig
from wamjax.errors import DataError
from wamjax.layout import image_layout
from wamjax.models.block import bare_conditioning
from wamjax.models.stack import run_blocks, stack_blocks
from wamjax.nn.init import named
from wamjax.nn.linear import Linear
from wamjax.nn.norm import LayerNorm
from wamjax.parallel.rules import constrain
from wamjax.types import PRNGKey, Tokens


class VisionTower(nnx.Module):
    """Images -> tokens, each image by itself.

    Attributes:
      patch_embed: ``[(p q c) d]``, values of a patch row by row, channels last.
      positions: ``[n d]``, learned.
      blocks: The stack.
      norm: After the last block.
      out: ``[d out_width]``.
    """

    def __init__(self, key: PRNGKey, config: VisionConfig, out_width: int, *, dtype: DType, remat: Remat) -> None:
        """Makes the tower of ``config``, whose tokens have ``out_width`` dims."""
        keys = jax.random.split(key, 4)
        self.config, self.dtype = config, dtype
        self.remat: Remat = remat
        d = config.width
        self.patch_embed = Linear(keys[0], (config.patch_values, d), (None, "embed"), dtype=dtype)
        spread = jax.nn.initializers.normal(d**-0.5)
        self.positions = named(keys[1], spread, (config.num_patches, d), (None, "embed"))
        self.blocks = stack_blocks(keys[2], config.block(dtype), config.num_layers)
        self.norm = LayerNorm(key, d, eps=config.norm_eps)
        self.out = Linear(keys[3], (d, out_width), ("embed", None), dtype=dtype)

    def __call__(self, images: jax.Array) -> Tokens:
        """Returns the tokens ``[b (v n) out_width]`` of ``images`` uint8 ``[b v H W 3]``.

        Raises:
          DataError: The images have another size.
        """
        size = self.config.image_size
        if images.shape[2:] != (size, size, 3):
            got = " x ".join(map(str, images.shape[2:]))
            raise DataError(
                f"images of {got} (height, width, channels); the vision tower takes {size} x {size} x 3: resize them, "
                "or change config.vla.vision.image_size"
            )
        pixels = rearrange(images.astype(jnp.float32) / 127.5 - 1.0, "b v H W c -> (b v) H W c")
        return rearrange(self.out(self.encode(pixels)), "(b v) n d -> b (v n) d", v=images.shape[1])

    def encode(self, pixels: jax.Array) -> jax.Array:
        """Returns fp32 ``[b n d]``, the tokens of images ``[b H W 3]`` in [-1, 1] after the last norm."""
        patch = self.config.patch_size
        patches = rearrange(pixels, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)
        places = self.positions[...].astype(self.dtype)
        x = constrain(self.patch_embed(patches) + places, "batch", "stream", None)
        count = self.config.num_patches
        x, _ = run_blocks(
            self.blocks,
            x,
            image_layout(count).full_pass(),
            bare_conditioning(x.shape[0], count),
            None,
            remat=self.remat,
            return_cache=False,
        )
        return self.norm(x)
