"""FLOPs of one training sample, from the configuration, the layout and where it runs.

Three counts, all exact and per sample:

``forward``
    What one forward pass needs: every token but padding, exactly the attended query-key pairs.
``model``
    Forward plus the backward pass of what is trained. The gradient of a product costs one more product per operand
    that needs a gradient: two for a trained layer inside the network, one for a trained layer on raw data (there is no
    gradient of pixels, actions, states or timestep sinusoids), one for a kept layer after something trained, none for a
    kept layer before all that is. A backbone that is trained whole counts by the published convention, 3 x forward,
    which gives raw data gradients too.
``hardware``
    What the program executes: padding tokens, the pairs its attention kernel computes, recomputation, the permutation
    of heads in bf16 (``nn.rotary``), input gradients in the first layer if any layer needs them (the scan runs the same
    program for all), and what devices that share a sample each do for themselves. Equals the walk over the jaxpr of
    the training step (``flops.jaxpr``) to the last product; tests hold the two together.

MFU is measured with ``model``, HFU with ``hardware``. What is not a matrix product is in none of them, and neither is
the optimizer: AdamW, SGD and the parameter average are elementwise, and Muon's products are per step, not per sample
(``flops.optimizer``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from wamjax.config.backbone import BlockConfig, LayerAttention
from wamjax.config.blocks import is_small, main_remat
from wamjax.config.schema import RunConfig
from wamjax.flops.backbone import COMPONENTS, Anatomy, Work, needed_attention, tally_model
from wamjax.flops.execution import AttentionWork, Execution, executed_attention
from wamjax.flops.inverse_dynamics import tally_pairs
from wamjax.flops.layers import delta_rule
from wamjax.flops.parameters import count_parameters, count_trained_parameters
from wamjax.flops.plans import tally_plans
from wamjax.flops.queries import executed_queries, tally_queries
from wamjax.flops.stacks import find_anatomies, find_vision
from wamjax.flops.tally import Tally
from wamjax.layout import ACTION_ROLES, VIDEO_ROLES, Layout, Pass, Role, Schedule, Segment
from wamjax.layout.windows import joint_schedule

__all__ = ["COMPONENTS", "FlopCount", "count_flops"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlopCount:
    """FLOPs, tokens and pairs of one sample. Every dict of FLOPs has exactly the keys ``COMPONENTS``.

    Attributes:
      forward: One forward pass, what is needed.
      model: One training step, what is needed (no recomputation).
      hardware: One training step, as executed.
      hardware_forward: One forward pass, as executed (what an evaluation costs).
      tokens: Tokens by stream, padding included under ``padding``.
      num_pairs: Attended query-key pairs of self-attention in a layer; of layers that differ, in the one with most.
      num_executed_pairs: Pairs the attention kernel computes in a forward pass, likewise.
      num_dense_pairs: Pairs of dense attention over the same tokens.
      num_parameters: Parameters of the model.
      num_trained_parameters: Those of them that are trained.
    """

    forward: dict[str, int]
    model: dict[str, int]
    hardware: dict[str, int]
    hardware_forward: dict[str, int]
    tokens: dict[str, int]
    num_pairs: int
    num_executed_pairs: int
    num_dense_pairs: int
    num_parameters: int
    num_trained_parameters: int

    @property
    def forward_total(self) -> int:
        """Forward FLOPs of a sample."""
        return sum(self.forward.values())

    @property
    def model_total(self) -> int:
        """Training FLOPs of a sample without recomputation: the numerator of MFU."""
        return sum(self.model.values())

    @property
    def hardware_total(self) -> int:
        """Training FLOPs of a sample as executed: the numerator of HFU."""
        return sum(self.hardware.values())

    @property
    def three_forwards(self) -> int:
        """Training FLOPs by the published convention, 3 x forward."""
        return 3 * self.forward_total

    @property
    def executed_score_flops(self) -> int:
        """Scores and weighted values of self-attention as a forward pass executes them, its kernel's blocks whole."""
        return self.hardware_forward["self_scores"]

    @property
    def num_tokens(self) -> int:
        """Tokens of the packed sequence that are not padding: T of 6NT."""
        return sum(count for stream, count in self.tokens.items() if stream != Role.PADDING.value)

    @property
    def six_n_t(self) -> int:
        """The estimate 6 N T (Kaplan et al., arXiv 2001.08361): no attention, no encoders, all parameters per token."""
        return 6 * self.num_parameters * self.num_tokens


