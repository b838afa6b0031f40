"""Solvers against diffusers' trajectories, equations with known solutions, and by hand."""

import dataclasses
import importlib.util
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.errors import ConfigError
from wamjax.sampling.solvers import (
    SolverConfig,
    build_schedule,
    denoiser_velocity,
    guide,
    guided,
    precondition,
    sample,
)
from wamjax.sampling.solvers.edm import preconditioning
from wamjax.sampling.solvers.schedule import COSMOS_PREDICT2

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "solvers.npz"


def _unipc(num_steps, shift, sigmas="diffusers_unipc"):
    return SolverConfig(num_steps=num_steps, method="unipc", sigmas=sigmas, shift=shift)


FLOW_CASES = {
    **{f"unipc_{n}_{s}": _unipc(n, s) for n, s in ((1, 3.0), (2, 5.0), (10, 5.0), (50, 3.0))},
    **{f"wan_{n}_{s}": _unipc(n, s, "wan") for n, s in ((1, 5.0), (10, 5.0), (50, 3.0))},
    **{
        f"euler_{n}_{s}": SolverConfig(num_steps=n, sigmas="diffusers_euler", shift=s)
        for n, s in ((1, 1.0), (10, 5.0), (50, 3.0))
    },
}
EDM_CASES = {
    "edm_12_epsilon": (SolverConfig(num_steps=12, sigmas="karras"), "edm", 1.0),
    "edm_12_velocity": (SolverConfig(num_steps=12, sigmas="karras"), "edm_velocity", 0.5),
    "cosmos_35": (COSMOS_PREDICT2, "flow", 1.0),
}


def _field(x, time):
    """The golden script's stand-in for a model."""
    return jnp.sin(2.0 * x + 3.0 * time) + 0.4 * x - 0.3 * jnp.cos(x) * time


def _check(golden, case, config, velocity):
    schedule = build_schedule(config)
    expected = golden[f"{case}/trajectory"]
    # One rounding of fp32: powers differ by as much between machines. Whole ids must be equal.
    np.testing.assert_allclose(schedule.sigmas, golden[f"{case}/sigmas"], rtol=2e-7)
    if f"{case}/times" in golden:
        np.testing.assert_allclose(schedule.times, golden[f"{case}/times"], rtol=2e-7)
    noise = expected[0] / np.float32(schedule.noise_scale)
    got = jax.jit(lambda noise: sample(velocity, noise, schedule, trajectory=True))(noise)
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-6)  # EDM's samples start at 80
    np.testing.assert_allclose(got[-1], expected[-1], atol=5e-6)


@pytest.mark.parametrize("case", FLOW_CASES)
def test_flow_solvers_follow_diffusers(case):
    _check(np.load(GOLDEN), case, FLOW_CASES[case], lambda x, time: _field(x, time / 1000.0))


@pytest.mark.parametrize("case", EDM_CASES)
def test_edm_follows_diffusers(case):
    config, parameterisation, sigma_data = EDM_CASES[case]
    _check(np.load(GOLDEN), case, config, denoiser_velocity(precondition(_field, parameterisation, sigma_data)))


def test_wan_levels_are_those_of_the_original_code():
    # What wan/text2video.py steps through at its defaults, 50 steps with shift 5.
    schedule = build_schedule(_unipc(50, 5.0, "wan"))
    assert schedule.times[:8].tolist() == [999, 995, 991, 987, 982, 978, 973, 968]
    assert schedule.sigmas[[0, -1]].tolist() == [np.float32(5 * 0.999 / (1 + 4 * 0.999)), 0.0]


def test_wan_and_diffusers_levels_differ():
    differences = [
        np.abs(build_schedule(_unipc(n, s, "wan")).sigmas - build_schedule(_unipc(n, s)).sigmas).max()
        for n, s in ((30, 3.0), (50, 5.0))
    ]
    assert all(1e-3 < difference < 5e-3 for difference in differences), differences


def test_uniform_levels_are_shifted():
    schedule = build_schedule(SolverConfig(num_steps=4, shift=3.0))
    np.testing.assert_allclose(schedule.sigmas, [1, 0.9, 0.75, 0.5, 0], atol=1e-7)
    np.testing.assert_allclose(schedule.times, [1000, 900, 750, 500], atol=1e-4)


def test_karras_levels_end_as_asked():
    zero = build_schedule(SolverConfig(num_steps=3, sigmas="karras"))
    again = build_schedule(SolverConfig(num_steps=3, sigmas="karras", final_sigma="sigma_min"))
    middle = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    np.testing.assert_allclose(zero.sigmas, [80, middle, 0.002, 0], rtol=1e-6)
    np.testing.assert_allclose(again.sigmas, [80, middle, 0.002, 0.002], rtol=1e-6)
    assert zero.noise_scale == pytest.approx(80)


