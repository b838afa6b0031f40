"""Which policy a run has."""

from __future__ import annotations

from wamjax.config.acting import check_acting
from wamjax.config.schema import RunConfig
from wamjax.config.systems import check_has_actions
from wamjax.errors import ConfigError
from wamjax.sampling.action_policy import ActionPolicy
from wamjax.sampling.latent_frames_policy import LatentFramesPolicy
from wamjax.sampling.latent_policy import LatentPolicy
from wamjax.sampling.plan_policy import LatentPlanPolicy
from wamjax.sampling.policy import LatentCodec, PictureEncoder, PromptTable, PromptWriter
from wamjax.sampling.queries_policy import QueriesPolicy
from wamjax.sampling.stages import is_guided
from wamjax.sampling.two_stage_policy import InverseDynamics, TwoStagePolicy
from wamjax.types import PureDict

BackbonePolicy = LatentPolicy | LatentFramesPolicy | ActionPolicy | QueriesPolicy | TwoStagePolicy


def build_policy(
    config: RunConfig,
    params: PureDict,
    *,
    codec: LatentCodec | PictureEncoder | None,
    prompts: PromptTable | PromptWriter,
    imagine: bool = False,
    decodes: bool = True,
    inverse_dynamics: InverseDynamics | None = None,
) -> BackbonePolicy:
    """Returns the policy of a run with a backbone, a vision-language-action model or a GPT.

    Args:
      config: The run.
      params: Pure dict of arrays.
      codec: Between pixels and what the model reads: latents of a backbone, features of a GPT; None for a
        vision-language-action model, which reads pixels.
      prompts: Encoded prompts; of a vision-language-action model what writes them.
      imagine: Whether video is denoised where actions do not need it, to be looked at.
      decodes: Whether denoised video is decoded where no actions are read off its pixels.
      inverse_dynamics: What reads actions off the clips of a run that generates video alone.

    Raises:
      ConfigError: The run is of the small model, its formulation does not act or not as ``config.sampling`` says, what
        guidance leads away from is unknown, or the run is one of two stages and the other is not there.
    """
    if inverse_dynamics is None:
        check_has_actions(config)
    check_acting(config)
    if config.vla is not None:
        assert isinstance(prompts, PromptWriter), "a vision-language-action model reads token ids"
        return ActionPolicy(config, params, prompts=prompts)
    assert isinstance(prompts, PromptTable), "embeddings of prompts are read"
    if config.gpt is not None:
        assert isinstance(codec, PictureEncoder), "a GPT reads features of pictures"
        return QueriesPolicy(config, params, codec=codec, prompts=prompts)
    if config.backbone is None:
        raise ConfigError(
            "config.backbone is none: the small model on pixels acts as sampling.pixel_policy.PixelPolicy"
        )
    if is_guided(config) and prompts.negative is None:
        _check_guidance(config)
    assert isinstance(codec, LatentCodec), "a backbone reads latents"
    if inverse_dynamics is not None:
        return TwoStagePolicy(config, params, inverse_dynamics=inverse_dynamics, codec=codec, prompts=prompts)
    if config.layout.formulation == "latent_frames":
        return LatentFramesPolicy(config, params, codec=codec, prompts=prompts, decodes=decodes)
    if config.layout.formulation == "plan":
        return LatentPlanPolicy(config, params, codec=codec, prompts=prompts, imagine=imagine)
    return LatentPolicy(config, params, codec=codec, prompts=prompts, imagine=imagine, decodes=decodes)


def _check_guidance(config: RunConfig) -> None:
    """Refuses guidance away from nothing that training knew.

    A base is taken to know the zeros that are left: the released video models were trained with dropped prompts, and
    which of them a base comes from is not recorded.
    """
    dropped, scales = config.objective.prompt_dropout, config.sampling
    if dropped:
        raise ConfigError(
            f"config.objective.prompt_dropout={dropped}: {config.name} was trained with the empty prompt where prompts "
            "were dropped, and guidance leads away from that; give its embedding as PromptTable.negative"
        )
    if not config.finetune.base:
        raise ConfigError(
            f"config.sampling has guidance={scales.guidance} and action_guidance={scales.action_guidance}, and "
            f"{config.name} was trained from scratch (config.finetune.base) without dropped prompts "
            "(config.objective.prompt_dropout=0): there is nothing that guidance could lead away from; set both to 1, "
            "or train with dropped prompts"
        )
