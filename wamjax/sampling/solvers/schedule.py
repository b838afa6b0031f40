"""Noise levels of a sampler, from noise to data.

Flow: x_sigma = (1 - sigma) x_0 + sigma noise, sigma from 1 to 0. EDM: x_sigma = x_0 + sigma noise, sigma from 80 down.
Libraries place the levels of a flow differently, by up to 4e-3, and round the times they give the model differently;
the convention is named, never guessed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from wamjax.errors import ConfigError
from wamjax.objectives.flow_matching import shift_time

NUM_TRAIN_TIMESTEPS = 1000  # the ids a flow model was trained on: 1000 sigma


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """Which solver, at which noise levels.

    Attributes:
      num_steps: Model evaluations n (guidance doubles them).
      method: ``euler``; ``unipc`` (second order, predictor and corrector: one evaluation per step); or ``adams``
        (second order, on the levels of EDM: one evaluation per step).
      sigmas: Where the levels lie.
        ``uniform``: n equal steps of t from 1 to 0, shifted.
        ``diffusers_euler``: ``FlowMatchEulerDiscreteScheduler(shift)``: from 1 to the smallest level of training, which
        is shifted twice, then 0.
        ``diffusers_unipc``: ``UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift)``: n steps from 1 to 1/1000
        without the last level, then 0; the first is 1 - 1e-6; ids are cut to whole numbers.
        ``wan``: ``FlowUniPCMultistepScheduler`` of the original Wan code: n steps from 0.999 to 0; ids are cut to whole
        numbers.
        ``karras``: levels of EDM, equally spaced in sigma^(1/rho).
      shift: Timestep shift s of the flow conventions: s t / (1 + (s - 1) t).
      sigma_max: First level of ``karras``.
      sigma_min: Last level of ``karras`` but one.
      rho: Exponent of ``karras``.
      final_sigma: Last level of ``karras``: ``zero``, or ``sigma_min`` again, which leaves the last step without effect
        (Cosmos).
      final_noise: Level of a flow at which the sample is left, 0 being data: all levels are moved in proportion, the
        first stays.
    """

    num_steps: int
    method: str = "euler"
    sigmas: str = "uniform"
    shift: float = 1.0
    sigma_max: float = 80.0
    sigma_min: float = 0.002
    rho: float = 7.0
    final_sigma: str = "zero"
    final_noise: float = 0.0


# Source: diffusers, Cosmos2VideoToWorldPipeline: num_inference_steps=35, sigmas and their end set in its constructor.
COSMOS_PREDICT2 = SolverConfig(num_steps=35, sigmas="karras", final_sigma="sigma_min")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """Arrays of one sampling run.

    Attributes:
      method: The step that is taken between levels.
      sigmas: fp32 ``[n + 1]``, descending: the levels.
      times: fp32 ``[n]``: what the model is told at each step: ids 0..1000 of a flow, sigma itself of EDM.
      noise_scale: Standard deviation of the first sample.
    """

    method: str
    sigmas: npt.NDArray[np.float32]
    times: npt.NDArray[np.float32]
    noise_scale: float

    @property
    def num_steps(self) -> int:
        """Returns the number of model evaluations."""
        return len(self.times)


def build_schedule(config: SolverConfig) -> Schedule:
    """Computes the levels of ``config``.

    Raises:
      ConfigError: A value is out of range, or the parts do not fit together.
    """
    _check(config)
    if config.sigmas == "karras":
        sigmas = karras_sigmas(config.num_steps, config.sigma_min, config.sigma_max, config.rho)
        last = sigmas[-1] if config.final_sigma == "sigma_min" else np.float32(0.0)
        return Schedule(
            method=config.method,
            sigmas=np.append(sigmas, last).astype(np.float32),
            times=sigmas.astype(np.float32),
            noise_scale=float(sigmas[0]),
        )
    levels = _FLOW_LEVELS[config.sigmas](config.num_steps, config.shift)
    if config.final_noise:
        levels = _leave_noise(levels, config.final_noise)
    times = levels * NUM_TRAIN_TIMESTEPS
    if config.sigmas in _WHOLE_IDS:
        times = np.trunc(times)
    sigmas = np.append(levels, config.final_noise).astype(np.float32)
    return Schedule(method=config.method, sigmas=sigmas, times=times.astype(np.float32), noise_scale=1.0)


def _leave_noise(levels: npt.NDArray[Any], final: float) -> npt.NDArray[np.float32]:
    """Moves ``levels``, which lead to 0, so that they lead to ``final``: in fp32, which decides where ids are cut.

    Source: DreamZero's released code, ``decouple_inference_noise`` of its action head.

    Raises:
      ConfigError: The first level is below ``final``.
    """
    first = float(np.float32(levels[0]))
    if final >= first:
        raise ConfigError(
            f"config.sampling.video_final_noise={final}: expected less than the first level of the video, {first:g} "
            "(by config.sampling.shift, solver and steps); lower it"
        )
    scaled = levels.astype(np.float32) * np.float32(first - final) / np.float32(first)
    return scaled + np.float32(final)


def karras_sigmas(num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> npt.NDArray[np.float32]:
    """Returns ``num_steps`` levels from ``sigma_max`` to ``sigma_min``, both included, equally spaced in sigma^(1/rho).

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", eq. 5.
    """
    ramp = np.linspace(0.0, 1.0, num_steps)
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return ((first + ramp * (last - first)) ** rho).astype(np.float32)


def _uniform(num_steps: int, shift: float) -> npt.NDArray[Any]:
    return np.asarray(shift_time(np.linspace(1.0, 0.0, num_steps + 1)[:-1], shift))


def _diffusers_euler(num_steps: int, shift: float) -> npt.NDArray[Any]:
    # The end of the grid is taken from levels that are shifted already, in fp32; then the grid is shifted.
    end = shift_time(np.full(1, 1.0 / NUM_TRAIN_TIMESTEPS, np.float32), shift)[0]
    ids = np.linspace(NUM_TRAIN_TIMESTEPS, NUM_TRAIN_TIMESTEPS * float(end), num_steps)
    return np.asarray(shift_time(ids / NUM_TRAIN_TIMESTEPS, shift)).astype(np.float32)


def _diffusers_unipc(num_steps: int, shift: float) -> npt.NDArray[Any]:
    levels = np.linspace(1.0, 1.0 / NUM_TRAIN_TIMESTEPS, num_steps + 1)[:-1]
    levels = np.asarray(shift_time(levels, shift))
    levels[0] -= 1e-6  # at 1 there is no data left in the sample, and its logarithm is infinite
    return levels


def _wan(num_steps: int, shift: float) -> npt.NDArray[Any]:
    # Its constructor takes 1 - 1/1000 in fp32 for the largest level, and 0 for the smallest.
    first = float(np.float32(1.0 - 1.0 / NUM_TRAIN_TIMESTEPS))
    return np.asarray(shift_time(np.linspace(first, 0.0, num_steps + 1)[:-1], shift))


_WHOLE_IDS = ("diffusers_unipc", "wan")  # whose ids are cut to whole numbers
_FLOW_LEVELS = {
    "uniform": _uniform,
    "diffusers_euler": _diffusers_euler,
    "diffusers_unipc": _diffusers_unipc,
    "wan": _wan,
}


def _check(config: SolverConfig) -> None:
    conventions = (*_FLOW_LEVELS, "karras")
    if config.num_steps < 1:
        raise ConfigError(f"solver num_steps={config.num_steps}; expected at least 1")
    if config.method not in ("euler", "unipc", "adams"):
        raise ConfigError(f"solver method={config.method!r}; expected 'euler', 'unipc' or 'adams'")
    if config.sigmas not in conventions:
        raise ConfigError(f"solver sigmas={config.sigmas!r}; expected one of {sorted(conventions)}")
    if config.final_sigma not in ("zero", "sigma_min"):
        raise ConfigError(f"solver final_sigma={config.final_sigma!r}; expected 'zero' or 'sigma_min'")
    if config.method == "unipc" and config.sigmas not in ("diffusers_unipc", "wan"):
        raise ConfigError(
            f"solver method='unipc' with sigmas={config.sigmas!r}; expected 'diffusers_unipc' or 'wan', whose first "
            "level is below 1"
        )
    if config.method == "adams" and config.sigmas != "karras":
        raise ConfigError(f"solver method='adams' with sigmas={config.sigmas!r}; expected 'karras', the levels of EDM")
    if config.shift <= 0:
        raise ConfigError(f"solver shift={config.shift}; expected a positive number (1 for none)")
    if config.sigmas == "karras" and config.shift != 1:
        raise ConfigError(f"solver shift={config.shift} with sigmas='karras'; only the levels of a flow are shifted")
    if not 0 <= config.final_noise < 1 or (config.final_noise and config.sigmas == "karras"):
        raise ConfigError(
            f"solver final_noise={config.final_noise} with sigmas={config.sigmas!r}; expected at least 0 and below 1, "
            "and 0 with 'karras'"
        )
    if not 0 < config.sigma_min < config.sigma_max:
        raise ConfigError(
            f"solver sigma_min={config.sigma_min}, sigma_max={config.sigma_max}; expected 0 < sigma_min < sigma_max"
        )
