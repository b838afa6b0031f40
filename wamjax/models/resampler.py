"""A perceiver resampler: learned latents that attend to many tokens, and so become a few tokens of them.

Source: Flamingo (arXiv 2204.14198), section 3.1.1; flamingo-pytorch, ``PerceiverResampler``, as GR-1 uses it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal

from wamjax.config.choices import DType
from wamjax.layout import Rectangle, Schedule
from wamjax.models.remat import REMAT_POLICIES
from wamjax.nn.attention import attend
from wamjax.nn.init import AXES_KEY, fan_in, named
from wamjax.nn.linear import Linear
from wamjax.nn.multihead import HeadProjection
from wamjax.nn.norm import LayerNorm
from wamjax.nn.products import FROM_HEADS, project
from wamjax.parallel.explicit import gather_kernel
from wamjax.types import PRNGKey, Tokens

_NORM_EPS = 1e-5  # PyTorch's
_FFN_RATIO = 4


class ResamplerLayer(nnx.Module):
    """latents + attention(norm(latents); norm(tokens), norm(latents)), + down(gelu(up(norm(latents)))); no biases."""

    def __init__(self, key: PRNGKey, width: int, heads: tuple[int, int], *, dtype: DType) -> None:
        """Makes the layer of ``heads`` (heads, head dim)."""
        keys, self.dtype = jax.random.split(key, 6), dtype
        self.token_norm, self.latent_norm, self.mlp_norm = (LayerNorm(key, width, eps=_NORM_EPS) for _ in range(3))
        self.query, self.key, self.value = (
            HeadProjection(k, width, heads, use_bias=False, dtype=dtype) for k in keys[:3]
        )
        init = fan_in(in_axis=(0, 1), out_axis=2)
        self.out_kernel = named(keys[3], init, (*heads, width), ("heads", None, "embed"))
        hidden = _FFN_RATIO * width
        self.up = Linear(keys[4], (width, hidden), ("embed", "mlp"), dtype=dtype, use_bias=False)
        self.down = Linear(keys[5], (hidden, width), ("mlp", "embed"), dtype=dtype, use_bias=False)

    def __call__(self, latents: Tokens, tokens: jax.Array) -> Tokens:
        """Returns the new latents ``[b n d]``, having read ``tokens`` ``[b m d]`` and themselves."""
        asking = self.latent_norm(latents)
        read = jnp.concatenate([self.token_norm(tokens), asking], axis=1)
        query, key, value = self.query(asking), self.key(read), self.value(read)
        sizes = (query.shape[2], key.shape[2])
        everything = Schedule(*sizes, (Rectangle(((0, sizes[0]),), ((0, sizes[1]),)),))
        heads = attend(query, key, value, everything, kernel="rectangles")
        latents = latents + project(heads.astype(self.dtype), gather_kernel(self.out_kernel, self.dtype), FROM_HEADS)
        return latents + self.down(jax.nn.gelu(self.up(self.mlp_norm(latents)), approximate=False))


class Resampler(nnx.Module):
    """Latents, an embedding of the picture's place in time, layers, and a last norm.

    Attributes:
      latents: ``[n d]``.
      place: ``[d]``, added to all tokens; of a picture among several there would be one each.
      layers: Every parameter has a layer dim in front.
      norm: After the last layer.
    """

    def __init__(
        self, key: PRNGKey, width: int, num_latents: int, num_layers: int, heads: tuple[int, int], *, dtype: DType
    ) -> None:
        """Makes the resampler of tokens of ``width`` to ``num_latents`` tokens."""
        keys, self.dtype = jax.random.split(key, 3), dtype
        self.latents = named(keys[0], normal(1.0), (num_latents, width), (None, None))
        self.place = named(keys[1], normal(1.0), (width,), (None,))
        self.layers = nnx.vmap(
            lambda layer_key: ResamplerLayer(layer_key, width, heads, dtype=dtype),
            transform_metadata={nnx.PARTITION_NAME: None, AXES_KEY: "layers"},
        )(jax.random.split(keys[2], num_layers))
        self.norm = LayerNorm(key, width, eps=_NORM_EPS)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns fp32 ``[b n d]`` of ``tokens`` ``[b m d]``."""
        placed = (tokens.astype(jnp.float32) + self.place[...]).astype(self.dtype)
        first = jnp.broadcast_to(self.latents[...].astype(self.dtype), (tokens.shape[0], *self.latents.shape))

        def body(latents: jax.Array, layer: ResamplerLayer) -> tuple[jax.Array, None]:
            return layer(latents, placed).astype(self.dtype), None

        # Norms are computed again: those of all tokens would be most of what is kept.
        body = jax.checkpoint(body, prevent_cse=False, policy=REMAT_POLICIES["none"])
        return self.norm(jax.lax.scan(body, first, self.layers)[0])
