"""Writes the golden trajectories of the solvers: diffusers' schedulers driven by a fixed field in place of a model.

    python tests/golden/make_solvers.py [FILE]

Needs torch and diffusers; the committed file was written with torch 2.13.0 (CPU), diffusers 0.42.1 and numpy 2.4.6.
For each case it holds ``<case>/sigmas`` and ``<case>/trajectory`` (the noise first), and ``<case>/times`` where the
pipeline tells them to the model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

Case = dict[str, np.ndarray]


def field(x: torch.Tensor, time: torch.Tensor | float) -> torch.Tensor:
    """Stands in for a model: smooth, not linear, dependent on the time (order 1)."""
    return torch.sin(2.0 * x + 3.0 * time) + 0.4 * x - 0.3 * torch.cos(x) * time


def run(scheduler: Any, noise: torch.Tensor, predict: Callable[[torch.Tensor, int], torch.Tensor]) -> Case:
    """Runs ``scheduler`` from ``noise``; ``predict`` gives the model's output from the sample and the step."""
    x, samples = noise, [noise]
    for step, time in enumerate(scheduler.timesteps):
        x = scheduler.step(predict(x, step), time, x, return_dict=False)[0]
        samples.append(x)
    trajectory = torch.stack(samples).numpy()
    return {"sigmas": scheduler.sigmas.numpy(), "times": scheduler.timesteps.numpy(), "trajectory": trajectory}


def unipc(noise: torch.Tensor, num_steps: int, shift: float) -> Case:
    """Wan pipelines of diffusers."""
    scheduler: Any = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(num_steps)
    return run(scheduler, noise, lambda x, step: field(x, scheduler.timesteps[step] / 1000.0))


def wan(noise: torch.Tensor, num_steps: int, shift: float) -> Case:
    """The original Wan code: the same steps at its own levels (wan/utils/fm_solvers_unipc.py, set_timesteps)."""
    scheduler: Any = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(num_steps)
    largest = torch.tensor(1.0 - 1.0 / 1000.0, dtype=torch.float32).item()
    levels = np.linspace(largest, 0.0, num_steps + 1)[:-1]
    levels = shift * levels / (1 + (shift - 1) * levels)
    scheduler.timesteps = torch.from_numpy(levels * 1000).to(torch.int64)
    scheduler.sigmas = torch.from_numpy(np.concatenate([levels, [0.0]]).astype(np.float32))
    return run(scheduler, noise, lambda x, step: field(x, scheduler.timesteps[step] / 1000.0))


def euler(noise: torch.Tensor, num_steps: int, shift: float) -> Case:
    """Flow pipelines of diffusers with the Euler scheduler."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(num_steps)
    return run(scheduler, noise, lambda x, step: field(x, scheduler.timesteps[step] / 1000.0))


def edm(noise: torch.Tensor, num_steps: int, sigma_data: float, prediction_type: Any) -> Case:
    """The first Cosmos's pipelines: the EDM scheduler, which preconditions."""
    scheduler: Any = EDMEulerScheduler(sigma_data=sigma_data, prediction_type=prediction_type)
    scheduler.set_timesteps(num_steps)

    def predict(x: torch.Tensor, step: int) -> torch.Tensor:
        time = scheduler.timesteps[step]
        return field(scheduler.scale_model_input(x, time), time)

    case = run(scheduler, noise * scheduler.config.sigma_max, predict)
    return {"sigmas": case["sigmas"], "trajectory": case["trajectory"]}


def cosmos(noise: torch.Tensor, num_steps: int) -> Case:
    """Cosmos-Predict2: the Euler flow scheduler over EDM's levels, preconditioned by the pipeline."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    scheduler.register_to_config(sigma_max=80.0, sigma_min=0.002, sigma_data=1.0, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(sigmas=torch.linspace(0, 1, num_steps, dtype=torch.float64))
    scheduler.sigmas[-1] = scheduler.sigmas[-2]

    def predict(x: torch.Tensor, step: int) -> torch.Tensor:
        sigma = scheduler.sigmas[step]
        time = sigma / (sigma + 1)
        denoised = (1 - time) * x - time * field(x * (1 - time), time)
        return (x - denoised) / sigma

    case = run(scheduler, noise * 80.0, predict)
    return {"sigmas": case["sigmas"], "trajectory": case["trajectory"]}


def main(file: Path) -> None:
    """Writes every case into ``file``."""
    noise = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    cases = {
        **{f"unipc_{n}_{s}": unipc(noise, n, s) for n, s in ((1, 3.0), (2, 5.0), (10, 5.0), (50, 3.0))},
        **{f"wan_{n}_{s}": wan(noise, n, s) for n, s in ((1, 5.0), (10, 5.0), (50, 3.0))},
        **{f"euler_{n}_{s}": euler(noise, n, s) for n, s in ((1, 1.0), (10, 5.0), (50, 3.0))},
        "edm_12_epsilon": edm(noise, 12, 1.0, "epsilon"),
        "edm_12_velocity": edm(noise, 12, 0.5, "v_prediction"),
        "cosmos_35": cosmos(noise, 35),
    }
    arrays = {f"{case}/{name}": array for case, arrays in cases.items() for name, array in arrays.items()}
    np.savez_compressed(file, allow_pickle=False, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "solvers.npz")
