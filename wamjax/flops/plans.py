"""FLOPs of latent plans (``models.latent_plan``): the video transformer that infers them, and the decoder of actions.

What lies between and around the two stacks (queries' heads, the ways into and out of the decoder) is ``action_state``.
"""

from __future__ import annotations

from collections.abc import Sequence

from wamjax.config.choices import Remat
from wamjax.config.schema import RunConfig
from wamjax.flops.backbone import COMPONENTS, Work, tally_blocks, tally_embeddings
from wamjax.flops.execution import Execution
from wamjax.flops.parameters import list_parameters
from wamjax.flops.queries import tally_stack
from wamjax.flops.stacks import find_anatomies, find_decoder
from wamjax.flops.tally import Tally
from wamjax.layout import Role, build_decoder_layout


def tally_plans(
    config: RunConfig,
    work: Work,
    execution: Execution | None = None,
    *,
    inferred: Sequence[Role] = (Role.PRIOR, Role.POSTERIOR),
    remat: Remat | None = None,
    differentiates_data: bool = False,
) -> Tally:
    """Adds up one sample.

    Args:
      config: The run.
      work: What goes through the video transformer.
      execution: The devices, to count what is executed; None for what is needed.
      inferred: The plans that are inferred; actions are decoded from the last.
      remat: As of ``tally_model``.
      differentiates_data: As of ``tally_model``.
    """
    video, is_executed = find_anatomies(config)["shared"], execution is not None
    total = Tally(COMPONENTS, list_parameters(config), config.finetune)
    into = tally_embeddings(total, video, work, data=differentiates_data)
    into = into._replace(tokens=into.tokens or total.trains(*(f"{role}_query" for role in inferred)))
    (out,) = tally_blocks(total, [(video, work)], [into], config.finetune, is_executed=is_executed, remat=remat)
    plans = [total.chain("action_state", [f"{role}_head"], 1, needs=out.tokens) for role in inferred]
    return _tally_decoder(total, config, execution, remat, present=out.tokens, plan=plans[-1])


def tally_decoder(config: RunConfig, execution: Execution | None = None) -> Tally:
    """Adds up the decoder alone, forward: what is left of a chunk when its plan is drawn."""
    total = Tally(COMPONENTS, list_parameters(config), config.finetune)
    return _tally_decoder(total, config, execution, None, present=False, plan=False)


def _tally_decoder(
    total: Tally, config: RunConfig, execution: Execution | None, remat: Remat | None, *, present: bool, plan: bool
) -> Tally:
    """Adds the decoder, whose present and plan need gradients or not; returns the tally."""
    layout = build_decoder_layout(config)
    tokens = layout.tokens_by_stream()
    seen = sum(tokens.get(role, 0) for role in (Role.CLEAN_VIDEO, Role.STATE))
    needs = (
        total.chain("action_state", ["decoder.embed"], seen, needs=present),
        total.chain("action_state", ["decoder.plan_embed"], 1, needs=plan),
        total.trains("decoder.action_queries"),
    )
    schedule, anatomy = layout.full_pass().schedule, find_decoder(config)
    out = tally_stack(total, config, anatomy, schedule, 1, execution, remat, needs=any(needs))
    normed = out or total.trains("decoder.norm.scale", "decoder.norm.bias")
    total.chain("action_state", ["decoder.out"], tokens[Role.ACTION], needs=normed)
    return total
