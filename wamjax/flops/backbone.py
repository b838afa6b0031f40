"""FLOPs of the parts of a video transformer, ours on pixels and the published ones on latents alike.

One walk along the model serves all counts (``Work`` says of what): embeddings, blocks, heads, each with its forward
pass, its gradients and what its rematerialisation repeats. Modulation of blocks by low rank, which depends on the
timestep alone, is part of ``time_embed``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from wamjax.config.backbone import BlockConfig
from wamjax.config.choices import Remat
from wamjax.config.schema import FinetuneConfig
from wamjax.flops import layers
from wamjax.flops.execution import AttentionWork
from wamjax.flops.parameters import Parameter, layer_paths
from wamjax.flops.tally import Tally
from wamjax.layout.kernels import exactly

BLOCK_COMPONENTS = ("self_projections", "self_scores", "cross_qo", "cross_kv", "cross_scores", "ffn")
COMPONENTS = (*BLOCK_COMPONENTS, "patch", "head", "text_embed", "image_embed", "time_embed", "action_state")

# Ways of actions and states into tokens and back; a model has those layers of them that it has parameters of.
_ACTION_ENCODER = ("action_encoder.lift", "action_encoder.mix", "action_encoder.out", "action_embed")
_STATE_ENCODER = ("state_encoder.hidden", "state_encoder.out")
_ACTION_DECODER = ("action_decoder.hidden", "action_decoder.out", "action_out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Anatomy:
    """A stack and what is around it, as far as products go.

    Attributes:
      block: The block of the stack.
      num_layers: Blocks.
      parameters: Of the whole model, by path.
      root: Path of the stack and its embeddings in the model.
      modules: Path of the ways of actions and states.
      text: Name of the text embedding.
      head: Name of the video head.
      rotates: Whether the stack has rotary embedding.
    """

    block: BlockConfig
    num_layers: int
    parameters: dict[str, Parameter]
    root: str = ""
    modules: str = ""
    text: str = "text_embedding"
    head: str = "head_out"
    rotates: bool = True

    @property
    def period(self) -> int:
        """Layers of its pattern, which one step of the scan runs."""
        return len(self.block.layers)

    def having(self, paths: Iterable[str]) -> list[str]:
        """Returns those of ``paths`` that are layers of the model."""
        return [path for path in paths if f"{path}.kernel" in self.parameters]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What goes through a stack for one sample.

    Attributes:
      tokens: Through the blocks.
      patches: Embedded from pixels or latents.
      predicted: By the video head.
      text: Text tokens.
      image: Image tokens.
      slots: Timesteps.
      actions: Action tokens that are embedded.
      states: State tokens.
      attention: Of each layer of one period of the stack. Self-attention of several stacks together is in the first
        one's.
      decoded: Action tokens that are predicted.
      action_slots: Timesteps of an embedding that actions have for themselves.
      text_states: States that enter as text tokens; they are among ``text``.
      prefix: Tokens of a language tower, which are embedded.
    """

    tokens: int
    patches: int
    predicted: int
    text: int
    image: int
    slots: int
    attention: tuple[AttentionWork, ...]
    actions: int = 0
    states: int = 0
    decoded: int = 0
    action_slots: int = 0
    text_states: int = 0
    prefix: int = 0


def needed_attention(
    tokens: int, pairs: int, text: int, image: int, *, recurrence: tuple[int, int] = (0, 0)
) -> AttentionWork:
    """Returns what attention needs: ``pairs`` of its own (or a recurrence), and all pairs with text and image."""
    cross = (exactly(tokens * text),), (exactly(tokens * image),)
    return AttentionWork((exactly(pairs),), *cross, recurrence=recurrence)


