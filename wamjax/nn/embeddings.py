"""Embeddings into the model width: prompts, actions and states; and the action decoder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from wamjax.nn.init import named
from wamjax.nn.linear import Linear
from wamjax.nn.modulation import TIMESTEP_IDS, timestep_embedding
from wamjax.types import Actions, PRNGKey, States


class PromptTable(nnx.Module):
    """A trainable table of text tokens, one row per task prompt, projected to the model width.

    Stands in for a text encoder: ``Linear, gelu, Linear`` on it is Wan's ``text_embedding``.
    """

    def __init__(self, key: PRNGKey, *, rows: int, tokens: int, text_width: int, width: int, dtype: str) -> None:
        """Makes a table of ``rows`` prompts of ``tokens`` learned vectors each."""
        keys = jax.random.split(key, 3)
        shape, normal = (rows, tokens, text_width), jax.nn.initializers.normal(1.0)
        self.table = named(keys[0], normal, shape, (None, None, None))
        self.hidden = Linear(keys[1], (text_width, width), (None, "embed"), dtype=dtype)
        self.out = Linear(keys[2], (width, width), ("embed", None), dtype=dtype)

    def __call__(self, prompt_id: jax.Array) -> jax.Array:
        """Returns text tokens ``[b l d]`` for prompt rows ``[b]``."""
        rows = jnp.take(self.table[...], prompt_id, axis=0)
        return self.out(jax.nn.gelu(self.hidden(rows), approximate=True))


class ActionEncoder(nnx.Module):
    """Noisy actions and their timestep -> tokens: ``W3 silu(W2 [W1 a, sinusoid(t)])``.

    Source: DreamZero, which takes GR00T's action encoder; here for one embodiment.
    """

    def __init__(self, key: PRNGKey, action_dim: int, width: int, *, dtype: str) -> None:
        """Makes the encoder from ``action_dim`` to ``width``."""
        keys = jax.random.split(key, 3)
        self.width = width
        self.lift = Linear(keys[0], (action_dim, width), (None, "embed"), dtype=dtype)
        self.mix = Linear(keys[1], (2 * width, width), ("embed", None), dtype=dtype)
        self.out = Linear(keys[2], (width, width), ("embed", None), dtype=dtype)

    def __call__(self, actions: Actions, times: jax.Array) -> jax.Array:
        """Encodes ``actions`` ``[b a u]`` noised at ``times`` ``[b a]``: ``[b a d]``."""
        lifted = self.lift(actions)
        time = timestep_embedding(TIMESTEP_IDS * times, self.width).astype(lifted.dtype)
        return self.out(jax.nn.silu(self.mix(jnp.concatenate([lifted, time], axis=-1))))


class StateEncoder(nnx.Module):
    """Proprioceptive state -> tokens: ``W2 silu(W1 s)`` (DreamZero: 64 -> 1024 -> d)."""

    def __init__(self, key: PRNGKey, state_dim: int, hidden: int, width: int, *, dtype: str) -> None:
        """Makes the encoder from ``state_dim`` through ``hidden`` to ``width``."""
        first, second = jax.random.split(key)
        self.hidden = Linear(first, (state_dim, hidden), (None, "mlp"), dtype=dtype)
        self.out = Linear(second, (hidden, width), ("mlp", "embed"), dtype=dtype)

    def __call__(self, state: States) -> jax.Array:
        """Encodes ``[b s p]`` to ``[b s d]``."""
        return self.out(jax.nn.silu(self.hidden(state)))


class ActionDecoder(nnx.Module):
    """Tokens -> actions: ``W2 silu(W1 x)`` (DreamZero: d -> 1024 -> 32); the last layer starts at zero."""

    def __init__(self, key: PRNGKey, width: int, hidden: int, action_dim: int, *, dtype: str) -> None:
        """Makes the decoder from ``width`` through ``hidden`` to ``action_dim``."""
        first, second = jax.random.split(key)
        self.hidden = Linear(first, (width, hidden), ("embed", "mlp"), dtype=dtype)
        self.out = Linear(second, (hidden, action_dim), ("mlp", None), dtype="float32", scale=0.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Decodes ``[b a d]`` to fp32 ``[b a u]``."""
        return self.out(jax.nn.silu(self.hidden(x)))
