"""The policy of two models: what it generates, what it reads off it, what it costs, and which runs it refuses."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.flops.steps import vary
from tests.sampling.acting import PooledCodec, load_twin, random_params
from wamjax.config.schema import RunConfig
from wamjax.config.two_stage import two_stage_windows
from wamjax.errors import ConfigError
from wamjax.flops.chunk import count_chunk, count_two_stages
from wamjax.flops.jaxpr import count_jaxpr
from wamjax.models.inverse_dynamics import InverseDynamicsModel
from wamjax.models.video_transformer import VideoTransformer
from wamjax.sampling.build import build_policy
from wamjax.sampling.generate import Condition, generate_latents
from wamjax.sampling.policy import Policy, PromptTable
from wamjax.sampling.two_stage_policy import InverseDynamics, TwoStagePolicy


def stages() -> tuple[RunConfig, RunConfig]:
    """Twins of both stages, of one canvas; two actions between frames."""
    video, inverse = load_twin("unipi"), load_twin("unipi.py:inverse_dynamics")
    canvas = (video.clip.height, video.clip.width)
    data = {"canvas": canvas, "frame_stride": 2}
    return (
        vary(video, data=data, sampling={"steps": 3, "guidance": 2.5}),
        vary(inverse, data=data, layout={"actions_per_block": 2}),
    )


def make_policy(video: RunConfig, inverse: RunConfig) -> TwoStagePolicy:
    assert video.backbone is not None
    text = np.random.default_rng(1).normal(size=(2, video.clip.text_tokens, video.backbone.text_width))
    policy = build_policy(
        video,
        random_params(video),
        codec=PooledCodec(video),
        prompts=PromptTable(text=text.astype(np.float32), negative=text[0].astype(np.float32) * 0.5),
        inverse_dynamics=InverseDynamics(inverse, random_params(inverse, 1)),
    )
    assert isinstance(policy, TwoStagePolicy)
    return policy


def frames(video: RunConfig, count: int, seed: int = 0) -> np.ndarray:
    size = (2, count, video.clip.height, video.clip.width, 3)
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


@pytest.mark.slow
def test_chunk_is_a_clip_from_the_observed_frame_and_what_is_read_off_it() -> None:
    video, inverse = stages()
    policy = make_policy(video, inverse)
    assert isinstance(policy, Policy)
    policy.reset(np.array([1, 0]))
    seen = frames(video, 1)
    policy.observe(seen)
    chunk = policy.act(jax.random.key(3))
    count = video.clip.num_frames - 1
    assert chunk.video.shape == (2, count, video.clip.height, video.clip.width, 3)
    assert chunk.actions.shape == (2, 2 * count, inverse.data.action_dim)
    # The sampler of pretrained video models, told to hold the frame, generates the same clip.
    model: VideoTransformer = nnx.merge(policy._graphdef, policy.params)
    text = policy._prompts.look_up(np.array([1, 0]), guided=True)[0]
    noise = policy.objective.draw_noise(jax.random.key(3), 2).latents
    latents = generate_latents(
        model, policy._schedule, noise, text[:2], text[2:], guidance=2.5,
        condition=Condition(first_frame=PooledCodec(video).encode(seen)),
    )  # fmt: skip
    expected = np.asarray(PooledCodec(video).decode(latents))[:, 1:].astype(int)
    assert np.abs(expected - np.asarray(chunk.video).astype(int)).max() <= 1  # of rounding
    # Read pair by pair, the frame that was seen first.
    reader: InverseDynamicsModel = nnx.merge(policy._reader._graphdef, policy.inverse_dynamics.params)
    clip = np.concatenate([seen, np.asarray(chunk.video)], axis=1)
    pairs = [np.asarray(reader(jnp.asarray(clip[:, i : i + 2]))).reshape(2, 2, -1) for i in range(count)]
    np.testing.assert_allclose(chunk.actions, np.concatenate(pairs, axis=1), atol=1e-5)


@pytest.mark.slow
def test_chunk_depends_on_the_newest_frame_and_the_prompt_alone() -> None:
    video, inverse = stages()
    policy, count = make_policy(video, inverse), video.clip.num_frames - 1

    def second_chunk(prompt: int, first: int, then: int) -> np.ndarray:
        policy.reset(np.full(2, prompt))
        policy.observe(frames(video, 1, first))
        policy.act(jax.random.key(0))
        policy.observe(frames(video, count, then))
        return np.asarray(policy.act(jax.random.key(1)).actions)

    alike = second_chunk(0, 1, 2)
    np.testing.assert_array_equal(alike, second_chunk(0, 5, 2))
    assert np.abs(alike - second_chunk(0, 1, 3)).max() > 0
    assert np.abs(alike - second_chunk(1, 1, 2)).max() > 0


@pytest.mark.parametrize("evaluated", [pytest.param((), marks=pytest.mark.slow), (0, 2)])
def test_chunk_flops_of_both_stages_equal_the_jaxpr(evaluated: tuple[int, ...]) -> None:
    video, inverse = stages()
    video = vary(video, sampling={"evaluated_steps": evaluated})
    policy: Any = make_policy(video, inverse)
    policy.reset(np.zeros(1, np.int32))
    policy.observe(frames(video, 1)[:1])
    first = policy._codec.encode(policy._frame)
    clip = jnp.zeros((1, video.clip.num_frames, video.clip.height, video.clip.width, 3), jnp.uint8)
    counted = count_two_stages(video, inverse, is_executed=True)
    walked = {
        "video": policy.denoise.trace(policy.params, first, policy._text, jax.random.key(0)),
        "inverse_dynamics": policy.read.trace(policy.inverse_dynamics.params, clip),
    }
    assert {name: count_jaxpr(traced.jaxpr).total for name, traced in walked.items()} == counted.stages
    assert counted.total == sum(counted.stages.values())


def test_acting_out_of_order_is_refused() -> None:
    video, inverse = stages()
    policy = make_policy(video, inverse)
    with pytest.raises(ConfigError, match=r"Policy\.observe was called before Policy\.reset"):
        policy.observe(frames(video, 1))
    policy.reset(np.zeros(2, np.int32))
    with pytest.raises(ConfigError, match=r"Policy\.act was called before Policy\.observe"):
        policy.act(jax.random.key(0))
    with pytest.raises(ConfigError, match="got 2 frames; expected 1"):
        policy.observe(frames(video, 2))
    with pytest.raises(ConfigError, match="of 1 rollouts"):
        policy.observe(frames(video, 1)[:1])
    policy.observe(frames(video, 1))
    with pytest.raises(ConfigError, match=r"twice without Policy\.act"):
        policy.observe(frames(video, 1))


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        ("video", {"layout": {"noisy_first_frame": True}}, "noisy_first_frame=True of unipi_tiny"),
        ("video", {"layout": {"formulation": "joint"}}, "formulation=joint of unipi_tiny, the first of two stages"),
        ("video", {"sampling": {"action_steps": 2}}, "action_steps=2"),
        ("video", {"data": {"frame_stride": 4}}, r"config\.data\.frame_stride is 4 of .* and 2 of"),
        ("video", {"data": {"split_seed": 3}}, r"config\.data\.split_seed is 3 of .* of one dataset"),
        ("inverse", {"data": {"canvas": (6, 8)}}, r"clips of unipi_tiny are 2 x 4 .* reads 6 x 8"),
        ("inverse", {"data": {"action_dim": 9}}, r"config\.data\.action_dim is 4 of .* and 9"),
        ("inverse", {"data": {"normalisation": "min_max"}}, r"config\.data\.normalisation is quantile"),
        ("inverse", {"data": {"views": (("a", 0, 0, 2, 2),)}}, r"config\.data\.views is \(\)"),
        ("inverse", {"inverse_dynamics": None}, r"config\.inverse_dynamics of .* is none"),
    ],
)
def test_runs_that_make_no_system_are_refused(stage: str, change: dict[str, Any], message: str) -> None:
    video, inverse = stages()
    video, inverse = (vary(video, **change), inverse) if stage == "video" else (video, vary(inverse, **change))
    with pytest.raises(ConfigError, match=message):
        two_stage_windows(video, inverse)


def test_one_stage_alone_does_not_act() -> None:
    video, inverse = stages()
    codec: Any = PooledCodec(video)
    nothing = PromptTable(text=np.zeros((1, 1, 1), np.float32))
    for config, message in ((video, "formulation=video of unipi_tiny has no actions"), (inverse, "reads actions off")):
        with pytest.raises(ConfigError, match=message):
            build_policy(config, {}, codec=codec, prompts=nothing)
        with pytest.raises(ConfigError, match=message):
            count_chunk(config)


def test_windows_are_one_clip_and_all_its_actions() -> None:
    video, inverse = stages()
    windows = two_stage_windows(video, inverse)
    assert (windows.layout.num_blocks, windows.layout.frames_per_block) == (1, video.clip.num_frames - 1)
    assert windows.layout.actions_per_block == 2 * (video.clip.num_frames - 1)
    assert windows.data == inverse.data
    assert dataclasses.replace(windows.data, canvas=(1, 1)) != video.data