def tally_model(
    stacks: Sequence[tuple[Anatomy, Work]],
    finetune: FinetuneConfig,
    *,
    differentiates_data: bool = False,
    is_executed: bool = False,
    remat: Remat | None = None,
    vision: tuple[Anatomy, Work] | None = None,
) -> Tally:
    """Adds up one sample.

    Args:
      stacks: The stacks of the model, equally deep, and what goes through each.
      finetune: What is trained.
      differentiates_data: Whether raw data (pixels, latents, text, timesteps, actions) counts as if it needed
        gradients: the convention of 3 x forward.
      is_executed: Whether to count what the program does: every layer of the scanned stack computes what any layer
        needs, and heads are turned by a product where the dtype asks for it.
      remat: What the backward pass of the blocks finds; None for everything.
      vision: A tower whose tokens the first of ``stacks`` reads; it runs before.
    """
    total = Tally(COMPONENTS, stacks[0][0].parameters, finetune)
    seen = False
    if vision is not None:
        (tower, images), data = vision, differentiates_data
        needs = total.chain("patch", [f"{tower.root}patch_embed"], images.patches, needs=data)
        needs |= total.trains(f"{tower.root}positions")
        seen_in = [Gradients(needs, False, False, False, False)]
        (out,) = tally_blocks(total, [vision], seen_in, finetune, is_executed=is_executed, remat=remat)
        normed = out.tokens or total.trains(f"{tower.root}norm.scale", f"{tower.root}norm.bias")
        seen = total.chain("image_embed", [f"{tower.root}out"], images.tokens, needs=normed)
    into = [tally_embeddings(total, *stack, data=differentiates_data) for stack in stacks]
    into[0] = into[0]._replace(tokens=into[0].tokens or seen)
    outs = tally_blocks(total, stacks, into, finetune, is_executed=is_executed, remat=remat)
    for (own, work), out in zip(stacks, outs, strict=True):
        _tally_heads(total, own, work, out)
    return total


