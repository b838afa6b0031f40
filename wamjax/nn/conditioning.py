"""What conditions a video transformer: timesteps, text and image tokens, learned positions.

Owns their way from an encoder's output (or a number) to what the blocks read; the encoders are models of their own.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from wamjax.nn.init import named
from wamjax.nn.linear import Linear
from wamjax.nn.modulation import period_embedding, timestep_embedding
from wamjax.nn.norm import LayerNorm, rms_norm
from wamjax.parallel.rules import constrain
from wamjax.types import PRNGKey

HIGHEST = jax.lax.Precision.HIGHEST  # accelerators would multiply fp32 timesteps in fewer bits


class TimeEmbedding(nnx.Module):
    """Timestep -> embedding -> one vector per modulated quantity, in fp32, once per slot.

    Source: Wan 2.1: ``time_embedding`` = Linear, SiLU, Linear; ``time_projection`` = SiLU, Linear(6 d).
    """

    def __init__(self, key: PRNGKey, sinusoid_width: int, width: int, num_vectors: int) -> None:
        """Makes the embedding with ``num_vectors`` modulation vectors of ``width``."""
        keys = jax.random.split(key, 3)
        self.sinusoid_width, self.num_vectors = sinusoid_width, num_vectors
        self.hidden = Linear(keys[0], (sinusoid_width, width), (None, "embed"), dtype="float32", precision=HIGHEST)
        self.out = Linear(keys[1], (width, width), ("embed", None), dtype="float32", precision=HIGHEST)
        self.project = Linear(
            keys[2], (width, num_vectors * width), ("embed", None), dtype="float32", scale=0.25, precision=HIGHEST
        )

    def __call__(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Embeds timestep ids ``[b slots]``: returns ``[b slots d]`` and ``[b slots num_vectors d]``."""
        embedding = self.out(jax.nn.silu(self.hidden(timestep_embedding(ids, self.sinusoid_width))))
        # The largest kernel outside the blocks: its split rows stay where they are, and what they give is added up, for
        # all samples on every device.
        hidden = constrain(jax.nn.silu(embedding), None, None, "embed")
        vectors = constrain(self.project(hidden), "batch", None, None)
        return embedding, vectors.reshape(*embedding.shape[:-1], self.num_vectors, -1)


class PeriodTimeEmbedding(nnx.Module):
    """Time -> embedding that adaptive norms read, in fp32: silu(out(silu(hidden(sinusoid)))).

    Source: openpi, src/openpi/models/pi0.py, ``time_mlp_in`` and ``time_mlp_out``.
    """

    def __init__(self, key: PRNGKey, width: int) -> None:
        """Makes the embedding; the sinusoid has ``width`` dims too."""
        keys, self.width = jax.random.split(key), width
        self.hidden = Linear(keys[0], (width, width), (None, "embed"), dtype="float32", precision=HIGHEST)
        self.out = Linear(keys[1], (width, width), ("embed", None), dtype="float32", precision=HIGHEST)

    def __call__(self, times: jax.Array) -> jax.Array:
        """Embeds times ``[b slots]`` in [0, 1]: returns ``[b slots d]``."""
        return jax.nn.silu(self.out(jax.nn.silu(self.hidden(period_embedding(times, self.width)))))


