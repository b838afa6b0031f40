"""``TrainProgram``: the compiled functions of a run on a mesh, with their shardings in sight.

The one place where ``jax.jit`` meets shardings and donation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from wamjax.batch import VideoStatistics, WamBatch
from wamjax.config.schema import RunConfig
from wamjax.layout import Layout, build_layout
from wamjax.models.world_action import WorldActionModel, abstract_model
from wamjax.objectives.world_action import StreamLoss, total_loss
from wamjax.parallel.mesh import batch_sharding, check_batch_divides, replicated
from wamjax.parallel.parameters import is_names, parameter_axes, parameter_shardings
from wamjax.parallel.rules import placing
from wamjax.training.optimizer import make_optimizer, make_schedule
from wamjax.training.step import Metrics, State, make_sample_losses, make_train_step
from wamjax.types import PureDict


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainProgram:
    """What a run executes.

    Attributes:
      config: The run's configuration.
      layout: Its layout.
      graphdef: The model without its parameters.
      mesh: The device mesh.
      abstract_state: Shapes, dtypes and shardings of the state {"params", "opt", "ema", "step"}.
      init: (statistics of the training frames, or None for plain [-1, 1] pixels) -> state, sharded.
      step: (state, batch) -> (state, metrics); the state passed in is donated.
      evaluate: (params, batch, index) -> validation metrics, deterministic in ``index``.
      sample_losses: (params, batch, index, observed) -> per-sample losses by stream, at noise that depends on ``index``
        only; the model is shown the clean frames and state of ``observed``.
    """

    config: RunConfig
    layout: Layout
    graphdef: nnx.GraphDef[Any]
    mesh: Mesh
    abstract_state: State
    init: Callable[..., State]
    step: Callable[[State, WamBatch], tuple[State, Metrics]]
    evaluate: Callable[[PureDict, WamBatch, int], Metrics]
    sample_losses: Callable[[PureDict, WamBatch, int, WamBatch], dict[str, StreamLoss]]

    def evaluation_params(self, state: State) -> PureDict:
        """Returns the parameters that are evaluated: the average if one is kept."""
        return state["ema"] if self.config.optimizer.ema_decay else state["params"]


def build_program(config: RunConfig, mesh: Mesh) -> TrainProgram:
    """Builds the program of ``config`` on ``mesh``.

    Raises:
      ConfigError: Something does not divide over the mesh, or the configuration does not fit together.
    """
    check_batch_divides(config.train.global_batch_size, mesh)
    layout = build_layout(config)
    graphdef, variables = abstract_model(config)
    axes = parameter_axes(variables)
    params_sharding = parameter_shardings(variables, mesh)
    schedule = make_schedule(config.optimizer, config.train.num_steps)
    optimizer = make_optimizer(config.optimizer, schedule, _decay_mask(axes))

    def init(statistics: VideoStatistics | None) -> State:
        model = WorldActionModel(jax.random.key(config.train.seed), config)
        if statistics is not None:
            model.codec.calibrate(statistics)
        params = nnx.to_pure_dict(nnx.state(model))
        ema = jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay else {}
        return {"params": params, "opt": optimizer.init(params), "ema": ema, "step": jnp.zeros((), jnp.int32)}

    shape = jax.eval_shape(lambda: init(None))
    sharding = {
        "params": params_sharding,
        "opt": optax.tree.map_params(
            optimizer, lambda _, s: s, shape["opt"], params_sharding, transform_non_params=lambda _: replicated(mesh)
        ),
        "ema": params_sharding if config.optimizer.ema_decay else {},
        "step": replicated(mesh),
    }
    rows = batch_sharding(mesh)
    sample_losses = make_sample_losses(config, layout, graphdef)

    def evaluate(params: PureDict, batch: WamBatch, index: jax.Array) -> Metrics:
        losses = sample_losses(params, batch, index)
        return {"loss/total": total_loss(losses, config), **{f"loss/{k}": v.mean() for k, v in losses.items()}}

    train_step = make_train_step(config, layout, graphdef, optimizer, schedule)
    return TrainProgram(
        config=config,
        layout=layout,
        graphdef=graphdef,
        mesh=mesh,
        abstract_state=jax.tree.map(
            lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shape, sharding
        ),
        init=_make_init(init, mesh, sharding),
        step=jax.jit(
            _placed(train_step, mesh), in_shardings=(sharding, rows), out_shardings=(sharding, None), donate_argnums=0
        ),
        evaluate=jax.jit(_placed(evaluate, mesh), in_shardings=(params_sharding, rows, None)),
        sample_losses=jax.jit(_placed(sample_losses, mesh), in_shardings=(params_sharding, rows, None, rows)),
    )


def describe_sharding(program: TrainProgram) -> str:
    """Returns a table of the parameters: path, shape, logical names, partition over the mesh, bytes per device."""
    _, variables = abstract_model(program.config)
    axes = dict(jax.tree_util.tree_leaves_with_path(parameter_axes(variables), is_leaf=is_names))
    sizes = "  ".join(f"{name}={size}" for name, size in program.mesh.shape.items())
    lines = [f"mesh: {sizes}", f"{'parameter':44} {'shape':20} {'names':28} {'partition':24} {'bytes/device':>12}"]
    total = on_device = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(program.abstract_state["params"]):
        local = leaf.sharding.shard_shape(leaf.shape)
        num_bytes = int(jnp.dtype(leaf.dtype).itemsize) * _product(local)
        total, on_device = total + _product(leaf.shape), on_device + num_bytes
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        names = ",".join(n or "-" for n in axes[path])
        partition = ",".join("-" if p is None else str(p) for p in leaf.sharding.spec)
        lines.append(f"{name:44} {leaf.shape!s:20} {names:28} {partition:24} {num_bytes:12,}")
    lines.append(f"{total:,} parameters, {on_device:,} bytes per device (fp32 master weights)")
    return "\n".join(lines)


def _make_init(init: Callable[..., State], mesh: Mesh, sharding: State) -> Callable[..., State]:
    """Returns the compiled initialisation; statistics are constants of it."""

    def run(statistics: VideoStatistics | None = None) -> State:
        return jax.jit(_placed(lambda: init(statistics), mesh), out_shardings=sharding)()

    return run


def _placed(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Wraps ``function`` so that its activations are placed on ``mesh`` while it is traced."""

    def placed(*args: Any) -> Any:
        with placing(mesh):
            return function(*args)

    return placed


def _decay_mask(axes: PureDict) -> PureDict:
    """Returns which parameters decay: those with two or more dims of their own (the stack's dim is not one).

    The codec's statistics are not trained: they get no gradient, and must not decay.
    """
    decays = jax.tree.map(lambda names: sum(n != "layers" for n in names) >= 2, axes, is_leaf=is_names)
    return {**decays, "codec": jax.tree.map(lambda _: False, decays["codec"])}


def _product(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
