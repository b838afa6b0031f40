"""The loss of one stream, summed and counted apart, so that means are over the whole global batch."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamLoss:
    """Summed weighted squared error and its count.

    Attributes:
      total: fp32 ``[b]``, per sample.
      count: fp32 ``[b]``, per sample.
      whole_count: Where the samples are a part of a batch, the count of the whole batch; else None.
    """

    total: jax.Array
    count: jax.Array
    whole_count: jax.Array | None = None

    def as_part(self, whole_count: jax.Array) -> StreamLoss:
        """Returns the loss as a part of that of a batch with ``whole_count``: the means of all parts add up to its."""
        return dataclasses.replace(self, whole_count=whole_count)

    def mean(self) -> jax.Array:
        """Returns the masked mean over the global batch, or this part's share of it; 0 if nothing is unmasked."""
        count = jnp.sum(self.count) if self.whole_count is None else self.whole_count
        return jnp.sum(self.total) / jnp.maximum(count, 1.0)

    def per_sample(self) -> jax.Array:
        """Returns ``[b]`` masked means; 0 for a sample with nothing unmasked."""
        return self.total / jnp.maximum(self.count, 1.0)
