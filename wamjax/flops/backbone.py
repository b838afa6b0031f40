"""FLOPs of the parts of a video transformer, ours on pixels and the published ones on latents alike.

One walk along the model serves all counts (``Work`` says of what): embeddings, blocks, heads, each with its forward
pass, its gradients and what its rematerialisation repeats. Modulation of blocks by low rank, which depends on the
timestep alone, is part of ``time_embed``.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from wamjax.config.backbone import BlockConfig, VideoTransformerConfig
from wamjax.config.blocks import block_config
from wamjax.config.choices import Remat
from wamjax.config.schema import FinetuneConfig, RunConfig
from wamjax.flops import layers
from wamjax.flops.execution import AttentionWork
from wamjax.flops.parameters import Parameter, list_parameters, video_parameters
from wamjax.flops.tally import Tally
from wamjax.layout.kernels import exactly

BLOCK_COMPONENTS = ("self_projections", "self_scores", "cross_qo", "cross_kv", "cross_scores", "ffn")
COMPONENTS = (*BLOCK_COMPONENTS, "patch", "head", "text_embed", "image_embed", "time_embed", "action_state")

_ACTION_ENCODER = ("action_encoder.lift", "action_encoder.mix", "action_encoder.out")
_STATE_ENCODER = ("state_encoder.hidden", "state_encoder.out")
_ACTION_DECODER = ("action_decoder.hidden", "action_decoder.out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Anatomy:
    """A model as far as its products go.

    Attributes:
      block: The block of its stack.
      num_layers: Blocks.
      parameters: By path.
      root: Path of the video transformer in the model.
      text: Name of the text embedding.
      head: Name of the video head.
    """

    block: BlockConfig
    num_layers: int
    parameters: dict[str, Parameter]
    root: str = ""
    text: str = "text_embedding"
    head: str = "head_out"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What goes through a model for one sample.

    Attributes:
      tokens: Through the blocks.
      patches: Embedded from pixels or latents.
      predicted: By the video head.
      text: Text tokens.
      image: Image tokens.
      slots: Timesteps.
      actions: Action tokens.
      states: State tokens.
      attention: Pairs of one block.
    """

    tokens: int
    patches: int
    predicted: int
    text: int
    image: int
    slots: int
    attention: AttentionWork
    actions: int = 0
    states: int = 0


def find_anatomy(config: RunConfig) -> Anatomy:
    """Returns the model of ``config``."""
    parameters, backbone = list_parameters(config), config.backbone
    if backbone is None:
        block, depth = block_config(config.model), config.model.num_layers
        return Anatomy(block=block, num_layers=depth, parameters=parameters, text="prompts", head="video_head")
    root = "video." if config.layout.formulation == "joint" else ""
    return Anatomy(block=backbone.block, num_layers=backbone.num_layers, parameters=parameters, root=root)


def video_transformer_flops(
    config: VideoTransformerConfig,
    *,
    tokens: int,
    text_tokens: int,
    image_tokens: int = 0,
    slots: int = 1,
    pairs: int | None = None,
    patch_tokens: int | None = None,
    head_tokens: int | None = None,
) -> dict[str, int]:
    """Returns the forward FLOPs of a video transformer by component.

    Args:
      config: The model.
      tokens: Tokens that go through the blocks.
      text_tokens: Text tokens, padding included where it is attended.
      image_tokens: Tokens of all images of a sample.
      slots: Timesteps that are embedded: 1, one per latent frame, or one per token.
      pairs: Attended query-key pairs of self-attention; None for all of them.
      patch_tokens: Tokens that are embedded from latents; None for ``tokens``.
      head_tokens: Tokens that the head predicts; None for ``tokens``.
    """
    anatomy = Anatomy(block=config.block, num_layers=config.num_layers, parameters=video_parameters(config))
    work = Work(
        tokens=tokens,
        patches=tokens if patch_tokens is None else patch_tokens,
        predicted=tokens if head_tokens is None else head_tokens,
        text=text_tokens,
        image=image_tokens if config.image_width is not None else 0,
        slots=slots,
        attention=needed_attention(tokens, tokens**2 if pairs is None else pairs, text_tokens, image_tokens),
    )
    return tally_model(anatomy, work, FinetuneConfig()).forward


