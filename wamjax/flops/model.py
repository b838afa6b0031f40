"""FLOPs of one training sample of the world-action model, from its configuration and its layout.

Three counts, all exact and per sample:

``forward``
    What one forward pass needs: every token but padding, exactly the attended query-key pairs.
``model``
    Forward plus the backward pass of what is trained. The gradient of a product costs one more product per operand
    that needs a gradient: two for a trained layer inside the network, one for a trained layer on raw data (there is no
    gradient of pixels, actions, states or timestep sinusoids), one for a kept layer after something trained, none for a
    kept layer before all that is. The published shorthand, 3 x forward, is that upper bound.
``hardware``
    What the program executes: padding tokens, the pairs its attention kernel spans, recomputation, the permutation of
    heads in bf16 (``nn.rotary``), and input gradients in the first layer if any layer needs them (the scan runs the
    same program for all). Equals the
    walk over the jaxpr of the training step (``flops.jaxpr``) to the last product of the model; tests hold the two
    together.

MFU is measured with ``model``, HFU with ``hardware``. What is not a matrix product is in none of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from wamjax.config.backbone import VideoTransformerConfig
from wamjax.config.schema import RunConfig
from wamjax.config.systems import category_actions
from wamjax.flops import layers
from wamjax.flops.backbone import category_action_flops, video_transformer_flops
from wamjax.flops.kernels import model_kernels
from wamjax.flops.parameters import (
    count_backbone_parameters,
    count_category_action_parameters,
    count_parameters,
)
from wamjax.flops.tally import Tally
from wamjax.layout import Layout, Role

BLOCK_COMPONENTS = ("self_projections", "self_scores", "cross_qo", "cross_kv", "cross_scores", "ffn")
COMPONENTS = (*BLOCK_COMPONENTS, "patch", "head", "text_embed", "image_embed", "time_embed", "action_state")

# Rectangles with more queries than this are attended a chunk at a time, and the scores of a whole chunk are computed
# again in the backward pass: ``nn.rectangles.QUERY_CHUNK``, a sibling this module may not import; a test compares them.
ATTENTION_QUERY_CHUNK = 256
_ATTENTION = ("self_scores", "cross_scores")
_REMATERIALISED = ("attention", "offload", "full")  # values of ``remat`` that compute products again


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlopCount:
    """FLOPs, tokens and pairs of one sample. Every dict of FLOPs has exactly the keys ``COMPONENTS``.

    Attributes:
      forward: One forward pass, what is needed.
      model: One training step, what is needed (no recomputation).
      hardware: One training step, as executed.
      hardware_forward: One forward pass, as executed (what an evaluation costs).
      tokens: Tokens by stream, padding included under ``padding``.
      num_pairs: Attended query-key pairs of self-attention, per layer.
      num_executed_pairs: Pairs the attention kernel computes.
      num_dense_pairs: Pairs of dense attention over the same tokens.
      num_parameters: Parameters of the model.
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
    def num_tokens(self) -> int:
        """Tokens of the packed sequence that are not padding: T of 6NT."""
        return sum(count for stream, count in self.tokens.items() if stream != Role.PADDING.value)

    @property
    def six_n_t(self) -> int:
        """The estimate 6 N T (Kaplan et al., arXiv 2001.08361): no attention, no encoders, all parameters per token."""
        return 6 * self.num_parameters * self.num_tokens


def count_flops(config: RunConfig, layout: Layout) -> FlopCount:
    """Returns the FLOPs of one sample of ``config`` laid out by ``layout``.

    Args:
      config: The run.
      layout: Its layout (``layout.build_layout(config)``, or another over the same streams).
    """
    if config.backbone is not None:
        return _count_backbone(config, config.backbone, layout)
    tokens = layout.tokens_by_stream()
    padded = layout.num_tokens
    needed_tokens = padded - tokens.get(Role.PADDING.value, 0)
    schedule = layout.full_pass().schedule
    spans = (
        [(r.num_queries, r.num_keys) for r in schedule.rectangles],
        [(padded, config.model.text_tokens)],
    )
    turned = config.model.width // config.model.num_heads if config.model.compute_dtype == "bfloat16" else 0
    needed, _ = _tally(config, layout, _BlockTokens(needed_tokens, layout.num_pairs, 0), is_scanned=False)
    executed, blocks = _tally(
        config, layout, _BlockTokens(padded, schedule.num_executed_pairs, turned), is_scanned=True
    )
    hardware = executed.training()
    is_rematerialised = config.model.remat in _REMATERIALISED and any(blocks.backward.values())
    # Scores, not weighted values, are computed once more: half of the forward FLOPs. Of chunks always, of the rest
    # where a block is rematerialised. What attention returned is computed again too unless that is kept.
    for name, rectangles in zip(_ATTENTION, spans, strict=True):
        chunked = config.model.num_layers * layers.attention_scores(_chunked_pairs(rectangles), config.model.width)
        if config.model.remat == "full":
            again = 2 * blocks.forward[name] + chunked
        else:
            again = blocks.forward[name] if is_rematerialised else chunked
        hardware[name] += again // 2 * bool(blocks.backward[name])
    for name, flops in (blocks.recomputed() if is_rematerialised else blocks.turned).items():
        hardware[name] += flops if name not in _ATTENTION and any(blocks.backward.values()) else 0
    return FlopCount(
        forward=dict(needed.forward),
        model=needed.training(),
        hardware=hardware,
        hardware_forward=dict(executed.forward),
        tokens=tokens,
        num_pairs=layout.num_pairs,
        num_executed_pairs=schedule.num_executed_pairs,
        num_dense_pairs=layout.num_dense_pairs,
        num_parameters=sum(count_parameters(config).values()),
    )


