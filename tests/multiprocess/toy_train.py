"""``wamjax train`` with a model small enough to compile at once; run as a script with the flags of ``wamjax train``.

Everything but the model is the real thing: flags, work directory, data, loop, checkpoints, logs, signals. Metrics say
which samples were read, in order (``data/order``, exact on any mesh). ``TOY_STEP_S`` slows a step down, ``TOY_NAN_AT``
makes the loss of those steps NaN (``9`` or ``9,10``).
"""

import os
import sys
import time
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from launch import cli, train_command
from wamjax.batch import WamBatch
from wamjax.config.schema import RunConfig
from wamjax.layout import build_layout
from wamjax.parallel.axes import check_batch_divides
from wamjax.parallel.mesh import batch_sharding, replicated
from wamjax.training import buckets
from wamjax.training.program import TrainProgram
from wamjax.training.update import apply_gradients, no_skips

WIDTH = 64


def build_toy_program(config: RunConfig, mesh: Mesh) -> TrainProgram:
    """Regresses the first action on the first state, with noise, through one hidden layer sharded over fsdp."""
    step_s = float(os.environ.get("TOY_STEP_S", "0"))
    nan_at = jnp.array([int(step) for step in os.environ.get("TOY_NAN_AT", "-1").split(",")])
    check_batch_divides(config.train.global_batch_size, mesh.shape)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))

    def init() -> dict[str, Any]:
        first, second = jax.random.split(jax.random.key(config.train.seed))
        params = {
            "up": jax.random.normal(first, (config.data.state_dim, WIDTH)),
            "down": jax.random.normal(second, (WIDTH, config.data.action_dim)) / WIDTH,
        }
        step = jnp.zeros((), jnp.int32)
        ema, opt = jax.tree.map(jnp.copy, params), optimizer.init(params)
        return {"params": params, "frozen": {}, "ema": ema, "opt": opt, "skipped": no_skips(), "step": step}

    shapes = jax.eval_shape(init)

    def init_without_statistics(statistics: object, base: None) -> dict[str, Any]:  # the toy never looks at frames
        return jax.jit(init, out_shardings=sharding)()

    def place(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        spec = [("fsdp" if size == WIDTH else None) for size in leaf.shape]
        return NamedSharding(mesh, PartitionSpec(*spec))

    sharding = jax.tree.map(place, shapes)

    def loss_of(params: dict[str, Any], batch: WamBatch, key: jax.Array) -> jax.Array:
        noise = jax.random.normal(key, batch.state[:, 0].shape) * 0.1
        predicted = jnp.tanh((batch.state[:, 0] + noise) @ params["up"]) @ params["down"]
        return jnp.mean((predicted - batch.actions[:, 0]) ** 2)

    def step(state: dict[str, Any], batch: WamBatch) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(config.train.seed), state["step"])
        loss, grads = jax.value_and_grad(loss_of)(state["params"], batch, key)
        loss = jnp.where(jnp.any(state["step"] + 1 == nan_at), jnp.nan, loss)
        state, metrics = apply_gradients(state, loss, grads, optimizer, optax.constant_schedule(1e-2), 0.9)
        rows = jnp.arange(1, batch.provenance.shape[0] + 1)[:, None]
        order = jnp.sum(batch.provenance * rows * jnp.array([1, 7, 31])) % 2**20  # integers: exact on any mesh
        return state, {"loss/total": loss, "data/order": order.astype(jnp.float32), **metrics}

    def evaluate(params: dict[str, Any], batch: WamBatch, index: jax.Array) -> dict[str, jax.Array]:
        return {"loss/total": loss_of(params, batch, jax.random.key(index))}

    rows, everywhere = batch_sharding(mesh), replicated(mesh)
    jitted = jax.jit(step, in_shardings=(sharding, rows), out_shardings=(sharding, everywhere), donate_argnums=0)

    def slow_step(state: dict[str, Any], batch: WamBatch) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        time.sleep(step_s)
        return jitted(state, batch)

    return TrainProgram(
        config=config,
        layout=build_layout(config),
        graphdef=nnx.graphdef(nnx.Dict()),
        mesh=mesh,
        trained=frozenset(shapes["params"]),
        abstract_state=jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, sharding),
        init=init_without_statistics,
        step=slow_step,
        evaluate=jax.jit(evaluate, in_shardings=(sharding["params"], rows, None), out_shardings=everywhere),
        sample_losses=mock.Mock(),
    )


def main(arguments: list[str]) -> int:
    """Runs ``wamjax train`` with the toy in the model's place and returns the exit status."""
    with (
        mock.patch.object(buckets, "build_program", build_toy_program),
        mock.patch.object(train_command, "describe_sharding", return_value="a toy"),
    ):
        return cli.main(["train", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