def needed_attention(tokens: int, pairs: int, text: int, image: int) -> AttentionWork:
    """Returns what attention needs: ``pairs`` of its own, and all pairs with text and image."""
    return AttentionWork((exactly(pairs),), (exactly(tokens * text),), (exactly(tokens * image),))


def tally_model(
    anatomy: Anatomy,
    work: Work,
    finetune: FinetuneConfig,
    *,
    differentiates_data: bool = False,
    is_executed: bool = False,
    remat: Remat | None = None,
) -> Tally:
    """Adds up one sample.

    Args:
      anatomy: The model.
      work: What goes through it.
      finetune: What is trained.
      differentiates_data: Whether raw data (pixels, latents, text, timesteps, actions) counts as if it needed
        gradients: the convention of 3 x forward.
      is_executed: Whether to count what the program does: every layer of the scanned stack computes what any layer
        needs, and heads are turned by a product where the dtype asks for it.
      remat: What the backward pass of the blocks finds; None for everything.
    """
    total = Tally(COMPONENTS, anatomy.parameters, finetune)
    into = _tally_embeddings(total, anatomy, work, data=differentiates_data)
    first, rest, blocks = (Tally(COMPONENTS, anatomy.parameters, finetune, remat) for _ in range(3))
    block = _Block(anatomy, work, turns=is_executed and anatomy.block.compute_dtype == "bfloat16")
    out = block.tally(first, into)
    block.tally(rest, into._replace(tokens=out))
    blocks.add(rest if is_executed else first, 1)
    blocks.add(rest, anatomy.num_layers - 1)
    total.add(blocks, 1)
    _tally_heads(total, anatomy, work, into._replace(tokens=out))
    return total


class _Gradients(NamedTuple):
    """What needs gradients: inputs of a block, and the embedding of timesteps itself, which heads read too."""

    tokens: bool
    embedding: bool
    vectors: bool
    text: bool
    image: bool


def _tally_embeddings(tally: Tally, anatomy: Anatomy, work: Work, *, data: bool) -> _Gradients:
    """Adds what makes tokens and conditioning of a sample; returns which of them need gradients."""
    root, is_low_rank = anatomy.root, anatomy.block.modulation == "low_rank"
    time, text, image = f"{root}time_embedding", f"{root}{anatomy.text}", f"{root}image_embedding"

    def chain(component: str, module: str, names: tuple[str, ...], tokens: int, *, needs: bool) -> bool:
        paths = [f"{module}.{name}" for name in names if f"{module}.{name}.kernel" in anatomy.parameters]
        return tally.chain(component, paths, tokens, needs=needs)

    # By low rank, the embedding is the normed sinusoid, and the vectors have a way of their own from it.
    hidden = chain("time_embed", time, ("hidden", "out"), work.slots, needs=data)
    vectors = chain("time_embed", time, ("project",), work.slots, needs=hidden)
    embedding = data or tally.trains(f"{time}.scale") if is_low_rank else hidden
    prompt = data or tally.trains(f"{text}.table")
    words = chain("text_embed", text, ("hidden", "out"), work.text, needs=prompt)
    normed = data or tally.trains(*(f"{image}.{name}" for name in ("norm_in.scale", "norm_in.bias", "positions")))
    pictured = chain("image_embed", image, ("hidden", "out"), work.image, needs=normed)
    pictured = pictured or tally.trains(f"{image}.norm_out.scale", f"{image}.norm_out.bias")
    tokens = [
        tally.chain("patch", [f"{root}patch_embed"], work.patches, needs=data),
        tally.trains("grid_embedding"),
        work.actions > 0 and tally.chain("action_state", _ACTION_ENCODER, work.actions, needs=data),
        work.states > 0 and tally.chain("action_state", _STATE_ENCODER, work.states, needs=data),
    ]
    return _Gradients(any(tokens), embedding, vectors, words, pictured)


def _tally_heads(tally: Tally, anatomy: Anatomy, work: Work, into: _Gradients) -> None:
    """Adds what reads the tokens after the last block, and the embedding of timesteps."""
    head = f"{anatomy.root}head_modulation"
    if anatomy.block.modulation == "low_rank":
        down_up = tally.chain("time_embed", (f"{head}.down", f"{head}.up"), work.slots, needs=into.embedding)
        modulation = down_up or into.vectors
    else:
        modulation = into.embedding or tally.trains(head)
    tally.chain("head", [f"{anatomy.root}{anatomy.head}"], work.predicted, needs=into.tokens or modulation)
    if work.actions:
        tally.chain("action_state", _ACTION_DECODER, work.actions, needs=into.tokens)