def _gaussian_flow(mean, std):
    """The exact velocity of a flow whose data are normal, and the solution from the level ``sigma`` to data."""

    def spread(sigma):
        return jnp.sqrt(jnp.square((1 - sigma) * std) + jnp.square(sigma))

    def velocity(x, time):
        sigma = time / 1000.0
        deviation = (x - (1 - sigma) * mean) / spread(sigma)
        return -mean + deviation * (sigma - (1 - sigma) * std**2) / spread(sigma)

    return velocity, lambda x, sigma: mean + std * (x - (1 - sigma) * mean) / spread(sigma)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("unipc", 2)])
def test_solver_has_its_order(method, order):
    velocity, solution = _gaussian_flow(0.7, 0.4)
    noise, errors = jnp.linspace(-2, 2, 9), []
    for num_steps in (80, 160):
        schedule = build_schedule(SolverConfig(num_steps=num_steps, method=method, sigmas="wan"))
        # Ids that are not cut to whole numbers, so that the step is all that errs.
        schedule = dataclasses.replace(schedule, times=schedule.sigmas[:-1] * 1000)
        got = sample(velocity, noise, schedule)
        errors.append(float(jnp.abs(got - solution(noise, schedule.sigmas[0])).max()))
    assert errors[0] / errors[1] > 0.85 * 2**order, errors


def test_edm_finds_the_exact_solution_for_normal_data():
    # A network of zeros under EDM's preconditioning is the best denoiser of data N(0, 1).
    velocity = denoiser_velocity(precondition(lambda x, noise: jnp.zeros_like(x), "edm"))
    noise = jnp.linspace(-2, 2, 9)
    schedule = build_schedule(SolverConfig(num_steps=2000, sigmas="karras"))
    expected = noise * 80 / np.sqrt(1 + 80**2)
    np.testing.assert_allclose(sample(velocity, noise, schedule), expected, atol=5e-3)


def _integrated(denoise, noise, sigmas, points=4001):
    """Brute force: between levels the denoised sample is a line in -log sigma; the equation is integrated on a grid."""
    x, before = sigmas[0] * noise, None
    for sigma, after in itertools.pairwise(sigmas):
        denoised = denoise(x, sigma)
        if after == 0:
            return denoised
        if after == sigma:
            continue
        line = np.linspace(-np.log(sigma), -np.log(after), points)[:, None]
        drawn = np.broadcast_to(denoised, (points, *denoised.shape))
        if before is not None:
            slope = (denoised - before[1]) / (np.log(before[0]) - np.log(sigma))
            drawn = denoised + slope * (line - line[0])
        x = np.exp(line[0] - line[-1]) * x + np.trapezoid(np.exp(line - line[-1]) * drawn, line, axis=0)
        before = (sigma, denoised)
    return x


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
def test_adams_integrates_a_line_exactly(end):
    schedule = build_schedule(
        SolverConfig(num_steps=5, method="adams", sigmas="karras", sigma_min=4.0, final_sigma=end)
    )
    noise = np.linspace(-2, 2, 9)
    expected = _integrated(lambda x, sigma: np.tanh(x / (1 + sigma)) + 0.1 * x, noise, schedule.sigmas.astype(float))
    velocity = denoiser_velocity(lambda x, sigma: jnp.tanh(x / (1 + sigma)) + 0.1 * x)
    np.testing.assert_allclose(sample(velocity, jnp.asarray(noise), schedule), expected, rtol=1e-5, atol=1e-5)
    both = sample(lambda x, sigma: jax.tree.map(lambda leaf: velocity(leaf, sigma), x), {"a": noise}, schedule)
    np.testing.assert_allclose(both["a"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("adams", 2)])
def test_edm_solver_has_its_order(method, order):
    # Data N(0.7, 0.4^2): D = (x s^2 + m sigma^2) / (s^2 + sigma^2), and x keeps its place among the deviations.
    mean, std = 0.7, 0.4
    velocity = denoiser_velocity(lambda x, sigma: (x * std**2 + mean * sigma**2) / (std**2 + sigma**2))
    noise, errors = jnp.linspace(-2, 2, 9), []
    for num_steps in (40, 80):
        schedule = build_schedule(
            SolverConfig(num_steps=num_steps, method=method, sigmas="karras", sigma_max=10.0, sigma_min=0.5)
        )
        levels = sample(velocity, noise, schedule, trajectory=True)
        spread = np.sqrt((std**2 + schedule.sigmas[-2] ** 2) / (std**2 + schedule.sigmas[0] ** 2))
        exact = mean + spread * (levels[0] - mean)
        errors.append(float(jnp.abs(levels[-2] - exact).max()))
    assert 0.85 * 2**order < errors[0] / errors[1] < 1.15 * 2**order, errors


def test_preconditioning_of_a_flow_is_its_change_of_variables():
    sigma, x = jnp.array([0.1, 1.0, 80.0]), jnp.array([0.3, -2.0, 50.0])
    c_skip, c_out, c_in, c_noise = preconditioning(sigma, "flow")
    time = sigma / (1 + sigma)
    velocity = _field(c_in * x, c_noise)
    np.testing.assert_allclose(c_noise, time)
    np.testing.assert_allclose(c_skip * x + c_out * velocity, x / (1 + sigma) - time * velocity, rtol=1e-5)


