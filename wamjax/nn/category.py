"""Layers with weights per category: one network for several embodiments, each sample using its own slice.

Every parameter has the categories in front; a sample's category is an index into them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from wamjax.nn.init import named, zeros
from wamjax.nn.modulation import timestep_embedding
from wamjax.types import Actions, PRNGKey, Tokens

INIT = jax.nn.initializers.normal(0.02)  # GR00T's and DreamZero's, whatever the fan


class CategoryLinear(nnx.Module):
    """y = x W_c + b_c for a sample of category c.

    Attributes:
      kernel: ``[categories in out]``.
      bias: ``[categories out]``.

    Source: GR00T N1 and DreamZero, ``CategorySpecificLinear``.
    """

    def __init__(
        self,
        key: PRNGKey,
        num_categories: int,
        fan: tuple[int, int],
        axes: tuple[str | None, str | None],
        *,
        dtype: str,
    ) -> None:
        """Makes the layer for ``num_categories``; ``fan`` and ``axes`` are those of (in, out)."""
        self.dtype = dtype
        self.kernel = named(key, INIT, (num_categories, *fan), (None, *axes))
        self.bias = named(key, zeros, (num_categories, fan[1]), (None, axes[1]))

    def __call__(self, x: jax.Array, category: jax.Array) -> jax.Array:
        """Maps ``[b n in]`` of samples of ``category`` int ``[b]`` to ``[b n out]`` in the compute dtype.

        A category outside the table takes the nearest one in it.
        """
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        x = x.astype(self.dtype)
        if kernel.shape[0] == 1:  # nothing to choose: no copy of the weights per sample
            return jnp.matmul(x, kernel[0]) + bias[0]
        kernel, bias = (jnp.take(part, category, axis=0, mode="clip") for part in (kernel, bias))
        return jnp.einsum("bni,bio->bno", x, kernel) + bias[:, None]


class CategoryMlp(nnx.Module):
    """``W2 relu(W1 x)`` per category: DreamZero's state encoder and action decoder.

    Source: GR00T N1 and DreamZero, ``CategorySpecificMLP``.
    """

    def __init__(
        self,
        key: PRNGKey,
        num_categories: int,
        widths: tuple[int, int, int],
        axes: tuple[str | None, str | None, str | None],
        *,
        dtype: str,
    ) -> None:
        """Makes the layers; ``widths`` and ``axes`` are those of (in, hidden, out)."""
        first, second = jax.random.split(key)
        self.hidden = CategoryLinear(first, num_categories, widths[:2], axes[:2], dtype=dtype)
        self.out = CategoryLinear(second, num_categories, widths[1:], axes[1:], dtype=dtype)

    def __call__(self, x: jax.Array, category: jax.Array) -> jax.Array:
        """Maps ``[b n in]`` of samples of ``category`` int ``[b]`` to ``[b n out]``."""
        return self.out(jax.nn.relu(self.hidden(x, category)), category)


class CategoryActionEncoder(nnx.Module):
    """Noisy actions and their timesteps -> tokens, per category: ``W3 silu(W2 [W1 a, sinusoid(t)])``.

    The sinusoid has its sines first, unlike every other timestep embedding here.

    Source: GR00T N1 and DreamZero, ``MultiEmbodimentActionEncoder``.
    """

    def __init__(self, key: PRNGKey, num_categories: int, action_dim: int, width: int, *, dtype: str) -> None:
        """Makes the encoder from ``action_dim`` to ``width``."""
        keys, self.width = jax.random.split(key, 3), width
        self.lift = CategoryLinear(keys[0], num_categories, (action_dim, width), (None, "embed"), dtype=dtype)
        self.mix = CategoryLinear(keys[1], num_categories, (2 * width, width), ("embed", None), dtype=dtype)
        self.out = CategoryLinear(keys[2], num_categories, (width, width), ("embed", None), dtype=dtype)

    def __call__(self, actions: Actions, ids: jax.Array, category: jax.Array) -> Tokens:
        """Encodes actions.

        Args:
          actions: ``[b a u]``, noised.
          ids: Timestep ids ``[b a]`` in [0, 1000].
          category: int ``[b]``.

        Returns:
          ``[b a d]``.
        """
        lifted = self.lift(actions, category)
        cosines, sines = jnp.split(timestep_embedding(ids, self.width), 2, axis=-1)
        mixed = jnp.concatenate([lifted, sines.astype(lifted.dtype), cosines.astype(lifted.dtype)], axis=-1)
        return self.out(jax.nn.silu(self.mix(mixed, category)), category)
