"""Actions that become clean beside video that stays noisy: levels, the loop of a stage, and when it is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.flops.steps import vary
from tests.sampling.acting import expected_frames, frame_size, load_twin, make_policy, roll_out
from tests.sampling.test_policies import Uncached
from wamjax.errors import ConfigError
from wamjax.flops.chunk import count_chunk
from wamjax.layout import Role, build_layout
from wamjax.layout.inference import acting_stages
from wamjax.sampling import stages
from wamjax.sampling.solvers import Schedule, SolverConfig, build_schedule, sample, sample_reusing

PARTS = {
    "video": build_schedule(SolverConfig(num_steps=5, shift=3.0, final_noise=0.6)),
    "action": build_schedule(SolverConfig(num_steps=5)),
}


def field(x: dict[str, Any], times: dict[str, Any]) -> dict[str, Any]:
    """Velocities in which each part reads the other and its time."""
    return {
        "video": jnp.sin(x["action"]) + times["video"] / 1000.0,
        "action": jnp.cos(2 * x["video"]) * times["video"] / 500.0 - times["action"] / 1000.0,
    }


def test_levels_that_leave_noise_are_the_released_ones() -> None:
    # t = 0.999 (1, 3/4, 1/2, 1/4), sigma = 5 t / (1 + 4 t), then sigma (s0 - 0.8) / s0 + 0.8; ids are cut.
    schedule = build_schedule(SolverConfig(num_steps=4, method="unipc", sigmas="wan", shift=5.0, final_noise=0.8))
    np.testing.assert_allclose(schedule.sigmas, [0.9998, 0.98730, 0.96648, 0.92484, 0.8], atol=2e-5)
    assert schedule.times.tolist() == [999, 987, 966, 924]
    even = build_schedule(SolverConfig(num_steps=2, final_noise=0.5))
    np.testing.assert_allclose(even.sigmas, [1.0, 0.75, 0.5])
    np.testing.assert_allclose(even.times, [1000.0, 750.0])


@pytest.mark.parametrize("chosen", [(0, 1, 2, 3, 4), (0, 2)])
def test_parts_of_a_sample_take_their_own_levels(chosen: tuple[int, ...]) -> None:
    noise = {"video": jnp.linspace(-1.0, 1.0, 4), "action": jnp.linspace(0.5, 2.0, 4)}
    x, velocity = dict(noise), dict(noise)
    for step in range(5):
        if step in chosen:
            velocity = field(x, {name: schedule.times[step] for name, schedule in PARTS.items()})
        x = {
            name: x[name] + (schedule.sigmas[step + 1] - schedule.sigmas[step]) * velocity[name]
            for name, schedule in PARTS.items()
        }
    drawn = sample_reusing(field, noise, PARTS, chosen)
    for name in PARTS:
        np.testing.assert_allclose(drawn[name], x[name], atol=1e-5)
    if len(chosen) == 5:
        whole = sample(field, noise, PARTS, trajectory=True)
        for name in PARTS:
            np.testing.assert_allclose(whole[name][-1], x[name], atol=1e-5)
            np.testing.assert_array_equal(whole[name][0], noise[name])


@pytest.mark.parametrize("method", ["unipc", "adams"])
def test_parts_without_regard_for_each_other_are_drawn_as_alone(method: str) -> None:
    levels: dict[str, Any] = {"unipc": {"sigmas": "wan"}, "adams": {"sigmas": "karras", "sigma_min": 1.0}}[method]
    other: dict[str, Any] = {"final_noise": 0.7} if method == "unipc" else {"sigma_max": 20.0}
    both = {
        0: build_schedule(SolverConfig(num_steps=4, method=method, **levels)),
        1: build_schedule(SolverConfig(num_steps=4, method=method, **levels, **other)),
    }
    noise = {0: jnp.linspace(-1.0, 1.0, 3), 1: jnp.linspace(2.0, 1.0, 3)}
    together = sample(lambda x, t: {i: jnp.tanh(x[i]) + t[i] / 999.0 for i in x}, noise, both)
    for i, schedule in both.items():
        alone = sample(lambda x, t: jnp.tanh(x) + t / 999.0, noise[i], schedule)
        np.testing.assert_allclose(together[i], alone, rtol=1e-5)


def test_adams_goes_on_with_the_last_velocity_where_steps_are_left_out() -> None:
    schedule, chosen = build_schedule(SolverConfig(num_steps=5, method="adams", sigmas="karras", sigma_min=1.0)), (0, 3)
    noise, sigmas = np.linspace(-1.0, 1.0, 4), schedule.sigmas.astype(np.float64)
    x, velocity, before = schedule.noise_scale * noise, noise, noise
    for step in range(5):
        if step in chosen:
            velocity = np.sin(x) + sigmas[step] / 80.0
        denoised = x - sigmas[step] * velocity
        own, last = 1 - sigmas[step + 1] / sigmas[step], 0.0
        if step and sigmas[step + 1] > 0:
            h, back = np.log(sigmas[step] / sigmas[step + 1]), np.log(sigmas[step - 1] / sigmas[step])
            last = -(h - own) / back  # of the line through both: h phi_2 / c with c = -back / h
        x = sigmas[step + 1] / sigmas[step] * x + (own - last) * denoised + last * before
        before = denoised
    drawn = sample_reusing(lambda x, sigma: jnp.sin(x) + sigma / 80.0, jnp.asarray(noise), schedule, chosen)
    np.testing.assert_allclose(drawn, x, rtol=2e-4, atol=2e-4)


def test_parts_in_other_numbers_of_steps_are_refused() -> None:
    parts: dict[str, Schedule] = {**PARTS, "action": build_schedule(SolverConfig(num_steps=4))}
    with pytest.raises(ConfigError, match=r"in \[4, 5\] steps"):
        sample(field, {"video": jnp.ones(1), "action": jnp.ones(1)}, parts)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"final_noise": 1.0}, "below 1"),
        ({"final_noise": 0.5, "sigmas": "karras"}, "0 with 'karras'"),
        ({"final_noise": 0.9995, "sigmas": "wan"}, "less than the first level of the video, 0.999"),
    ],
)
def test_noise_that_cannot_be_left_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_schedule(SolverConfig(num_steps=2, **wrong))


def flash(**sampling: Any) -> Any:
    return vary(load_twin("dreamzero_14b_flash"), sampling=sampling)


@pytest.mark.slow
def test_stage_denoises_as_the_loop_over_both_levels() -> None:
    """The first chunk by Euler steps written out, levels and slots (0 is clean, 1 the first frame) named by hand."""
    config = flash(solver="euler", steps=3, shift=2.0, guidance=1.0, video_final_noise=0.6)
    policy: Any = make_policy(config)
    policy.reset(np.zeros(1, np.int32))
    rng = np.random.default_rng(3)
    frames = rng.integers(0, 256, (1, expected_frames(config)[0], *frame_size(config), 3), dtype=np.uint8)
    policy.observe(frames, rng.normal(size=(1, config.data.state_dim)).astype(np.float32))
    layout = build_layout(config)
    stage = acting_stages(config, layout, 0)[0]
    key = jax.random.fold_in(jax.random.key(5), 0)
    network = nnx.merge(policy._graphdef, policy.params)
    x = stages.draw_noise(key, 1, stage, network, config)
    # Even times 1, 2/3, 1/3, 0, shifted: 2 t / (1 + t); of the video 0.4 sigma + 0.6.
    actions = [1.0, 0.8, 0.5, 0.0]
    video = [0.4 * s + 0.6 for s in actions]
    for step in range(3):
        ids = np.zeros((1, layout.num_slots), np.float32)
        ids[:, 2], ids[:, config.layout.num_blocks + 2] = 1000 * video[step], 1000 * actions[step]
        v, _ = stages._predict(network, policy._told, x, jnp.asarray(ids), stage.denoise, policy._cache, config)
        x = {
            Role.NOISY_VIDEO: x[Role.NOISY_VIDEO] + (video[step + 1] - video[step]) * v[Role.NOISY_VIDEO],
            Role.ACTION: x[Role.ACTION] + (actions[step + 1] - actions[step]) * v[Role.ACTION],
        }
    drawn = stages.denoise_stage(network, policy._told, {}, stage, layout, policy._cache, key, config)
    np.testing.assert_allclose(drawn[Role.ACTION], x[Role.ACTION], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(drawn[Role.NOISY_VIDEO], x[Role.NOISY_VIDEO], atol=1e-4, rtol=1e-4)
    chunk = policy.act(jax.random.key(5))
    np.testing.assert_allclose(chunk.actions, x[Role.ACTION], atol=1e-4, rtol=1e-4)
    assert chunk.video is None


@pytest.mark.slow
def test_few_steps_beside_noisy_video_cached_as_uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    config = flash(steps=2, guidance=3.0)
    cached = roll_out(make_policy(config), config)
    Uncached(monkeypatch, build_layout(config))
    uncached = roll_out(make_policy(config), config)
    for one, other in zip(cached, uncached, strict=True):
        np.testing.assert_allclose(one.actions, other.actions, atol=1e-4, rtol=1e-4)
        assert one.video is None


def test_one_step_costs_a_sixteenth_of_sixteen() -> None:
    config = flash(video_final_noise=0.8)
    many = vary(config, sampling={"steps": 16})
    assert count_chunk(many).denoise == 16 * count_chunk(config).denoise
    assert count_chunk(config).evaluations == {"video_actions": 1}
    wrong = vary(config, layout={"action_times": "shared"})
    with pytest.raises(ConfigError, match=r"video_final_noise=0\.8 with config\.layout\.action_times=shared"):
        count_chunk(wrong)
