"""Memory of one device by kind, in closed form: what a step holds at its worst moment.

That moment is in the backward pass of the blocks: the state and its gradients are there, everything kept for the
backward pass still is, and one block is at work. Parameters, optimizer, average and input are exact (equal to the
program's own arrays); the rest says which arrays it counts (``planning.activations``). Of a program that the compiler
has placed, ``planning.ahead`` has the truth.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from wamjax.config.clip import latent_grid
from wamjax.config.geometry import derive_geometry
from wamjax.config.schema import OptimizerConfig, RunConfig
from wamjax.layout import Schedule, build_decoder_layout, image_layout
from wamjax.planning.activations import plan_activations
from wamjax.planning.assumption import Source
from wamjax.planning.placement import Placed
from wamjax.planning.shards import DTYPE_BYTES, Shard, second_shard

_FP32 = 4
_BF16 = 2
_INT32 = 4

PLAN_ERROR = 0.1  # by which the total may be off: about the most that it is of compiled steps

# Dotted keys of a plan's JSON -> how their numbers came about.
MEMORY_SOURCES: Mapping[str, tuple[Source, str]] = {
    "memory": (Source.EXACT, "sizes of the program's arrays"),
    "memory.activations_bytes": (Source.EXACT, "arrays that the rematerialisation policy keeps"),
    "memory.workspace_bytes": (Source.ASSUMED, "which arrays of a block lie around together"),
    "memory.attention_workspace_bytes": (Source.ASSUMED, "which arrays of a block lie around together"),
    "memory.collectives_bytes": (Source.ASSUMED, "kernels of two blocks and gradients of one in flight"),
    "memory.loss_bytes": (Source.ASSUMED, "arrays of head and loss that lie around together"),
    "memory.total_bytes": (Source.ASSUMED, "the sum"),
    "memory.hbm_bytes": (Source.ASSUMED, "the compiler's limit for TPUs, a share of the listed memory for GPUs"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes of one device.

    Attributes:
      parameters: fp32 parameters, trained and kept, and the counters of the state.
      optimizer: What the optimizer keeps.
      ema: The average of the trained parameters.
      gradients: Of the trained parameters in fp32; twice where a step is taken in parts.
      activations: Kept for the backward pass.
      workspace: Of one block at work, but for attention's own.
      attention_workspace: Of attention at work, where that is the worst moment.
      collectives: Kernels gathered for the block at work and the next one, and their gradients before they are sent.
      input: The batch.
      loss: Head and loss: prediction, target and noise in fp32.
      host: Kept in host memory.
      hbm: What the device has.
      state: What a checkpoint holds, over all devices.
      by_array: Kept activations by array.
    """

    parameters: int
    optimizer: int
    ema: int
    gradients: int
    activations: int
    workspace: int
    attention_workspace: int
    collectives: int
    input: int
    loss: int
    host: int
    hbm: int
    state: int
    by_array: dict[str, int]

    KINDS = (
        "parameters",
        "optimizer",
        "ema",
        "gradients",
        "activations",
        "workspace",
        "attention_workspace",
        "collectives",
        "input",
        "loss",
    )

    @property
    def total(self) -> int:
        """Bytes in all at the worst moment."""
        return sum(getattr(self, name) for name in self.KINDS)

    @property
    def fits(self) -> bool:
        """Whether that is no more than the device has."""
        return self.total <= self.hbm

    @property
    def is_tight(self) -> bool:
        """Whether it would not, or would, if the plan were off by as much as it may be."""
        return abs(self.total - self.hbm) <= PLAN_ERROR * self.total

    @property
    def verdict(self) -> str:
        """``fits`` or not, and whether only a compiler can tell."""
        says = "fits" if self.fits else "DOES NOT FIT"
        return (
            f"{says}, by less than the {PLAN_ERROR:.0%} a plan may be off: --compile tells" if self.is_tight else says
        )

    def to_json(self) -> dict[str, int | bool]:
        """Returns bytes by kind under ``KIND_bytes``."""
        kinds = {f"{name}_bytes": getattr(self, name) for name in (*self.KINDS, "total", "host", "hbm")}
        return {**kinds, "checkpoint_bytes": self.state, "fits": self.fits, "is_tight": self.is_tight}


