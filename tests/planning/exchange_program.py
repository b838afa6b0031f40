"""A small step with every kind of exchange in known numbers, and what of its compiled text the tests keep.

Run as a script, with libtpu, it compiles the step and writes `compiled/*.hlo`:

    python -m tests.planning.exchange_program
"""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LAYERS, WIDTH, ROWS, TOKENS, HEADS = 3, 1024, 8, 2048, 8  # per device: ROWS / fsdp sequences of TOKENS / context tokens
FSDP, CONTEXT = 4, 2
KERNEL_FLOPS = 123_456_789
COMPILED = Path(__file__).parent / "compiled"
SLICES = {"v5p": "v5p:2x2x2", "v5e": "v5e:2x4", "tpu7x": "tpu7x:2x2x1"}


def _kernel(x_ref, out_ref):
    out_ref[...] = x_ref[...] * 2


def _gather(weight):
    return jax.lax.all_gather(weight.astype(jnp.bfloat16), "fsdp", axis=0, tiled=True)


def _layer(x, weights):
    heads = (x @ _gather(weights[0])).reshape(*x.shape[:2], HEADS, -1)
    heads = jax.lax.all_to_all(heads, "context", split_axis=2, concat_axis=1, tiled=True)
    doubled = pl.pallas_call(
        _kernel,
        out_shape=jax.ShapeDtypeStruct((TOKENS, WIDTH // CONTEXT), jnp.bfloat16),
        cost_estimate=pl.CostEstimate(flops=KERNEL_FLOPS, transcendentals=0, bytes_accessed=0),
        name="doubling_fwd",
    )(jax.lax.stop_gradient(heads[0].reshape(TOKENS, -1)))
    heads = jnp.tanh(heads + doubled.reshape(1, TOKENS, -1, heads.shape[-1]))
    back = jax.lax.all_to_all(heads, "context", split_axis=1, concat_axis=2, tiled=True)
    return back.reshape(x.shape) @ _gather(weights[1]), None


def exchange_step(mesh: Mesh):
    """Returns the jitted step and its abstract arguments, weights ``[layers 2 WIDTH WIDTH]`` and activations."""

    def loss(weights, x):
        return jnp.mean(jax.lax.scan(_layer, x, weights)[0].astype(jnp.float32) ** 2)

    def body(weights, x):
        value, gradient = jax.value_and_grad(loss)(weights, x)
        return jax.lax.psum(value, ("fsdp", "context")), weights - jax.lax.psum(gradient, "context")

    weights, x = PartitionSpec(None, None, "fsdp"), PartitionSpec("fsdp", "context")
    step = jax.shard_map(body, mesh=mesh, in_specs=(weights, x), out_specs=(PartitionSpec(), weights), check_vma=False)
    arguments = (
        jax.ShapeDtypeStruct((LAYERS, 2, WIDTH, WIDTH), jnp.float32, sharding=NamedSharding(mesh, weights)),
        jax.ShapeDtypeStruct((ROWS, TOKENS, WIDTH), jnp.bfloat16, sharding=NamedSharding(mesh, x)),
    )
    return jax.jit(step), arguments


_KEPT = ("known_trip_count", "async_collective_fusion_config")
_SPEAKING = re.compile(r" (custom-call|all-\w+|reduce-scatter|collective-\w+|while)[\w\-]*\(")


def trim(text: str) -> str:
    """Returns ``text`` without what the planner does not read: tiling, source locations, kernels' code, notes."""
    lines, start = [], text.index("\n%")
    for line in text[start:].splitlines():
        line = re.sub(r"\{[\d,]*:[^{}]*?(S\(\d+\))?\}", lambda match: f"{{:{match[1]}}}" if match[1] else "", line)
        line = re.sub(
            r", (sharding|operand_layout_constraints|output_to_operand_aliasing)=\{.*?\}(?=, [a-z_]+=|$)", "", line
        )
        found = line.find(", backend_config={")
        if found >= 0:
            config, end = json.JSONDecoder().raw_decode(line, found + len(", backend_config="))
            kept = {key: config[key] for key in _KEPT if key in config}
            if cycles := config.get("window_config", {}).get("estimated_cycles"):
                kept["window_config"] = {"estimated_cycles": cycles}
            if cost := config.get("custom_call_config", {}).get("cost_estimate"):
                kept["custom_call_config"] = {"cost_estimate": cost}
            line = line[:found] + (f", backend_config={json.dumps(kept)}" if kept else "") + line[end:]
        line = re.sub(r" stack_frame_id=\d+", "", line)
        lines.append(line if _SPEAKING.search(line) else re.sub(r", metadata=\{[^{}]*\}", "", line))
    return text.splitlines()[0].split(",")[0] + ", is_scheduled=true\n" + "\n".join(lines) + "\n"


def _write() -> None:
    from wamjax.config.schema import ParallelConfig
    from wamjax.parallel.mesh import build_mesh
    from wamjax.planning.ahead import compile_function
    from wamjax.planning.topology import open_topology

    for name, slice_name in SLICES.items():
        topology = open_topology(slice_name)
        mesh = build_mesh(ParallelConfig(data=1, fsdp=FSDP, context=CONTEXT, tensor=1), topology.devices)
        step, arguments = exchange_step(mesh)
        report = compile_function(step, arguments, mesh, topology, model_flops=0)
        (COMPILED / f"{name}.hlo").write_text(trim(report.hlo))


if __name__ == "__main__":
    _write()