@pytest.mark.parametrize(("parameterisation", "sigma_data"), [("score", 1.0), ("flow", 0.5)])
def test_preconditioning_that_does_not_exist_is_refused(parameterisation, sigma_data):
    with pytest.raises(ConfigError, match="parameterisation"):
        preconditioning(jnp.ones(()), parameterisation, sigma_data)


@pytest.mark.parametrize("method", ["euler", "unipc"])
def test_sample_of_a_pytree_is_that_of_its_arrays(method):
    schedule = build_schedule(SolverConfig(num_steps=5, method=method, sigmas="wan", shift=3.0))
    keys = jax.random.split(jax.random.key(0), 2)
    noise = {"video": jax.random.normal(keys[0], (2, 3)), "actions": jax.random.normal(keys[1], (2, 4, 1))}

    def velocity(x, time):
        return jax.tree.map(lambda leaf: _field(leaf, time / 1000.0), x)

    together = sample(velocity, noise, schedule)
    for name, leaf in noise.items():
        np.testing.assert_allclose(together[name], sample(velocity, leaf, schedule), atol=1e-6)
        np.testing.assert_allclose(together[name], sample(velocity, noise, schedule, trajectory=True)[name][-1])


def test_sample_of_half_precision_noise_is_kept_in_fp32():
    schedule = build_schedule(_unipc(3, 3.0))
    noise = jnp.ones((2,), jnp.bfloat16)
    assert sample(lambda x, time: _field(x, time / 1000.0), noise, schedule).dtype == jnp.float32


def _conditional(x, time, condition):
    return _field(x, time) * condition["scale"][:, None] + condition["shift"][:, None]


def test_guided_is_one_call_on_twice_the_batch():
    x = jax.random.normal(jax.random.key(0), (3, 4))
    condition = {"scale": jnp.array([1.0, 2.0, 3.0]), "shift": jnp.array([0.5, 0.0, -1.0])}
    nothing = jax.tree.map(jnp.zeros_like, condition)
    batches = []

    def model(x, time, condition):
        batches.append(x.shape[0])
        return _conditional(x, time, condition)

    got = guided(model, condition, nothing, 4.5)(x, jnp.float32(0.3))
    conditional, unconditional = (_conditional(x, 0.3, c) for c in (condition, nothing))
    np.testing.assert_allclose(got, unconditional + 4.5 * (conditional - unconditional), atol=1e-5)
    np.testing.assert_allclose(guided(model, condition, nothing, 1.0)(x, jnp.float32(0.3)), conditional, atol=1e-6)
    assert batches == [6, 3]


def test_guided_scale_may_depend_on_the_time():
    x, condition = jnp.ones((1, 2)), {"scale": jnp.ones(1), "shift": jnp.ones(1)}
    nothing = jax.tree.map(jnp.zeros_like, condition)
    predict = guided(_conditional, condition, nothing, lambda time: jnp.where(time >= 0.9, 3.5, 4.0))
    for time, scale in ((0.95, 3.5), (0.2, 4.0)):
        np.testing.assert_allclose(predict(x, jnp.float32(time)), scale * _conditional(x, time, condition), rtol=1e-5)


def test_guide_of_cosmos_counts_from_the_condition():
    conditional, unconditional = jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0])
    expected = conditional + 7.0 * (conditional - unconditional)
    np.testing.assert_allclose(guide(conditional, unconditional, 7.0 + 1.0), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_steps": 0}, "num_steps=0"),
        ({"method": "heun"}, "method='heun'"),
        ({"sigmas": "linear"}, "sigmas='linear'"),
        ({"method": "unipc", "sigmas": "uniform"}, "first level is below 1"),
        ({"method": "adams", "sigmas": "uniform"}, "the levels of EDM"),
        ({"shift": 0.0}, "shift=0.0"),
        ({"sigmas": "karras", "shift": 3.0}, "karras"),
        ({"sigmas": "karras", "sigma_min": 90.0}, "sigma_min=90.0"),
        ({"final_sigma": "one"}, "final_sigma='one'"),
    ],
)
def test_solver_config_that_cannot_be_is_refused(changes, reason):
    with pytest.raises(ConfigError, match=reason):
        build_schedule(SolverConfig(**{"num_steps": 4, **changes}))


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="needs the parity extra (diffusers)")
def test_flow_solvers_follow_diffusers_at_other_settings():
    import torch

    from tests.golden import make_solvers

    noise = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(3))
    for num_steps, shift in ((3, 1.0), (4, 8.0), (20, 12.0), (100, 5.0)):
        cases = {
            make_solvers.unipc: _unipc(num_steps, shift),
            make_solvers.wan: _unipc(num_steps, shift, "wan"),
            make_solvers.euler: SolverConfig(num_steps=num_steps, sigmas="diffusers_euler", shift=shift),
        }
        for reference, config in cases.items():
            golden = {f"case/{name}": array for name, array in reference(noise, num_steps, shift).items()}
            _check(golden, "case", config, lambda x, time: _field(x, time / 1000.0))
