"""Acting with a backbone, as pure functions: keys and values of what is known, and one denoised stage.

Which passes a chunk takes comes from the layout (``layout.inference``), how they are solved from ``config.sampling``;
``latent_policy`` jits what is here. The small model on pixels has ``chunk``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from wamjax.config.schema import RunConfig
from wamjax.config.systems import keeps_cache
from wamjax.layout import VIDEO_ROLES, Layout, Pass, Role
from wamjax.layout.inference import Stage
from wamjax.models.systems import ActionTransformer
from wamjax.nn.multihead import KeysValues
from wamjax.objectives.latent_tokens import join_condition
from wamjax.sampling.solvers import Schedule, SolverConfig, build_schedule, guide, sample, sample_reusing
from wamjax.types import PRNGKey

Tokens = Mapping[Role, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeptTokens:
    """Clean tokens where layers keep no keys and values: every pass computes them anew.

    Attributes:
      tokens: By role ``[1 b n c]``: samples are where a cache of keys and values has them.
    """

    tokens: dict[Role, Any]

    def append(self, tokens: Tokens) -> KeptTokens:
        """Returns these and ``tokens`` ``[b n c]`` after them."""
        kept = dict(self.tokens)
        for role, own in tokens.items():
            kept[role] = jnp.concatenate([*([kept[role]] if role in kept else []), own[None]], axis=2)
        return KeptTokens(kept)

    def shown(self) -> dict[Role, jax.Array]:
        """Returns the tokens ``[b n c]`` by role."""
        return {role: x[0] for role, x in self.tokens.items()}


Known = KeysValues | KeptTokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Told:
    """What the model is told besides the tokens it denoises; with guidance the second half is the unconditional one.

    Attributes:
      text: ``[b l text_width]`` tokens of the text encoder.
      category: int32 ``[b]`` embodiments.
      state: fp32 ``[b 1 p]``; None for a system without states.
      image: ``[b m image_width]`` tokens of the image encoder; None without image branch.
      condition: ``[b t h w c]`` channels beside the latents of the window's clip; None without.
    """

    text: jax.Array
    category: jax.Array
    state: jax.Array | None = None
    image: jax.Array | None = None
    condition: jax.Array | None = None

    def first_half(self) -> Told:
        """Returns the conditional half of what guidance is told."""
        return jax.tree.map(lambda x: x[: x.shape[0] // 2], self)


def is_guided(config: RunConfig) -> bool:
    """Returns whether anything is denoised with guidance, so that ``Told`` has two halves."""
    return config.sampling.guidance != 1 or config.sampling.action_guidance != 1


def guidance_scales(config: RunConfig, stage: Stage) -> dict[Role, float]:
    """Returns the scale of classifier-free guidance of each role that ``stage`` denoises."""
    scales = {Role.NOISY_VIDEO: config.sampling.guidance, Role.ACTION: config.sampling.action_guidance}
    return {role: scales[role] for role in stage.denoised}


def stage_schedules(config: RunConfig, stage: Stage, *, follows: bool) -> dict[Role, Schedule]:
    """Returns the noise levels of each role that a stage denoises, all of as many steps.

    Args:
      config: The run; of levels that it was not trained at, ``config.acting.check_acting`` tells.
      stage: The stage.
      follows: Whether another stage was denoised before.
    """
    sampling, objective = config.sampling, config.objective
    video_shift = sampling.shift or objective.shift
    shifts = {
        Role.NOISY_VIDEO: video_shift,
        Role.ACTION: sampling.action_shift or objective.action_shift or video_shift,
    }

    def make(role: Role) -> Schedule:
        return build_schedule(
            SolverConfig(
                num_steps=(sampling.action_steps if follows else 0) or sampling.steps,
                method=sampling.solver,
                sigmas="wan" if sampling.solver == "unipc" else "uniform",
                shift=shifts[role],
                final_noise=sampling.video_final_noise if role is Role.NOISY_VIDEO else 0.0,
            )
        )

    return {role: make(role) for role in stage.denoised}


def fill_cache(
    model: ActionTransformer,
    told: Told,
    tokens: Tokens,
    layout_pass: Pass,
    layout: Layout,
    past: Known | None,
    config: RunConfig,
) -> Known:
    """Computes keys and values of clean tokens and appends them to the cache; keeps the tokens where layers have none.

    Args:
      model: The model.
      told: Text and conditions.
      tokens: Of each role of the pass ``[b n_role c]``, without condition channels; a language tower's come from text.
      layout_pass: What is computed, and what the cache holds.
      layout: The layout, for its timestep slots.
      past: The cache, ``[layers b k m e]``; None while it is empty.
      config: The run.

    Returns:
      The cache of ``layout_pass.past`` and ``layout_pass.segments``.
    """
    if not keeps_cache(config):
        return (past if isinstance(past, KeptTokens) else KeptTokens({})).append(tokens)
    assert not isinstance(past, KeptTokens), "of layers that keep no cache"
    ids = jnp.zeros((told.text.shape[0], layout.num_slots))
    _, own = _predict(model, told, tokens, ids, layout_pass, past, config, return_cache=True)
    assert own is not None
    return own if past is None else KeysValues(*(jnp.concatenate(pair, axis=3) for pair in zip(past, own, strict=True)))


def denoise_stage(
    model: ActionTransformer,
    told: Told,
    held: Tokens,
    stage: Stage,
    layout: Layout,
    past: Known | None,
    key: PRNGKey,
    config: RunConfig,
    *,
    follows: bool = False,
) -> dict[Role, jax.Array]:
    """Draws what a stage denoises.

    Args:
      model: The model.
      told: Text, state and conditions.
      held: The tokens of each denoised role that stay as they are (``Stage.num_held``); empty where there are none.
      stage: The stage.
      layout: The layout, for its timestep slots.
      past: Cache of ``stage.denoise.past``; with guidance of both halves.
      key: Noise key.
      config: The run; ``config.sampling`` says how.
      follows: Whether another stage was denoised before.

    Returns:
      fp32 tokens ``[b n_role c]`` of each denoised role; video is left as noisy as ``config.sampling`` says.

    Source: DreamZero's released code (``decouple_inference_noise`` of its action head) for actions that become clean
    beside video that stays noisy: as many steps of both, the video's levels moved in proportion.
    """
    scales = guidance_scales(config, stage)
    is_doubled = any(scale != 1 for scale in scales.values())
    if is_guided(config) and not is_doubled:
        told = told.first_half()
        past = None if past is None else jax.tree.map(lambda x: x[:, : x.shape[1] // 2], past)
    batch_size = told.text.shape[0] // (2 if is_doubled else 1)
    noise = draw_noise(key, batch_size, stage, model, config)
    known, layout_pass, before = _split_past(past, stage.denoise, layout)
    slots = {
        role: jnp.asarray([slot in stage.noised_slots(role) for slot in range(layout.num_slots)])
        for role in stage.denoised
    }

    def hold(x: dict[Role, jax.Array]) -> dict[Role, jax.Array]:
        return {role: _held(part, held.get(role)) for role, part in x.items()}

    def velocity(x: dict[Role, jax.Array], times: dict[Role, jax.Array]) -> dict[Role, jax.Array]:
        x = hold(x)
        if is_doubled:
            x = jax.tree.map(lambda part: jnp.concatenate([part, part]), x)
        row = jnp.zeros(layout.num_slots)
        for role, time in times.items():
            row = jnp.where(slots[role], time, row)
        ids = jnp.broadcast_to(row, (told.text.shape[0], layout.num_slots))
        predicted, _ = _predict(model, told, known | x, ids, layout_pass, before, config)
        if not is_doubled:
            return predicted
        halves = {role: jnp.split(part, 2) for role, part in predicted.items()}
        return {role: guide(first, second, scales[role]) for role, (first, second) in halves.items()}

    schedules = stage_schedules(config, stage, follows=follows)
    evaluated = () if follows else config.sampling.evaluated_steps
    if evaluated:
        return hold(sample_reusing(velocity, noise, schedules, evaluated))
    return hold(sample(velocity, noise, schedules))


def _split_past(
    past: Known | None, layout_pass: Pass, layout: Layout
) -> tuple[dict[Role, jax.Array], Pass, KeysValues | None]:
    """Returns the known tokens that a pass computes anew, the pass over these too, and what it finds cached."""
    if not isinstance(past, KeptTokens):
        return {}, layout_pass, past
    return past.shown(), layout.make_pass((*layout_pass.past, *layout_pass.segments), ()), None


def draw_noise(
    key: PRNGKey, batch_size: int, stage: Stage, model: ActionTransformer, config: RunConfig
) -> dict[Role, jax.Array]:
    """Returns standard normal tokens ``[b n_role c]`` of what ``stage`` denoises."""
    widths = {Role.NOISY_VIDEO: model.config.video.out_patch_channels, Role.ACTION: config.data.action_dim}
    counts = {role: sum(s.num_tokens for s in stage.denoise.segments if s.role is role) for role in stage.denoised}
    keys = dict(zip(widths, jax.random.split(key), strict=True))
    return {role: jax.random.normal(keys[role], (batch_size, count, widths[role])) for role, count in counts.items()}


def _held(tokens: jax.Array, known: jax.Array | None) -> jax.Array:
    """Returns ``tokens`` ``[b n c]`` with ``known`` ``[b m c]`` in the place of the first m."""
    return tokens if known is None else jnp.concatenate([known, tokens[:, known.shape[1] :]], axis=1)


def _predict(
    model: ActionTransformer,
    told: Told,
    tokens: Tokens,
    ids: jax.Array,
    layout_pass: Pass,
    past: KeysValues | None,
    config: RunConfig,
    *,
    return_cache: bool = False,
) -> tuple[dict[Role, jax.Array], KeysValues | None]:
    """Runs one pass; arguments as ``fill_cache``, and timestep ids ``[b slots]``."""
    patch, streams = model.config.video.patch, dict(tokens)
    for role in streams.keys() & set(VIDEO_ROLES):
        segments = tuple(s for s in layout_pass.segments if s.role is role)
        streams[role] = join_condition(streams[role], told.condition, segments, patch)
    is_read = config.actions.modules == "expert" or any(s.role is Role.STATE for s in layout_pass.segments)
    if told.state is not None and is_read:
        streams[Role.STATE] = told.state
    text_mask = jnp.any(told.text != 0, axis=-1) if config.clip.masks_text else None
    return model.predict(
        streams,
        ids,
        told.category,
        told.text,
        layout_pass,
        image=told.image,
        text_mask=text_mask,
        past=past,
        return_cache=return_cache,
    )
