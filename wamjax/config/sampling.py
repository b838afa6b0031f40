"""How a trained system acts: solver steps, guidance, and which steps run the model at all."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Denoising of one chunk by a policy of a backbone (``wamjax.sampling.policy``).

    The small model on pixels has ``evaluate.solver_steps`` and no guidance.

    Attributes:
      solver: ``euler``; ``unipc`` (second order, as Wan's own code places its levels); or, of ``latent_frames`` alone,
        ``adams`` (second order between EDM's levels, one evaluation a step: Cosmos Policy).
      steps: Solver steps of what is denoised first: of video, of video and actions together, or of actions where they
        are all that is denoised.
      action_steps: Solver steps of actions that are denoised after the video (``alternating``, ``inverse_dynamics``);
        0 for ``steps``.
      shift: Timestep shift of ``steps``; 0 for the shift of training (``objective.shift``).
      action_shift: Timestep shift of actions; 0 for that of training (``objective.action_shift`` or, where that is 0
        too, ``objective.shift``). Another than the video's, denoised in the same steps, needs times of their own.
      video_final_noise: Noise level at which video stays when the actions denoised with it are clean: its levels are
        moved in proportion, and 0 denoises it whole. Needs actions with times of their own in training
        (``layout.action_times = own``, or ``first_frame`` of family ``joint``). Released for DreamZero-Flash: 0.8.
      guidance: Scale of classifier-free guidance of video; 1 for none.
      action_guidance: The same of actions.
      evaluated_steps: Indices of the steps at which the model runs, the first being 0; at the others its last velocity
        stands (DreamZero's cached steps). Empty: at every step.
      sigma_max: First noise level of ``latent_frames``, which is sampled along EDM's levels.
      sigma_min: Last noise level of ``latent_frames`` before 0.
    """

    solver: Literal["euler", "unipc", "adams"] = "euler"
    steps: int = 10
    action_steps: int = 0
    shift: float = 0.0
    action_shift: float = 0.0
    video_final_noise: float = 0.0
    guidance: float = 1.0
    action_guidance: float = 1.0
    evaluated_steps: tuple[int, ...] = ()
    sigma_max: float = 80.0
    sigma_min: float = 4.0
