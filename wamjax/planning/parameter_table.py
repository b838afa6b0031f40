"""Every parameter of a run's model: path, shape and the names of its dims, from the configuration alone.

The same table the program prints once it is built; a test holds the two equal. What a device holds of a parameter
follows from the names by the rules of ``parallel.rules``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

from wamjax.config.backbone import BlockConfig, VideoTransformerConfig
from wamjax.config.blocks import block_config
from wamjax.config.finetune import UPDATE_OF, is_trained, matches
from wamjax.config.geometry import derive_geometry
from wamjax.config.schema import FinetuneConfig, RunConfig
from wamjax.config.systems import CategoryActionConfig, category_actions
from wamjax.errors import ConfigError
from wamjax.parallel.rule_tables import Rules, partition

Names = tuple[str | None, ...]

_NUM_TABLE_VECTORS = 6  # shift, scale and gate, of attention and of the feed-forward layer (models.block)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of the model; fp32.

    Attributes:
      path: Dotted path, as the run's own table has it.
      shape: Sizes of its dims.
      names: Logical names of its dims.
      num_inputs: Leading dims (after a stack's) that a kernel sums over; 0 of what is no kernel that can take a
        low-rank update.
      is_constant: Whether it is a statistic of the data, which is saved and never trained.
    """

    path: str
    shape: tuple[int, ...]
    names: Names
    num_inputs: int = 0
    is_constant: bool = False

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def local_size(self, mesh: Mapping[str, int], rules: Rules) -> int:
        """Returns the values that one device holds of it, on a mesh of such sizes.

        Raises:
          ConfigError: A dim does not divide over the mesh.
        """
        entries = partition(self.names, self.shape, mesh, rules, f"parameter {self.path}")
        axes = (axis for entry in entries for axis in ((entry,) if isinstance(entry, str) else entry or ()))
        return self.size // math.prod(mesh[axis] for axis in axes)


def list_parameters(config: RunConfig) -> tuple[Parameter, ...]:
    """Returns the parameters of ``config``'s model, low-rank updates and constants included.

    Raises:
      ConfigError: The backbone is of a kind whose parameters are not written down here.
    """
    if config.backbone is None:
        own = list(_small_model(config))
    elif config.layout.formulation == "video":
        own = list(_video_transformer(config.backbone))
    else:
        system = category_actions(config)
        own = [dataclasses.replace(p, path=f"video.{p.path}") for p in _video_transformer(system.video)]
        own += _category_modules(system)
    return (*own, *(update for parameter in own for update in _updates(parameter, config.finetune)))


def trained(parameters: tuple[Parameter, ...], config: FinetuneConfig) -> tuple[Parameter, ...]:
    """Returns those of ``parameters`` that are trained."""
    return tuple(p for p in parameters if not p.is_constant and is_trained(p.path, config))


def _updates(parameter: Parameter, config: FinetuneConfig) -> Iterator[Parameter]:
    """Yields the low-rank update of a kernel, if it gets one (``nn.lora``)."""
    module, _, name = parameter.path.rpartition(".")
    if not parameter.num_inputs or name not in UPDATE_OF or not matches(parameter.path, config.lora_targets):
        return
    lead = 1 if parameter.names[0] == "layers" else 0
    split = lead + parameter.num_inputs
    path, rank = f"{module}.{UPDATE_OF[name]}", config.lora_rank
    yield Parameter(path=f"{path}.down", shape=(*parameter.shape[:split], rank), names=(*parameter.names[:split], None))
    yield Parameter(
        path=f"{path}.up",
        shape=(*parameter.shape[:lead], rank, *parameter.shape[split:]),
        names=(*parameter.names[:lead], None, *parameter.names[split:]),
    )


def _linear(
    path: str, fan: tuple[int, int], names: tuple[str | None, str | None], *, bias: bool = True
) -> list[Parameter]:
    """``nn.linear.Linear``: vectors of the model's width are whole."""
    rows = [Parameter(path=f"{path}.kernel", shape=fan, names=names, num_inputs=1)]
    if bias:
        rows.append(
            Parameter(path=f"{path}.bias", shape=fan[1:], names=tuple(None if n == "embed" else n for n in names[1:]))
        )
    return rows


