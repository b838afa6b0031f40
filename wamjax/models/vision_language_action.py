"""A vision-language-action model: pictures and a prompt in, the velocity of noisy actions out; no video.

A language tower reads the tokens of a vision tower and of a prompt; an action expert, narrower and as deep, attends
jointly with it (``models.mixture``) and reads the time of the noise by adaptive norms. Which tokens see which is the
layout's (``layout.policy``), which of them are there at all the batch's.

Source: Pi-0.5 (arXiv 2504.16054), openpi, src/openpi/models/{pi0,gemma}.py with ``pi05=True``. What differs: a norm's
scale is stored as it multiplies (openpi's and Gemma's checkpoints hold it less 1), and the language tower has no last
norm, whose output nothing reads.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from wamjax.config.vla import VlaConfig
from wamjax.layout import Pass
from wamjax.models.block import Conditioning, bare_conditioning
from wamjax.models.mixture import run_mixture
from wamjax.models.siglip import VisionTower
from wamjax.models.stack import stack_blocks
from wamjax.nn.conditioning import PeriodTimeEmbedding
from wamjax.nn.init import named
from wamjax.nn.linear import Linear
from wamjax.nn.modulation import AdaptiveNorm, modulate
from wamjax.nn.norm import rms_normalise
from wamjax.nn.rotary import Rotation, rotation_of
from wamjax.parallel.rules import constrain
from wamjax.types import Actions, PRNGKey, Tokens


class LanguageTower(nnx.Module):
    """A table of tokens and a stack of Gemma's blocks.

    Attributes:
      table: ``[vocab_size d]``.
      blocks: The stack.

    Source: Gemma (arXiv 2403.08295); equal to ``GemmaModel`` of transformers but for what the module says.
    """

    def __init__(self, key: PRNGKey, config: VlaConfig) -> None:
        """Makes the tower of ``config``."""
        first, second = jax.random.split(key)
        spread = jax.nn.initializers.normal(config.width**-0.5)
        self.table = named(first, spread, (config.vocab_size, config.width), (None, "embed"))
        self.blocks = stack_blocks(second, config.language_block, config.num_layers)

    def embed(self, ids: jax.Array) -> jax.Array:
        """Returns fp32 ``[b l d]``: rows of ``ids`` ``[b l]`` times sqrt(d). Padding (-1) takes the first row."""
        # Every device looks up its columns for all samples: rows of the table are never exchanged.
        rows = constrain(jnp.take(self.table[...], jnp.maximum(ids, 0), axis=0), None, None, "embed")
        return constrain(rows * rows.shape[-1] ** 0.5, "batch", None, None)


class AdaptiveActionExpert(nnx.Module):
    """A stack of blocks for action tokens, with adaptive norms.

    Attributes:
      action_embed: ``[u d]``.
      time_embedding: What the norms read.
      blocks: The stack.
      out_norm: The last norm, whose gate nothing reads.
      action_out: ``[d u]``.
    """

    def __init__(self, key: PRNGKey, config: VlaConfig, action_dim: int) -> None:
        """Makes the expert of ``config`` for actions of ``action_dim`` dims."""
        keys, block = jax.random.split(key, 5), config.expert_block
        self.eps, width, dtype = config.norm_eps, block.width, block.compute_dtype
        self.action_embed = Linear(keys[0], (action_dim, width), (None, "embed"), dtype=dtype)
        self.time_embedding = PeriodTimeEmbedding(keys[1], width)
        self.blocks = stack_blocks(keys[2], block, config.num_layers)
        self.out_norm = AdaptiveNorm(keys[3], width)
        self.action_out = Linear(keys[4], (width, action_dim), ("embed", None), dtype=dtype)

    def decode(self, x: Tokens, told: Conditioning) -> Actions:
        """Returns the fp32 prediction ``[b a u]`` of the blocks' output ``[b a d]``."""
        vectors = self.out_norm(told.embedding)
        normed = modulate(rms_normalise(x, self.eps), vectors.shift, vectors.scale, told.runs)
        return self.action_out(normed).astype(jnp.float32)


class VisionLanguageActionModel(nnx.Module):
    """Vision tower, language tower and action expert."""

    def __init__(self, key: PRNGKey, config: VlaConfig, action_dim: int) -> None:
        """Makes the model of ``config`` for actions of ``action_dim`` dims."""
        keys, self.config = jax.random.split(key, 3), config
        dtype = config.compute_dtype
        self.vision = VisionTower(keys[0], config.vision, config.width, dtype=dtype, remat=config.remat)
        self.prefix = LanguageTower(keys[1], config)
        self.expert = AdaptiveActionExpert(keys[2], config, action_dim)

    def predict(
        self,
        actions: Actions,
        times: jax.Array,
        images: jax.Array,
        view_mask: jax.Array,
        text_ids: jax.Array,
        layout_pass: Pass,
    ) -> Actions:
        """Predicts the velocity of noisy actions.

        Args:
          actions: ``[b a u]``, noised.
          times: fp32 ``[b]`` in [0, 1], 1 being noise.
          images: uint8 ``[b v H W 3]``.
          view_mask: bool ``[b v]``: which images there are; others are not seen and take no positions.
          text_ids: int32 ``[b l]``; -1 for padding, likewise.
          layout_pass: The pass of ``layout.policy_layout``.

        Returns:
          fp32 ``[b a u]``.
        """
        tokens = {
            "prefix": jnp.concatenate(
                [self.vision(images).astype(self.config.compute_dtype), self.prefix.embed(text_ids)], axis=1
            ),
            "action": self.expert.action_embed(actions),
        }
        told = self._condition(times, self._seen(view_mask, text_ids, actions.shape[1]), layout_pass)
        stacks = {"prefix": self.prefix.blocks, "action": self.expert.blocks}
        streams = {
            name: constrain(tokens[name].astype(blocks.dtype), "batch", "stream", None)
            for name, blocks in stacks.items()
        }
        x = run_mixture(stacks, streams, layout_pass, told, remat=self.config.remat)
        return self.expert.decode(x["action"], told["action"])

    def _seen(self, view_mask: jax.Array, text_ids: jax.Array, num_actions: int) -> jax.Array:
        """Returns which tokens of the sequence there are: bool ``[b n]``."""
        patches = jnp.repeat(view_mask, self.config.vision.num_patches, axis=1)
        return jnp.concatenate([patches, text_ids >= 0, jnp.ones((text_ids.shape[0], num_actions), bool)], axis=1)

    def _condition(self, times: jax.Array, seen: jax.Array, layout_pass: Pass) -> dict[str, Conditioning]:
        """Returns what the blocks of both read besides their tokens. Positions count the tokens that are there."""
        positions = jnp.cumsum(seen, axis=1) - 1
        told, start = {}, 0
        for name in ("prefix", "action"):
            count = layout_pass.of_expert(name).num_tokens
            own = positions[:, start : start + count]
            rotation: Rotation = rotation_of(own, self.config.head_dim, self.config.rope_theta)
            told[name] = bare_conditioning(seen.shape[0], count, rotation, seen[:, start : start + count])
            start += count
        embedding = self.expert.time_embedding(times[:, None])
        told["action"] = told["action"]._replace(embedding=embedding)
        return told