def plan_memory(
    config: RunConfig, shard: Shard, schedule: Schedule, parameters: Sequence[Placed], hbm_bytes: int
) -> MemoryPlan:
    """Returns the memory of a device that holds ``shard`` of ``config``.

    Args:
      config: The run.
      shard: One device's part.
      schedule: Attention of the whole sequence.
      parameters: Of the model, on the shard's mesh.
      hbm_bytes: What the device has.
    """
    own = [p for p in parameters if p.is_trained]
    held, mine = sum(p.local for p in parameters), sum(p.local for p in own)
    activations = plan_activations(shard, schedule)
    second = second_shard(config, shard)
    if second is not None:  # kept while the other stacks are at work
        seen = plan_activations(second, image_layout(second.num_tokens).full_pass().schedule)
        activations = activations.beside(seen)
    resampled = _resampler_bytes(config, shard)
    in_attention = activations.attention > activations.block
    return MemoryPlan(
        parameters=_FP32 * held + 3 * _INT32,
        optimizer=optimizer_bytes(config.optimizer, [(p.local, p.is_matrix) for p in own]),
        ema=_FP32 * mine if config.optimizer.ema_decay else 0,
        gradients=_FP32 * mine * (2 if shard.parts > 1 else 1),
        activations=activations.kept + resampled,
        workspace=0 if in_attention else activations.block,
        attention_workspace=activations.attention if in_attention else 0,
        collectives=gathered_bytes(parameters, shard),
        input=batch_bytes(config, shard.batch * shard.parts),
        loss=_loss_bytes(config, shard),
        host=activations.offloaded,
        hbm=hbm_bytes,
        state=_state_bytes(config, parameters, own),
        by_array=activations.by_array | ({"resampler": resampled} if resampled else {}),
    )


def _resampler_bytes(config: RunConfig, shard: Shard) -> int:
    """What a resampler's layers keep: products, and scores in fp32; and the tokens that all of them read."""
    gpt = config.gpt
    if gpt is None:
        return 0
    asked, read = gpt.num_latents, gpt.num_latents + gpt.num_patches
    inner, width = gpt.resampler_heads * gpt.resampler_head_dim, gpt.image_width
    layer = (2 * read + 2 * asked) * inner + asked * (2 + 4 + 1) * width  # keys, values; query, output; the rest
    scores = _FP32 * gpt.resampler_heads * asked * read
    pictures = shard.batch * config.layout.num_blocks * gpt.num_views
    kept = gpt.resampler_layers * (layer * shard.itemsize + scores)
    return pictures * (kept + gpt.num_patches * width * shard.itemsize)


def batch_bytes(config: RunConfig, num_samples: int) -> int:
    """Returns the bytes of ``num_samples`` samples of a batch (``batch.batch_spec``, which imports JAX)."""
    layout, data, backbone = config.layout, config.data, config.backbone
    provenance = 3 * _INT32
    actions, states = (layout.num_blocks * each for each in (layout.actions_per_block, layout.states_per_block))
    # fp32 actions and states with their masks; whether there are actions at all, and the embodiment.
    vectors = actions * (_FP32 * data.action_dim + 1) + data.action_dim + 1
    vectors += (_FP32 + 1) * states * data.state_dim + _INT32
    if config.vla is not None:
        vla = config.vla
        images = vla.num_images * (3 * vla.vision.image_size**2 + 1)
        return num_samples * (images + _INT32 * vla.text_tokens + provenance + vectors)
    gpt = config.gpt
    if gpt is not None:
        pictures = layout.num_blocks * gpt.num_views
        features = _BF16 * (pictures * (gpt.num_patches + 1) * gpt.image_width + gpt.text_width)
        return num_samples * (pictures * 3 * gpt.image_size**2 + layout.num_blocks + features + provenance + vectors)
    if backbone is None:
        frames, views = derive_geometry(config).num_frames, max(1, len(data.views))
        return num_samples * (frames * (3 * math.prod(data.canvas) + 1) + views + _INT32 + provenance + vectors)
    grid = latent_grid(config)
    text = config.clip.text_tokens * backbone.text_width
    if layout.formulation == "video":
        return num_samples * (_BF16 * (math.prod(grid) * backbone.out_channels + text) + provenance)
    image = config.clip.image_tokens * (backbone.image_width or 0)
    if layout.formulation == "latent_frames":  # a picture has no mask and no condition; a value and a question
        latents = _BF16 * (math.prod(grid) * backbone.out_channels + text)
        return num_samples * (latents + provenance + vectors + _FP32 + _INT32)
    cached = _BF16 * (math.prod(grid) * backbone.in_channels + text + image)
    return num_samples * (cached + grid[0] + provenance + vectors)


