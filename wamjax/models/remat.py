"""Rematerialisation policies by name: what the backward pass of a block finds, all else being computed again.

``none``
  What products, attention and the feed-forward units return: only norms and the like are repeated.
``products``
  As ``none`` without the feed-forward units, which their product gives again, and with the norms' statistics.
``exchanged``
  As ``products``, and what attention reads and returns between two exchanges over the mesh: no exchange of tokens is
  repeated either.
``attention``
  A block's input and what its attention returns.
``self_attention``
  A block's input and what its self-attention returns. Attention to text and image runs again: some per cent of the
  FLOPs, for up to half the memory. Calls of cuDNN cannot be told apart, and all are kept.
``offload``
  As ``attention``, the block's input in host memory.
``full``
  A block's input alone.

Every policy is made once: JAX compares them by identity in some versions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from wamjax.config.choices import Remat
from wamjax.nn.attention import ATTENTION_IN, ATTENTION_OUT, ATTENTION_SCORES, CROSS_ATTENTION_OUT
from wamjax.nn.cudnn import is_cudnn_forward
from wamjax.nn.linear import MLP_HIDDEN
from wamjax.nn.norm import NORM_STATISTICS
from wamjax.nn.products import PRODUCT

BLOCK_INPUT = "block_input"


def _with_cudnn(policy: Callable[..., Any]) -> Callable[..., Any]:
    """Returns ``policy`` that also keeps what cuDNN's attention returns, which has no name."""

    def keep(primitive: Any, *args: Any, **params: Any) -> Any:
        return is_cudnn_forward(primitive) or policy(primitive, *args, **params)

    return keep


def _keep(*names: str) -> Callable[..., Any]:
    return _with_cudnn(jax.checkpoint_policies.save_only_these_names(*names))


_OUTPUTS = (ATTENTION_OUT, CROSS_ATTENTION_OUT)
_PRODUCTS = (PRODUCT, *_OUTPUTS, ATTENTION_SCORES)

REMAT_POLICIES: Mapping[Remat, Callable[..., Any]] = {
    # Units of the feed-forward layer could be computed again, but XLA on a CPU does so column by column, at three times
    # the price of keeping them.
    "none": _keep(*_PRODUCTS, MLP_HIDDEN),
    "products": _keep(*_PRODUCTS, NORM_STATISTICS),
    "exchanged": _keep(*_PRODUCTS, NORM_STATISTICS, ATTENTION_IN),
    "attention": _keep(*_OUTPUTS),
    "self_attention": _keep(ATTENTION_OUT),
    "offload": _with_cudnn(
        jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[*_OUTPUTS],
            names_which_can_be_offloaded=[BLOCK_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        )
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}