def _vector(path: str, *shape: int, names: Names | None = None) -> Parameter:
    return Parameter(path=path, shape=shape, names=names or (None,) * len(shape))


def _heads(path: str, fan_in: int, block: BlockConfig) -> list[Parameter]:
    """``nn.multihead.HeadProjection``."""
    shape = (block.num_heads, block.head_dim)
    rows = [Parameter(path=f"{path}.kernel", shape=(fan_in, *shape), names=("embed", "heads", None), num_inputs=1)]
    return rows + ([_vector(f"{path}.bias", *shape, names=("heads", None))] if block.use_bias else [])


def _attention(path: str, block: BlockConfig, context_width: int, *, image: bool) -> list[Parameter]:
    """``nn.multihead.Attention``."""
    shape = (block.num_heads, block.head_dim)

    def scale(name: str) -> Parameter:
        if block.qk_norm == "width":
            return _vector(f"{path}.{name}", *shape, names=("heads", None))
        return _vector(f"{path}.{name}", block.head_dim)

    rows = _heads(f"{path}.query", block.width, block)
    rows += _heads(f"{path}.key", context_width, block) + _heads(f"{path}.value", context_width, block)
    rows += [scale("query_scale"), scale("key_scale")]
    out = Parameter(
        path=f"{path}.out_kernel", shape=(*shape, block.width), names=("heads", None, "embed"), num_inputs=2
    )
    rows += [out, *([_vector(f"{path}.out_bias", block.width)] if block.use_bias else [])]
    if image:
        rows += _heads(f"{path}.image_key", block.width, block) + _heads(f"{path}.image_value", block.width, block)
        rows.append(scale("image_key_scale"))
    return rows


def _blocks(block: BlockConfig, num_layers: int) -> list[Parameter]:
    """``models.stack.stack_blocks``: one dim of layers in front of everything."""
    if block.modulation != "table":
        raise ConfigError(
            f"config.backbone.block.modulation={block.modulation}: parameters are listed for table (Wan) only"
        )
    rows = _attention("self_attention", block, block.width, image=False)
    rows += _attention("cross_attention", block, block.context_width or block.width, image=block.image_branch)
    rows += _linear("mlp.up", (block.width, block.ffn_width), ("embed", "mlp"), bias=block.use_bias)
    rows += _linear("mlp.down", (block.ffn_width, block.width), ("mlp", "embed"), bias=block.use_bias)
    if block.cross_norm == "affine":
        rows += [_vector("cross_norm_scale", block.width), _vector("cross_norm_bias", block.width)]
    rows.append(_vector("modulation", _NUM_TABLE_VECTORS, block.width))
    return [
        dataclasses.replace(
            row, path=f"blocks.{row.path}", shape=(num_layers, *row.shape), names=("layers", *row.names)
        )
        for row in rows
    ]


def _time_embedding(sinusoid: int, width: int) -> list[Parameter]:
    return [
        *_linear("time_embedding.hidden", (sinusoid, width), (None, "embed")),
        *_linear("time_embedding.out", (width, width), ("embed", None)),
        *_linear("time_embedding.project", (width, _NUM_TABLE_VECTORS * width), ("embed", None)),
    ]


