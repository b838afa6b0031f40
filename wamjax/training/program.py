"""``TrainProgram``: the compiled functions of a run on a mesh, with their shardings in sight.

The one place where ``jax.jit`` meets shardings and donation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from wamjax.batch import VideoStatistics, WamBatch
from wamjax.config.blocks import main_block
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.layout import Layout
from wamjax.models.world_action import WorldActionModel
from wamjax.nn.attention import check_platform, describe_attention
from wamjax.nn.lora import adaptable_kernels
from wamjax.objectives.objective import Objective, abstract_model, build_objective
from wamjax.objectives.stream_loss import StreamLoss
from wamjax.parallel.axes import check_batch_divides
from wamjax.parallel.context_plan import CONTEXT, check_tokens_divide, plan_context
from wamjax.parallel.explicit import make_placement
from wamjax.parallel.mesh import batch_sharding, replicated
from wamjax.parallel.parameters import flatten_params, is_names, parameter_axes, parameter_shardings
from wamjax.parallel.rules import Placement, placing
from wamjax.training.base import Base, load_base
from wamjax.training.optimizer import make_optimizer, optimizer_shardings
from wamjax.training.schedule import make_schedule
from wamjax.training.step import Metrics, State, make_sample_losses, make_train_step
from wamjax.training.trainable import join_trees, split_tree, trained_paths
from wamjax.training.update import no_skips
from wamjax.types import PureDict


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainProgram:
    """What a run executes.

    Attributes:
      config: The run's configuration.
      layout: Its layout.
      graphdef: The model without its parameters.
      mesh: The device mesh.
      trained: Dotted paths of the parameters that are trained.
      abstract_state: Shapes, dtypes and shardings of the state {"params", "frozen", "opt", "ema", "skipped", "step"};
        ``params``, ``opt`` and ``ema`` are of the trained parameters, ``frozen`` is everything else the model holds,
        ``skipped`` counts updates that were not done (``training.update``).
      init: (statistics of the training frames, or None for plain [-1, 1] pixels; base, or None to start from scratch)
        -> state, sharded. What a base holds is taken from it, the statistics too.
      step: (state, batch) -> (state, metrics); the state passed in is donated.
      evaluate: (params, batch, index) -> validation metrics, deterministic in ``index``.
      sample_losses: (params, batch, index, observed) -> per-sample losses by stream, at noise that depends on ``index``
        only; the model is shown the clean frames and state of ``observed``.
    """

    config: RunConfig
    layout: Layout
    graphdef: nnx.GraphDef[Any]
    mesh: Mesh
    trained: frozenset[str]
    abstract_state: State
    init: Callable[..., State]
    step: Callable[[State, WamBatch], tuple[State, Metrics]]
    evaluate: Callable[[PureDict, WamBatch, int], Metrics]
    sample_losses: Callable[[PureDict, WamBatch, int, WamBatch], dict[str, StreamLoss]]

    def evaluation_params(self, state: State) -> PureDict:
        """Returns all parameters as they are evaluated: of the trained ones the average, if one is kept."""
        return join_trees(state["ema"] if self.config.optimizer.ema_decay else state["params"], state["frozen"])

    @property
    def abstract_params(self) -> PureDict:
        """Shapes, dtypes and shardings of all parameters."""
        return join_trees(self.abstract_state["params"], self.abstract_state["frozen"])

    def load_base(self) -> Base | None:
        """Returns what the run starts from; None from scratch. Raises as ``training.base.load_base``.

        A checkpoint is completed by it only where ``config.finetune.needs_base``.
        """
        settings = self.config.finetune
        if not settings.base:
            return None
        base = load_base(Path(settings.base), self.abstract_params)
        held = flatten_params(base.params)
        lacking = [name for name in flatten_params(self.abstract_state["frozen"]) if name not in held]
        if lacking:
            raise ConfigError(
                f"config.finetune keeps {lacking[0]} (and {len(lacking) - 1} more; frozen={settings.frozen}, "
                f"lora_targets={settings.lora_targets}) at what config.finetune.base={settings.base}, a video model, "
                "does not hold: "
                "except what is new with config.finetune.trained, and from lora_targets"
            )
        return base

    def saved(self, state: State) -> State:
        """Returns what a checkpoint holds of ``state``: without what the base of the run keeps holding for it."""
        return {**state, "frozen": {}} if self.config.finetune.needs_base else state

    def complete(self, state: State, base: Base | None) -> State:
        """Returns the whole of a ``saved`` state."""
        return state if base is None else {**state, "frozen": split_tree(base.params, self._is_trained)[1]}

    def _is_trained(self, path: str) -> bool:
        return path in self.trained


def build_program(config: RunConfig, mesh: Mesh) -> TrainProgram:
    """Builds the program of ``config`` on ``mesh``.

    Raises:
      ConfigError: Something does not divide over the mesh, or the configuration does not fit together.
    """
    check_batch_divides(config.train.global_batch_size, mesh.shape, config.train.accumulate)
    objective = build_objective(config)
    graphdef, variables = abstract_model(objective)
    trained = trained_paths(variables, config.finetune)

    def split(tree: PureDict) -> tuple[PureDict, PureDict]:
        return split_tree(tree, lambda path: path in trained)

    placement = make_placement(config.parallel, mesh)
    check_platform(config.parallel.attention_kernel, mesh.devices.flat[0].platform)
    plan_context(placement.context_method, main_block(config).num_heads, mesh.shape)  # refuses what does not divide
    check_tokens_divide(objective.layout.num_tokens, mesh.shape[CONTEXT], "tokens")
    params_sharding = parameter_shardings(variables, mesh, placement.rules.parameters)
    schedule = make_schedule(config.optimizer, config.train.num_steps)
    kernels = adaptable_kernels(nnx.merge(graphdef, variables))
    optimizer = make_optimizer(config.optimizer, schedule, split(parameter_axes(variables))[0], kernels)

    def make_state(params: PureDict) -> State:
        own, frozen = split(params)
        ema = jax.tree.map(jnp.copy, own) if config.optimizer.ema_decay else {}
        return {
            "params": own,
            "frozen": frozen,
            "opt": optimizer.init(own),
            "ema": ema,
            "skipped": no_skips(),
            "step": jnp.zeros((), jnp.int32),
        }

    shape = jax.eval_shape(make_state, nnx.to_pure_dict(variables))
    own_sharding, frozen_sharding = split(params_sharding)
    sharding = {
        "params": own_sharding,
        "frozen": frozen_sharding,
        "opt": optimizer_shardings(optimizer, shape["opt"], own_sharding, replicated(mesh)),
        "ema": own_sharding if config.optimizer.ema_decay else {},
        "skipped": jax.tree.map(lambda _: replicated(mesh), shape["skipped"]),
        "step": replicated(mesh),
    }
    rows = batch_sharding(mesh)
    sample_losses = make_sample_losses(config, objective, graphdef)

    def evaluate(params: PureDict, batch: WamBatch, index: jax.Array) -> Metrics:
        losses = sample_losses(params, batch, index)
        return {"loss/total": objective.total(losses), **{f"loss/{k}": v.mean() for k, v in losses.items()}}

    train_step = make_train_step(config, objective, graphdef, optimizer, schedule)
    return TrainProgram(
        config=config,
        layout=objective.layout,
        graphdef=graphdef,
        mesh=mesh,
        trained=trained,
        abstract_state=jax.tree.map(
            lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shape, sharding
        ),
        init=_make_init(config, objective, make_state, placement, sharding),
        step=jax.jit(
            _placed(train_step, placement),
            in_shardings=(sharding, rows),
            out_shardings=(sharding, None),
            donate_argnums=0,
        ),
        evaluate=jax.jit(_placed(evaluate, placement), in_shardings=(params_sharding, rows, None)),
        sample_losses=jax.jit(_placed(sample_losses, placement), in_shardings=(params_sharding, rows, None, rows)),
    )


def describe_sharding(program: TrainProgram) -> str:
    """Returns the mesh, how attention uses it, and a table of the parameters.

    A parameter has its path, shape, logical names, partition over the mesh and bytes per device.
    """
    _, variables = abstract_model(build_objective(program.config))
    axes = dict(jax.tree_util.tree_leaves_with_path(parameter_axes(variables), is_leaf=is_names))
    sizes = "  ".join(f"{name}={size}" for name, size in program.mesh.shape.items())
    config = program.config
    attention = "attention: none"
    if config.inverse_dynamics is None:
        placement = make_placement(config.parallel, program.mesh)
        attention = describe_attention(placement, program.layout.full_pass().schedule, main_block(config))
    lines = [
        f"mesh: {sizes}",
        attention,
        f"{'parameter':44} {'shape':20} {'names':28} {'partition':24} {'bytes/device':>12}",
    ]
    total = on_device = trained = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(program.abstract_params):
        local = leaf.sharding.shard_shape(leaf.shape)
        num_bytes = int(jnp.dtype(leaf.dtype).itemsize) * _product(local)
        total, on_device = total + _product(leaf.shape), on_device + num_bytes
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        names = ",".join(n or "-" for n in axes[path])
        partition = ",".join("-" if p is None else str(p) for p in leaf.sharding.spec)
        is_trained = name in program.trained
        trained += _product(leaf.shape) * is_trained
        mark = "" if is_trained else "  kept"
        lines.append(f"{name:44} {leaf.shape!s:20} {names:28} {partition:24} {num_bytes:12,}{mark}")
    lines.append(
        f"{total:,} parameters, {trained:,} of them trained, {on_device:,} bytes per device (fp32 master weights)"
    )
    return "\n".join(lines)


def _make_init(
    config: RunConfig,
    objective: Objective,
    make_state: Callable[[PureDict], State],
    placement: Placement,
    sharding: State,
) -> Callable[..., State]:
    """Returns the initialisation, compiled; statistics are constants of it."""
    all_sharding = join_trees(sharding["params"], sharding["frozen"])

    def make_params(statistics: VideoStatistics | None) -> PureDict:
        model = objective.make_model(jax.random.key(config.train.seed))
        if statistics is not None:
            assert isinstance(model, WorldActionModel), "only its codec has statistics"
            model.codec.calibrate(statistics)
        return nnx.to_pure_dict(nnx.state(model))

    def run(statistics: VideoStatistics | None = None, base: Base | None = None) -> State:
        if base is None:
            return jax.jit(_placed(lambda: make_state(make_params(statistics)), placement), out_shardings=sharding)()
        held = flatten_params(base.params)

        def missing(tree: PureDict) -> PureDict:
            return split_tree(tree, lambda path: path not in held)[0]

        # Only what the base lacks (low-rank updates) is ever made.
        make_missing = jax.jit(
            _placed(lambda: missing(make_params(None)), placement), out_shardings=missing(all_sharding)
        )
        return jax.jit(make_state, out_shardings=sharding)(join_trees(base.params, make_missing()))

    return run


def _placed(function: Callable[..., Any], placement: Placement) -> Callable[..., Any]:
    """Wraps ``function`` so that its activations are placed while it is traced."""

    def placed(*args: Any) -> Any:
        with placing(placement):
            return function(*args)

    return placed


def _product(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