def optimizer_bytes(config: OptimizerConfig, own: Sequence[tuple[int, bool]]) -> int:
    """Returns what ``training.optimizer.make_optimizer`` keeps.

    Args:
      config: The optimizer.
      own: (number of values, whether it is a kernel of the blocks) of each trained parameter.
    """
    moment, total = DTYPE_BYTES[config.moments_dtype], sum(size for size, _ in own)
    if config.kind == "sgd":
        return moment * total + _INT32
    if config.kind == "adamw":
        return 2 * moment * total + 2 * _INT32
    # Muon: a momentum of matrices, Adam's moments of the rest, three counters and three coefficients of its iteration.
    matrices = sum(size for size, is_matrix in own if is_matrix)
    return moment * matrices + 2 * moment * (total - matrices) + 3 * _INT32 + 3 * _FP32


def gathered_bytes(parameters: Sequence[Placed], shard: Shard) -> int:
    """Returns the bytes of kernels that are whole at one time: one block's, the next one's, and the gradients of one.

    All are in the compute dtype.
    """
    blocks = [p for p in parameters if p.is_in_blocks and p.is_gathered]
    # Blocks over single pictures run before or after the others; of a pattern, one layer of a period is at work.
    pictures, main = (
        [p for p in blocks if p.path.startswith(("vision.", "decoder.")) is apart] for apart in (True, False)
    )
    at_work = max(_whole(pictures), _whole(main) // len(shard.block.layers))
    return 3 * at_work * shard.itemsize


def _whole(parameters: Sequence[Placed]) -> int:
    """Returns how many numbers the kernels of ``parameters`` have, one layer of each, gathered."""
    return sum(p.gathered // p.copies for p in parameters)


def _loss_bytes(config: RunConfig, shard: Shard) -> int:
    """Head and loss: the modulated output of the blocks in fp32, and prediction, target, noise and noised input."""
    if config.vla is not None:  # of the actions alone
        actions = shard.batch * config.layout.actions_per_block
        return _FP32 * actions * (config.vla.expert_width + 4 * config.data.action_dim)
    gpt = config.gpt
    if gpt is not None:  # of frames
        patches = shard.batch * gpt.num_views * (config.layout.num_blocks - gpt.ahead) * gpt.num_patches
        return _FP32 * patches * (gpt.width + 4 * gpt.patch_values)
    if config.layout.formulation == "plan":  # of the actions, and the present as its decoder reads it
        read, sizes = build_decoder_layout(config).num_tokens, config.layout
        actions = sizes.actions_per_block * (config.actions.expert_width + 4 * config.data.action_dim)
        return _FP32 * shard.batch * (read * shard.block.width + actions)
    channels = 3 * math.prod(config.model.patch) if config.backbone is None else config.backbone.out_patch_channels
    return _FP32 * shard.tokens * (shard.block.width + 4 * channels)


def _state_bytes(config: RunConfig, parameters: Sequence[Placed], own: Sequence[Placed]) -> int:
    """Bytes of the whole state, over all devices: what a checkpoint writes."""
    kept = own if config.finetune.needs_base else parameters
    average = _FP32 * sum(p.size for p in own) if config.optimizer.ema_decay else 0
    moments = optimizer_bytes(config.optimizer, [(p.size, p.is_matrix) for p in own])
    return _FP32 * sum(p.size for p in kept) + moments + average
