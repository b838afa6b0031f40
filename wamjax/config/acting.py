"""Which settings of ``config.sampling`` a formulation's policy reads; those that would change nothing are refused."""

from __future__ import annotations

from wamjax.config.blocks import is_small
from wamjax.config.sampling import SamplingConfig
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError

# Solvers of formulations that do not take both of a flow's.
_SOLVERS = {
    "latent_frames": ("adams", "euler"),
    "policy": ("euler",),
    "queries": ("euler",),
    "plan": ("euler",),
    "frame_pairs": ("euler",),
}
# Why neither guidance nor steps that are left out have a place.
_UNGUIDED = {
    "latent_frames": "is sampled without",
    "policy": "is sampled without",
    "queries": "answers at once, without solver steps",
    "plan": "decodes actions at once, without solver steps that could be guided or left out",
    "frame_pairs": "reads actions at once, without solver steps",
}


def check_acting(config: RunConfig) -> None:
    """Refuses settings of how a run acts that its formulation does not read, and prompts that are dropped for nothing.

    Raises:
      ConfigError: The solver is of other noise levels, what is not denoised in steps is to be guided, or video and
        actions are to be at noise levels apart that training did not have.
    """
    sampling, formulation = config.sampling, config.layout.formulation
    if is_small(config):
        _check_small(sampling)
        return
    if formulation in _UNGUIDED and (
        sampling.guidance != 1 or sampling.action_guidance != 1 or sampling.evaluated_steps
    ):
        raise ConfigError(
            f"config.sampling has guidance={sampling.guidance}, action_guidance={sampling.action_guidance} and "
            f"evaluated_steps={sampling.evaluated_steps}; formulation {formulation} {_UNGUIDED[formulation]}: set them "
            "to 1, 1 and ()"
        )
    if formulation in _UNGUIDED and config.objective.prompt_dropout:
        raise ConfigError(
            f"config.objective.prompt_dropout={config.objective.prompt_dropout} drops prompts so that guidance has "
            f"something to lead away from; formulation {formulation} is not guided: set it to 0"
        )
    solvers = _SOLVERS.get(formulation, ("euler", "unipc"))
    if sampling.solver == "adams" and "adams" not in solvers:
        raise ConfigError(
            "config.sampling.solver=adams steps between EDM's noise levels, which config.layout.formulation="
            f"latent_frames alone has; this one is {formulation}: set it to {' or '.join(solvers)}"
        )
    if sampling.solver not in solvers:
        raise ConfigError(
            f"config.sampling.solver={sampling.solver}; formulation {formulation} is solved by {' or '.join(solvers)}"
        )
    _check_unread(config)
    _check_times(config)


def denoises_together(config: RunConfig) -> bool:
    """Whether video and actions are denoised in the same solver steps, as tokens of their own."""
    sizes = config.layout
    return sizes.formulation == "joint" or (sizes.formulation == "first_frame" and sizes.family == "joint")


def _check_unread(config: RunConfig) -> None:
    """Refuses noise levels, steps and guidance of what this formulation's policy does not denoise."""
    sampling, sizes, default = config.sampling, config.layout, SamplingConfig()
    is_representation = sizes.formulation == "first_frame" and sizes.family == "representation"
    has_second = sizes.formulation == "alternating" or (
        sizes.formulation == "first_frame" and sizes.family == "inverse_dynamics"
    )
    reads_levels = sizes.formulation == "latent_frames"
    unread = {
        "sigma_max": "" if reads_levels else "noise levels are EDM's in formulation latent_frames alone",
        "sigma_min": "" if reads_levels else "noise levels are EDM's in formulation latent_frames alone",
        "action_steps": "" if has_second else "no actions are denoised after a video",
        "guidance": "no video is denoised to act" if is_representation else "",
    }
    for name, reason in unread.items():
        value, left = getattr(sampling, name), getattr(default, name)
        if reason and value != left:
            raise ConfigError(
                f"config.sampling.{name}={value} changes nothing: {reason} (config.layout.formulation="
                f"{sizes.formulation}, family {sizes.family}); leave it at {left}"
            )


def _check_times(config: RunConfig) -> None:
    """Refuses noise levels of video and actions that differ where training had them equal, or has no such pair."""
    sampling, objective, sizes = config.sampling, config.objective, config.layout
    is_shared = sizes.formulation == "joint" and sizes.action_times == "shared"
    final = sampling.video_final_noise
    if final and not denoises_together(config):
        raise ConfigError(
            f"config.sampling.video_final_noise={final} leaves video noisy beside actions that are denoised with it; "
            f"config.layout.formulation={sizes.formulation} of family {sizes.family} does not denoise them together: "
            "set it to 0"
        )
    if final and is_shared:
        raise ConfigError(
            f"config.sampling.video_final_noise={final} with config.layout.action_times=shared: actions are trained at "
            "their block's noise level, never clean beside noisy video; train with action_times=own, or set it to 0"
        )
    shift = sampling.shift or objective.shift
    action_shift = sampling.action_shift or objective.action_shift or shift
    if is_shared and action_shift != shift:
        raise ConfigError(
            f"config.sampling.action_shift={action_shift} (or, where it is 0, that of config.objective) with shift="
            f"{shift}: video and actions are denoised together, at the noise levels they share in training; make them "
            "equal, or train with config.layout.action_times=own"
        )


def _check_small(sampling: SamplingConfig) -> None:
    default = SamplingConfig()
    for name in ("solver", "guidance", "action_guidance", "evaluated_steps", "video_final_noise"):
        if getattr(sampling, name) != getattr(default, name):
            raise ConfigError(
                f"config.sampling.{name}={getattr(sampling, name)}: the small model on pixels takes "
                f"config.evaluate.solver_steps Euler steps without guidance; leave it at {getattr(default, name)}"
            )
