"""A GPT over the steps of an episode that answers queries: for the action of a step, and for a later frame.

Source: GR-1 (arXiv 2312.13139), bytedance/GR-1, models/gr1.py. What differs: no dropout; actions are one linear layer
where GR-1 has one for the arm and one for the gripper; frames are decoded where they carry a loss alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.nn.initializers import normal

from wamjax.config.gpt import GptPolicyConfig
from wamjax.layout import Pass, Role, image_layout
from wamjax.layout.packing import pack, unpack
from wamjax.models.block import bare_conditioning
from wamjax.models.resampler import Resampler
from wamjax.models.stack import run_blocks, stack_blocks
from wamjax.nn.init import AXES_KEY, named
from wamjax.nn.linear import Linear
from wamjax.nn.norm import LayerNorm
from wamjax.parallel.rules import constrain
from wamjax.types import PRNGKey, Tokens


class ViewEmbedding(nnx.Module):
    """Into the transformer's width, of one camera: its latents, and the token of the whole picture."""

    def __init__(self, key: PRNGKey, config: GptPolicyConfig) -> None:
        """Makes both layers."""
        keys, fan = jax.random.split(key), (config.image_width, config.width)
        self.latents, self.whole = (Linear(k, fan, (None, "embed"), dtype=config.compute_dtype) for k in keys)

    def __call__(self, latents: jax.Array, whole: jax.Array) -> jax.Array:
        """Returns ``[b s n+1 d]`` of ``latents`` ``[b s n c]`` and ``whole`` ``[b s c]``."""
        return jnp.concatenate([self.latents(latents), self.whole(whole)[:, :, None]], axis=2)


