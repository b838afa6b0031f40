"""FLOPs of a GPT that answers queries (``models.gpt_policy``): resampler, embeddings, transformer, frame decoder.

The resampler counts by what it is: attention of few tokens to many (``cross_*``) and feed-forward layers. What the
decoder makes of queries beside its blocks is ``head``.
"""

from __future__ import annotations

from wamjax.config.choices import Remat
from wamjax.config.gpt import GptPolicyConfig
from wamjax.config.schema import RunConfig
from wamjax.flops.backbone import COMPONENTS, Anatomy, Gradients, Work, tally_blocks
from wamjax.flops.execution import AttentionWork, Execution, executed_attention
from wamjax.flops.parameters import list_parameters
from wamjax.flops.tally import Tally
from wamjax.layout import Layout, Role, Schedule, image_layout
from wamjax.layout.kernels import exactly


def tally_queries(
    config: RunConfig,
    gpt: GptPolicyConfig,
    layout: Layout,
    execution: Execution | None = None,
    *,
    remat: Remat | None = None,
    differentiates_data: bool = False,
) -> Tally:
    """Adds up one sample.

    Args:
      config: The run.
      gpt: Its model.
      layout: Of one sample.
      execution: The devices, to count what is executed; None for what is needed.
      remat: As of ``tally_model``.
      differentiates_data: As of ``tally_model``.
    """
    data, steps = differentiates_data, config.layout.num_blocks
    total = Tally(COMPONENTS, list_parameters(config), config.finetune)
    pictures = steps * gpt.num_views
    latents = _tally_resampler(total, gpt, pictures, data=data, is_executed=execution is not None)
    states = [total.chain("action_state", [f"{name}_embed"], steps, needs=data) for name in ("arm", "gripper")]
    into = [
        total.chain("image_embed", ["views.latents"], pictures * gpt.num_latents, needs=latents),
        total.chain("image_embed", ["views.whole"], pictures, needs=data),
        total.chain("text_embed", ["text_embed"], 1, needs=data),
        total.chain("action_state", ["state_mix"], steps, needs=any(states)),
        total.trains("steps", "action_query", "frame_queries", "input_norm.scale", "input_norm.bias"),
    ]
    out = tally_stack(
        total, config, _anatomy(config, ""), layout.full_pass().schedule, 1, execution, remat, needs=any(into)
    )
    normed = out or total.trains("output_norm.scale", "output_norm.bias")
    total.chain("action_state", ("action_hidden", "action_mix", "action_out"), steps, needs=normed)
    frames = sum(s.role is Role.QUERY for s in layout.segments) * gpt.num_views
    answers = total.chain("head", ["decoder.embed"], frames * gpt.view_tokens, needs=normed)
    schedule = image_layout(gpt.view_tokens + gpt.num_patches).full_pass().schedule
    needs = answers or total.trains("decoder.mask_token")
    out = tally_stack(total, config, _anatomy(config, "decoder."), schedule, frames, execution, remat, needs=needs)
    normed = out or total.trains("decoder.norm.scale", "decoder.norm.bias")
    total.chain("head", ["decoder.out"], frames * gpt.num_patches, needs=normed)
    return total


def executed_queries(config: RunConfig, layout: Layout, execution: Execution) -> AttentionWork:
    """Returns what self-attention over ``layout`` executes."""
    return _attention(config, _anatomy(config, ""), layout.full_pass().schedule, execution)


def _attention(config: RunConfig, anatomy: Anatomy, schedule: Schedule, execution: Execution) -> AttentionWork:
    return executed_attention(config.parallel, anatomy.block, schedule, 0, 0, execution)


def _anatomy(config: RunConfig, root: str) -> Anatomy:
    gpt = config.gpt
    assert gpt is not None, "only GPT policies have these stacks"
    block, depth = (gpt.decoder_block, gpt.decoder_layers) if root else (gpt.block, gpt.num_layers)
    return Anatomy(block=block, num_layers=depth, parameters=list_parameters(config), root=root, rotates=False)


def tally_stack(
    total: Tally,
    config: RunConfig,
    anatomy: Anatomy,
    schedule: Schedule,
    copies: int,
    execution: Execution | None,
    remat: Remat | None,
    *,
    needs: bool,
) -> bool:
    """Adds a stack without text and timesteps over ``copies`` sequences; returns whether its output needs gradients.

    Args:
      total: Where it counts.
      config: The run.
      anatomy: The stack.
      schedule: Attention of one sequence.
      copies: Sequences of one sample.
      execution: The devices, to count what is executed; None for what is needed.
      remat: As of ``tally_model``.
      needs: Whether its tokens need gradients.
    """
    is_executed = execution is not None
    own = _attention(config, anatomy, schedule, execution).own if is_executed else (exactly(schedule.num_pairs),)
    # What is padding sees nothing and is seen by nothing.
    seeing = {row for r in schedule.rectangles for start, stop in r.queries for row in range(start, stop)}
    tokens = copies * (schedule.num_queries if is_executed else len(seeing))
    attention = AttentionWork(own=copies * own, text=(), image=())
    work = Work(tokens=tokens, patches=0, predicted=0, text=0, image=0, slots=0, attention=(attention,))
    into = [Gradients(needs, False, False, False, False)]
    stacks = [(anatomy, work)]
    (out,) = tally_blocks(total, stacks, into, config.finetune, is_executed=is_executed, remat=remat)
    return out.tokens


def _tally_resampler(total: Tally, gpt: GptPolicyConfig, pictures: int, *, data: bool, is_executed: bool) -> bool:
    """Adds the resampler of ``pictures``; returns whether its latents need gradients."""
    path = "resampler.layers"
    asked, read = pictures * gpt.num_latents, pictures * (gpt.num_latents + gpt.num_patches)
    pairs = exactly(gpt.num_latents * (gpt.num_latents + gpt.num_patches))
    placed = data or total.trains("resampler.place")

    def trains(norm: str) -> bool:
        return total.trains(f"{path}.{norm}.scale", f"{path}.{norm}.bias")

    def tally_layer(tally: Tally, latents: bool) -> bool:
        asking = latents or trains("latent_norm")
        reading = placed or asking or trains("token_norm")
        query = tally.linear("cross_qo", f"{path}.query.kernel", asked, needs=asking)
        key, value = (
            tally.linear("cross_kv", f"{path}.{name}.kernel", read, needs=reading) for name in ("key", "value")
        )
        width = gpt.resampler_heads * gpt.resampler_head_dim
        attended = tally.attend("cross_scores", width, pictures * (pairs,), query=query, key=key, value=value)
        x = tally.linear("cross_qo", f"{path}.out_kernel", asked, needs=attended) or latents
        return tally.chain("ffn", [f"{path}.up", f"{path}.down"], asked, needs=x or trains("mlp_norm")) or x

    first, rest = total.empty(), total.empty()
    out = tally_layer(rest, tally_layer(first, total.trains("resampler.latents")))
    # The scan runs the same program for all layers.
    total.add(rest if is_executed else first, 1)
    total.add(rest, gpt.resampler_layers - 1)
    return out or total.trains("resampler.norm.scale", "resampler.norm.bias")
