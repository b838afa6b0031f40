"""The CLIP image encoder: a vision transformer over square patches and one class token.

Wan's image-to-video models read the tokens before the last block (``penultimate``), all 257 of them, without the final
norm. Knows nothing of image files; ``data_pipelines.image_preprocessing`` makes its input.

Source: Radford et al. (arXiv 2103.00020); equal to ``CLIPVisionModel`` of transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.nn.initializers import normal, ones, zeros
from jaxtyping import Array, Float

from wamjax.config.encoders import ClipVisionConfig
from wamjax.errors import DataError
from wamjax.layout import Rectangle, Schedule
from wamjax.nn.attention import attend
from wamjax.nn.init import AXES_KEY, fan_in, named
from wamjax.nn.linear import Linear
from wamjax.nn.norm import layer_norm
from wamjax.nn.products import FROM_HEADS, TO_HEADS
from wamjax.parallel.rules import constrain
from wamjax.types import PRNGKey, Tokens

# OpenAI's checkpoints were trained with the sigmoid's approximation of the GELU, the later ones with the exact one.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


class ClipVisionOutput(NamedTuple):
    """What the encoder knows of an image.

    Attributes:
      last: ``[b n d]`` after the last block; no norm. Token 0 is the class token.
      penultimate: ``[b n d]`` before the last block.
      pooled: ``[b d]``, the norm of the class token after the last block.
    """

    last: Tokens
    penultimate: Tokens
    pooled: jax.Array


class LayerNorm(nnx.Module):
    """Layer norm with scale and bias, computed in fp32, given in the compute dtype."""

    def __init__(self, key: PRNGKey, config: ClipVisionConfig) -> None:
        """Makes the norm."""
        self.eps, self.dtype = config.norm_eps, config.compute_dtype
        self.scale = named(key, ones, (config.width,), (None,))
        self.bias = named(key, zeros, (config.width,), (None,))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last dim of ``[... d]``."""
        return (layer_norm(x, self.eps) * self.scale[...] + self.bias[...]).astype(self.dtype)


class ClipAttention(nnx.Module):
    """Multi-head attention of all tokens to all tokens, every projection with a bias."""

    def __init__(self, key: PRNGKey, config: ClipVisionConfig) -> None:
        """Makes the four projections."""
        keys = jax.random.split(key, 4)
        width, self.dtype = config.width, config.compute_dtype
        heads = (config.num_heads, width // config.num_heads)
        init, axes = fan_in(in_axis=0, out_axis=(1, 2)), ("embed", "heads", None)
        self.query, self.key, self.value = (named(k, init, (width, *heads), axes) for k in keys[:3])
        self.query_bias, self.key_bias, self.value_bias = (named(k, zeros, heads, axes[1:]) for k in keys[:3])
        self.out = named(keys[3], fan_in(in_axis=(0, 1), out_axis=2), (*heads, width), ("heads", None, "embed"))
        self.out_bias = named(keys[3], zeros, (width,), (None,))

    def __call__(self, x: Tokens) -> Tokens:
        """Attends ``[b n d]`` to itself."""
        projections = ((self.query, self.query_bias), (self.key, self.key_bias), (self.value, self.value_bias))
        query, key, value = (
            jnp.einsum(TO_HEADS, x, kernel[...].astype(self.dtype)) + bias[...].astype(self.dtype)[:, None]
            for kernel, bias in projections
        )
        num_tokens = x.shape[1]
        everything = Rectangle(((0, num_tokens),), ((0, num_tokens),))
        heads = attend(query, key, value, Schedule(num_tokens, num_tokens, (everything,)))
        out = jnp.einsum(FROM_HEADS, heads, self.out[...].astype(self.dtype))
        return out + self.out_bias[...].astype(self.dtype)


class ClipBlock(nnx.Module):
    """x + attention(norm(x)), then x + down(activation(up(norm(x))))."""

    def __init__(self, key: PRNGKey, config: ClipVisionConfig) -> None:
        """Makes the block."""
        keys = jax.random.split(key, 3)
        dtype, self.activation = config.compute_dtype, config.activation
        self.attention_norm, self.mlp_norm = LayerNorm(key, config), LayerNorm(key, config)
        self.attention = ClipAttention(keys[0], config)
        self.up = Linear(keys[1], (config.width, config.ffn_width), ("embed", "mlp"), dtype=dtype)
        self.down = Linear(keys[2], (config.ffn_width, config.width), ("mlp", "embed"), dtype=dtype)

    def __call__(self, x: Tokens) -> Tokens:
        """Applies the block to ``[b n d]``."""
        x = constrain(x + self.attention(self.attention_norm(x)), "batch", None, None)
        h = constrain(self.up(self.mlp_norm(x)), "batch", None, "mlp")
        return constrain(x + self.down(ACTIVATIONS[self.activation](h)), "batch", None, None)


class ClipVisionEncoder(nnx.Module):
    """Patch embedding, class token, learned positions, scanned blocks, final norm of the class token."""

    def __init__(self, key: PRNGKey, config: ClipVisionConfig) -> None:
        """Makes the encoder of ``config``."""
        keys = jax.random.split(key, 4)
        self.config = config
        patch = (config.patch_size, config.patch_size, config.num_channels)
        patch_init = fan_in(in_axis=(0, 1, 2), out_axis=3)
        self.patch_embed = named(keys[0], patch_init, (*patch, config.width), (None, None, None, "embed"))
        self.class_token = named(keys[1], normal(config.width**-0.5), (config.width,), (None,))
        self.positions = named(keys[2], normal(0.02), (config.num_patches + 1, config.width), (None, "embed"))
        self.input_norm = LayerNorm(key, config)
        self.blocks = nnx.vmap(
            lambda block_key: ClipBlock(block_key, config),
            transform_metadata={nnx.PARTITION_NAME: None, AXES_KEY: "layers"},
        )(jax.random.split(keys[3], config.num_layers))
        self.output_norm = LayerNorm(key, config)

    def __call__(self, images: Float[Array, "b H W c"]) -> ClipVisionOutput:
        """Encodes normalised ``images`` ``[b H W c]``; H = W = ``image_size``.

        Raises:
          DataError: The images have another size.
        """
        size, dtype = self.config.image_size, self.config.compute_dtype
        if images.shape[1:] != (size, size, self.config.num_channels):
            expected = f"{size} x {size} x {self.config.num_channels}"
            got = " x ".join(map(str, images.shape[1:]))
            raise DataError(
                f"images of {got} (height, width, channels); the encoder takes {expected}: resize them first"
            )
        patch = self.config.patch_size
        # Rows and columns that fill no patch are left out, as the reference's strided convolution does.
        whole = size // patch * patch
        patches = rearrange(images[:, :whole, :whole], "b (h p) (w q) c -> b (h w) p q c", p=patch, q=patch)
        tokens = jnp.einsum("bnpqc,pqcd->bnd", patches.astype(dtype), self.patch_embed[...].astype(dtype))
        class_token = jnp.broadcast_to(self.class_token[...].astype(dtype), (tokens.shape[0], 1, tokens.shape[2]))
        x = jnp.concatenate([class_token, tokens], axis=1) + self.positions[...].astype(dtype)
        x = constrain(self.input_norm(x), "batch", None, None)

        def body(carry: tuple[Tokens, Tokens], block: ClipBlock) -> tuple[tuple[Tokens, Tokens], None]:
            _, x = carry
            return (x, block(x)), None

        (penultimate, last), _ = jax.lax.scan(body, (x, x), self.blocks)
        return ClipVisionOutput(last, penultimate, self.output_norm(last[:, 0]))
