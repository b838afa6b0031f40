"""What one device of a mesh has of a step: the mesh itself, samples, tokens, heads and units of its own.

The one place where the planner turns ``config.parallel`` and a number of devices into local sizes; memory, exchange
and time read them from here. Refuses what the program would refuse: axes that do not multiply to the devices, a batch
or a sequence that does not divide.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from wamjax.config.backbone import BlockConfig
from wamjax.config.blocks import main_block, main_depth, main_remat
from wamjax.config.choices import Remat, TokenPlacement
from wamjax.config.schema import RunConfig
from wamjax.config.systems import check_layers_are_whole, check_mixture_is_whole
from wamjax.errors import ConfigError
from wamjax.flops.inverse_dynamics import count_positions
from wamjax.flops.model import layer_schedules
from wamjax.flops.stacks import find_anatomies, find_decoder
from wamjax.layout import Layout, Schedule, build_decoder_layout
from wamjax.layout.balance import balance_order, imbalance
from wamjax.layout.blocks import LANES
from wamjax.layout.kernels import pick_kernel
from wamjax.parallel.axes import MESH_AXES, check_batch_divides, resolve_axis_sizes
from wamjax.parallel.context_plan import ContextPlan, check_tokens_divide, plan_context
from wamjax.parallel.rule_tables import RuleTables, build_rules
from wamjax.planning.machine import Machine

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One device's part of a step.

    Attributes:
      mesh: Size of each mesh axis.
      rules: Where arrays go.
      context: How attention is shared over the context axis.
      block: The block of the model.
      num_layers: Blocks.
      remat: What their backward pass finds.
      kernel: What computes attention; ``none`` where nothing attends.
      batch: Samples of one part of a step (``config.train.accumulate`` parts).
      parts: Parts of a step.
      num_tokens: Tokens of a whole sample, padding included; of an inverse-dynamics model, its pixels.
      context_tokens: Text tokens that cross-attention reads; and of the image, if there is one.
      image_tokens: See ``context_tokens``.
      imbalance: Work of the busiest device in self-attention over that of all on average.
      experts: Of a mixture of transformers, the block and the tokens of a whole sample of each expert, the video's
        first; empty where there is one.
      schedules: Of a pattern of layers, what is attended in each layer of one period; empty where all are alike.
      is_convolutional: Whether layers are convolutions, of an inverse-dynamics model.
    """

    mesh: dict[str, int]
    rules: RuleTables
    context: ContextPlan
    block: BlockConfig
    num_layers: int
    remat: Remat
    kernel: str
    batch: int
    parts: int
    num_tokens: int
    context_tokens: int
    image_tokens: int
    imbalance: float
    experts: tuple[tuple[BlockConfig, int], ...] = ()
    schedules: tuple[Schedule, ...] = ()
    is_convolutional: bool = False

    def at_layer(self, place: int) -> Shard:
        """Returns the part with the blocks of one layer of a pattern."""
        return dataclasses.replace(
            self,
            block=self.block.layers[place],
            experts=tuple((block.layers[place], tokens) for block, tokens in self.experts),
        )

    def by_expert(self) -> tuple[Shard, ...]:
        """Returns the part of each expert: its block and its tokens alone."""
        return tuple(
            dataclasses.replace(
                self,
                block=block,
                num_tokens=tokens,
                context_tokens=self.context_tokens if block.cross_attention else 0,
                image_tokens=0 if place else self.image_tokens,
                experts=(),
            )
            for place, (block, tokens) in enumerate(self.experts)
        ) or (self,)

    @property
    def num_devices(self) -> int:
        """Devices of the mesh."""
        return math.prod(self.mesh.values())

    @property
    def itemsize(self) -> int:
        """Bytes of a value in the compute dtype."""
        return DTYPE_BYTES[self.block.compute_dtype]

    @property
    def tokens(self) -> int:
        """Rows ``b n`` of an activation on this device where the sequence is split over context."""
        return self.batch * self.num_tokens // self.mesh["context"]

    @property
    def stream_tokens(self) -> int:
        """The same between layers, where the sequence may be split over tensor too."""
        entry = self.rules.activations["stream"]
        axes = (entry,) if isinstance(entry, str) else entry or ()
        return self.batch * self.num_tokens // math.prod(self.mesh[axis] for axis in axes)

    @property
    def inner(self) -> int:
        """Width of this device's heads outside self-attention."""
        return self.block.inner_width // self.mesh["tensor"]

    @property
    def laid_out_inner(self) -> int:
        """The same as it lies in memory: the TPU kernel's heads are whole rows of lanes."""
        if self.kernel != "splash":
            return self.inner
        return self.inner * (-(-self.block.head_dim // LANES) * LANES) // self.block.head_dim

    @property
    def hidden(self) -> int:
        """Feed-forward units of this device."""
        return self.block.ffn_width // self.mesh["tensor"]

    @property
    def heads(self) -> int:
        """Heads of this device outside self-attention."""
        return self.block.num_heads // self.mesh["tensor"]

    @property
    def keys_per_query_part(self) -> int:
        """Keys that this device's queries meet at one time in self-attention, per sample."""
        return self.num_tokens // (self.context.ring if self.context.exchange == "ring" else 1)


def make_shard(config: RunConfig, layout: Layout, machine: Machine) -> Shard:
    """Returns a device's part of ``config`` on ``machine``.

    Raises:
      ConfigError: Axes, batch, tokens or heads do not divide, or slices do not.
    """
    sizes = resolve_axis_sizes(config.parallel, machine.num_devices, config.train.part_size)
    if machine.num_slices > 1 and sizes["data"] % machine.num_slices:
        raise ConfigError(
            f"config.parallel.data={sizes['data']} is no multiple of the {machine.num_slices} slices of "
            f"{machine.name}, and no other axis may leave a slice; set data to a multiple"
        )
    mesh = {name: sizes[name] for name in MESH_AXES}
    block = main_block(config)
    accumulate, batch = config.train.accumulate, config.train.global_batch_size
    rules = build_rules(config.parallel)
    check_batch_divides(batch, mesh, accumulate)
    check_tokens_divide(layout.num_tokens, mesh["context"], "tokens")
    _check_whole(block, mesh, config)
    if len(find_anatomies(config)) > 1:
        check_mixture_is_whole(mesh["context"])
    check_layers_are_whole(block.attention, mesh["context"])
    backbone, pairs = config.backbone, config.inverse_dynamics
    context = plan_context(config.parallel.context_method, block.num_heads, mesh)
    return Shard(
        mesh=mesh,
        rules=rules,
        context=context,
        block=block,
        num_layers=main_depth(config),
        remat=main_remat(config),
        kernel="none"
        if pairs is not None
        else pick_kernel(
            config.parallel.attention_kernel,
            machine.platform,
            block.compute_dtype,
            block.head_dim,
            is_in_parts=context.ring > 1,
        ),
        batch=batch // (mesh["data"] * mesh["fsdp"] * accumulate),
        parts=accumulate,
        num_tokens=layout.num_tokens if pairs is None else count_positions(config, pairs),
        context_tokens=_context_tokens(config),
        image_tokens=config.clip.image_tokens if backbone is not None and backbone.image_width else 0,
        imbalance=_imbalance(layout.full_pass().schedule, context, config.parallel.token_placement),
        experts=_experts(config, layout),
        schedules=layer_schedules(config, layout.full_pass()) if block.attention else (),
        is_convolutional=pairs is not None,
    )


def second_shard(config: RunConfig, shard: Shard) -> Shard | None:
    """Returns a device's part of the stack that runs before or after those of ``shard``, if any; its tokens see all.

    It is a vision tower, a GPT's decoder of frames, or a decoder of latent plans.
    """
    gpt = config.gpt
    if config.layout.formulation == "plan":
        decoder = find_decoder(config)
        return dataclasses.replace(
            shard,
            block=decoder.block,
            num_layers=decoder.num_layers,
            num_tokens=build_decoder_layout(config).num_tokens,
            context_tokens=0,
            image_tokens=0,
            schedules=(),
        )
    if gpt is not None:
        frames = gpt.num_views * (config.layout.num_blocks - gpt.ahead)
        return dataclasses.replace(
            shard,
            block=gpt.decoder_block,
            num_layers=gpt.decoder_layers,
            batch=shard.batch * frames,
            num_tokens=gpt.view_tokens + gpt.num_patches,
        )
    if config.vla is None:
        return None
    vision = config.vla.vision
    return dataclasses.replace(
        shard,
        block=vision.block(config.vla.compute_dtype),
        num_layers=vision.num_layers,
        batch=shard.batch * config.vla.num_images,
        num_tokens=vision.num_patches,
        experts=(),
    )


def _context_tokens(config: RunConfig) -> int:
    """Returns the text tokens that blocks read; a state may be one of them."""
    if config.vla is not None or config.gpt is not None or config.inverse_dynamics is not None:
        return 0  # a prompt's tokens are of the sequence, or there is no prompt
    if config.backbone is None:
        return config.model.text_tokens
    if not config.backbone.block.cross_attention:
        return 0
    return config.clip.text_tokens + (config.layout.states_per_block if config.actions.modules == "expert" else 0)


def _experts(config: RunConfig, layout: Layout) -> tuple[tuple[BlockConfig, int], ...]:
    """Returns the block and the tokens of each expert of a mixture; none where there is one stack."""
    stacks = find_anatomies(config)
    if len(stacks) <= 1:
        return ()
    return tuple(
        (stack.block, sum(s.num_tokens for s in layout.segments if s.expert == name)) for name, stack in stacks.items()
    )


@functools.lru_cache(maxsize=256)
def _imbalance(schedule: Schedule, context: ContextPlan, placement: TokenPlacement) -> float:
    """Returns how uneven self-attention's work is; 1 where every device has the whole sequence of its heads."""
    if context.ring == 1:
        return 1.0
    if placement == "balanced":
        schedule = balance_order(schedule, context.ring, context.exchange, context.ulysses).apply(schedule)
    return float(imbalance(schedule, context.ring, context.exchange))


def _check_whole(block: BlockConfig, mesh: dict[str, int], config: RunConfig) -> None:
    """Refuses heads and units that do not divide over tensor, and explicit blocks on a tensor axis."""
    tensor = mesh["tensor"]
    if config.parallel.blocks == "explicit" and tensor > 1:
        raise ConfigError(
            f"config.parallel.blocks=explicit with tensor={tensor}: it needs config.parallel.tensor=1; "
            "config.parallel.blocks=sharded runs on any mesh"
        )
    for what, size in (("heads", block.num_heads), ("feed-forward units", block.ffn_width)):
        if size % tensor:
            raise ConfigError(f"{size} {what} of the model do not divide over config.parallel.tensor={tensor}")