def _count_backbone(config: RunConfig, backbone: VideoTransformerConfig, layout: Layout) -> FlopCount:
    """Counts a backbone's training by the published convention, 3 x forward.

    ``hardware`` is the same over padded tokens: what attention computes again in its backward pass, and what ``remat``
    does, are not in it.
    """
    streams, schedule = layout.tokens_by_stream(), layout.full_pass().schedule
    needed_tokens = layout.num_tokens - streams.get(Role.PADDING.value, 0)
    is_joint = config.layout.formulation == "joint"
    clean, noisy, actions, states = (
        streams.get(role.value, 0) for role in (Role.CLEAN_VIDEO, Role.NOISY_VIDEO, Role.ACTION, Role.STATE)
    )
    extra = 0
    if is_joint:
        extra = category_action_flops(category_actions(config), actions=actions, states=states)

    def forward(tokens: int, pairs: int) -> dict[str, int]:
        video = video_transformer_flops(
            backbone,
            tokens=tokens,
            text_tokens=config.clip.text_tokens,
            image_tokens=config.clip.image_tokens if backbone.image_width else 0,
            slots=layout.num_slots if is_joint else 1,
            pairs=pairs,
            patch_tokens=clean + noisy if is_joint else tokens,
            head_tokens=noisy if is_joint else tokens,
        )
        return video | {"action_state": extra}

    needed = forward(needed_tokens, layout.num_pairs)
    executed = forward(layout.num_tokens, schedule.num_executed_pairs)
    return FlopCount(
        forward=needed,
        model={name: 3 * flops for name, flops in needed.items()},
        hardware={name: 3 * flops for name, flops in executed.items()},
        hardware_forward=executed,
        tokens=streams,
        num_pairs=layout.num_pairs,
        num_executed_pairs=schedule.num_executed_pairs,
        num_dense_pairs=layout.num_dense_pairs,
        num_parameters=count_backbone_parameters(backbone)
        + (count_category_action_parameters(category_actions(config)) if is_joint else 0),
    )


# Attention layer -> components of what queries (and the output), and keys and values, are projected by.
_ATTENTION_COMPONENTS = {"self": ("self_projections", "self_projections"), "cross": ("cross_qo", "cross_kv")}


class _BlockTokens(NamedTuple):
    """What goes through a block.

    Attributes:
      tokens: Tokens.
      pairs: Query-key pairs of self-attention.
      turned: Dims of a head that its rotary embedding multiplies by a constant matrix; 0 where it does not.
    """

    tokens: int
    pairs: int
    turned: int


class _Gradients(NamedTuple):
    """Which inputs of a block need gradients."""

    tokens: bool
    timesteps: bool
    text: bool


