"""Latent plans: a video transformer that infers what is about to be done, and a decoder that does it.

Two learned queries go through the video's blocks beside a clean clip: the prior's, which the layout shows the present,
and the posterior's, which it shows what follows too (``layout.plan``). Each gives a Gaussian over plans. Actions are
decoded from one plan and the present by a small stack of the same blocks; what follows is never its input.

Source: Play-LMP (arXiv 1903.01973): plan recognition, plan proposal and the action decoder. What differs: all three
read a video transformer's tokens where Play-LMP has a convolutional encoder and small networks of its own; the prompt
and not a goal picture says what is wanted, and both Gaussians read it; the posterior reads frames and no actions;
actions of a chunk are decoded together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal

from wamjax.config.plan import LatentPlanConfig
from wamjax.layout import Pass, Role
from wamjax.layout.packing import pack, unpack
from wamjax.models.block import bare_conditioning
from wamjax.models.stack import run_blocks, stack_blocks
from wamjax.models.video_transformer import VideoTransformer
from wamjax.nn.embeddings import StateEncoder
from wamjax.nn.init import named
from wamjax.nn.linear import Linear
from wamjax.nn.norm import LayerNorm, layer_norm
from wamjax.nn.rotary import rotary_table
from wamjax.parallel.rules import constrain
from wamjax.types import Actions, PRNGKey, Tokens

_MIN_DEVIATION = 1e-4


class Gaussian(NamedTuple):
    """A diagonal Gaussian over plans, fp32.

    Attributes:
      mean: ``[b z]``.
      deviation: ``[b z]``, above 0.
    """

    mean: jax.Array
    deviation: jax.Array

    def at(self, noise: jax.Array) -> jax.Array:
        """Returns the plan ``[b z]`` that standard normal ``noise`` ``[b z]`` draws: mean + deviation x noise."""
        return self.mean + self.deviation * noise


class Inferred(NamedTuple):
    """What the video transformer says of a clip.

    Attributes:
      plans: Of ``Role.PRIOR`` and ``Role.POSTERIOR``, those whose query was in the pass.
      present: The first frame's and the state's tokens after the last block, normed, fp32 ``[b n d]`` by role.
    """

    plans: dict[Role, Gaussian]
    present: dict[Role, jax.Array]


class PlanDecoder(nnx.Module):
    """Tokens of the present and a plan -> actions, by a stack of blocks over them and one query per action.

    Attributes:
      embed: ``[d_video d]``, of tokens of the present.
      plan_embed: ``[z d]``.
      action_queries: ``[a d]``, one for each action of a chunk.
      blocks: The stack.
      norm: After the last block.
      out: ``[d u]``.
    """

    def __init__(self, key: PRNGKey, config: LatentPlanConfig) -> None:
        """Makes the decoder of ``config``."""
        keys, self.config = jax.random.split(key, 5), config
        block = config.decoder
        d, dtype = block.width, block.compute_dtype
        self.embed = Linear(keys[0], (config.video.block.width, d), (None, "embed"), dtype=dtype)
        self.plan_embed = Linear(keys[1], (config.plan_dim, d), (None, "embed"), dtype=dtype)
        self.action_queries = named(keys[2], normal(1.0), (config.num_actions, d), (None, None))
        self.blocks = stack_blocks(keys[3], block, config.decoder_layers)
        self.norm = LayerNorm(key, d, eps=block.norm_eps)
        self.out = Linear(keys[4], (d, config.action_dim), ("embed", None), dtype=dtype)

    def __call__(self, present: Mapping[Role, jax.Array], plan: jax.Array, layout_pass: Pass) -> Actions:
        """Returns fp32 actions ``[b a u]``.

        Args:
          present: fp32 ``[b n_role d_video]``.
          plan: fp32 ``[b z]``.
          layout_pass: The pass of ``layout.decoder_layout``.
        """
        block, segments, batch_size = self.config.decoder, layout_pass.segments, plan.shape[0]
        queries = self.action_queries[...].astype(block.compute_dtype)
        tokens = {role: self.embed(x) for role, x in present.items()}
        tokens[Role.PLAN] = self.plan_embed(plan)[:, None]
        tokens[Role.ACTION] = jnp.broadcast_to(queries, (batch_size, *queries.shape))
        rotation = rotary_table(layout_pass, block.head_dim, self.config.video.rotary.theta)
        x, _ = run_blocks(
            self.blocks,
            constrain(pack(segments, tokens), "batch", "stream", None),
            layout_pass,
            bare_conditioning(batch_size, layout_pass.num_tokens, rotation),
            None,
            remat=self.config.video.remat,
            return_cache=False,
        )
        return self.out(self.norm(unpack(segments, x, Role.ACTION))).astype(jnp.float32)


class LatentPlanTransformer(nnx.Module):
    """A video transformer with queries of plans, and a decoder of actions."""

    def __init__(self, key: PRNGKey, config: LatentPlanConfig) -> None:
        """Makes the model of ``config``."""
        keys, self.config = jax.random.split(key, 7), config
        block = config.video.block
        width, out = block.width, (block.width, 2 * config.plan_dim)
        self.video = VideoTransformer(keys[0], config.video, has_head=False)
        self.prior_query, self.posterior_query = (named(k, normal(1.0), (1, width), (None, None)) for k in keys[1:3])
        self.prior_head, self.posterior_head = (Linear(k, out, ("embed", None), dtype="float32") for k in keys[3:5])
        self.state_encoder = nnx.data(None)
        if config.state_dim is not None:
            sizes = (config.state_dim, config.hidden_width, width)
            self.state_encoder = StateEncoder(keys[5], *sizes, dtype=block.compute_dtype)
        self.decoder = PlanDecoder(keys[6], config)

    def infer(
        self,
        patches: jax.Array,
        state: jax.Array | None,
        text: jax.Array,
        layout_pass: Pass,
        *,
        image: jax.Array | None = None,
        text_mask: jax.Array | None = None,
    ) -> Inferred:
        """Infers plans from what a pass of ``layout.plan_layout`` shows.

        Args:
          patches: ``[b n patch_channels]`` of the frames in the pass, all clean.
          state: fp32 ``[b 1 p]``; not read by a model without.
          text: ``[b l text_width]`` tokens of the text encoder.
          layout_pass: The whole layout, or what there is of it when acting.
          image: ``[b m image_width]`` tokens of the image encoder.
          text_mask: bool ``[b l]``, which text tokens are seen; None for all.
        """
        segments, batch_size = layout_pass.segments, patches.shape[0]
        queries = {Role.PRIOR: self.prior_query, Role.POSTERIOR: self.posterior_query}
        heads = {Role.PRIOR: self.prior_head, Role.POSTERIOR: self.posterior_head}
        asked = [role for role in queries if any(s.role is role for s in segments)]
        tokens: dict[Role, Tokens] = {Role.CLEAN_VIDEO: self.video.patch_embed(patches)}
        if self.state_encoder is not None:
            assert state is not None, "this model reads a state"
            tokens[Role.STATE] = self.state_encoder(state)
        for role in asked:
            query = queries[role][...].astype(self.config.video.block.compute_dtype)
            tokens[role] = jnp.broadcast_to(query, (batch_size, *query.shape))
        clean = jnp.zeros((batch_size, 1))  # nothing is noised
        conditioning = self.video.condition(clean, text, layout_pass, image=image, text_mask=text_mask)
        x, _ = self.video.run(pack(segments, tokens), layout_pass, conditioning)

        def read(role: Role, count: int) -> jax.Array:
            return layer_norm(unpack(segments, x, role)[:, :count], self.config.video.block.norm_eps)

        shown = [s for s in segments if s.order == 0 and s.role in (Role.CLEAN_VIDEO, Role.STATE)]
        return Inferred(
            plans={role: _gaussian(heads[role](read(role, 1))[:, 0]) for role in asked},
            present={s.role: read(s.role, s.num_tokens) for s in shown},
        )

    def decode(self, inferred: Inferred, plan: jax.Array, layout_pass: Pass) -> Actions:
        """Returns fp32 actions ``[b a u]`` of ``plan`` ``[b z]`` in the present that was read."""
        return self.decoder(inferred.present, plan, layout_pass)


def _gaussian(values: jax.Array) -> Gaussian:
    """Returns the Gaussian whose mean and deviation, before softplus, are ``values`` ``[b 2z]``."""
    mean, raw = jnp.split(values, 2, axis=-1)
    return Gaussian(mean, jax.nn.softplus(raw) + _MIN_DEVIATION)
