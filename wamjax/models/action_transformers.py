"""Video transformers whose blocks also read actions: the parameters of published systems, and their pass.

Each holds a whole video transformer as ``video`` and what the system adds to it. They own the ways of actions and
states into tokens and back; which tokens see which is a layout's. Actions with weights of their own are in
``models.action_expert``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from wamjax.config.systems import CategoryActionConfig, SharedActionConfig
from wamjax.errors import DataError
from wamjax.layout import ACTION_ROLES, VIDEO_ROLES, Layout, Pass, Role, Segment, joint_layout
from wamjax.layout.packing import pack, unpack
from wamjax.models.block import NUM_TABLE_VECTORS, Conditioning
from wamjax.models.mixture import run_mixture
from wamjax.models.prefix import make_prefix, prefixed
from wamjax.models.stack import Stack
from wamjax.models.video_transformer import VideoTransformer
from wamjax.nn.category import CategoryActionEncoder, CategoryMlp
from wamjax.nn.conditioning import TextEmbedding, TimeEmbedding
from wamjax.nn.linear import Linear
from wamjax.nn.modulation import Runs
from wamjax.nn.multihead import KeysValues
from wamjax.types import Actions, PRNGKey, States, Tokens

# What a pass predicts, by role, and the keys and values of all layers of what it computed (or None).
Passed = tuple[dict[Role, jax.Array], KeysValues | None]


class TeacherForced(NamedTuple):
    """What the category form is trained on: every frame clean and noisy, the actions noisy.

    Attributes:
      clean: ``[b t h w c]`` latents, condition channels included.
      noisy: The same, noised.
      clean_ids: Timestep ids ``[b t]`` of the clean frames; zeros.
      noisy_ids: Timestep ids ``[b t]`` of the noisy frames.
      actions: ``[b a u]``, noised.
      action_ids: Timestep ids ``[b a]``.
      states: ``[b s p]``. A state has the timestep of the first of its block's actions.
      category: int ``[b]`` embodiments.
    """

    clean: jax.Array
    noisy: jax.Array
    clean_ids: jax.Array
    noisy_ids: jax.Array
    actions: jax.Array
    action_ids: jax.Array
    states: jax.Array
    category: jax.Array


class CategoryActionTransformer(nnx.Module):
    """A video transformer whose blocks also read action and state tokens, encoded per embodiment.

    Source: DreamZero, groot/vla/model/dreamzero/modules/wan_video_dit_action_casual_chunk.py, ``CausalWanModel``.
    """

    def __init__(self, key: PRNGKey, config: CategoryActionConfig) -> None:
        """Makes the model of ``config``."""
        keys, self.config = jax.random.split(key, 4), config
        block, categories, hidden = config.video.block, config.num_categories, config.hidden_width
        width, dtype = block.width, block.compute_dtype
        self.video = VideoTransformer(keys[0], config.video)
        self.action_encoder = CategoryActionEncoder(keys[1], categories, config.action_dim, width, dtype=dtype)
        self.state_encoder = CategoryMlp(
            keys[2], categories, (config.state_dim, hidden, width), (None, "mlp", "embed"), dtype=dtype
        )
        self.action_decoder = CategoryMlp(
            keys[3], categories, (width, hidden, config.action_dim), ("embed", "mlp", None), dtype=dtype
        )

    def __call__(
        self, inputs: TeacherForced, text: jax.Array, *, image: jax.Array | None = None
    ) -> tuple[jax.Array, Actions]:
        """Predicts the velocities of the noisy frames and actions of one sample, as in training.

        Args:
          inputs: Clean and noisy frames, actions and states.
          text: ``[b l text_width]`` tokens of the text encoder.
          image: ``[b m image_width]`` tokens of the image encoder.

        Returns:
          fp32 ``[b t h w out_channels]`` and ``[b a u]``.

        Raises:
          DataError: Sizes do not fit each other or the configuration.
        """
        grid = self.video.check(inputs.noisy)
        layout_pass = self._layout(inputs, grid).full_pass()
        ids, runs = _token_times(inputs, grid)
        streams = {
            Role.CLEAN_VIDEO: self.video.embed(inputs.clean),
            Role.NOISY_VIDEO: self.video.embed(inputs.noisy),
            Role.ACTION: self.embed_actions(inputs.actions, inputs.action_ids, inputs.category),
            Role.STATE: self.embed_states(inputs.states, inputs.category),
        }
        conditioning = self.video.condition(ids, text, layout_pass, runs=runs, image=image)
        predicted, _ = self.run(streams, layout_pass, conditioning, inputs.category)
        return self.video.unpatch(predicted[Role.NOISY_VIDEO], grid), predicted[Role.ACTION]

    def predict(
        self,
        streams: Mapping[Role, jax.Array],
        ids: jax.Array,
        category: jax.Array,
        text: jax.Array,
        layout_pass: Pass,
        *,
        image: jax.Array | None = None,
        text_mask: jax.Array | None = None,
        past: KeysValues | None = None,
        return_cache: bool = False,
    ) -> Passed:
        """Predicts the velocities of what a pass of a layout denoises, in any order of its tokens.

        Args:
          streams: Of each role of the pass: patches ``[b n_role patch_channels]`` of video, actions ``[b a u]``,
            states ``[b s p]``; noised where the layout says so.
          ids: Timestep ids ``[b slots]`` of the layout's slots. A state has its block's.
          category: int ``[b]`` embodiments.
          text: ``[b l text_width]``.
          layout_pass: Which token sees which, and which are computed.
          image: ``[b m image_width]``.
          text_mask: bool ``[b l]``, which text tokens are seen; None for all.
          past: Keys and values of all layers of ``layout_pass.past``, ``[layers b k m e]``; None if it is empty.
          return_cache: Whether the computed tokens' keys and values are returned.

        Returns:
          fp32 predictions of the roles of the pass that are denoised, video ``[b n_noisy out_patch_channels]`` and
          actions ``[b a u]``, and the cache (or None).
        """
        slots = {
            role: np.concatenate([np.full(s.num_tokens, _slot(s)) for s in layout_pass.segments if s.role is role])
            for role in streams
        }
        tokens = {role: self.video.patch_embed(x) for role, x in streams.items() if role in VIDEO_ROLES}
        for role in streams.keys() & set(ACTION_ROLES):
            tokens[role] = self.embed_actions(streams[role], ids[:, slots[role]], category)
        if Role.STATE in streams:
            tokens[Role.STATE] = self.embed_states(streams[Role.STATE], category)
        runs = _slot_runs(layout_pass)
        conditioning = self.video.condition(ids, text, layout_pass, runs=runs, image=image, text_mask=text_mask)
        return self.run(tokens, layout_pass, conditioning, category, past, return_cache=return_cache)

    def run(
        self,
        streams: Mapping[Role, Tokens],
        layout_pass: Pass,
        conditioning: Conditioning,
        category: jax.Array,
        past: KeysValues | None = None,
        *,
        return_cache: bool = False,
    ) -> Passed:
        """Runs the blocks over the embedded ``streams`` ``[b n_role d]``; returns as ``predict``."""
        segments = layout_pass.segments
        x, cache = self.video.run(pack(segments, streams), layout_pass, conditioning, past, return_cache=return_cache)
        predicted: dict[Role, jax.Array] = {}
        if Role.NOISY_VIDEO in streams:
            # The head reads the noisy frames only.
            own = conditioning._replace(runs=role_runs(segments, conditioning.runs, Role.NOISY_VIDEO))
            predicted[Role.NOISY_VIDEO] = self.video.head(unpack(segments, x, Role.NOISY_VIDEO), own)
        if Role.ACTION in streams:
            predicted[Role.ACTION] = self.decode_actions(unpack(segments, x, Role.ACTION), category)
        return predicted, cache

    def _layout(self, inputs: TeacherForced, grid: tuple[int, int, int]) -> Layout:
        """Returns the released model's layout of ``inputs`` on ``grid``: clean | noisy | actions | states."""
        config, counts = self.config, (grid[0] - 1, inputs.actions.shape[1], inputs.states.shape[1])
        num_blocks = counts[0] // config.frames_per_block
        if num_blocks < 1 or counts[0] % config.frames_per_block or counts[1] % num_blocks or not counts[1]:
            raise DataError(
                f"{grid[0]} latent frames and {counts[1]} actions; expected one frame and then blocks of "
                f"{config.frames_per_block} frames, each with the same number of actions"
            )
        if counts[2] != num_blocks * config.states_per_block:
            raise DataError(f"{counts[2]} states for {num_blocks} blocks; expected {config.states_per_block} for each")
        if inputs.clean.shape != inputs.noisy.shape:
            raise DataError(f"clean frames of shape {inputs.clean.shape}, noisy ones of {inputs.noisy.shape}")
        return joint_layout(
            num_blocks=num_blocks,
            frames_per_block=config.frames_per_block,
            grid=grid[1:],
            actions_per_block=counts[1] // num_blocks,
            states_per_block=config.states_per_block,
            token_causal_context=True,
        )

    def embed_actions(self, actions: Actions, ids: jax.Array, category: jax.Array) -> Tokens:
        """Returns tokens ``[b a d]`` of ``actions`` ``[b a u]``, noised at timestep ``ids`` ``[b a]``."""
        return self.action_encoder(actions, ids, category)

    def embed_states(self, states: States, category: jax.Array) -> Tokens:
        """Returns tokens ``[b s d]`` of ``states`` ``[b s p]``."""
        return self.state_encoder(states, category)

    def decode_actions(self, tokens: Tokens, category: jax.Array) -> Actions:
        """Returns the fp32 prediction ``[b a u]`` of the blocks' output ``[b a d]``, which is not normed before."""
        return self.action_decoder(tokens, category).astype(jnp.float32)


