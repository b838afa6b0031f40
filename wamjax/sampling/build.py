"""Which policy a run of a backbone has."""

from __future__ import annotations

from wamjax.config.schema import RunConfig
from wamjax.config.systems import check_acts
from wamjax.errors import ConfigError
from wamjax.sampling.latent_frames_policy import LatentFramesPolicy
from wamjax.sampling.latent_policy import LatentPolicy
from wamjax.sampling.plan_policy import LatentPlanPolicy
from wamjax.sampling.policy import LatentCodec, PromptTable
from wamjax.sampling.stages import is_guided
from wamjax.sampling.two_stage_policy import InverseDynamics, TwoStagePolicy
from wamjax.types import PureDict

BackbonePolicy = LatentPolicy | LatentFramesPolicy | TwoStagePolicy


def build_policy(
    config: RunConfig,
    params: PureDict,
    *,
    codec: LatentCodec,
    prompts: PromptTable,
    imagine: bool = False,
    inverse_dynamics: InverseDynamics | None = None,
) -> BackbonePolicy:
    """Returns the policy of a run with a backbone.

    Args:
      config: As of ``latent_policy.LatentPolicy``, and so the rest.
      params: Of the model.
      codec: Between pixels and latents.
      prompts: Encoded prompts.
      imagine: Whether video is denoised where actions do not need it.
      inverse_dynamics: What reads actions off the clips of a run that generates video alone.

    Raises:
      ConfigError: The run has no backbone, or a model or formulation that does not act.
    """
    check_acts(config, reads_video=inverse_dynamics is not None)
    if config.objective.prompt_dropout and is_guided(config) and prompts.negative is None:
        raise ConfigError(
            f"config.objective.prompt_dropout={config.objective.prompt_dropout}: {config.name} was trained with the "
            "empty prompt where prompts were dropped, and guidance leads away from that; give its embedding as "
            "PromptTable.negative"
        )
    if inverse_dynamics is not None:
        return TwoStagePolicy(config, params, inverse_dynamics=inverse_dynamics, codec=codec, prompts=prompts)
    if config.backbone is None:
        raise ConfigError(
            "config.backbone is none: the small model on pixels acts as sampling.pixel_policy.PixelPolicy"
        )
    if config.layout.formulation == "latent_frames":
        return LatentFramesPolicy(config, params, codec=codec, prompts=prompts)
    make = LatentPlanPolicy if config.layout.formulation == "plan" else LatentPolicy
    return make(config, params, codec=codec, prompts=prompts, imagine=imagine)