def count_flops(config: RunConfig, layout: Layout, execution: Execution | None = None) -> FlopCount:
    """Returns the FLOPs of one sample of ``config`` laid out by ``layout``.

    Args:
      config: The run.
      layout: Its layout (``layout.build_layout(config)``, or another over the same streams).
      execution: The devices (``flops.execution.execution_on``): they decide what is executed, not what is needed. None
        for one device in plain XLA.

    Raises:
      ConfigError: The devices cannot share attention as ``config.parallel`` says.
    """
    where = execution or Execution()
    is_published = not is_small(config) and not config.finetune.is_partial
    tallies = _tally_queries if config.gpt is not None else _tally_stacks
    if config.inverse_dynamics is not None:
        tallies = _tally_convolutions
    model, hardware, needed, executed = tallies(config, layout, where, is_published=is_published)
    return FlopCount(
        forward=model.forward,
        model=model.training(),
        hardware=hardware.training(),
        hardware_forward=hardware.forward,
        tokens=layout.tokens_by_stream(),
        num_pairs=max(attention.num_pairs for attention in needed),
        num_executed_pairs=max(attention.num_pairs for attention in executed),
        num_dense_pairs=layout.num_dense_pairs if config.inverse_dynamics is None else 0,
        num_parameters=sum(count_parameters(config).values()),
        num_trained_parameters=count_trained_parameters(config),
    )


class _Counts(NamedTuple):
    """What is needed and what is executed, and self-attention of both by the kinds of layers."""

    model: Tally
    hardware: Tally
    needed: Sequence[AttentionWork]
    executed: Sequence[AttentionWork]


def _tally_stacks(config: RunConfig, layout: Layout, execution: Execution, *, is_published: bool) -> _Counts:
    """Returns the counts of a model of stacks that attend together."""
    anatomies = find_anatomies(config)
    needed = {name: needed_work(config, layout, name) for name in anatomies}
    executed = {
        name: _executed_work(config, layout, needed[name], name, anatomy, execution)
        for name, anatomy in anatomies.items()
    }
    (attends, *_), (computes, *_) = ([work.attention for work in works.values()] for works in (needed, executed))
    if config.layout.formulation == "plan":
        model = tally_plans(config, needed["shared"], differentiates_data=is_published)
        hardware = tally_plans(config, executed["shared"], execution, remat=main_remat(config))
        return _Counts(model, hardware, attends, computes)
    model = tally_model(
        [(anatomies[name], work) for name, work in needed.items()],
        config.finetune,
        differentiates_data=is_published,
        vision=find_vision(config),
    )
    hardware = tally_model(
        [(anatomies[name], work) for name, work in executed.items()],
        config.finetune,
        is_executed=True,
        remat=main_remat(config),
        vision=find_vision(config, is_executed=True),
    )
    return _Counts(model, hardware, attends, computes)


def _tally_queries(config: RunConfig, layout: Layout, execution: Execution, *, is_published: bool) -> _Counts:
    """Returns the counts of a GPT that answers queries."""
    gpt = config.gpt
    assert gpt is not None, "this counts GPT policies"
    model = tally_queries(config, gpt, layout, differentiates_data=is_published)
    hardware = tally_queries(config, gpt, layout, execution, remat=main_remat(config))
    computes = executed_queries(config, layout, execution)
    return _Counts(model, hardware, (needed_attention(0, layout.num_pairs, 0, 0),), (computes,))


def _tally_convolutions(config: RunConfig, layout: Layout, execution: Execution, *, is_published: bool) -> _Counts:
    """Returns the counts of an inverse-dynamics model: what is executed is what is needed."""
    del layout, execution
    model, nothing = tally_pairs(config, differentiates_data=is_published), (needed_attention(0, 0, 0, 0),)
    return _Counts(model, tally_pairs(config), nothing, nothing)


