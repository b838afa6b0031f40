"""The policy of a backbone with action modules: joint, video then actions, or actions alone, as its layout says.

Clean tokens of what was really seen lie in a key-value cache; a chunk is denoised from it in stages
(``layout.inference``). What a stage imagined never enters the cache of the next chunk: that is filled with what
happened. Where layers keep no keys and values (Kairos), the tokens are kept in their place and computed anew at every
solver step. The cache grows up to the blocks a training sample holds; then the oldest is dropped and the cache is
filled anew, so that positions never leave the range seen in training. A language tower is computed once per reset.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx

from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.layout import Role, Segment, build_layout
from wamjax.layout.inference import Stage, acting_stages, context_segments, text_segments
from wamjax.objectives.latent_tokens import patch_tokens, unpatch_tokens
from wamjax.objectives.noising import select_frames
from wamjax.objectives.objective import abstract_model, build_objective
from wamjax.sampling.policy import Chunk, LatentCodec, PromptTable, StreamingCodec
from wamjax.sampling.stages import Known, Told, denoise_stage, fill_cache, is_guided, stage_schedules
from wamjax.sampling.window import Window
from wamjax.types import PRNGKey, PureDict


class LatentPolicy:
    """Denoises chunks with a cache refilled by real observations.

    ``observe`` takes one frame after ``reset``, then the frames of every executed chunk (``Window.num_expected``). The
    first chunk of ``alternating`` begins with the observed frame, so it has one latent frame and its actions less.
    """

    def __init__(
        self,
        config: RunConfig,
        params: PureDict,
        *,
        codec: LatentCodec,
        prompts: PromptTable,
        imagine: bool = False,
        decodes: bool = True,
    ) -> None:
        """Makes a policy.

        Args:
          config: The run; ``config.sampling`` says how chunks are denoised.
          params: Pure dict of arrays.
          codec: Between pixels and latents.
          prompts: Encoded prompts.
          imagine: Whether video is denoised where actions do not need it, to be looked at.
          decodes: Whether denoised video is decoded, which actions never need.

        Raises:
          ConfigError: A block has more than one state, or the formulation has no chunks of actions.
        """
        if config.layout.states_per_block > 1:
            raise ConfigError(
                f"config.layout.states_per_block={config.layout.states_per_block}; expected 1 or 0, because a policy "
                "observes one state per chunk"
            )
        self.config, self.params, self.layout = config, params, build_layout(config)
        self._window, self._codec, self._prompts = Window(config), codec, prompts
        self._imagine, self._decodes = imagine, decodes
        for row, stage in enumerate(acting_stages(config, self.layout, 0)):
            stage_schedules(config, stage, follows=row > 0)  # refuses what cannot be solved
        self._graphdef, _ = abstract_model(build_objective(config))
        self._fill = jax.jit(self._fill_segments, static_argnames=("new", "cached"))
        self.denoise = jax.jit(self._denoise_chunk, static_argnames=("chunk",))
        self._told: Told | None = None
        self._num_rollouts = 0
        self._tower: Known | None = None
        self._forget()

    def _forget(self) -> None:
        self._frames: npt.NDArray[Any] | None = None
        self._latents: jax.Array | None = None
        self._memory: Any = None
        self._actions = np.zeros((0, 0, 0), np.float32)
        self._cached: tuple[Segment, ...] = text_segments(self.layout)
        self._cache, self._is_due = self._tower, False
        self._last = np.zeros((0, 0, 0), np.float32)

    def reset(self, prompt_id: npt.NDArray[Any]) -> None:
        """Starts new rollouts with prompts ``[b]``; forgets everything observed."""
        text, category = self._prompts.look_up(prompt_id, guided=is_guided(self.config))
        self._told, self._num_rollouts = Told(text=text, category=category), len(prompt_id)
        tower = text_segments(self.layout)
        self._tower = None
        if tower:
            self._tower = self._fill(self.params, self._told, {}, None, new=tower, cached=())
        self._forget()

    def observe(
        self, frames: npt.NDArray[Any], state: npt.NDArray[Any] | None, actions: npt.NDArray[Any] | None = None
    ) -> None:
        """Takes in what was really seen.

        Args:
          frames: uint8 ``[b f H W 3]``: one frame after ``reset``, then those of the executed chunk.
          state: fp32 ``[b p]``: normalised state at the last frame; not read by a system without states.
          actions: fp32 ``[b a u]``: what was executed of the last chunk; None for all of it, as it was.

        Raises:
          ConfigError: Called before ``reset`` or twice without ``act``, with another number of rollouts, frames or
            actions, or without a state.
        """
        if self._told is None:
            raise ConfigError("Policy.observe was called before Policy.reset: the policy has no prompt")
        is_first = self._frames is None
        if not is_first and self._is_due:
            raise ConfigError("Policy.observe was called twice without Policy.act between: nothing was executed")
        if len(frames) != self._num_rollouts:
            raise ConfigError(
                f"Policy.observe got frames of {len(frames)} rollouts; Policy.reset began {self._num_rollouts}"
            )
        expected = self._window.num_expected(self._num_latents)
        if frames.shape[1] != expected:
            raise ConfigError(f"Policy.observe got {frames.shape[1]} frames; expected {expected} at this point")
        if state is None and self.config.layout.states_per_block:
            raise ConfigError("Policy.observe got no state; config.layout.states_per_block=1 of this system needs one")
        if is_first:
            self._actions = self._window.no_actions(len(frames))
        else:
            self._take_actions(actions)
        seen = frames if self._frames is None else np.concatenate([self._frames, frames], axis=1)
        self._frames, is_cut = self._window.cut(seen)
        if is_cut:
            self._actions = self._window.cut_actions(self._actions, self._num_latents)
            self._cached, self._cache = text_segments(self.layout), self._tower
        self._encode(frames, anew=is_first or is_cut)
        self._told = self._tell(state, renew=is_first or is_cut)
        self._refill()
        self._is_due = True

    def act(self, key: PRNGKey) -> Chunk:
        """Draws the next chunk.

        Raises:
          ConfigError: Nothing was observed since the last chunk, or at all.
        """
        if self._latents is None or not self._is_due:
            raise ConfigError("Policy.act was called before Policy.observe: there is nothing new to act on")
        chunk = self._window.chunk(self._num_latents)
        actions, latents = self.denoise(self.params, self._told, self._latents[:, :1], self._cache, key, chunk=chunk)
        skipped = self._window.num_given_actions(chunk)
        self._last, self._is_due = np.asarray(actions)[:, skipped:], False
        if latents is None or not self._decodes:
            return Chunk(self._last)
        video = self._codec.decode(jnp.concatenate([self._latents, latents], axis=1))
        return Chunk(self._last, video[:, -self._window.num_expected(self._num_latents) :])

    @property
    def _num_latents(self) -> int:
        return 0 if self._frames is None else self._window.num_latents(self._frames)

    def _encode(self, new: npt.NDArray[Any], *, anew: bool) -> None:
        """Encodes the ``new`` frames of the window; all of it ``anew`` where it has another first frame."""
        if not isinstance(self._codec, StreamingCodec):
            self._latents = self._codec.encode(self._frames)
        elif anew:
            self._latents, self._memory = self._codec.encode_next(self._frames, None)
        else:
            assert self._latents is not None, "the window has begun"
            latents, self._memory = self._codec.encode_next(new, self._memory)
            self._latents = jnp.concatenate([self._latents, latents], axis=1)

    def _take_actions(self, actions: npt.NDArray[Any] | None) -> None:
        """Appends what was executed to the actions of the window."""
        executed = self._last if actions is None else actions
        if executed.shape != self._last.shape:
            raise ConfigError(
                f"Policy.observe got actions of shape {executed.shape}; the last chunk has {self._last.shape}"
            )
        self._actions = np.concatenate([self._actions, executed], axis=1)

    def _tell(self, state: npt.NDArray[Any] | None, *, renew: bool) -> Told:
        """Returns what the model is told now; ``renew`` where the window has another first frame."""
        told, frames = self._told, self._frames
        assert told is not None
        assert frames is not None
        copies = 2 if is_guided(self.config) else 1

        def doubled(x: Any) -> jax.Array | None:
            return None if x is None else jnp.concatenate([jnp.asarray(x)] * copies)

        condition, image = told.condition, told.image
        if renew:
            condition, image = map(doubled, self._codec.condition(frames[:, :1], self._window.size))
        has_state = self.config.layout.states_per_block > 0 and state is not None
        now = doubled(np.asarray(state, np.float32)[:, None]) if has_state else None
        return Told(text=told.text, category=told.category, state=now, image=image, condition=condition)

    def _refill(self) -> None:
        """Computes what the cache lacks of the context of the next chunk."""
        context = context_segments(self.config, self.layout, self._window.chunk(self._num_latents))
        new = context[len(self._cached) :]
        if not new:
            return
        assert context[: len(self._cached)] == self._cached, "the cache holds a beginning of the context"
        known = {"latents": self._latents, "actions": jnp.asarray(self._actions)}
        self._cache = self._fill(self.params, self._told, known, self._cache, new=new, cached=self._cached)
        self._cached = context

    def _fill_segments(
        self,
        params: PureDict,
        told: Told,
        known: dict[str, jax.Array],
        past: Known | None,
        *,
        new: tuple[Segment, ...],
        cached: tuple[Segment, ...],
    ) -> Known:
        """Appends ``new`` segments of what is known to the cache."""
        model, copies = nnx.merge(self._graphdef, params), 2 if is_guided(self.config) else 1
        tokens: dict[Role, jax.Array] = {}
        for role, source in ((Role.CLEAN_VIDEO, "latents"), (Role.CLEAN_ACTION, "actions")):
            segments = tuple(s for s in new if s.role is role)
            if segments and role is Role.CLEAN_VIDEO:
                own = select_frames(patch_tokens(known[source], self._patch), segments)
                tokens[role] = jnp.concatenate([own] * copies)
            elif segments:
                own = [known[source][:, s.start : s.start + s.num_tokens] for s in segments]
                tokens[role] = jnp.concatenate([jnp.concatenate(own, axis=1)] * copies)
        layout_pass = self.layout.make_pass(new, cached)
        return fill_cache(model, told, tokens, layout_pass, self.layout, past, self.config)

    def _denoise_chunk(
        self,
        params: PureDict,
        told: Told,
        first: jax.Array,
        past: Known | None,
        key: PRNGKey,
        *,
        chunk: int,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Denoises one chunk.

        Args:
          params: Of the model.
          told: What it is told.
          first: ``[b 1 h w c]`` latents of the window's first frame.
          past: The cache.
          key: Noise key.
          chunk: Which chunk of the window.

        Returns:
          Actions ``[b a u]``, given ones included, and the latents ``[b t h w c]`` that are new; None where no video is
          denoised, or none to its end (``config.sampling.video_final_noise``).
        """
        model, copies = nnx.merge(self._graphdef, params), 2 if is_guided(self.config) else 1
        stages = acting_stages(self.config, self.layout, chunk, imagine=self._imagine)
        tokens, drawn = patch_tokens(first, self._patch), {}
        for row, stage in enumerate(stages):
            held = self._held(stage, tokens)
            follows = row > 0 and stages[0].copy is not None
            noise_key = jax.random.fold_in(key, row)
            drawn |= denoise_stage(model, told, held, stage, self.layout, past, noise_key, self.config, follows=follows)
            if stage.copy is not None:
                role = stage.copy.segments[0].role
                video = drawn[Role.NOISY_VIDEO]
                if role is Role.CONDITION_VIDEO:
                    video = jnp.concatenate([tokens.reshape(video.shape[0], -1, video.shape[2]), video], 1)
                copied = {role: jnp.concatenate([video] * copies)}
                past = fill_cache(model, told, copied, stage.copy, self.layout, past, self.config)
        video = drawn.get(Role.NOISY_VIDEO)
        if video is None or self.config.sampling.video_final_noise:
            return drawn[Role.ACTION], None
        latents = unpatch_tokens(video, (tokens.shape[2], tokens.shape[3]), self._patch)
        return drawn[Role.ACTION], latents[:, stages[0].num_held :]

    def _held(self, stage: Stage, first: jax.Array) -> dict[Role, jax.Array]:
        """Returns the tokens of ``stage`` that are known: the window's first frame, and no actions before it."""
        held, batch_size = {}, first.shape[0]
        for role in stage.denoised:
            count = stage.held_tokens(role)
            if count and role is Role.NOISY_VIDEO:
                held[role] = first.reshape(batch_size, count, -1)
            elif count:
                held[role] = jnp.zeros((batch_size, count, self.config.data.action_dim))
        return held

    @property
    def _patch(self) -> tuple[int, int, int]:
        assert self.config.backbone is not None, "checked by build_objective"
        return self.config.backbone.patch