class NormedTimeEmbedding(nnx.Module):
    """Timestep -> normed sinusoid, and three vectors that all blocks share, in fp32.

    Source: Cosmos-Predict: ``t_embedding_norm`` on the sinusoid itself; ``t_embedder`` = Linear, SiLU, Linear(3 d).
    """

    def __init__(self, key: PRNGKey, width: int) -> None:
        """Makes the embedding; the sinusoid has ``width`` dims too."""
        keys = jax.random.split(key)
        self.width = width
        self.hidden = Linear(
            keys[0], (width, width), (None, "embed"), dtype="float32", use_bias=False, precision=HIGHEST
        )
        self.project = Linear(
            keys[1], (width, 3 * width), ("embed", None), dtype="float32", use_bias=False, precision=HIGHEST
        )
        self.scale = named(key, jax.nn.initializers.ones, (width,), (None,))

    def __call__(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Embeds timestep ids ``[b slots]``: returns ``[b slots d]`` and ``[b slots 3 d]``."""
        sinusoid = timestep_embedding(ids, self.width)
        vectors = self.project(jax.nn.silu(self.hidden(sinusoid)))
        return rms_norm(sinusoid, self.scale[...], 1e-6), vectors.reshape(*sinusoid.shape[:-1], 3, -1)


class TextEmbedding(nnx.Module):
    """Text encoder's tokens -> context: ``Linear, GELU tanh, Linear`` (Wan)."""

    def __init__(self, key: PRNGKey, text_width: int, width: int, *, dtype: str) -> None:
        """Makes the embedding from ``text_width`` to ``width``."""
        keys = jax.random.split(key)
        self.hidden = Linear(keys[0], (text_width, width), (None, "embed"), dtype=dtype)
        self.out = Linear(keys[1], (width, width), ("embed", None), dtype=dtype)

    def __call__(self, text: jax.Array) -> jax.Array:
        """Maps ``[b l text_width]`` to ``[b l d]``."""
        return self.out(jax.nn.gelu(self.hidden(text), approximate=True))


class TextProjection(nnx.Module):
    """Text encoder's tokens -> context: ``Linear, exact GELU`` (Cosmos 2.5)."""

    def __init__(self, key: PRNGKey, text_width: int, width: int, *, dtype: str) -> None:
        """Makes the projection from ``text_width`` to ``width``."""
        self.hidden = Linear(key, (text_width, width), (None, "embed"), dtype=dtype)

    def __call__(self, text: jax.Array) -> jax.Array:
        """Maps ``[b l text_width]`` to ``[b l d]``."""
        return jax.nn.gelu(self.hidden(text), approximate=False)


class ImageEmbedding(nnx.Module):
    """Image encoder's tokens -> context: ``LayerNorm, Linear, exact GELU, Linear, LayerNorm`` (Wan I2V).

    With ``num_positions`` a learned position embedding over the tokens of all images of a sample is added first (Wan
    FLF2V, whose samples have two images).
    """

    EPS = 1e-5  # torch's default, whatever the transformer's own norms have

    def __init__(self, key: PRNGKey, image_width: int, width: int, *, num_positions: int | None, dtype: str) -> None:
        """Makes the embedding from ``image_width`` to ``width``."""
        keys = jax.random.split(key, 5)
        self.norm_in = LayerNorm(keys[0], image_width, eps=self.EPS)
        self.hidden = Linear(keys[1], (image_width, image_width), (None, "embed"), dtype=dtype)
        self.out = Linear(keys[2], (image_width, width), ("embed", None), dtype=dtype)
        self.norm_out = LayerNorm(keys[3], width, eps=self.EPS)
        self.positions = nnx.data(None)
        if num_positions is not None:
            shape = (num_positions, image_width)
            self.positions = named(keys[4], jax.nn.initializers.normal(0.02), shape, (None, None))

    def __call__(self, image: jax.Array) -> jax.Array:
        """Maps ``[b m image_width]``, the images of a sample one after the other, to fp32 ``[b m d]``."""
        if self.positions is not None:
            image = image + self.positions[...]
        return self.norm_out(self.out(jax.nn.gelu(self.hidden(self.norm_in(image)), approximate=False)))


class LearnedPositions(nnx.Module):
    """Position embedding of video tokens: a sum over the axes, divided by its root mean square.

    y = s / (eps + |s| / sqrt(d)), s = frames[t] + rows[h] + columns[w]

    Source: Cosmos-Predict 1, ``LearnablePosEmbAxis``.
    """

    EPS = 1e-6

    def __init__(self, key: PRNGKey, sizes: tuple[int, int, int], width: int) -> None:
        """Makes one table per axis of ``sizes`` (frames, rows, columns), in patches."""
        keys, init = jax.random.split(key, 3), jax.nn.initializers.normal(0.02)
        self.sizes = sizes
        self.frames, self.rows, self.columns = (
            named(k, init, (size, width), (None, "embed")) for k, size in zip(keys, sizes, strict=True)
        )

    def __call__(self, positions: np.ndarray) -> jax.Array:
        """Returns fp32 ``[n d]`` of ``positions`` ``[n 3]``."""
        frames, rows, columns = (
            table[...].astype(jnp.float32)[positions[:, axis]]
            for axis, table in enumerate((self.frames, self.rows, self.columns))
        )
        total = frames + rows + columns
        # Tables may be all zero (Cosmos starts so): the square root then has no gradient, as in the reference.
        norm = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(total), axis=-1, keepdims=True), 1e-30))
        return total / (self.EPS + norm * total.shape[-1] ** -0.5)


def make_text_embedding(
    key: PRNGKey, kind: Literal["mlp", "projection", "none"], text_width: int, width: int, *, dtype: str
) -> TextEmbedding | TextProjection | None:
    """Makes the text embedding of ``VideoTransformerConfig.text_embedding``; None if the tokens enter as they are."""
    if kind == "none":
        return None
    make = TextEmbedding if kind == "mlp" else TextProjection
    return make(key, text_width, width, dtype=dtype)
