"""The UMT5 text encoder: token ids in, one vector per token out.

What differs from the first T5: every layer has its own table of relative position biases, and the feed-forward layer
is gated. Knows no tokeniser and no files; prompts become ids in ``data_pipelines.text``.

Source: Chung et al., "UniMax" (arXiv 2304.09151), on Raffel et al., "T5" (arXiv 1910.10683); equal to
``UMT5EncoderModel`` of transformers and to ``wan/modules/t5.py`` of Wan 2.1.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import Initializer, normal, ones
from jaxtyping import Array, Int

from wamjax.config.encoders import Umt5Config
from wamjax.errors import DataError
from wamjax.nn.init import AXES_KEY, fan_in, named
from wamjax.nn.norm import rms_norm
from wamjax.parallel.rules import constrain
from wamjax.types import PRNGKey, TextTokens

PROMPT_TOKENS = 512  # rows of text that Wan's transformer reads (wan/configs/shared_config.py: text_len)


def relative_buckets(num_tokens: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Returns which bias each (query, key) pair uses, int32 ``[l l]``.

    With n = num_buckets / 2 and r = |key - query|: r itself below n/2, then
    min(n/2 + floor(log(r / (n/2)) / log(max_distance / (n/2)) n/2), n - 1); plus n for keys after the query.

    The logarithm is taken in fp32 as the reference does, so that both floor the same numbers at bucket edges.
    """
    half, exact = num_buckets // 2, num_buckets // 4
    offset = np.arange(num_tokens)[None, :] - np.arange(num_tokens)[:, None]
    distance = np.abs(offset)
    far = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    far = far / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + far.astype(np.int32), half - 1)
    return (np.where(offset > 0, half, 0) + np.where(distance < exact, distance, far)).astype(np.int32)


class Umt5Attention(nnx.Module):
    """Self-attention whose scores are q . k plus a learned bias of the distance, without the usual 1 / sqrt(e)."""

    def __init__(self, key: PRNGKey, config: Umt5Config) -> None:
        """Makes the four projections and the bias table."""
        keys = jax.random.split(key, 5)
        width, heads, head_dim = config.width, config.num_heads, config.head_dim
        self.config = config

        def projection(key: PRNGKey, scale: float) -> nnx.Param:
            init = fan_in(scale, in_axis=0, out_axis=(1, 2))
            return named(key, init, (width, heads, head_dim), ("embed", "heads", None))

        # The missing 1 / sqrt(e) is in the query's initialisation.
        self.query = projection(keys[0], 1.0 / head_dim)
        self.key, self.value = projection(keys[1], 1.0), projection(keys[2], 1.0)
        out_init = fan_in(in_axis=(0, 1), out_axis=2)
        self.out = named(keys[3], out_init, (heads, head_dim, width), ("heads", None, "embed"))
        self.relative_bias = named(keys[4], normal(width**-0.5), (config.num_buckets, heads), (None, "heads"))

    def __call__(self, x: TextTokens, mask: jax.Array) -> TextTokens:
        """Attends ``x`` ``[b l d]`` to its tokens where ``mask`` (bool ``[b l]``) is set."""
        dtype, config = self.config.compute_dtype, self.config
        query, key, value = (
            jnp.einsum("bld,dke->blke", x, kernel[...].astype(dtype)) for kernel in (self.query, self.key, self.value)
        )
        buckets = relative_buckets(x.shape[1], config.num_buckets, config.max_distance)
        bias = jnp.take(self.relative_bias[...].astype(jnp.float32), buckets, axis=0)  # [l m k]
        scores = jnp.einsum("blke,bmke->bklm", query, key, preferred_element_type=jnp.float32)
        scores = scores + jnp.transpose(bias, (2, 0, 1))
        # The lowest finite number, not -inf: a prompt without any token then gives a mean and not NaN, as elsewhere.
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(dtype)
        heads = jnp.einsum("bklm,bmke->blke", weights, value)
        return jnp.einsum("blke,ked->bld", heads, self.out[...].astype(dtype))