class _Block:
    """The walk along one block (``models.block.Block``)."""

    def __init__(self, anatomy: Anatomy, work: Work, *, turns: bool) -> None:
        self.path, self.block, self.work = f"{anatomy.root}blocks", anatomy.block, work
        # Dims of a head that its rotary embedding multiplies by a constant matrix.
        self.turned = self.block.head_dim if turns else 0
        self.positions = tuple(f"{anatomy.root}learned_positions.{axis}" for axis in ("frames", "rows", "columns"))

    def tally(self, tally: Tally, into: _Gradients) -> bool:
        """Adds one block; returns whether its output needs gradients."""
        own, cross, mlp = self._modulations(tally, into)
        x = into.tokens or tally.trains(*self.positions)
        x = self._self_attention(tally, needs=x or own) or x or own
        norm = tally.trains(f"{self.path}.cross_norm_scale", f"{self.path}.cross_norm_bias")
        x = self._cross_attention(tally, into, needs=x or norm or cross) or x or cross
        tokens = self.work.tokens
        hidden = tally.linear("ffn", f"{self.path}.mlp.up.kernel", tokens, needs=x or mlp)
        # The last value of a block is needed by the gradient of its gate alone.
        out = tally.linear("ffn", f"{self.path}.mlp.down.kernel", tokens, needs=hidden, is_output_used=mlp)
        return x or out or mlp

    def _modulations(self, tally: Tally, into: _Gradients) -> tuple[bool, bool, bool]:
        """Adds what modulates self-attention, cross-attention and feed-forward; returns which need gradients."""
        if self.block.modulation == "table":
            needs = into.vectors or tally.trains(f"{self.path}.modulation")
            return needs, False, needs
        slots = self.work.slots * self.work.attention.copies
        own, cross, mlp = (
            tally.chain("time_embed", [f"{self.path}.{part}_modulation.{way}" for way in ("down", "up")], slots,
                        needs=into.embedding) or into.vectors
            for part in ("self", "cross", "mlp")
        )  # fmt: skip
        return own, cross, mlp

    def _self_attention(self, tally: Tally, *, needs: bool) -> bool:
        tokens, width, path = self.work.tokens, self.block.inner_width, f"{self.path}.self_attention"
        query, key, value = (
            self._project(tally, "self_projections", f"{path}.{name}", tokens, needs=needs)
            for name in ("query", "key", "value")
        )
        for needs_turn in (query, key):
            tally.turn("self_projections", layers.linear(tokens, width, self.turned), needs=needs_turn)
        own = self.work.attention.own
        out = tally.attend("self_scores", width, own, query=query, key=key, value=value)
        return tally.linear("self_projections", f"{path}.out_kernel", tokens, needs=out)

    def _cross_attention(self, tally: Tally, into: _Gradients, *, needs: bool) -> bool:
        """Adds attention to text and, in a sum before the output projection, to an image."""
        work, width, path = self.work, self.block.inner_width, f"{self.path}.cross_attention"
        query = self._project(tally, "cross_qo", f"{path}.query", work.tokens, needs=needs)
        out = False
        for prefix, tokens, seen, computed in (
            ("", work.text, into.text, work.attention.text),
            ("image_", work.image if self.block.image_branch else 0, into.image, work.attention.image),
        ):
            if not tokens:
                continue
            key, value = (
                self._project(tally, "cross_kv", f"{path}.{prefix}{name}", tokens * work.attention.copies, needs=seen)
                for name in ("key", "value")
            )
            out |= tally.attend("cross_scores", width, computed, query=query, key=key, value=value, is_cross=True)
        return tally.linear("cross_qo", f"{path}.out_kernel", work.tokens, needs=out)

    def _project(self, tally: Tally, component: str, path: str, tokens: int, *, needs: bool) -> bool:
        """Adds a projection to heads, with the scale of their norm; returns whether they need gradients."""
        return tally.linear(component, f"{path}.kernel", tokens, needs=needs) or tally.trains(f"{path}_scale")
