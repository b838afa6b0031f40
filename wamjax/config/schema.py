"""The configuration of a run, declared once as frozen keyword-only dataclasses.

Owns every knob, its type and its default. Does not parse flags (``config.bridge``), and derives nothing
(``config.geometry``). Sizes are in the unit the name says; a count has no unit.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from wamjax.config.backbone import ActionsConfig, ClipConfig, PrefixConfig, VideoTransformerConfig
from wamjax.config.buckets import BucketsConfig
from wamjax.config.choices import DType, Matmul, Remat
from wamjax.config.formulation import LayoutConfig, ObjectiveConfig
from wamjax.config.gpt import GptPolicyConfig
from wamjax.config.inverse_dynamics import InverseDynamicsConfig
from wamjax.config.parallel import ParallelConfig
from wamjax.config.reporting import CheckpointConfig, EvaluateConfig, LogConfig
from wamjax.config.sampling import SamplingConfig
from wamjax.config.sources import AugmentationConfig, FilterConfig, MixtureConfig, ViewPlacement
from wamjax.config.vla import VlaConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The world-action transformer.

    Attributes:
      width: Residual stream width D.
      num_layers: Transformer blocks (stacked and scanned).
      num_heads: Attention heads K; the head dimension is ``width / num_heads`` and must be even and divisible as
        rotary embedding needs it (see ``nn.rotary``).
      ffn_width: Hidden width of the feed-forward layer.
      patch: Video patch (frames, rows, columns) in pixels: one video token holds one patch of the canvas. Frames
        must be 1: this codec does not compress time.
      text_tokens: Learned tokens per task prompt.
      text_width: Width of a learned text token before projection to ``width``.
      max_prompts: Rows of the trainable prompt table.
      time_width: Width of the sinusoidal timestep embedding.
      action_hidden: Hidden width of the action and state encoders and of the action decoder.
      grid_embedding: Whether a learned embedding of a video token's row and column is added to it, besides rotary
        (which alone tells a value nothing of where it was). ``none`` is Wan's way, ``learned`` Cosmos-Predict's.
      rope_theta: Base of the rotary frequencies.
      norm_eps: Epsilon of every norm.
      compute_dtype: Dtype of matrix products. Norms, modulation, rotary and timesteps stay fp32.
      matmul: Operands of the blocks' products with kernels are rounded to ``fp8`` or ``int8`` first (the gradient of a
        kernel is not: see ``nn.products``); empty: not rounded. Needs the ``quantised`` extra.
      remat: What the backward pass of a block finds (``models.remat`` has the policies).
    """

    width: int = 128
    num_layers: int = 4
    num_heads: int = 4
    ffn_width: int = 512
    patch: tuple[int, int, int] = (1, 16, 16)
    text_tokens: int = 4
    text_width: int = 64
    max_prompts: int = 16
    time_width: int = 128
    action_hidden: int = 128
    grid_embedding: Literal["none", "learned"] = "none"
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    compute_dtype: DType = "float32"
    matmul: Matmul = ""
    remat: Remat = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which episodes are read and how windows are cut from them.

    Attributes:
      path: Folder of a LeRobot v3.0 dataset, absolute or relative to the directory the command runs in.
      latents: Folder that ``wamjax data cache`` made of the dataset: what ``backbone`` is trained on. The small model
        reads ``path``.
      index: Folder that ``wamjax data index`` made of the dataset with these settings: starting takes seconds then,
        whatever the dataset's size. Empty: the dataset is looked through at every start.
      embodiment: The robot: one of ``data_pipelines/embodiments`` or the path of such a TOML file. It decides
        ``canvas``, ``views``, ``frame_stride``, ``normalisation`` and which features are states and actions; these keys
        are left at their defaults. Empty: they are set here.
      canvas: Height and width of the canvas in pixels.
      views: Where each camera lies on the canvas (camera feature, top, left, height, width); a view is resized to its
        rectangle, what no view covers is black.
      state_key: Feature holding the robot's state; empty, like ``action_key``, for video without actions. Not read
        where ``embodiment`` is set.
      action_key: Feature holding the actions.
      state_dim: State dims P the model sees; a dataset with fewer is padded and masked.
      action_dim: Action dims U the model sees; a dataset with fewer is padded and masked.
      frame_stride: Dataset steps between two frames of a window.
      window_stride: Dataset steps between the starts of two windows of one episode.
      validation_fraction: Share of episodes held out (by episode, before any shuffling; at least one per task).
      split_seed: Seed of the train/validation split.
      shuffle_seed: Seed of the order of the training windows.
      normalisation: How actions and states are scaled: ``quantile`` maps q01/q99 to -1/1 and clamps; ``min_max`` the
        smallest and largest training value; ``mean_std`` subtracts the mean and divides by the standard deviation.
      video_statistics: ``training_mean`` subtracts the mean canvas of the training windows and divides by their
        standard deviation; ``none`` scales pixels to [-1, 1].
      broken_budget: Share of episodes that may be quarantined before indexing is refused.
      filters: Sound episodes and windows that are not read.
      mixture: Several datasets in place of ``path``.
      buckets: Several sizes of windows in place of one.
      augmentation: Random crops and colours of training frames. Not for a backbone, whose latents are made once.
      num_threads: Reader threads of this host.
      prefetch: Windows read ahead by this host.
      decoded_frames_mib: Decoded frames are kept in host memory when those of the whole dataset fit into this many
        MiB; otherwise each window is decoded when it is read.
    """

    path: str = "datasets/metaworld"
    latents: str = ""
    index: str = ""
    embodiment: str = ""
    canvas: tuple[int, int] = (96, 192)
    views: tuple[ViewPlacement, ...] = ()
    state_key: str = "observation.state"
    action_key: str = "action"
    state_dim: int = 4
    action_dim: int = 4
    frame_stride: int = 4
    window_stride: int = 1
    validation_fraction: float = 0.1
    split_seed: int = 0
    shuffle_seed: int = 0
    normalisation: Literal["quantile", "mean_std", "min_max"] = "quantile"
    video_statistics: Literal["training_mean", "none"] = "training_mean"
    broken_budget: float = 0.05
    filters: FilterConfig = dataclasses.field(default_factory=FilterConfig)
    mixture: MixtureConfig = dataclasses.field(default_factory=MixtureConfig)
    buckets: BucketsConfig = dataclasses.field(default_factory=BucketsConfig)
    augmentation: AugmentationConfig = dataclasses.field(default_factory=AugmentationConfig)
    num_threads: int = 4
    prefetch: int = 64
    decoded_frames_mib: int = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How gradients become updates: direction, learning rate over steps, clipping, and an average of the parameters.

    The direction is multiplied by the learning rate of the step; decoupled weight decay is added to it first.

    Attributes:
      kind: ``adamw``; ``muon``: orthogonalised momentum for the kernels of the stacked blocks, AdamW for all else, both
        at one learning rate (updates are scaled to the size of AdamW's); ``sgd`` with momentum.
      schedule: Learning rate after a linear warm-up from 0. ``cosine``: down to ``final_lr_fraction``; ``wsd``: stable
        at the peak, then down over the last ``decay_fraction`` of the schedule; ``constant``: stable at the peak.
      peak_lr: Learning rate after warm-up.
      warmup_steps: Steps of linear warm-up from 0.
      final_lr_fraction: Learning rate at the end of ``cosine`` and ``wsd``, as a share of the peak.
      decay_steps: Step at which ``cosine`` and ``wsd`` end; 0 means ``train.num_steps``.
      decay_fraction: Share of ``decay_steps`` in which ``wsd`` decays.
      decay_shape: How ``wsd`` decays: ``linear``, or ``one_minus_sqrt`` (1 - sqrt(x) over the decay's x in [0, 1]).
      b1: Decay of AdamW's first moment.
      b2: Decay of AdamW's second moment.
      eps: AdamW's epsilon.
      momentum: Decay of the momentum of ``muon`` (Nesterov) and ``sgd`` (heavy ball).
      moments_dtype: Dtype in which moments and momentum are kept between steps. Updates are computed in fp32.
      weight_decay: Decoupled weight decay on matrices (arrays of two or more dims of their own); norms, biases and
        embeddings of one dim are excluded.
      clip_norm: Global gradient norm above which gradients are scaled down.
      max_skipped: An update whose loss or gradient is not finite is skipped; after this many in a row the run stops.
      ema_decay: Decay of the parameter average used for evaluation; 0 keeps no average (evaluation uses the
        parameters themselves).
    """

    kind: Literal["adamw", "muon", "sgd"] = "adamw"
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    peak_lr: float = 1e-3
    warmup_steps: int = 20
    final_lr_fraction: float = 0.05
    decay_steps: int = 0
    decay_fraction: float = 0.2
    decay_shape: Literal["linear", "one_minus_sqrt"] = "one_minus_sqrt"
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.95
    moments_dtype: DType = "float32"
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    max_skipped: int = 10
    ema_decay: float = 0.99


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """What a run starts from, and which of its parameters it trains.

    Patterns name parameters by their dotted paths as the table at the start of a run shows them, or a module and all
    below it (``blocks.mlp``); ``*`` stands for anything.

    Attributes:
      base: Folder of the run whose parameters this one starts from: its work directory (the newest checkpoint), or one
        of its checkpoints. Of formulation ``video``, the base of a system's video transformer: all else of the system
        starts from scratch. Empty: from scratch.
      frozen: Patterns of parameters that keep their values: no gradient, no optimizer state.
      trained: Patterns excepted from ``frozen``.
      lora_targets: Patterns of kernels that keep their values and get a trained low-rank update; ``*`` is every kernel.
      lora_rank: Rank of each update.
      lora_alpha: Updates are scaled by ``lora_alpha / lora_rank``.
    """

    base: str = ""
    frozen: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    lora_targets: tuple[str, ...] = ()
    lora_rank: int = 16
    lora_alpha: float = 16.0

    @property
    def is_partial(self) -> bool:
        """Whether a run keeps some of its parameters, or trains updates of them."""
        return bool(self.frozen or self.lora_targets)

    @property
    def needs_base(self) -> bool:
        """Whether checkpoints lack what the base holds; a run that trains everything only starts from it."""
        return bool(self.base) and self.is_partial


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop.

    Attributes:
      num_steps: Optimizer steps of the whole run (over all resumes).
      global_batch_size: Samples per step over all hosts.
      accumulate: Parts the batch of a step is taken in, one after the other, so that only one part's activations are
        in memory. Loss and gradient are those of the whole batch.
      seed: Seed of initialisation, noise and timesteps.
    """

    num_steps: int = 400
    global_batch_size: int = 32
    accumulate: int = 1
    seed: int = 0

    @property
    def part_size(self) -> int:
        """Samples of one part of the batch: what all devices compute at one time."""
        return self.global_batch_size // self.accumulate


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: everything that decides what is computed.

    Attributes:
      name: Name of the experiment, for tables and reports.
      model: The small world-action model on pixels. Not used where ``backbone``, ``vla``, ``gpt`` or
        ``inverse_dynamics`` is.
      backbone: A video transformer on latents (``config.presets`` has the published ones); None for ``model``.
      clip: What a backbone reads.
      actions: Action modules of a backbone.
      prefix: A language tower beside a backbone.
      vla: A vision-language-action model in place of ``model`` and ``backbone``.
      gpt: A GPT that answers queries for actions and frames, likewise.
      inverse_dynamics: A convolutional network from two frames to the actions between them, likewise.
    """

    name: str = "unnamed"
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    backbone: VideoTransformerConfig | None = None
    clip: ClipConfig = dataclasses.field(default_factory=ClipConfig)
    actions: ActionsConfig = dataclasses.field(default_factory=ActionsConfig)
    prefix: PrefixConfig = dataclasses.field(default_factory=PrefixConfig)
    vla: VlaConfig | None = None
    gpt: GptPolicyConfig | None = None
    inverse_dynamics: InverseDynamicsConfig | None = None
    layout: LayoutConfig = dataclasses.field(default_factory=LayoutConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    finetune: FinetuneConfig = dataclasses.field(default_factory=FinetuneConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