def needed_work(config: RunConfig, layout: Layout, expert: str = "shared") -> Work:
    """Returns what the stack of ``expert`` needs for one sample: no padding, attended pairs alone."""
    own = [s for s in layout.segments if s.expert == expert and s.role is not Role.PADDING]
    tokens, backbone = _count(own, *Role), config.backbone
    is_first = expert in ("shared", "video")
    text, image, states = config.model.text_tokens, 0, 0
    if backbone is not None:
        text = config.clip.text_tokens
        image = config.clip.image_tokens if is_first and backbone.image_width is not None else 0
        states = config.layout.states_per_block if config.actions.modules == "expert" else 0
    if not find_anatomies(config)[expert].block.cross_attention:
        text = states = 0
    layers = find_anatomies(config)[expert].block.layers
    attention = tuple(
        needed_attention(tokens, schedule.num_pairs, text + states, image, recurrence=needed_recurrence(layer, tokens))
        for layer, schedule in zip(layers, layer_schedules(config, layout.full_pass()), strict=True)
    )
    has_own_times = config.actions.modules == "linear"
    return Work(
        tokens=tokens,
        patches=_count(own, *VIDEO_ROLES),
        predicted=_count(own, Role.NOISY_VIDEO),
        text=text + states,
        image=image,
        slots=_num_slots(config, layout, expert),
        attention=attention,
        actions=_count(own, *ACTION_ROLES),
        states=_count(own, Role.STATE),
        decoded=_count(own, Role.ACTION),
        action_slots=len(layout.slots_of(ACTION_ROLES)) if has_own_times and is_first else 0,
        text_states=states if is_first else 0,  # made once, read by all
        prefix=_count(own, Role.IMAGE, Role.TEXT),
    )


def layer_schedules(config: RunConfig, layout_pass: Pass) -> tuple[Schedule, ...]:
    """Returns what experts attend to in each layer of one period; one schedule where all layers are alike."""
    pattern = () if config.backbone is None else config.backbone.block.attention
    return tuple(joint_schedule(layout_pass, each) for each in pattern or (LayerAttention(),))


def needed_recurrence(layer: BlockConfig, tokens: int) -> tuple[int, int]:
    """Returns the FLOPs of a recurrent layer, forward and backward; none of another."""
    if not layer.is_recurrent:
        return 0, 0
    own = layer.own_attention
    forward = delta_rule(tokens, layer.num_heads, own.key_dim, own.value_dim)
    return forward, 2 * forward


def _count(segments: Iterable[Segment], *roles: Role) -> int:
    """Returns the tokens of ``roles`` among ``segments``."""
    return sum(s.num_tokens for s in segments if s.role in roles)


def _num_slots(config: RunConfig, layout: Layout, expert: str) -> int:
    """Returns the timesteps that a stack's own embedding embeds."""
    if config.layout.is_plain_clip:  # one time of the whole clip, and t = 0 where its first frame is held
        return 1 + any(s.role is Role.CLEAN_VIDEO for s in layout.segments)
    if config.vla is not None:
        return 1 if expert == "action" else 0
    if config.backbone is None or config.actions.modules == "category":
        return layout.num_slots
    if expert == "prefix":
        return 0
    return len(layout.slots_of(ACTION_ROLES if expert == "action" else VIDEO_ROLES))


def _executed_work(
    config: RunConfig, layout: Layout, needed: Work, expert: str, anatomy: Anatomy, execution: Execution
) -> Work:
    """Returns what the stack of ``expert`` executes for one sample.

    Padding goes through the blocks, and of a clip in and out of them too.
    """
    tokens = sum(s.num_tokens for s in layout.segments if s.expert == expert)
    attention = tuple(
        executed_attention(
            config.parallel,
            layer,
            schedule,
            needed.text,
            needed.image,
            execution,
            tokens=tokens,
            masks_text=config.backbone is not None and config.clip.masks_text,
            recurrent_tokens=needed.tokens,
        )
        for layer, schedule in zip(anatomy.block.layers, layer_schedules(config, layout.full_pass()), strict=True)
    )
    work = dataclasses.replace(needed, tokens=tokens, attention=attention)
    if config.layout.is_plain_clip:
        return dataclasses.replace(work, patches=tokens, predicted=tokens)
    return work
