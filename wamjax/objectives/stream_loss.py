"""The loss of one stream, summed and counted apart, so that means are over the whole global batch."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamLoss:
    """Summed weighted squared error and its count, per sample, both fp32 ``[b]``."""

    total: jax.Array
    count: jax.Array

    def mean(self) -> jax.Array:
        """Returns the masked mean over the whole (global) batch; 0 if nothing is unmasked."""
        return jnp.sum(self.total) / jnp.maximum(jnp.sum(self.count), 1.0)

    def per_sample(self) -> jax.Array:
        """Returns ``[b]`` masked means; 0 for a sample with nothing unmasked."""
        return self.total / jnp.maximum(self.count, 1.0)
