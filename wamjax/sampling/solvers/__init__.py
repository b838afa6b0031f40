"""Solvers of the sampling equation: noise levels, Euler and UniPC steps, EDM preconditioning, guidance.

Arrays of a schedule are computed once in NumPy; everything that touches a sample is pure and can be jitted. Knows no
model: a caller gives a function from (sample, time) to a velocity.
"""

from wamjax.sampling.solvers.edm import denoiser_velocity, precondition
from wamjax.sampling.solvers.guidance import guide, guided
from wamjax.sampling.solvers.integrate import sample, sample_reusing
from wamjax.sampling.solvers.schedule import Schedule, SolverConfig, build_schedule

__all__ = [
    "Schedule",
    "SolverConfig",
    "build_schedule",
    "denoiser_velocity",
    "guide",
    "guided",
    "precondition",
    "sample",
    "sample_reusing",
]
