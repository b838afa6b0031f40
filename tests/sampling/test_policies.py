"""The policy of every system: with its cache it acts as it does when every step computes the whole sequence."""

from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.flops.steps import vary
from tests.sampling.acting import ACTING, PooledCodec, expected_frames, frame_size, load_twin, make_policy, roll_out
from tests.tiny import tiny_batch
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.layout import Layout, Pass, build_layout
from wamjax.nn.multihead import KeysValues
from wamjax.objectives.latent_frames import LatentFramesObjective
from wamjax.sampling import latent_policy, stages
from wamjax.sampling.build import build_policy
from wamjax.sampling.latent_frames_policy import LatentFramesPolicy
from wamjax.sampling.latent_policy import LatentPolicy
from wamjax.sampling.policy import Policy, PromptTable, StreamingCodec
from wamjax.sampling.solvers import SolverConfig, build_schedule, sample, sample_reusing

WITHOUT_CACHE = ("cosmos_policy_libero", "cosmos_policy_robocasa", "gr1", "kairos_4b", "latent_plan", "pi05_droid")
CHUNKED = sorted(set(ACTING) - set(WITHOUT_CACHE))
QUICK = ("fast_wam_libero",)


class Uncached:
    """Stands in for the cache: keeps clean tokens, which every pass then computes again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, layout: Layout) -> None:
        self._predict, self._layout = stages._predict, layout
        monkeypatch.setattr(stages, "_predict", self.predict)
        monkeypatch.setattr(latent_policy, "fill_cache", self.fill)

    def fill(
        self, model: Any, told: Any, tokens: Any, layout_pass: Pass, layout: Layout, past: Any, config: RunConfig
    ) -> Any:
        # A dim in front, so that the batch is where a cache of keys and values has it.
        kept: Any = {} if past is None else dict(past.keys)
        for role, own in tokens.items():
            before = [kept[role]] if role in kept else []
            kept[role] = jnp.concatenate([*before, own[None]], axis=2)
        return KeysValues(kept, {})  # type: ignore[arg-type]  # tokens in the place of keys

    def predict(
        self, model: Any, told: Any, tokens: Any, ids: Any, layout_pass: Pass, past: Any, config: RunConfig
    ) -> Any:
        whole = self._layout.make_pass((*layout_pass.past, *layout_pass.segments), ())
        known = {role: kept[0] for role, kept in ({} if past is None else past.keys).items()}
        return self._predict(model, told, {**known, **tokens}, ids, whole, None, config)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CHUNKED]
)
def test_cached_policy_acts_as_the_uncached_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_twin(name)
    cached = roll_out(make_policy(config), config)
    Uncached(monkeypatch, build_layout(config))
    uncached = roll_out(make_policy(config), config)
    for one, other in zip(cached, uncached, strict=True):
        np.testing.assert_allclose(one.actions, other.actions, atol=1e-4, rtol=1e-4)
        if one.video is not None:
            difference = np.asarray(one.video, np.int32) - np.asarray(other.video, np.int32)
            assert np.abs(difference).max() <= 1  # pixel levels


@pytest.mark.parametrize("name", ["fast_wam_libero", "cosmos_policy_libero", "pi05_droid", "gr1"])
def test_policy_used_out_of_turn_says_so(name: str) -> None:
    config = load_twin(name)
    policy = make_policy(config)
    assert isinstance(policy, Policy)
    count = expected_frames(config)[0]
    frames = np.zeros((2, count + 1, *frame_size(config), 3), np.uint8)
    state = np.zeros((2, config.data.state_dim), np.float32)
    with pytest.raises(ConfigError, match=r"before Policy\.reset"):
        policy.observe(frames, state)
    policy.reset(np.zeros(2, np.int32))
    with pytest.raises(ConfigError, match=r"before Policy\.observe"):
        policy.act(jax.random.key(0))
    with pytest.raises(ConfigError, match=f"got {count + 1} .*; expected"):
        policy.observe(frames, state)
    with pytest.raises(ConfigError, match=r"this policy has 2 prompts"):
        policy.reset(np.array([2], np.int32))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("summer_22b", {}, "formulation=video of summer_22b_tiny has no actions"),
        ("dreamzero_5b", {"sampling": {"action_shift": 1.0}}, "action_shift=1.0"),
        ("dreamzero_5b", {"sampling": {"video_final_noise": 0.8}}, "action_times=shared: actions are trained"),
        ("fast_wam_libero", {"sampling": {"video_final_noise": 0.8}}, "family representation does not denoise them"),
        ("lingbot_va_mot", {"sampling": {"video_final_noise": 0.8}}, "formulation=alternating of family"),
        ("gr1", {"sampling": {"guidance": 2.0}}, "formulation queries answers at once"),
        ("cosmos_policy_libero", {"sampling": {"guidance": 2.0}}, "guidance=2.0"),
        ("cosmos_policy_libero", {"sampling": {"solver": "unipc"}}, "solver=unipc"),
        ("pi05_droid", {"sampling": {"guidance": 2.0}}, "guidance=2.0"),
        ("pi05_droid", {"sampling": {"solver": "unipc"}}, "solver=unipc"),
        ("fast_wam_joint", {"sampling": {"solver": "adams"}}, "solver=adams steps between EDM's"),
        ("lingbot_va_mot", {"layout": {"num_blocks": 1, "frames_per_block": 1, "actions_per_block": 2}}, "one frame"),
    ],
)
def test_policy_that_cannot_be_is_refused(name: str, changes: dict[str, Any], words: str) -> None:
    config = vary(load_twin(name), **changes)
    if "layout" in changes:
        config = vary(config, clip={"num_frames": 1})
    with pytest.raises(ConfigError, match=words):
        make_policy(config)


@pytest.mark.slow
def test_latent_frames_policy_finds_what_a_perfect_denoiser_says(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_twin("cosmos_policy_libero")
    policy = make_policy(config)
    assert isinstance(policy, LatentFramesPolicy)
    truth, given_frames = tiny_batch(config, 2), []

    def predict(model: Any, noised: Any, clean: Any, given: Any, times: Any, text: Any) -> Any:
        given_frames.append(given)
        return (noised - policy.objective.frames(truth)) / times[:, None, None, None, None]

    monkeypatch.setattr(LatentFramesObjective, "predict", staticmethod(predict))
    chunk = roll_out(policy, config)[0]
    np.testing.assert_allclose(chunk.actions, truth.actions, atol=1e-4)
    np.testing.assert_allclose(chunk.value, truth.value, atol=1e-4)
    assert len(given_frames) == 1  # traced once: the steps are one loop


@pytest.mark.slow
def test_text_of_a_tower_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_twin("cosmos3_nano")
    policy = make_policy(config)
    assert isinstance(policy, LatentPolicy)
    filled: list[set[str]] = []
    fill = policy._fill

    def recorded(*arguments: Any, new: Any, cached: Any) -> Any:
        filled.append({segment.role.value for segment in new})
        return fill(*arguments, new=new, cached=cached)

    monkeypatch.setattr(policy, "_fill", recorded)
    roll_out(policy, config)
    assert filled == [{"text"}, *[{"clean_video"}] * len(expected_frames(config))]


def test_steps_left_out_go_on_with_the_last_velocity() -> None:
    schedule, chosen = build_schedule(SolverConfig(num_steps=6, shift=3.0)), (0, 1, 4)
    noise = jnp.linspace(-1.0, 1.0, 5)

    def field(x: jax.Array, time: jax.Array) -> jax.Array:
        return jnp.sin(3 * x) + time / 1000.0

    x, velocity = noise, noise
    for step, time in enumerate(schedule.times):
        if step in chosen:
            velocity = field(x, time)
        x = x + (schedule.sigmas[step + 1] - schedule.sigmas[step]) * velocity
    np.testing.assert_allclose(sample_reusing(field, noise, schedule, chosen), x, atol=1e-6)
    second_order = build_schedule(SolverConfig(num_steps=6, method="unipc", sigmas="wan", shift=3.0))
    every = sample_reusing(field, noise, second_order, tuple(range(6)))
    np.testing.assert_allclose(every, sample(field, noise, second_order), atol=1e-6)


def test_policy_told_twice_what_it_saw_or_of_other_rollouts_is_refused() -> None:
    config = load_twin("fast_wam_libero")
    policy: Any = make_policy(config)
    policy.reset(np.zeros(2, np.int64))
    frames = np.zeros((2, 1, config.clip.height, config.clip.width, 3), np.uint8)
    with pytest.raises(ConfigError, match=r"frames of 1 rollouts; Policy\.reset began 2"):
        policy.observe(frames[:1], None)
    policy._frames, policy._is_due = frames, True
    with pytest.raises(ConfigError, match=r"called twice without Policy\.act"):
        policy.observe(frames, None)


def test_guidance_without_the_empty_prompt_that_training_dropped_to_is_refused() -> None:
    config = vary(load_twin("lingbot_va_robotwin"), sampling={"guidance": 5.0})
    codec: Any = mock.Mock()
    assert config.objective.prompt_dropout == 0.1
    with pytest.raises(ConfigError, match=r"PromptTable\.negative"):
        build_policy(config, {}, codec=codec, prompts=PromptTable(text=np.zeros((1, 1, 1), np.float32)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fast_wam_joint", "cosmos_policy_libero"])
def test_policy_whose_video_nobody_looks_at_acts_alike_and_decodes_nothing(name: str) -> None:
    config = load_twin(name)
    with mock.patch.object(PooledCodec, "decode", side_effect=AssertionError("decoded")):
        unseen = roll_out(make_policy(config, decodes=False), config)
    for one, other in zip(roll_out(make_policy(config), config), unseen, strict=True):
        assert one.video is not None
        assert other.video is None
        np.testing.assert_array_equal(one.actions, other.actions)


class StreamingPooledCodec(PooledCodec):
    """Encodes every frame once: what it keeps of a clip is that it has begun."""

    def encode_next(self, frames: Any, memory: Any) -> tuple[jax.Array, Any]:
        if memory is None:
            return self.encode(frames), True
        filled = np.concatenate([frames[:, :1], frames], axis=1)
        return self.encode(filled)[:, 1:], True


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dreamzero_5b", "lingbot_va_robotwin"])
def test_policy_that_encodes_frames_as_they_come_acts_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_twin(name)
    whole = roll_out(make_policy(config), config)
    monkeypatch.setattr("tests.sampling.acting.PooledCodec", StreamingPooledCodec)
    policy = make_policy(config)
    assert isinstance(policy, LatentPolicy)
    assert isinstance(policy._codec, StreamingCodec)
    with mock.patch.object(policy._codec, "encode_next", wraps=policy._codec.encode_next) as encode:
        streamed = roll_out(policy, config)
    begun = [call.args[1] is None for call in encode.call_args_list]
    assert begun[0]
    assert not begun[1], "the second observation goes on with the first"
    for one, other in zip(whole, streamed, strict=True):
        np.testing.assert_allclose(one.actions, other.actions, atol=1e-5)
