"""Adams-Bashforth steps of second order on EDM's levels: one evaluation each, and a line through the last two.

With l = -log sigma the sampling equation is dx/dl = D(x, l) - x. Between two levels, l_s and l_t = l_s + h, it is
solved exactly for a denoised sample D on the line through the last two evaluations, D_s and D_p at l_p:

x_t = e^-h x_s + h ((phi_1 - phi_2 / c) D_s + phi_2 / c D_p), c = (l_p - l_s) / h, phi_1 = (1 - e^-h) / h,
phi_2 = (1 - phi_1) / h.

The first step, which has no evaluation before it, and the last, which ends at 0, take D_s as it is: Euler's.

Source: Zhang et al. (arXiv 2308.02157), multistep of order 2; "2ab" of the samplers of Cosmos-Predict2 and of Cosmos
Policy.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
import numpy.typing as npt


class AdamsFactors(NamedTuple):
    """Factors of one step, or fp32 ``[n]`` of all.

    Attributes:
      decay: Of the sample.
      own: Of what is denoised now.
      before: Of what was denoised one step before.
    """

    decay: npt.NDArray[np.float32] | jax.Array
    own: npt.NDArray[np.float32] | jax.Array
    before: npt.NDArray[np.float32] | jax.Array


def adams_factors(sigmas: npt.NDArray[np.float32]) -> AdamsFactors:
    """Returns the factors of all steps between ``sigmas`` ``[n + 1]``, descending."""
    levels = sigmas.astype(np.float64)
    decay = levels[1:] / levels[:-1]
    before = np.zeros_like(decay)
    for step in range(1, len(decay)):
        if not 0 < levels[step + 1] < levels[step]:
            continue  # to 0, or nowhere
        h, back = np.log(levels[step] / levels[step + 1]), np.log(levels[step] / levels[step - 1])
        before[step] = (h + np.expm1(-h)) / back  # h phi_2 / c
    return AdamsFactors(*(part.astype(np.float32) for part in (decay, 1.0 - decay - before, before)))
