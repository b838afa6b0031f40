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
from wamjax.models.stack import Stacks, Streams, stack_blocks
from wamjax.nn.conditioning import PeriodTimeEmbedding
from wamjax.nn.init import named
from wamjax.nn.linear import Linear
from wamjax.nn.modulation import AdaptiveNorm, modulate
from wamjax.nn.multihead import KeysValues
from wamjax.nn.norm import rms_normalise
from wamjax.nn.rotary import rotation_of
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
        seen = self._seen(view_mask, text_ids)
        told = {"prefix": self._told_prefix(seen), "action": self._told_actions(times, seen, actions.shape[1])}
        stacks = {"prefix": self.prefix.blocks, "action": self.expert.blocks}
        streams = {"prefix": self._embed(images, text_ids), "action": self.expert.action_embed(actions)}
        x, _ = run_mixture(stacks, _placed(streams, stacks), layout_pass, told, remat=self.config.remat)
        return self.expert.decode(x["action"], told["action"])

    def read(
        self, images: jax.Array, view_mask: jax.Array, text_ids: jax.Array, layout_pass: Pass
    ) -> tuple[KeysValues, jax.Array]:
        """Computes once what all solver steps look at; arguments as ``predict``, the pass that of the prefix alone.

        Returns:
          Keys and values of all layers, ``[layers b k m e]``, and which of their tokens there are, bool ``[b m]``.
        """
        seen, stacks = self._seen(view_mask, text_ids), {"prefix": self.prefix.blocks}
        streams = _placed({"prefix": self._embed(images, text_ids)}, stacks)
        told = {"prefix": self._told_prefix(seen)}
        _, cache = run_mixture(stacks, streams, layout_pass, told, remat=self.config.remat, return_cache=True)
        assert cache is not None, "asked for"
        return cache, seen

    def denoise(
        self, actions: Actions, times: jax.Array, past: KeysValues, seen: jax.Array, layout_pass: Pass
    ) -> Actions:
        """Predicts as ``predict``, of what ``read`` has given; the pass is that of the actions, the prefix past."""
        stacks = {"action": self.expert.blocks}
        streams = _placed({"action": self.expert.action_embed(actions)}, stacks)
        told = {"action": self._told_actions(times, seen, actions.shape[1])}
        x, _ = run_mixture(stacks, streams, layout_pass, told, past, remat=self.config.remat, past_seen=seen)
        return self.expert.decode(x["action"], told["action"])

    def _embed(self, images: jax.Array, text_ids: jax.Array) -> Tokens:
        """Returns the tokens of the prefix ``[b m d]``."""
        pictures = self.vision(images).astype(self.config.compute_dtype)
        return jnp.concatenate([pictures, self.prefix.embed(text_ids)], axis=1)

    def _seen(self, view_mask: jax.Array, text_ids: jax.Array) -> jax.Array:
        """Returns which tokens of the prefix there are: bool ``[b m]``."""
        patches = jnp.repeat(view_mask, self.config.vision.num_patches, axis=1)
        return jnp.concatenate([patches, text_ids >= 0], axis=1)

    def _told_prefix(self, seen: jax.Array) -> Conditioning:
        """Returns what the language tower's blocks read besides tokens. Positions count the tokens that are there."""
        rotation = rotation_of(jnp.cumsum(seen, axis=1) - 1, self.config.head_dim, self.config.rope_theta)
        return bare_conditioning(seen.shape[0], seen.shape[1], rotation, seen)

    def _told_actions(self, times: jax.Array, seen: jax.Array, count: int) -> Conditioning:
        """Returns the same of the expert's blocks, for ``count`` actions behind the prefix."""
        positions = jnp.sum(seen, axis=1, keepdims=True) + jnp.arange(count)
        rotation = rotation_of(positions, self.config.head_dim, self.config.rope_theta)
        told = bare_conditioning(seen.shape[0], count, rotation)
        return told._replace(embedding=self.expert.time_embedding(times[:, None]))


def _placed(streams: Streams, stacks: Stacks) -> Streams:
    """Returns the tokens of each stack in its dtype, split over the mesh."""
    return {name: constrain(x.astype(stacks[name].dtype), "batch", "stream", None) for name, x in streams.items()}