class FrameDecoder(nnx.Module):
    """Answers of queries -> patches of a frame: a small vision transformer over both.

    Attributes:
      embed: ``[d d]``.
      mask_token: ``[d]``, what stands for a patch.
      blocks: The stack.
      norm: After the last block.
      out: ``[d (p q c)]``.
    """

    def __init__(self, key: PRNGKey, config: GptPolicyConfig) -> None:
        """Makes the decoder of ``config``."""
        keys, self.config = jax.random.split(key, 4), config
        d, dtype = config.width, config.compute_dtype
        self.embed = Linear(keys[0], (d, d), (None, "embed"), dtype=dtype)
        self.mask_token = named(keys[1], normal(0.02), (d,), (None,))
        self.blocks = stack_blocks(keys[2], config.decoder_block, config.decoder_layers)
        self.norm = LayerNorm(key, d, eps=config.norm_eps)
        self.out = Linear(keys[3], (d, config.patch_values), ("embed", None), dtype=dtype)

    def __call__(self, answers: Tokens) -> jax.Array:
        """Returns fp32 ``[b n (p q c)]``, the patches of the frames whose queries gave ``answers`` ``[b n_q d]``."""
        config = self.config
        places = jnp.asarray(patch_places(config.image_size // config.patch_size, config.width))
        masks = jnp.broadcast_to(self.mask_token[...] + places, (answers.shape[0], *places.shape))
        x = jnp.concatenate([self.embed(answers), masks.astype(config.compute_dtype)], axis=1)
        x, _ = run_blocks(
            self.blocks,
            constrain(x, "batch", "stream", None),
            image_layout(x.shape[1]).full_pass(),
            bare_conditioning(x.shape[0], x.shape[1]),
            None,
            remat=config.remat,
            return_cache=False,
        )
        return self.out(self.norm(x[:, answers.shape[1] :])).astype(jnp.float32)


class GptPolicy(nnx.Module):
    """Embeddings of what a step shows, queries, the transformer, and what reads their answers."""

    def __init__(self, key: PRNGKey, config: GptPolicyConfig, steps: int, action_dim: int, state_dim: int) -> None:
        """Makes the model for ``steps`` steps; the last dim of an action and of a state is the gripper's."""
        keys, self.config = jax.random.split(key, 16), config
        d, dtype = config.width, config.compute_dtype

        def into(key: PRNGKey, width: int) -> Linear:
            return Linear(key, (width, d), (None, "embed"), dtype=dtype)

        heads = (config.resampler_heads, config.resampler_head_dim)
        self.resampler = Resampler(
            keys[0], config.image_width, config.num_latents, config.resampler_layers, heads, dtype=dtype
        )
        self.text_embed, self.arm_embed, self.gripper_embed, self.state_mix = (
            into(k, width) for k, width in zip(keys[1:5], (config.text_width, state_dim - 1, 2, 2 * d), strict=True)
        )
        self.views = nnx.vmap(
            lambda view_key: ViewEmbedding(view_key, config),
            transform_metadata={nnx.PARTITION_NAME: None, AXES_KEY: "layers"},
        )(jax.random.split(keys[5], config.num_views))
        self.steps = named(keys[6], normal(0.02), (steps, d), (None, None))
        self.action_query = named(keys[7], normal(1.0), (1, d), (None, None))
        self.frame_queries = named(keys[8], normal(1.0), (config.num_views * config.view_tokens, d), (None, None))
        self.input_norm = LayerNorm(key, d, eps=config.norm_eps)
        self.blocks = stack_blocks(keys[9], config.block, config.num_layers)
        self.output_norm = LayerNorm(key, d, eps=config.norm_eps)
        self.action_hidden = Linear(keys[10], (d, d // 2), ("embed", None), dtype=dtype)
        self.action_mix = Linear(keys[11], (d // 2, d // 2), (None, None), dtype=dtype)
        self.action_out = Linear(keys[12], (d // 2, action_dim), ("embed", None), dtype=dtype)
        self.decoder = FrameDecoder(keys[13], config)

    def predict(
        self, image: jax.Array, text: jax.Array, state: jax.Array, layout_pass: Pass
    ) -> tuple[jax.Array, jax.Array]:
        """Answers the queries of a layout.

        Args:
          image: ``[b (s v n) c]``, tokens of the image encoder: of a picture that of the whole, then its patches.
          text: ``[b 1 text_width]``, the text encoder's token.
          state: fp32 ``[b s p]``; the last dim above 0 is an open gripper.
          layout_pass: The pass of ``layout.query_layout``.

        Returns:
          fp32 ``[b s u]``, actions, the last dim the logit of the gripper's; and fp32 ``[b s' v n (p q c)]``, patches
          of the frames that ``s'`` steps ask for.
        """
        x = self._answer(image, text, state, layout_pass)
        answers, views = unpack(layout_pass.segments, x, Role.QUERY), self.config.num_views
        answers = rearrange(answers, "b (s v n) d -> (b s v) n d", v=views, n=self.config.view_tokens)
        frames = rearrange(self.decoder(answers), "(b s v) n c -> b s v n c", b=state.shape[0], v=views)
        return self._decode_actions(x, layout_pass), frames

    def act(self, image: jax.Array, text: jax.Array, state: jax.Array, layout_pass: Pass) -> jax.Array:
        """Answers the queries for actions alone: ``predict`` without frames, of a pass without their queries."""
        return self._decode_actions(self._answer(image, text, state, layout_pass), layout_pass)

    def _answer(self, image: jax.Array, text: jax.Array, state: jax.Array, layout_pass: Pass) -> Tokens:
        """Returns the tokens of a pass after the last norm."""
        config, batch, steps = self.config, state.shape[0], state.shape[1]
        asking = sum(s.role is Role.QUERY for s in layout_pass.segments)  # steps
        tokens = {
            Role.OBSERVATION: rearrange(self._observe(image, text, state), "b s n d -> b (s n) d"),
            Role.ACTION: jnp.broadcast_to(self.action_query[...], (batch, steps, config.width)),
        }
        if asking:
            queries = jnp.tile(self.frame_queries[...], (asking, 1))
            tokens[Role.QUERY] = jnp.broadcast_to(queries, (batch, *queries.shape))
        normed = {role: self.input_norm(x).astype(config.compute_dtype) for role, x in tokens.items()}
        x, _ = run_blocks(
            self.blocks,
            constrain(pack(layout_pass.segments, normed), "batch", "stream", None),
            layout_pass,
            bare_conditioning(batch, layout_pass.num_tokens),
            None,
            remat=config.remat,
            return_cache=False,
        )
        return self.output_norm(x)

    def _decode_actions(self, x: Tokens, layout_pass: Pass) -> jax.Array:
        """Returns fp32 actions ``[b s u]`` of the tokens of a pass."""
        action = self.action_mix(self.action_hidden(unpack(layout_pass.segments, x, Role.ACTION)))
        return self.action_out(action).astype(jnp.float32)

    def _observe(self, image: jax.Array, text: jax.Array, state: jax.Array) -> jax.Array:
        """Returns what the steps show, ``[b s n d]``: instruction, state, then every camera's picture."""
        config = self.config
        shape = {"v": config.num_views, "n": config.num_patches + 1}
        pictures = rearrange(image, "b (s v n) c -> b s v n c", **shape)
        patches = rearrange(pictures[:, :, :, 1:], "b s v n c -> (b s v) n c")
        latents = rearrange(self.resampler(patches), "(b s v) n c -> b s v n c", s=state.shape[1], v=config.num_views)
        views = jax.vmap(lambda embed, *parts: embed(*parts), in_axes=(0, 2, 2), out_axes=2)(
            self.views, latents, pictures[:, :, :, 0]
        )
        is_open = (state[..., -1:] > 0).astype(jnp.float32)
        gripper = self.gripper_embed(jnp.concatenate([1.0 - is_open, is_open], axis=-1))
        held = self.state_mix(jnp.concatenate([self.arm_embed(state[..., :-1]), gripper], axis=-1))
        said = jnp.broadcast_to(self.text_embed(text), held.shape)
        shown = [said[:, :, None], held[:, :, None], rearrange(views, "b s v n d -> b s (v n) d")]
        return jnp.concatenate(shown, axis=2) + self.steps[...][:, None]


def patch_places(side: int, width: int) -> np.ndarray:
    """Returns fixed places of patches, fp32 ``[n d]``: sinusoids of a patch's column, then of its row.

    Half of the dims are [sin(p f_j), cos(p f_j)] of each, f_j = 10000^(-j / (d/4)).

    Source: MAE (facebookresearch/mae, util/pos_embed.py, ``get_2d_sincos_pos_embed``), which GR-1 uses.
    """
    frequencies = 10_000.0 ** (-np.arange(width // 4) / (width / 4))
    angles = np.arange(side)[:, None] * frequencies
    along = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    rows, columns = np.divmod(np.arange(side**2), side)
    return np.concatenate([along[columns], along[rows]], axis=1).astype(np.float32)
