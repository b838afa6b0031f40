"""UniPC of second order for flow matching: predict with the last two denoised samples, correct with the newest.

Every update is a linear combination of samples and denoised samples whose factors depend on the levels alone, so they
are computed once, in fp64, and a step is a few multiply-adds per value.

Source: Zhao et al., "UniPC" (arXiv 2302.04867), algorithms 5 and 6 with B(h) = exp(h) - 1 ("bh2") and data prediction;
equal to ``UniPCMultistepScheduler`` of diffusers and ``FlowUniPCMultistepScheduler`` of Wan, which compute the factors
in fp32 at every step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Sample = Any  # an array or a pytree of arrays


class Factors(NamedTuple):
    """Factors of each step i: fp32 ``[n]``, or scalars of one step inside a scan.

    Corrected sample = correct_sample x'_(i-1) + correct_new m_i + correct_last m_(i-1) + correct_older m_(i-2);
    next sample = predict_sample x'_i + predict_new m_i + predict_last m_(i-1); m is the denoised sample, x' corrected.

    Attributes:
      sigma: Level of the step.
      use_corrector: Bool; not at the first step, which has no past.
    """

    sigma: Any
    use_corrector: Any
    correct_sample: Any
    correct_new: Any
    correct_last: Any
    correct_older: Any
    predict_sample: Any
    predict_new: Any
    predict_last: Any


class State(NamedTuple):
    """What a step hands to the next.

    Attributes:
      sample: The predicted sample at the current level.
      corrected: The corrected sample at the level before.
      last: Denoised sample of the step before.
      older: Denoised sample of two steps before.
    """

    sample: Sample
    corrected: Sample
    last: Sample
    older: Sample


def unipc_factors(sigmas: np.ndarray) -> Factors:
    """Computes the factors of every step.

    The first step has one denoised sample and the last goes to sigma = 0: both are of first order.

    Args:
      sigmas: ``[n + 1]`` descending from below 1 to 0.
    """
    num_steps = len(sigmas) - 1
    levels = np.asarray(sigmas, np.float64)
    with np.errstate(divide="ignore"):
        half_log_snr = np.log1p(-levels) - np.log(levels)  # lambda; infinite at sigma = 0
    orders = [min(2, step + 1, num_steps - step) for step in range(num_steps)]
    rows = []
    for step, order in enumerate(orders):
        correct = (1.0, 0.0, 0.0, 0.0)
        if step:
            correct = _corrector(levels, half_log_snr, step, orders[step - 1])
        rows.append((levels[step], step > 0, *correct, *_predictor(levels, half_log_snr, step, order)))
    columns = list(zip(*rows, strict=True))
    return Factors(*(np.array(c, bool if i == 1 else np.float32) for i, c in enumerate(columns)))


def init_state(noise: Sample) -> State:
    """Returns the state before the first step, whose past is not read."""
    zeros = jax.tree.map(jnp.zeros_like, noise)
    return State(sample=noise, corrected=zeros, last=zeros, older=zeros)


def unipc_step(state: State, velocity: Sample, factors: Factors) -> State:
    """Takes one step.

    Args:
      state: Before the step.
      velocity: noise - x_0 as the model gives it for ``state.sample``.
      factors: Of this step (scalars).
    """
    f = factors
    new = jax.tree.map(lambda x, v: x - f.sigma * v, state.sample, velocity)

    def correct(x: jax.Array, before: jax.Array, new: jax.Array, last: jax.Array, older: jax.Array) -> jax.Array:
        better = f.correct_sample * before + f.correct_new * new + f.correct_last * last + f.correct_older * older
        return jnp.where(f.use_corrector, better, x)

    def predict(x: jax.Array, new: jax.Array, last: jax.Array) -> jax.Array:
        return f.predict_sample * x + f.predict_new * new + f.predict_last * last

    corrected = jax.tree.map(correct, state.sample, state.corrected, new, state.last, state.older)
    sample = jax.tree.map(predict, corrected, new, state.last)
    return State(sample=sample, corrected=corrected, last=new, older=state.last)


def _predictor(levels: np.ndarray, half_log_snr: np.ndarray, step: int, order: int) -> tuple[float, float, float]:
    """Factors of (corrected sample, newest denoised, the one before) from level ``step`` to the next."""
    h = half_log_snr[step + 1] - half_log_snr[step]
    alpha, growth = 1.0 - levels[step + 1], np.expm1(-h)  # B(-h); alpha growth < 0
    sample, new, last = levels[step + 1] / levels[step], -alpha * growth, 0.0
    if order == 2:
        ratio = (half_log_snr[step - 1] - half_log_snr[step]) / h
        slope = -alpha * growth * 0.5 / ratio
        new, last = new - slope, slope
    return sample, new, last


def _corrector(
    levels: np.ndarray, half_log_snr: np.ndarray, step: int, order: int
) -> tuple[float, float, float, float]:
    """Factors of (last corrected sample, newest denoised, the last, the one before) that correct level ``step``."""
    h = half_log_snr[step] - half_log_snr[step - 1]
    alpha, growth = 1.0 - levels[step], np.expm1(-h)
    scale = -alpha * growth
    sample, last = levels[step] / levels[step - 1], scale
    if order == 1:
        weight, older = 0.5, 0.0
    else:
        # Weights that make the update exact for quadratics: [[1, 1], [ratio, 1]] w = b, with phi_2 and phi_3 of -h.
        ratio = (half_log_snr[step - 2] - half_log_snr[step - 1]) / h
        phi = growth / -h - 1.0
        b = np.array([phi, (phi / -h - 0.5) * 2.0]) / growth
        past, weight = np.linalg.solve(np.array([[1.0, 1.0], [ratio, 1.0]]), b)
        older = scale * past / ratio
    new = scale * weight
    return sample, new, last - new - older, older