class SharedActionTransformer(nnx.Module):
    """A video transformer whose blocks also read action tokens, with timesteps embedded apart.

    ``action_text`` is a copy of the text embedding that released checkpoints hold and nothing reads.

    Source: LingBot-VA, wan_va/modules/model.py, ``WanTransformer3DModel``.
    """

    def __init__(self, key: PRNGKey, config: SharedActionConfig) -> None:
        """Makes the model of ``config``."""
        keys, self.config = jax.random.split(key, 5), config
        video = config.video
        width, dtype = video.block.width, video.block.compute_dtype
        self.video = VideoTransformer(keys[0], video)
        self.action_embed = Linear(keys[1], (config.action_dim, width), (None, "embed"), dtype=dtype)
        self.action_time = TimeEmbedding(keys[2], video.time_width, width, NUM_TABLE_VECTORS)
        self.action_text = TextEmbedding(keys[3], video.text_width, width, dtype=dtype)
        self.action_out = Linear(keys[4], (width, config.action_dim), ("embed", None), dtype=dtype)
        self.prefix = nnx.data(make_prefix(key, config.prefix, video))

    def predict(
        self,
        streams: Mapping[Role, jax.Array],
        ids: jax.Array,
        category: jax.Array,
        text: jax.Array,
        layout_pass: Pass,
        *,
        image: jax.Array | None = None,
        text_mask: jax.Array | None = None,
        past: KeysValues | None = None,
        return_cache: bool = False,
    ) -> Passed:
        """Predicts the velocities of what a pass denoises; as ``CategoryActionTransformer.predict``.

        There is one set of weights for all embodiments: ``category`` is not read.
        """
        own = layout_pass.of_expert("shared")
        segments = own.segments
        (video_slots, action_slots), runs = own.embedded_slots(VIDEO_ROLES, ACTION_ROLES)
        tokens = {
            role: self.video.patch_embed(x) if role in VIDEO_ROLES else self.embed_actions(x)
            for role, x in streams.items()
        }
        others: dict[str, tuple[Stack, Tokens, Conditioning]] = {}
        if tokens:
            conditioning = self.video.condition(
                take_slots(ids, video_slots), text, own, runs=runs, image=image, text_mask=text_mask
            )
            embedding, modulation = self.embed_action_times(take_slots(ids, action_slots))
            conditioning = conditioning._replace(
                embedding=jnp.concatenate([conditioning.embedding, embedding], axis=1),
                modulation=jnp.concatenate([conditioning.modulation, modulation], axis=1),
            )
            others = {"shared": (self.video.blocks, pack(segments, tokens), conditioning)}
        if self.prefix is None:
            # A single stack, whose sequence the mesh may split.
            (_, packed, conditioning) = others["shared"]
            out, cache = self.video.run(packed, layout_pass, conditioning, past, return_cache=return_cache)
            told, x = {"shared": conditioning}, {"shared": out}
        else:
            stacks, streamed, told = prefixed(self.prefix, text, layout_pass, others)
            x, cache = run_mixture(
                stacks, streamed, layout_pass, told, past, remat=self.config.video.remat, return_cache=return_cache
            )
        heads = {Role.NOISY_VIDEO: self.video.head, Role.ACTION: self.decode_actions}
        predicted = {
            role: head(
                unpack(segments, x["shared"], role), told["shared"]._replace(runs=role_runs(segments, runs, role))
            )
            for role, head in heads.items()
            if role in streams
        }
        return predicted, cache

    def embed_actions(self, actions: Actions) -> Tokens:
        """Returns tokens ``[b a d]`` of ``actions`` ``[b a u]``."""
        return self.action_embed(actions)

    def embed_action_times(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns what ``TimeEmbedding`` does of the actions' timestep ids ``[b slots]``."""
        return self.action_time(ids)

    def decode_actions(self, tokens: Tokens, conditioning: Conditioning) -> Actions:
        """Returns the fp32 prediction ``[b a u]`` of the blocks' output: the video's modulated norm, another head.

        Args:
          tokens: ``[b a d]``.
          conditioning: Of these tokens, with the actions' own embedding of timesteps.
        """
        return self.action_out(self.video.modulate_out(tokens, conditioning)).astype(jnp.float32)


def take_slots(ids: jax.Array, slots: Sequence[int]) -> jax.Array:
    """Returns the timestep ids ``[b slots]`` of some slots, of none too."""
    return ids[:, np.asarray(slots, np.int32)]


def role_runs(segments: Sequence[Segment], runs: Runs, role: Role) -> tuple[tuple[int, int], ...]:
    """Returns the (slot, tokens) runs of the tokens of ``role`` among ``segments``, whose runs are ``runs``."""
    assert isinstance(runs, Sequence), "runs are told by the layout, not token by token"
    slots = np.concatenate([np.full(count, slot) for slot, count in runs])
    is_role = np.concatenate([np.full(s.num_tokens, s.role is role) for s in segments])
    return tuple((slot, len(list(run))) for slot, run in itertools.groupby(slots[is_role].tolist()))


def _slot(segment: Segment) -> int:
    """Returns the timestep slot of a segment: a state has that of its block's actions."""
    return segment.order + 1 if segment.role is Role.STATE else segment.timestep_slot


def _slot_runs(layout_pass: Pass) -> tuple[tuple[int, int], ...]:
    """Returns the (slot, tokens) runs of a pass; padding takes the slot before it, so that runs stay aligned."""
    runs: list[tuple[int, int]] = []
    for segment in layout_pass.segments:
        slot = runs[-1][0] if segment.role is Role.PADDING and runs else _slot(segment)
        if runs and runs[-1][0] == slot:
            runs[-1] = (slot, runs[-1][1] + segment.num_tokens)
        else:
            runs.append((slot, segment.num_tokens))
    return tuple(runs)


def _token_times(inputs: TeacherForced, grid: tuple[int, int, int]) -> tuple[jax.Array, tuple[tuple[int, int], ...]]:
    """Returns timestep ids ``[b slots]`` and the (slot, tokens) runs of clean | noisy | actions | states."""
    num_actions, num_states = inputs.action_ids.shape[1], inputs.states.shape[1]
    state_ids = inputs.action_ids[:, :: num_actions // num_states]
    ids = jnp.concatenate([inputs.clean_ids, inputs.noisy_ids, inputs.action_ids, state_ids], axis=1)
    sizes = [grid[1] * grid[2]] * (2 * grid[0]) + [1] * (num_actions + num_states)
    return ids, tuple(enumerate(sizes))
