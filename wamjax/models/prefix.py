"""A language tower beside a video transformer: text (and vision) tokens that everything else may read.

Its tokens come embedded, by a language model's table or a vision encoder; they go through blocks without timesteps and
never see what is noised, so that at inference they are computed once. It is one more expert of ``models.mixture``.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
from flax import nnx

from wamjax.config.backbone import BlockConfig, VideoTransformerConfig
from wamjax.layout import Pass
from wamjax.models.block import Conditioning, bare_conditioning
from wamjax.models.stack import Conditionings, Stack, Stacks, Streams, stack_blocks
from wamjax.nn.linear import Linear
from wamjax.nn.rotary import rotary_table
from wamjax.parallel.rules import constrain
from wamjax.types import PRNGKey, Tokens


class PrefixTower(nnx.Module):
    """A stack of blocks without timesteps or cross-attention, and the way into it.

    Attributes:
      embed_tokens: ``[text_width d]``.
      blocks: The stack; every parameter has a layer dim in front.
    """

    def __init__(self, key: PRNGKey, block: BlockConfig, num_layers: int, text_width: int, theta: float) -> None:
        """Makes the tower, as deep as the stacks it attends with."""
        first, second = jax.random.split(key)
        self.block, self.theta = block, theta
        self.embed_tokens = Linear(first, (text_width, block.width), (None, "embed"), dtype=block.compute_dtype)
        self.blocks = stack_blocks(second, block, num_layers)

    def embed(self, text: jax.Array) -> Tokens:
        """Returns tokens ``[b n d]`` of ``text`` ``[b n text_width]``."""
        return self.embed_tokens(text)

    def condition(self, batch_size: int, layout_pass: Pass) -> Conditioning:
        """Returns what the blocks read besides the tokens of ``layout_pass``: where they are, and nothing else."""
        rotation = rotary_table(layout_pass, self.block.head_dim, self.theta)
        return bare_conditioning(batch_size, layout_pass.num_tokens, rotation)


def make_prefix(key: PRNGKey, block: BlockConfig | None, video: VideoTransformerConfig) -> PrefixTower | None:
    """Makes the tower that attends with ``video``; None without a ``block``."""
    if block is None:
        return None
    return PrefixTower(jax.random.fold_in(key, 1), block, video.num_layers, video.text_width, video.rotary.theta)


def prefixed(
    tower: PrefixTower | None,
    text: jax.Array,
    layout_pass: Pass,
    others: Mapping[str, tuple[Stack, jax.Array, Conditioning]],
) -> tuple[Stacks, Streams, Conditionings]:
    """Returns what ``models.mixture.run_mixture`` takes, of other experts and of a tower where there is one.

    Args:
      tower: The tower, or None.
      text: ``[b n text_width]``, its tokens.
      layout_pass: The whole sequence.
      others: Stack, tokens ``[b n d]`` and conditioning of each other expert.
    """
    parts = dict(others)
    if tower is not None:
        told = tower.condition(text.shape[0], layout_pass.of_expert("prefix"))
        parts = {"prefix": (tower.blocks, tower.embed(text), told), **parts}
    stacks = {name: blocks for name, (blocks, _, _) in parts.items()}
    streams = {
        name: constrain(tokens.astype(blocks.dtype), "batch", "stream", None)
        for name, (blocks, tokens, _) in parts.items()
    }
    return stacks, streams, {name: told for name, (_, _, told) in parts.items()}