def _tally(config: RunConfig, layout: Layout, size: _BlockTokens, *, is_scanned: bool) -> tuple[Tally, Tally]:
    """Adds up one sample: ``size`` goes through the blocks, the layout's streams through embeddings and heads.

    Returns:
      All of it, and of that the blocks alone. ``is_scanned``: every layer computes what any layer needs.
    """
    model, kernels = config.model, model_kernels(config)
    total, blocks = (Tally(COMPONENTS, kernels, config.finetune) for _ in range(2))
    embedding = _chain(total, "time_embed", ("time_embedding.hidden", "time_embedding.out"), layout.num_slots)
    vectors = _chain(total, "time_embed", ("time_embedding.project",), layout.num_slots, needs=embedding)
    table = total.trains("prompts.table")
    text = _chain(total, "text_embed", ("prompts.hidden", "prompts.out"), model.text_tokens, needs=table)
    into = _Gradients(_tally_embeddings(total, layout), vectors, text)

    first, rest = (Tally(COMPONENTS, kernels, config.finetune) for _ in range(2))
    out = _tally_block(first, config, size, into)
    _tally_block(rest, config, size, into._replace(tokens=out))
    blocks.add(rest if is_scanned else first, 1)
    blocks.add(rest, model.num_layers - 1)
    total.add(blocks, 1)

    predicted, actions = (layout.tokens_by_stream().get(r.value, 0) for r in (Role.NOISY_VIDEO, Role.ACTION))
    head = out or embedding or total.trains("head_modulation")
    _chain(total, "head", ("video_head",), predicted, needs=head)
    _chain(total, "action_state", ("action_decoder.hidden", "action_decoder.out"), actions, needs=out)
    return total, blocks


def _chain(tally: Tally, component: str, names: Iterable[str], tokens: int, *, needs: bool = False) -> bool:
    """Adds dense layers one after the other; returns whether the last output needs a gradient."""
    for name in names:
        needs = tally.linear(component, f"{name}.kernel", tokens, needs=needs)
    return needs


def _tally_embeddings(tally: Tally, layout: Layout) -> bool:
    """Adds what makes tokens of the layout's streams; returns whether they need gradients."""
    streams = layout.tokens_by_stream()
    noisy, clean, actions, states = (
        streams.get(role.value, 0) for role in (Role.NOISY_VIDEO, Role.CLEAN_VIDEO, Role.ACTION, Role.STATE)
    )
    encoder, state = ("action_encoder.lift", "action_encoder.mix", "action_encoder.out"), "state_encoder"
    needs = [
        _chain(tally, "patch", ("patch_embed",), noisy + clean),
        tally.trains("grid_embedding"),
        _chain(tally, "action_state", encoder, actions) and actions > 0,
        _chain(tally, "action_state", (f"{state}.hidden", f"{state}.out"), states) and states > 0,
    ]
    return any(needs)


def _tally_block(tally: Tally, config: RunConfig, size: _BlockTokens, into: _Gradients) -> bool:
    """Adds one block (``models.block.Block``); returns whether its output needs gradients."""
    model, text = config.model, config.model.text_tokens
    modulation = into.timesteps or tally.trains("blocks.modulation")

    def attention(kind: str, keys: int, pairs: int, *, own: bool, seen: bool) -> bool:
        """Adds one attention layer whose queries read tokens that need gradients if ``own``, its keys if ``seen``."""
        path, flops = f"blocks.{kind}_attention", layers.attention_scores(pairs, model.width)
        into_queries, into_keys = _ATTENTION_COMPONENTS[kind]
        query, key, value = (
            tally.linear(component, f"{path}.{part}.kernel", tokens, needs=needs)
            or (part != "value" and tally.trains(f"{path}.{part}_scale"))
            for part, component, tokens, needs in (
                ("query", into_queries, size.tokens, own),
                ("key", into_keys, keys, seen),
                ("value", into_keys, keys, seen),
            )
        )
        if kind == "self":
            for needs in (query, key):
                tally.turn(into_queries, layers.linear(size.tokens, model.width, size.turned), needs=needs)
        out = tally.scores(f"{kind}_scores", flops, query=query, key=key, value=value)
        return tally.linear(into_queries, f"{path}.out_kernel", size.tokens, needs=out)

    x = into.tokens
    modulated = x or modulation
    attended = attention("self", size.tokens, size.pairs, own=modulated, seen=modulated)
    x = x or attended or modulation
    normed = x or tally.trains("blocks.cross_norm_scale", "blocks.cross_norm_bias")
    crossed = attention("cross", text, size.tokens * text, own=normed, seen=into.text)
    x = x or crossed
    hidden = tally.linear("ffn", "blocks.mlp.up.kernel", size.tokens, needs=x or modulation)
    # The last value of a block is needed by the gradient of its gate alone.
    out = tally.linear("ffn", "blocks.mlp.down.kernel", size.tokens, needs=hidden, is_output_used=modulation)
    return x or out or modulation


def _chunked_pairs(rectangles: Iterable[tuple[int, int]]) -> int:
    """Pairs in whole chunks of rectangles that are too tall to be attended at once."""
    chunk = ATTENTION_QUERY_CHUNK
    return sum(n // chunk * chunk * keys for n, keys in rectangles if n > chunk)