def tally_blocks(
    total: Tally,
    stacks: Sequence[tuple[Anatomy, Work]],
    into: Sequence[Gradients],
    finetune: FinetuneConfig,
    *,
    is_executed: bool,
    remat: Remat | None,
) -> list[Gradients]:
    """Adds the blocks of ``stacks``, which attend together; returns what of their outputs needs gradients."""
    anatomy = stacks[0][0]
    first, rest, blocks = (Tally(COMPONENTS, anatomy.parameters, finetune, remat) for _ in range(3))
    turns = is_executed and anatomy.block.compute_dtype == "bfloat16"
    period = [
        [_Block(*stack, place, turns=turns and stack[0].rotates) for stack in stacks] for place in range(anatomy.period)
    ]
    outs = _tally_period(first, period, into)
    _tally_period(rest, period, outs)
    blocks.add(rest if is_executed else first, 1)
    blocks.add(rest, anatomy.num_layers // anatomy.period - 1)
    total.add(blocks, 1)
    return outs


class Gradients(NamedTuple):
    """What needs gradients: inputs of a block, and the embedding of timesteps itself, which heads read too."""

    tokens: bool
    embedding: bool
    vectors: bool
    text: bool
    image: bool


def tally_embeddings(tally: Tally, anatomy: Anatomy, work: Work, *, data: bool) -> Gradients:
    """Adds what makes tokens and conditioning of a sample; returns which of them need gradients."""
    root, is_low_rank = anatomy.root, anatomy.block.modulation == "low_rank"
    time, text, image = f"{root}time_embedding", f"{root}{anatomy.text}", f"{root}image_embedding"

    def chain(component: str, module: str, names: tuple[str, ...], tokens: int, *, needs: bool) -> bool:
        paths = [f"{module}.{name}".removesuffix(".") for name in names]
        return tally.chain(component, anatomy.having(paths), tokens, needs=needs)

    def ways(names: tuple[str, ...]) -> list[str]:
        return anatomy.having([f"{anatomy.modules}{name}" for name in names])

    # By low rank, the embedding is the normed sinusoid, and the vectors have a way of their own from it.
    hidden = chain("time_embed", time, ("hidden", "out"), work.slots, needs=data)
    vectors = chain("time_embed", time, ("project",), work.slots, needs=hidden)
    if work.action_slots:
        apart = f"{anatomy.modules}action_time"
        own = chain("time_embed", apart, ("hidden", "out"), work.action_slots, needs=data)
        vectors |= chain("time_embed", apart, ("project",), work.action_slots, needs=own)
        hidden |= own
    embedding = data or tally.trains(f"{time}.scale") if is_low_rank else hidden
    stated = tally.trains("state_embed.kernel", "state_embed.bias")
    if work.text_states:
        stated = chain("action_state", "state_embed", ("",), work.text_states, needs=data)
    prompt = data or stated or tally.trains(f"{text}.table")
    words = chain("text_embed", text, ("hidden", "out"), work.text, needs=prompt)
    normed = data or tally.trains(*(f"{image}.{name}" for name in ("norm_in.scale", "norm_in.bias", "positions")))
    pictured = chain("image_embed", image, ("hidden", "out"), work.image, needs=normed)
    pictured = pictured or tally.trains(f"{image}.norm_out.scale", f"{image}.norm_out.bias")
    tokens = [
        work.patches > 0 and tally.chain("patch", [f"{root}patch_embed"], work.patches, needs=data),
        tally.trains("grid_embedding"),
        work.prefix > 0 and tally.trains(f"{root}table"),
        work.prefix > 0 and chain("text_embed", f"{root}embed_tokens", ("",), work.prefix, needs=data),
        work.actions > 0 and tally.chain("action_state", ways(_ACTION_ENCODER), work.actions, needs=data),
        work.states > 0 and tally.chain("action_state", ways(_STATE_ENCODER), work.states, needs=data),
    ]
    return Gradients(any(tokens), embedding, vectors, words, pictured)


def _tally_heads(tally: Tally, anatomy: Anatomy, work: Work, into: Gradients) -> None:
    """Adds what reads the tokens after the last block, and the embedding of timesteps."""
    head = f"{anatomy.root}head_modulation"
    if anatomy.block.modulation == "low_rank":
        down_up = tally.chain("time_embed", (f"{head}.down", f"{head}.up"), work.slots, needs=into.embedding)
        modulation = down_up or into.vectors
    else:
        modulation = into.embedding or tally.trains(head)
    if work.predicted:
        tally.chain("head", [f"{anatomy.root}{anatomy.head}"], work.predicted, needs=into.tokens or modulation)
    if work.decoded:
        # Actions with an embedding of timesteps of their own go out through the video's modulation.
        needs = into.tokens or (work.action_slots > 0 and modulation)
        if anatomy.block.modulation == "adaptive_rms":
            needs |= tally.chain("time_embed", [f"{anatomy.root}out_norm.vectors"], work.slots, needs=into.embedding)
        ways = anatomy.having([f"{anatomy.modules}{name}" for name in _ACTION_DECODER])
        tally.chain("action_state", ways, work.decoded, needs=needs)


def _tally_period(tally: Tally, period: Sequence[Sequence[_Block]], into: Sequence[Gradients]) -> list[Gradients]:
    """Adds the layers that one step of the scan runs; returns what needs gradients after them."""
    found = list(into)
    for layer in period:
        outs = _tally_layer(tally, layer, found)
        found = [part._replace(tokens=out) for part, out in zip(found, outs, strict=True)]
    return found


def _tally_layer(tally: Tally, layer: Sequence[_Block], into: Sequence[Gradients]) -> list[bool]:
    """Adds one block of every stack, which attend together; returns whose outputs need gradients."""
    begun = [block.begin(tally, part) for block, part in zip(layer, into, strict=True)]
    joint = [part for block, part in zip(layer, begun, strict=True) if not block.block.is_recurrent]
    query, key, value = (any(part.heads[i] for part in joint) for i in range(3))
    own, width = layer[0].attention.own, layer[0].block.inner_width
    out = tally.attend("self_scores", width, own, query=query, key=key, value=value)
    return [
        block.finish(tally, part, started, attended=block.recur(tally, started) if block.block.is_recurrent else out)
        for block, part, started in zip(layer, into, begun, strict=True)
    ]


class _Begun(NamedTuple):
    """What needs gradients in a block up to its self-attention: tokens, vectors of its parts, (query, key, value)."""

    tokens: bool
    parts: tuple[bool, bool, bool]
    heads: tuple[bool, bool, bool]


class _Block:
    """The walk along one block (``models.block.Block``)."""

    def __init__(self, anatomy: Anatomy, work: Work, place: int, *, turns: bool) -> None:
        self.path = layer_paths(f"{anatomy.root}blocks", anatomy.block)[place]
        self.block, self.work, self.attention = anatomy.block.layers[place], work, work.attention[place]
        # Dims of a head that its rotary embedding multiplies by a constant matrix.
        self.turned = self.block.head_dim if turns else 0
        self.positions = tuple(f"{anatomy.root}learned_positions.{axis}" for axis in ("frames", "rows", "columns"))

    def begin(self, tally: Tally, into: Gradients) -> _Begun:
        """Adds what self-attention reads."""
        parts = self._modulations(tally, into)
        x = into.tokens or tally.trains(*self.positions)
        tokens, width, path = self.work.tokens, self.block.inner_width, f"{self.path}.self_attention"
        query, key, value = (
            self._project(tally, "self_projections", f"{path}.{name}", tokens, needs=x or parts[0])
            for name in ("query", "key", "value")
        )
        if self.block.is_recurrent:
            return _Begun(x, parts, (query, key, value))
        for needs_turn in (query, key):
            tally.turn("self_projections", layers.linear(tokens, width, self.turned), needs=needs_turn)
        return _Begun(x, parts, (query, key, value))

    def recur(self, tally: Tally, begun: _Begun) -> bool:
        """Adds a recurrence with its gates; returns whether what it gives needs gradients."""
        tokens, path = self.work.tokens, f"{self.path}.self_attention"
        reads = begun.tokens or begun.parts[0]
        gates = [
            tally.linear("self_projections", f"{path}.{name}.kernel", tokens, needs=reads)
            for name in ("decay", "strength", "gate")
        ]
        vectors = ("query_taps", "key_taps", "value_taps", "log_rate", "decay_bias")
        needs = any(begun.heads) or any(gates[:2]) or tally.trains(*(f"{path}.{name}" for name in vectors))
        read = tally.recur("self_scores", self.attention.recurrence, needs=needs)
        return read or gates[2] or tally.trains(f"{path}.output_norm")

    def finish(self, tally: Tally, into: Gradients, begun: _Begun, *, attended: bool) -> bool:
        """Adds the rest of a block; returns whether its output needs gradients."""
        own, cross, mlp = begun.parts
        path = f"{self.path}.self_attention.out_kernel"
        x = tally.linear("self_projections", path, self.work.tokens, needs=attended) or begun.tokens or own
        if self.block.cross_attention:
            norm = tally.trains(f"{self.path}.cross_norm_scale", f"{self.path}.cross_norm_bias")
            x = self._cross_attention(tally, into, needs=x or norm or cross) or x or cross
        tokens, is_modulated = self.work.tokens, self.block.modulation != "none"
        hidden = tally.linear("ffn", f"{self.path}.mlp.up.kernel", tokens, needs=x or mlp)
        if self.block.gated_mlp:
            hidden |= tally.linear("ffn", f"{self.path}.mlp.gate.kernel", tokens, needs=x or mlp)
        # The last value of a block is needed by the gradient of its gate alone.
        out = tally.linear(
            "ffn", f"{self.path}.mlp.down.kernel", tokens, needs=hidden, is_output_used=mlp and is_modulated
        )
        return x or out or mlp

    def _modulations(self, tally: Tally, into: Gradients) -> tuple[bool, bool, bool]:
        """Adds what modulates self-attention, cross-attention and feed-forward; returns which need gradients."""
        if self.block.modulation == "none":
            own, mlp = (
                tally.trains(f"{self.path}.{part}_norm_scale", f"{self.path}.{part}_norm_bias")
                for part in ("self", "mlp")
            )
            return own, False, mlp
        if self.block.modulation == "adaptive_rms":
            own, mlp = (
                tally.chain("time_embed", [f"{self.path}.{part}_norm.vectors"], self.work.slots,
                            needs=into.embedding)
                for part in ("self", "mlp")
            )  # fmt: skip
            return own, False, mlp
        if self.block.modulation == "table":
            needs = into.vectors or tally.trains(f"{self.path}.modulation")
            return needs, False, needs
        slots = self.work.slots * self.attention.copies
        own, cross, mlp = (
            tally.chain("time_embed", [f"{self.path}.{part}_modulation.{way}" for way in ("down", "up")], slots,
                        needs=into.embedding) or into.vectors
            for part in ("self", "cross", "mlp")
        )  # fmt: skip
        return own, cross, mlp

    def _cross_attention(self, tally: Tally, into: Gradients, *, needs: bool) -> bool:
        """Adds attention to text and, in a sum before the output projection, to an image."""
        work, width, path = self.work, self.block.inner_width, f"{self.path}.cross_attention"
        query = self._project(tally, "cross_qo", f"{path}.query", work.tokens, needs=needs)
        out = False
        for prefix, tokens, seen, computed in (
            ("", work.text, into.text, self.attention.text),
            ("image_", work.image if self.block.image_branch else 0, into.image, self.attention.image),
        ):
            if not tokens:
                continue
            key, value = (
                self._project(tally, "cross_kv", f"{path}.{prefix}{name}", tokens * self.attention.copies, needs=seen)
                for name in ("key", "value")
            )
            out |= tally.attend("cross_scores", width, computed, query=query, key=key, value=value, is_cross=True)
        return tally.linear("cross_qo", f"{path}.out_kernel", work.tokens, needs=out)

    def _project(self, tally: Tally, component: str, path: str, tokens: int, *, needs: bool) -> bool:
        """Adds a projection to heads, with the scale of their norm; returns whether they need gradients."""
        return tally.linear(component, f"{path}.kernel", tokens, needs=needs) or tally.trains(f"{path}_scale")
