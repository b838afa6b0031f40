"""The world-action model: streams in, one transformer over their layout, predictions of the noised streams out.

Owns embedding, the scanned stack and the heads. What is predicted (velocity, x0), how noise is drawn and what a loss
is belong to ``objectives``.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from wamjax.config.blocks import block_config
from wamjax.config.finetune import lora_config
from wamjax.config.geometry import derive_geometry, statistics_canvas
from wamjax.config.schema import RunConfig
from wamjax.layout import Pass, Role
from wamjax.layout.packing import pack, unpack
from wamjax.models.block import NUM_TABLE_VECTORS, Conditioning
from wamjax.models.codec import PatchCodec
from wamjax.models.stack import run_blocks, stack_blocks
from wamjax.nn.conditioning import TimeEmbedding
from wamjax.nn.embeddings import ActionDecoder, ActionEncoder, PromptTable, StateEncoder
from wamjax.nn.init import named
from wamjax.nn.linear import Linear
from wamjax.nn.lora import attach_lora
from wamjax.nn.modulation import TIMESTEP_IDS, modulate, spread_slots
from wamjax.nn.multihead import KeysValues
from wamjax.nn.norm import layer_norm
from wamjax.nn.rotary import rotary_table
from wamjax.parallel.rules import constrain
from wamjax.types import PRNGKey


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Streams:
    """Inputs of one pass: the tokens of each role that the pass computes, in the order of time.

    Attributes:
      times: fp32 ``[b slots]``: timestep of each slot; slot 0 is 0.
      prompt_id: int32 ``[b]``.
      clean_video: ``[b n_role c]`` patch tokens, or None if the pass has none. So for the others.
      noisy_video: ``[b n_role c]``, noised.
      actions: ``[b n_role u]``, noised.
      state: ``[b n_role p]``.
    """

    times: jax.Array
    prompt_id: jax.Array
    clean_video: jax.Array | None = None
    noisy_video: jax.Array | None = None
    actions: jax.Array | None = None
    state: jax.Array | None = None


class WorldActionModel(nnx.Module):
    """A transformer over a layout of video, action and state tokens, conditioned on a prompt."""

    def __init__(self, key: PRNGKey, config: RunConfig) -> None:
        """Makes the model of ``config``.

        Raises:
          ConfigError: Heads do not divide the width, or a head dimension is odd.
        """
        model, data, block = config.model, config.data, block_config(config.model)
        keys = jax.random.split(key, 9)
        width, dtype, self.config = model.width, model.compute_dtype, config.model
        channels = derive_geometry(config).token_channels
        self.codec = PatchCodec(model.patch, statistics_canvas(config))
        self.patch_embed = Linear(keys[0], (channels, width), (None, "embed"), dtype=dtype)
        self.grid_embedding = nnx.data(None)
        if model.grid_embedding == "learned":
            rows_columns = (*derive_geometry(config).grid, width)
            spread = jax.nn.initializers.normal(0.5)
            self.grid_embedding = named(keys[0], spread, rows_columns, (None, None, "embed"))
        self.action_encoder = ActionEncoder(keys[1], data.action_dim, width, dtype=dtype)
        self.state_encoder = StateEncoder(keys[2], data.state_dim, model.action_hidden, width, dtype=dtype)
        self.time_embedding = TimeEmbedding(keys[3], model.time_width, width, NUM_TABLE_VECTORS)
        self.prompts = PromptTable(
            keys[4],
            rows=model.max_prompts,
            tokens=model.text_tokens,
            text_width=model.text_width,
            width=width,
            dtype=dtype,
        )
        self.blocks = stack_blocks(keys[5], block, model.num_layers)
        self.head_modulation = named(keys[6], jax.nn.initializers.normal(width**-0.5), (2, width), (None, None))
        self.video_head = Linear(keys[7], (width, channels), ("embed", None), dtype=dtype, scale=0.0)
        self.action_decoder = ActionDecoder(keys[8], width, model.action_hidden, data.action_dim, dtype=dtype)

    def __call__(
        self, streams: Streams, layout_pass: Pass, past: KeysValues | None = None, *, return_cache: bool = False
    ) -> tuple[dict[Role, jax.Array], KeysValues | None]:
        """Runs one pass.

        Args:
          streams: Tokens of the roles in ``layout_pass``.
          layout_pass: Which segments are computed and which keys come from ``past``.
          past: Keys and values of all layers, ``[layers b k m e]``; None if the pass has no past.
          return_cache: Whether the computed tokens' keys and values are returned.

        Returns:
          Role -> fp32 prediction ``[b n_role channels]`` for each role with a loss, and the cache of all layers (or
          None).
        """
        conditioning = self._condition(streams, layout_pass)
        x = constrain(self._embed(streams, layout_pass), "batch", "stream", None)
        x, cache = run_blocks(
            self.blocks,
            x,
            layout_pass,
            conditioning,
            past,
            remat=self.config.remat,
            return_cache=return_cache,
        )
        return self._predict(x, conditioning.embedding, layout_pass), cache

    def _condition(self, streams: Streams, layout_pass: Pass) -> Conditioning:
        """Returns what the blocks read besides their tokens."""
        embedding, modulation = self.time_embedding(TIMESTEP_IDS * streams.times)
        head_dim = self.config.width // self.config.num_heads
        return Conditioning(
            embedding=embedding,
            modulation=modulation,
            runs=layout_pass.slot_runs(),
            rotation=rotary_table(layout_pass, head_dim, self.config.rope_theta),
            text=self.prompts(streams.prompt_id),
        )

    def _embed(self, streams: Streams, layout_pass: Pass) -> jax.Array:
        """Returns the packed tokens ``[b n d]`` of the pass."""
        tokens: dict[Role, jax.Array] = {}
        if streams.clean_video is not None:
            tokens[Role.CLEAN_VIDEO] = self._embed_video(streams.clean_video)
        if streams.noisy_video is not None:
            tokens[Role.NOISY_VIDEO] = self._embed_video(streams.noisy_video)
        if streams.actions is not None:
            times = spread_slots(streams.times, _role_runs(layout_pass, Role.ACTION))
            tokens[Role.ACTION] = self.action_encoder(streams.actions, times)
        if streams.state is not None:
            tokens[Role.STATE] = self.state_encoder(streams.state)
        return pack(layout_pass.segments, tokens)

    def _embed_video(self, patches: jax.Array) -> jax.Array:
        """Embeds whole latent frames of patch tokens ``[b n_role c]``: ``[b n_role d]``."""
        x = self.patch_embed(patches)
        if self.grid_embedding is None:
            return x
        places = self.grid_embedding[...].reshape(-1, x.shape[-1]).astype(x.dtype)
        return x + jnp.tile(places, (x.shape[1] // places.shape[0], 1))

    def _predict(self, x: jax.Array, embedding: jax.Array, layout_pass: Pass) -> dict[Role, jax.Array]:
        """Returns the prediction of each role with a loss; video by the modulated head, actions by the decoder."""
        predicted = {segment.role for segment in layout_pass.segments if segment.has_loss}
        outputs: dict[Role, jax.Array] = {}
        if Role.NOISY_VIDEO in predicted:
            vectors = embedding[:, :, None] + self.head_modulation[...]
            tokens = layer_norm(unpack(layout_pass.segments, x, Role.NOISY_VIDEO), self.config.norm_eps)
            runs = _role_runs(layout_pass, Role.NOISY_VIDEO)
            head = self.video_head(modulate(tokens, vectors[:, :, 0], vectors[:, :, 1], runs))
            outputs[Role.NOISY_VIDEO] = head.astype(jnp.float32)
        if Role.ACTION in predicted:
            tokens = layer_norm(unpack(layout_pass.segments, x, Role.ACTION), self.config.norm_eps)
            outputs[Role.ACTION] = self.action_decoder(tokens)
        return outputs


def make_model(key: PRNGKey, config: RunConfig) -> WorldActionModel:
    """Makes the model of a run, its low-rank updates included.

    Raises:
      ConfigError: As the constructor, or a target of ``config.finetune`` names no kernel.
    """
    model, lora = WorldActionModel(key, config), lora_config(config.finetune)
    if lora is not None:
        attach_lora(model, key, lora)
    return model


def _role_runs(layout_pass: Pass, role: Role) -> tuple[tuple[int, int], ...]:
    """Returns (slot, tokens) of each segment of ``role`` in the pass."""
    return tuple((s.timestep_slot, s.num_tokens) for s in layout_pass.segments if s.role is role)
