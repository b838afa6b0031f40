"""FLOPs of one training sample of the world-action model, from its configuration and its layout.

Three counts, all exact and per sample:

``forward``
    What one forward pass needs: every token but padding, exactly the attended query-key pairs.
``model``
    Forward plus the backward pass of what is trained. The gradient of a product costs one more product per operand
    that needs a gradient: two for a layer inside the network, one for a layer on raw data (there is no gradient of
    pixels, actions, states or timestep sinusoids). The published shorthand, 3 x forward, is that upper bound.
``hardware``
    What the program executes: padding tokens, the pairs its attention kernel spans, and recomputation. Equals the
    walk over the jaxpr of the training step (``flops.jaxpr``) to the last product of the model; tests hold the two
    together.

MFU is measured with ``model``, HFU with ``hardware``. What is not a matrix product is in none of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from wamjax.config.geometry import derive_geometry
from wamjax.config.schema import RunConfig
from wamjax.flops import layers
from wamjax.flops.parameters import count_parameters
from wamjax.layout import Layout, Role

BLOCK_COMPONENTS = ("self_projections", "self_scores", "cross_qo", "cross_kv", "cross_scores", "ffn")
COMPONENTS = (*BLOCK_COMPONENTS, "patch", "head", "text_embed", "image_embed", "time_embed", "action_state")

# Rectangles with more queries than this are attended a chunk at a time, and the scores of a whole chunk are computed
# again in the backward pass: ``nn.attention.QUERY_CHUNK``, a sibling this module may not import; a test compares them.
ATTENTION_QUERY_CHUNK = 256
_ATTENTION = ("self_scores", "cross_scores")


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
    tokens = layout.tokens_by_stream()
    padded = layout.num_tokens
    needed_tokens = padded - tokens.get(Role.PADDING.value, 0)
    text = config.model.text_tokens
    schedule = layout.full_pass().schedule
    rectangles = [(r.num_queries, r.num_keys) for r in schedule.rectangles]

    needed = _tally(config, layout, needed_tokens, layout.num_pairs, needed_tokens * text)
    executed = _tally(config, layout, padded, schedule.num_executed_pairs, padded * text)
    hardware = executed.training()
    # Scores, not weighted values, are computed once more: half of the forward FLOPs. Of chunks always, of the rest
    # where a block is rematerialised (which keeps what attention returned).
    for name, spans in zip(_ATTENTION, (rectangles, [(padded, text)]), strict=True):
        chunked = config.model.num_layers * layers.attention_scores(_chunked_pairs(spans), config.model.width)
        hardware[name] += (executed.forward[name] if config.model.remat == "full" else chunked) // 2
    if config.model.remat == "full":
        for name in set(BLOCK_COMPONENTS) - set(_ATTENTION):
            hardware[name] += executed.forward[name]
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


class _Tally:
    """Forward and backward FLOPs by component."""

    def __init__(self) -> None:
        self.forward: dict[str, int] = dict.fromkeys(COMPONENTS, 0)
        self.backward: dict[str, int] = dict.fromkeys(COMPONENTS, 0)

    def linear(self, component: str, flops: int, *, input_grad: bool = True) -> None:
        """Adds trained linear layers: the gradient of the weights, and of the input unless it is raw data."""
        self.forward[component] += flops
        self.backward[component] += flops * (2 if input_grad else 1)

    def scores(self, component: str, flops: int) -> None:
        """Adds attention scores and values: gradients of queries and keys, of weights and values."""
        self.forward[component] += flops
        self.backward[component] += 2 * flops

    def training(self) -> dict[str, int]:
        """Returns forward plus backward."""
        return {name: self.forward[name] + self.backward[name] for name in COMPONENTS}


def _tally(config: RunConfig, layout: Layout, tokens: int, self_pairs: int, cross_pairs: int) -> _Tally:
    """Adds up one sample: ``tokens`` go through the blocks, the layout's streams through embeddings and heads."""
    model, data, streams, tally = config.model, config.data, layout.tokens_by_stream(), _Tally()
    d, depth, text = model.width, model.num_layers, model.text_tokens
    channels = derive_geometry(config).token_channels
    noisy, actions, states = (streams.get(r.value, 0) for r in (Role.NOISY_VIDEO, Role.ACTION, Role.STATE))
    video = noisy + streams.get(Role.CLEAN_VIDEO.value, 0)

    tally.linear("self_projections", depth * layers.self_projections(tokens, d))
    tally.scores("self_scores", depth * layers.attention_scores(self_pairs, d))
    tally.linear("cross_qo", depth * layers.cross_qo(tokens, d))
    tally.linear("cross_kv", depth * layers.cross_kv(text, d))
    tally.scores("cross_scores", depth * layers.attention_scores(cross_pairs, d))
    tally.linear("ffn", depth * layers.ffn(tokens, d, model.ffn_width))

    tally.linear("patch", layers.linear(video, channels, d), input_grad=False)
    tally.linear("head", layers.linear(noisy, d, channels))
    tally.linear("text_embed", layers.mlp(text, (model.text_width, d, d)))  # the table it reads is trained
    tally.linear("time_embed", layers.linear(layout.num_slots, model.time_width, d), input_grad=False)
    tally.linear("time_embed", layers.mlp(layout.num_slots, (d, d, 6 * d)))
    tally.linear("action_state", layers.linear(actions, data.action_dim, d), input_grad=False)
    tally.linear("action_state", layers.mlp(actions, (2 * d, d, d)))
    tally.linear("action_state", layers.linear(states, data.state_dim, model.action_hidden), input_grad=False)
    tally.linear("action_state", layers.linear(states, model.action_hidden, d))
    tally.linear("action_state", layers.mlp(actions, (d, model.action_hidden, data.action_dim)))
    return tally


def _chunked_pairs(rectangles: Iterable[tuple[int, int]]) -> int:
    """Pairs in whole chunks of rectangles that are too tall to be attended at once."""
    chunk = ATTENTION_QUERY_CHUNK
    return sum(n // chunk * chunk * keys for n, keys in rectangles if n > chunk)