def _video_transformer(config: VideoTransformerConfig) -> Iterator[Parameter]:
    """``models.video_transformer.VideoTransformer`` with tabled modulation."""
    width, context = config.block.width, config.block.context_width or config.block.width
    yield from _linear("patch_embed", (config.patch_channels, width), (None, "embed"), bias=config.use_patch_bias)
    if config.text_embedding != "none":
        yield from _linear("text_embedding.hidden", (config.text_width, context), (None, "embed"))
    if config.text_embedding == "mlp":
        yield from _linear("text_embedding.out", (context, context), ("embed", None))
    if config.image_width is not None:
        seen = config.image_width
        yield from (_vector(f"image_embedding.norm_in.{name}", seen) for name in ("scale", "bias"))
        yield from _linear("image_embedding.hidden", (seen, seen), (None, "embed"))
        yield from _linear("image_embedding.out", (seen, width), ("embed", None))
        yield from (_vector(f"image_embedding.norm_out.{name}", width) for name in ("scale", "bias"))
        if config.image_positions is not None:
            yield _vector("image_embedding.positions", config.image_positions, seen)
    if config.learned_positions is not None:
        for axis, size in zip(("frames", "rows", "columns"), config.learned_positions, strict=True):
            yield _vector(f"learned_positions.{axis}", size, width, names=(None, "embed"))
    yield from _time_embedding(config.time_width, width)
    yield _vector("head_modulation", 2, width)
    yield from _blocks(config.block, config.num_layers)
    yield from _linear("head_out", (width, config.out_patch_channels), ("embed", None), bias=config.use_patch_bias)


def _category_modules(config: CategoryActionConfig) -> Iterator[Parameter]:
    """What ``models.action_transformers.CategoryActionTransformer`` adds to its video transformer."""
    width, hidden = config.video.block.width, config.hidden_width

    def linear(path: str, fan: tuple[int, int], names: tuple[str | None, str | None]) -> Iterator[Parameter]:
        shape = (config.num_categories, *fan)
        yield Parameter(path=f"{path}.kernel", shape=shape, names=(None, *names))
        yield Parameter(path=f"{path}.bias", shape=(shape[0], shape[2]), names=(None, names[1]))

    yield from linear("action_encoder.lift", (config.action_dim, width), (None, "embed"))
    yield from linear("action_encoder.mix", (2 * width, width), ("embed", None))
    yield from linear("action_encoder.out", (width, width), ("embed", None))
    yield from linear("state_encoder.hidden", (config.state_dim, hidden), (None, "mlp"))
    yield from linear("state_encoder.out", (hidden, width), ("mlp", "embed"))
    yield from linear("action_decoder.hidden", (width, hidden), ("embed", "mlp"))
    yield from linear("action_decoder.out", (hidden, config.action_dim), ("mlp", None))


def _small_model(config: RunConfig) -> Iterator[Parameter]:
    """``models.world_action.WorldActionModel``."""
    model, data, geometry = config.model, config.data, derive_geometry(config)
    width, hidden, channels = model.width, model.action_hidden, geometry.token_channels
    yield Parameter(path="codec.mean", shape=(*geometry.grid, channels), names=(None, None, None), is_constant=True)
    yield Parameter(path="codec.std", shape=(1,), names=(None,), is_constant=True)
    yield from _linear("patch_embed", (channels, width), (None, "embed"))
    if model.grid_embedding == "learned":
        yield _vector("grid_embedding", *geometry.grid, width, names=(None, None, "embed"))
    yield from _linear("action_encoder.lift", (data.action_dim, width), (None, "embed"))
    yield from _linear("action_encoder.mix", (2 * width, width), ("embed", None))
    yield from _linear("action_encoder.out", (width, width), ("embed", None))
    yield from _linear("state_encoder.hidden", (data.state_dim, hidden), (None, "mlp"))
    yield from _linear("state_encoder.out", (hidden, width), ("mlp", "embed"))
    yield from _time_embedding(model.time_width, width)
    yield _vector("prompts.table", model.max_prompts, model.text_tokens, model.text_width)
    yield from _linear("prompts.hidden", (model.text_width, width), (None, "embed"))
    yield from _linear("prompts.out", (width, width), ("embed", None))
    yield from _blocks(block_config(model), model.num_layers)
    yield _vector("head_modulation", 2, width)
    yield from _linear("video_head", (width, channels), ("embed", None))
    yield from _linear("action_decoder.hidden", (width, hidden), ("embed", "mlp"))
    yield from _linear("action_decoder.out", (hidden, data.action_dim), ("mlp", None))
