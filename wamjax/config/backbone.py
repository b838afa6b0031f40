"""Configuration of video transformers: what differs between Wan, Cosmos and our own blocks, as data.

Owns the sizes and the variants of one block and of the model around it, of what it reads, and which action modules it
carries. The table of published models is in ``config.presets``; how a checkpoint's ``config.json`` becomes one of these
is in ``weights.kinds``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from wamjax.config.choices import DType, Matmul, Remat
from wamjax.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerAttention:
    """How the tokens of one layer read one another.

    Attributes:
      kind: ``full``: all that the layout shows. ``window``: of that, video reads of video only frames nearby; tokens
        that are no video read, and are read, as in ``full``. ``gated_delta``: no softmax but a recurrence over the
        stack's own tokens in the order of the sequence, every token reading those before it (``nn.gated_delta_net``);
        other experts of a mixture attend to each other without it.
      reach: Of ``window``: how many steps a video token sees to each side of its own latent frame.
      dilation: Of ``window``: latent frames of one step; those between are not seen.
      key_dim: Of ``gated_delta``: dims of a head's queries and keys.
      value_dim: Of ``gated_delta``: dims of a head's values.
    """

    kind: Literal["full", "window", "gated_delta"] = "full"
    reach: int = 0
    dilation: int = 1
    key_dim: int = 256
    value_dim: int = 512

    def __post_init__(self) -> None:
        for name, least in (("reach", 0), ("dilation", 1), ("key_dim", 1), ("value_dim", 1)):
            if getattr(self, name) < least:
                value = getattr(self, name)
                raise ConfigError(f"{name}={value} in config.backbone.block.attention; expected {least} or more")

    def __str__(self) -> str:
        """Returns it in a few words."""
        return {
            "full": "full",
            "window": f"window of {self.reach} to each side" + f", {self.dilation} apart" * (self.dilation > 1),
            "gated_delta": f"gated delta of {self.key_dim} x {self.value_dim}",
        }[self.kind]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One transformer block: self-attention, cross-attention to text (and an image) if any, feed-forward.

    Attributes:
      width: Residual stream width D.
      num_heads: Attention heads K; the head dimension is ``attention_width / num_heads`` and must be even.
      ffn_width: Hidden width of the feed-forward layer.
      num_key_heads: Heads of keys and values, each read by as many query heads; None for ``num_heads``.
      attention: How tokens read one another in one layer after the other, over and over: a pattern whose length divides
        the layers. Empty: ``full`` in all.
      cross_attention: Whether there is cross-attention; without it, text is read as tokens of the sequence, if at all.
      attention_width: Width of all heads together; None means ``width``. Experts of different widths that attend
        jointly have it in common.
      context_width: Width of the text tokens that the blocks read; None means ``width``.
      image_branch: Whether cross-attention has keys and values of its own for image tokens of width D (Wan I2V).
      qk_norm: RMS norm of queries and keys over the full ``width`` (Wan) or within each ``head`` (Cosmos), or ``none``
        at all (Gemma, SigLIP).
      qk_norm_eps: Epsilon of that norm.
      norm_eps: Epsilon of the layer norms.
      use_bias: Whether projections have biases.
      gated_mlp: Whether the feed-forward layer is down(gelu(gate(x)) up(x)).
      modulation: ``none``: norms have learned parameters (``norm``), and timesteps are not read (language and vision
        towers). ``adaptive_rms``: every RMS norm takes its scale and shift, and what follows it a gate, from a linear
        layer of its own on the timestep's embedding (Pi-0.5's action expert). ``table``: a learned offset per block on
        six vectors that all blocks share (Wan). ``low_rank``: every block projects the timestep through
        ``modulation_rank`` dims, for each of its three parts (Cosmos, AdaLN-LoRA).
      norm: Of ``modulation=none``: ``rms``, with a scale (Gemma), or ``layer``, with scale and bias (SigLIP, GPT-2).
      modulation_rank: Rank of ``low_rank``.
      cross_norm: Layer norm before cross-attention: ``affine``, or ``none`` at all. ``low_rank`` modulates (and gates)
        cross-attention instead.
      activation: Of the feed-forward layer: ``gelu``, or ``relu`` (GR-1).
      gelu: GELU of the feed-forward layer: its ``tanh`` approximation (Wan) or ``exact`` (Cosmos).
      compute_dtype: Dtype of matrix products. Norms, modulation, rotary and timesteps stay fp32.
      matmul: Operands of the blocks' products with kernels are rounded to ``fp8`` or ``int8`` first (the gradient of a
        kernel is not: see ``nn.products``); empty: not rounded. Needs the ``quantised`` extra.
    """

    width: int
    num_heads: int
    ffn_width: int
    num_key_heads: int | None = None
    attention: tuple[LayerAttention, ...] = ()
    cross_attention: bool = True
    attention_width: int | None = None
    context_width: int | None = None
    image_branch: bool = False
    qk_norm: Literal["width", "head", "none"] = "width"
    qk_norm_eps: float = 1e-6
    norm_eps: float = 1e-6
    use_bias: bool = True
    gated_mlp: bool = False
    modulation: Literal["table", "low_rank", "adaptive_rms", "none"] = "table"
    norm: Literal["rms", "layer"] = "rms"
    modulation_rank: int = 256
    cross_norm: Literal["affine", "none"] = "affine"
    activation: Literal["gelu", "relu"] = "gelu"
    gelu: Literal["tanh", "exact"] = "tanh"
    compute_dtype: DType = "float32"
    matmul: Matmul = ""

    def __post_init__(self) -> None:
        inner = self.inner_width
        if inner % self.num_heads or (inner // self.num_heads) % 2:
            name = "width" if self.attention_width is None else "attention_width"
            raise ConfigError(
                f"{name} {inner} over {self.num_heads} heads must give an even head dimension; change {name} or "
                "num_heads of the model"
            )
        if self.num_heads % self.key_heads:
            raise ConfigError(
                f"num_key_heads {self.key_heads} does not divide the {self.num_heads} heads; change num_key_heads"
            )
        if self.image_branch and not self.cross_attention:
            raise ConfigError("image_branch is a part of cross_attention, which is off; set image_branch to False")
        if self.modulation in ("none", "adaptive_rms") and self.cross_attention:
            raise ConfigError(
                f"modulation={self.modulation} with cross_attention: such blocks read no text beside their tokens; set "
                "cross_attention to False"
            )
        if self.norm != "rms" and self.modulation != "none":
            raise ConfigError(
                f"norm={self.norm} with modulation={self.modulation}: norms of modulated blocks follow from the "
                "modulation; leave norm at rms"
            )

    @property
    def layers(self) -> tuple[BlockConfig, ...]:
        """The blocks of one period of the pattern: this one, each with its own attention."""
        return tuple(dataclasses.replace(self, attention=(each,)) for each in self.attention) or (self,)

    @property
    def own_attention(self) -> LayerAttention:
        """Attention of a single layer (one of ``layers``)."""
        assert len(self.attention) < 2, "a pattern of several layers; take one of them"
        return self.attention[0] if self.attention else LayerAttention()

    @property
    def is_recurrent(self) -> bool:
        """Whether some layer reads tokens by a recurrence."""
        return any(each.kind == "gated_delta" for each in self.attention)

    @property
    def attention_beside(self) -> tuple[LayerAttention, ...]:
        """Attention of another expert of a mixture: in recurrent layers it attends without this one."""
        return tuple(LayerAttention() if each.kind == "gated_delta" else each for each in self.attention)

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_heads if self.num_key_heads is None else self.num_key_heads

    @property
    def inner_width(self) -> int:
        """Width of all heads together, K e."""
        return self.width if self.attention_width is None else self.attention_width

    @property
    def head_dim(self) -> int:
        """Head dimension e."""
        return self.inner_width // self.num_heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryConfig:
    """Rotary embedding of video tokens.

    Attributes:
      theta: Base of the frequencies.
      scale: How far each axis (frame, row, column) is stretched beyond its training range: the base of an axis with w
        dims becomes ``theta * scale^(w / (w - 2))`` (NTK-aware scaling, Cosmos's ``rope_scale``).
      base_fps: Frame rate at which one latent frame is one step of the frame axis; other rates are converted to it
        when a clip's rate is given.
    """

    theta: float = 10_000.0
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    base_fps: float = 24.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoTransformerConfig:
    """A video transformer: embeddings, a stack of blocks, a modulated head.

    Attributes:
      block: The block, repeated ``num_layers`` times (stacked and scanned).
      num_layers: Number of blocks.
      in_channels: Latent channels that enter, condition channels included, a padding mask not.
      out_channels: Latent channels that are predicted.
      patch: Latent frames, rows and columns of one token.
      use_patch_bias: Whether patch embedding and head have biases.
      time_width: Width of the sinusoidal timestep embedding; even.
      text_width: Width of the text encoder's tokens.
      text_embedding: Into the blocks' context: ``mlp`` (Linear, GELU tanh, Linear: Wan), ``projection`` (Linear, exact
        GELU: Cosmos 2.5) or ``none`` (the tokens as they are: Cosmos).
      image_width: Width of the image encoder's tokens; None without image branch.
      image_positions: Tokens of the learned position embedding that is added to first and last image together (Wan
        FLF2V: 2 x 257); None without.
      rotary: Rotary embedding.
      learned_positions: Patches along frames, rows and columns for which every block adds a learned position embedding
        (Cosmos 1); None without.
      padding_mask: Whether a mask of padded pixels enters as one more channel (Cosmos).
      remat: What the backward pass of a block finds (``models.remat`` has the policies).
    """

    block: BlockConfig
    num_layers: int
    in_channels: int
    out_channels: int
    patch: tuple[int, int, int] = (1, 2, 2)
    use_patch_bias: bool = True
    time_width: int = 256
    text_width: int = 4096
    text_embedding: Literal["mlp", "projection", "none"] = "mlp"
    image_width: int | None = None
    image_positions: int | None = None
    rotary: RotaryConfig = RotaryConfig()
    learned_positions: tuple[int, int, int] | None = None
    padding_mask: bool = False
    remat: Remat = "none"

    def __post_init__(self) -> None:
        context = self.block.context_width or self.block.width
        if self.num_layers % len(self.block.layers):
            raise ConfigError(
                f"num_layers {self.num_layers} is no multiple of the {len(self.block.layers)} layers of the pattern "
                "config.backbone.block.attention; change one of them"
            )
        if self.text_embedding == "none" and self.text_width != context:
            raise ConfigError(
                f"text_width {self.text_width} enters the blocks as it is (text_embedding='none') and must equal their "
                f"context_width {context}"
            )
        if self.block.image_branch != (self.image_width is not None):
            raise ConfigError(
                f"image_width={self.image_width} and block.image_branch={self.block.image_branch} do not fit: set both "
                "or neither"
            )
        if self.block.modulation == "low_rank" and self.time_width != self.block.width:
            raise ConfigError(
                f"time_width {self.time_width} must equal the width {self.block.width} where modulation is low_rank"
            )

    @property
    def patch_channels(self) -> int:
        """Values of one patch that enter the patch embedding."""
        return (self.in_channels + self.padding_mask) * math.prod(self.patch)

    @property
    def out_patch_channels(self) -> int:
        """Values of one patch that the head predicts."""
        return self.out_channels * math.prod(self.patch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoExpertConfig:
    """Two transformers that share the denoising of one sample, by noise level (Wan 2.2 A14B).

    Attributes:
      expert: Configuration of each of the two.
      boundary: Timestep t in [0, 1] from which on (t >= boundary) the high-noise expert denoises.
    """

    expert: VideoTransformerConfig
    boundary: float

    def __post_init__(self) -> None:
        if not 0.0 < self.boundary < 1.0:
            raise ConfigError(f"boundary {self.boundary} between the two experts; expected a timestep between 0 and 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """The clips of a pretrained-size backbone, which reads cached latents and text embeddings.

    Attributes:
      num_frames: Pixel frames; 4n + 1 for a VAE that compresses time 4 times.
      height: Pixel rows.
      width: Pixel columns.
      stride: How many pixels (frames, rows, columns) one latent stands for: 4, 8, 8 for Wan 2.1's VAE.
      text_tokens: Text tokens of a prompt, padding included: Wan shows its padding.
      image_tokens: Tokens of the image encoder, for a backbone with an image branch: 257 for CLIP ViT-H/14.
      masks_text: Whether text tokens beyond the prompt, which are zero, are hidden from cross-attention (Fast-WAM).
    """

    num_frames: int = 81
    height: int = 480
    width: int = 832
    stride: tuple[int, int, int] = (4, 8, 8)
    text_tokens: int = 512
    image_tokens: int = 257
    masks_text: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixConfig:
    """A language tower that attends jointly with a backbone (``models.prefix``). Its tokens are ``clip.text_tokens``.

    Its depth, its heads and their dim are the backbone's.

    Attributes:
      width: Residual width; 0 for no tower.
      ffn_width: Hidden width of its gated feed-forward layers.
      num_key_heads: Heads of keys and values.
      is_causal: Whether its tokens see each other one by one (a language model), or all (a prefix).
    """

    width: int = 0
    ffn_width: int = 8192
    num_key_heads: int = 8
    is_causal: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionsConfig:
    """Action modules that a backbone carries; dims of actions and states are those of ``data``.

    Attributes:
      modules: ``none``; ``category``: actions and states are tokens of the video's blocks, with encoders and a decoder
        per embodiment (DreamZero); ``linear``: actions are tokens of the video's blocks, with one linear layer in and
        out and an embedding of timesteps of their own (LingBot-VA as released); ``expert``: actions go through a
        narrower stack of their own that attends jointly with the video's (Fast-WAM; mixture of transformers); ``plan``:
        actions are decoded from a latent plan and the present (Play-LMP). See ``models.action_transformers`` and
        ``models.latent_plan``.
      hidden_width: Hidden width of the state encoder of ``category`` and ``plan``, and of the action decoder of
        ``category``.
      num_categories: Embodiments with weights of their own, of ``category``.
      expert_width: Residual width of ``expert``, and of the decoder of ``plan``. Its heads are the video's, and so is
        the depth of ``expert``.
      expert_ffn_width: Hidden width of the feed-forward layers of the same.
      plan_dim: Dims of a latent plan.
      plan_layers: Blocks of the decoder of ``plan``.
    """

    modules: Literal["none", "category", "linear", "expert", "plan"] = "none"
    hidden_width: int = 1024
    num_categories: int = 1
    expert_width: int = 1024
    expert_ffn_width: int = 4096
    plan_dim: int = 256
    plan_layers: int = 4