class Umt5Block(nnx.Module):
    """x + attention(norm(x)), then x + down(gelu(gate(norm(x))) up(norm(x)))."""

    def __init__(self, key: PRNGKey, config: Umt5Config) -> None:
        """Makes the block."""
        keys = jax.random.split(key, 4)
        self.config = config
        self.attention_norm = _norm_scale(key, config)
        self.attention = Umt5Attention(keys[0], config)
        self.mlp_norm = _norm_scale(key, config)
        inward = ((config.width, config.ffn_width), ("embed", "mlp"))
        self.gate, self.up = (named(k, fan_in(), *inward) for k in keys[1:3])
        self.down = named(keys[3], fan_in(), (config.ffn_width, config.width), ("mlp", "embed"))

    def __call__(self, x: TextTokens, mask: jax.Array) -> TextTokens:
        """Applies the block to ``[b l d]``; keys where ``mask`` (bool ``[b l]``) is not set are invisible."""
        dtype, eps = self.config.compute_dtype, self.config.norm_eps
        hidden = ("batch", "tokens", "mlp")
        h = rms_norm(x, self.attention_norm[...], eps).astype(dtype)
        x = constrain(x + self.attention(h, mask), "batch", "tokens", None)
        h = rms_norm(x, self.mlp_norm[...], eps).astype(dtype)
        gate, up = (constrain(h @ kernel[...].astype(dtype), *hidden) for kernel in (self.gate, self.up))
        h = (jax.nn.gelu(gate, approximate=True) * up) @ self.down[...].astype(dtype)
        return constrain(x + h, "batch", "tokens", None)


class Umt5Encoder(nnx.Module):
    """Token table, scanned blocks, final norm."""

    def __init__(self, key: PRNGKey, config: Umt5Config) -> None:
        """Makes the encoder of ``config``."""
        keys = jax.random.split(key, 2)
        self.config = config
        table: Initializer = normal(1.0)
        self.embedding = named(keys[0], table, (config.vocab_size, config.width), (None, "embed"))
        self.blocks = nnx.vmap(
            lambda block_key: Umt5Block(block_key, config),
            transform_metadata={nnx.PARTITION_NAME: None, AXES_KEY: "layers"},
        )(jax.random.split(keys[1], config.num_layers))
        self.norm = _norm_scale(key, config)

    def __call__(self, input_ids: Int[Array, "b l"], attention_mask: jax.Array | None = None) -> TextTokens:
        """Encodes padded prompts.

        Args:
          input_ids: ``[b l]`` token ids below ``vocab_size``; an id outside gives NaN.
          attention_mask: ``[b l]``, not 0 where there is a token of the prompt. All of them if it is None.

        Returns:
          ``[b l d]`` in the compute dtype. Rows of padding hold values too (see ``pad_prompts``).
        """
        mask = jnp.ones(input_ids.shape, bool) if attention_mask is None else attention_mask != 0
        rows = jnp.take(self.embedding[...], input_ids, axis=0, mode="fill")
        rows = constrain(rows.astype(self.config.compute_dtype), None, None, None)  # whole before they are split anew
        x = constrain(rows, "batch", "tokens", None)
        x, _ = jax.lax.scan(lambda x, block: (block(x, mask), None), x, self.blocks)
        return rms_norm(x, self.norm[...], self.config.norm_eps).astype(self.config.compute_dtype)


def pad_prompts(hidden: TextTokens, attention_mask: jax.Array | None, length: int = PROMPT_TOKENS) -> jax.Array:
    """Returns encoded prompts as Wan's transformer reads them: ``[b length d]``, zero beyond each prompt's end.

    A prompt's length is the number of its tokens, which stand at the front.

    Args:
      hidden: ``[b l d]`` of the encoder.
      attention_mask: ``[b l]`` that the encoder was given.
      length: Rows to pad to.

    Raises:
      DataError: There are more than ``length`` rows.

    Source: Wan 2.1, ``T5EncoderModel.__call__``, and the zero padding at the start of ``WanModel.forward``.
    """
    num_rows = hidden.shape[1]
    if num_rows > length:
        raise DataError(
            f"prompts of {num_rows} tokens; the model reads {length} at most: truncate them when tokenising"
        )
    if attention_mask is not None:
        lengths = jnp.sum(attention_mask != 0, axis=1, keepdims=True)
        hidden = jnp.where((jnp.arange(num_rows) < lengths)[..., None], hidden, 0)
    return jnp.pad(hidden, ((0, 0), (0, length - num_rows), (0, 0)))


def _norm_scale(key: PRNGKey, config: Umt5Config) -> nnx.Param:
    return named(key, ones, (config.width,), (None,))
