"""Memory and exchange of one device as a run grows: a training step compiled for more and more chips.

    python benchmarks/weak_scaling.py [--topologies=v5p:4x4x4,v5p:8x8x8,v5p:16x16x16] [--layers=0]

The batch per chip is constant: the first topology has the experiment's own mesh and batch, on every other the data axis
(or, with --grow=fsdp, that axis) and the batch grow with the chips. Nothing runs: libtpu compiles, two or three minutes
per topology. Layers are a loop of the program; with fewer of them what a layer does not hold weighs more. Ratios are to
the first topology; where one exceeds what is expected the exit status is 1.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import sys

from absl import app, flags

from launch.experiment import load_experiment
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.parallel.axes import resolve_axis_sizes
from wamjax.parallel.mesh import build_mesh
from wamjax.planning.ahead import CompileReport, compile_step
from wamjax.planning.slices import parse_topology
from wamjax.planning.topology import Topology, open_topology
from wamjax.training.program import build_program

MAX_MEMORY_GROWTH = 1.01  # of the peak; tables of device groups and the like grow a little
MAX_EXCHANGE_GROWTH = 1.10  # of the bytes over all axes but data

FLAGS = flags.FLAGS
flags.DEFINE_string("config", "experiments/pretrain/wan_14b_480p.py", "Experiment file with a backbone.")
flags.DEFINE_list("topologies", ["v5p:4x4x4", "v5p:8x8x8", "v5p:16x16x16"], "TPU slices, smallest first.")
flags.DEFINE_integer("layers", 0, "Layers to compile; 0 for the experiment's own.")
flags.DEFINE_enum("grow", "data", ["data", "fsdp"], "The mesh axis that grows.")


def grow(config: RunConfig, num_devices: int, first_devices: int, axis: str) -> RunConfig:
    """Returns ``config`` for ``num_devices``: its mesh on ``first_devices`` with ``axis`` and the batch grown."""
    times = num_devices // first_devices
    sizes = resolve_axis_sizes(config.parallel, first_devices, config.train.part_size)
    sizes[axis] *= times
    train = dataclasses.replace(config.train, global_batch_size=times * config.train.global_batch_size)
    return dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, **sizes), train=train)


def compile_for(config: RunConfig, topology: Topology) -> CompileReport:
    """Returns the compiled step of ``config``."""
    program = build_program(config, build_mesh(config.parallel, topology.devices, batch_size=config.train.part_size))
    return compile_step(program, topology, say=lambda text: print(f"{topology.name}: {text}", file=sys.stderr))


def bytes_by_axes(report: CompileReport) -> dict[str, int]:
    """Returns the bytes of collectives of one device and step by the mesh axes they run over."""
    found: collections.Counter[str] = collections.Counter()
    for use in report.collectives:
        found[use.axes or "one device"] += use.times * use.collective.num_bytes
    return dict(found)


def main(argv: list[str]) -> int:
    """Compiles and prints; returns the exit status."""
    del argv
    try:
        return measure()
    except ConfigError as error:
        print(f"weak_scaling: {error}", file=sys.stderr)
        return 2


def measure() -> int:
    """Compiles for every topology and prints the table; returns 0 if it is as expected."""
    config = load_experiment(FLAGS.config)
    if config.backbone is None:
        raise ConfigError(f"--config={FLAGS.config} has no config.backbone")
    layers = FLAGS.layers or config.backbone.num_layers
    config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, num_layers=layers))
    reports = []
    first = math.prod(parse_topology(FLAGS.topologies[0])[1])
    for name in FLAGS.topologies:
        topology = open_topology(name)
        devices_per_chip = len(topology.devices) // topology.num_chips
        grown = grow(config, len(topology.devices), first * devices_per_chip, FLAGS.grow)
        reports.append((grown.train.global_batch_size, compile_for(grown, topology)))
    print(f"{config.name}, {layers} layers, constant batch per chip, the {FLAGS.grow} axis grows\n")
    names = sorted({name for _, report in reports for name in bytes_by_axes(report)})
    titles = ["chips", "batch", "mesh", "peak GiB", *(f"{name} MiB" for name in names), "but data MiB", "compiled in s"]
    print(" | ".join(titles))
    base_peak, base_exchange, is_as_expected = None, None, True
    for batch, report in reports:
        moved, peak = bytes_by_axes(report), report.memory.peak
        within = sum(count for name, count in moved.items() if "data" not in name.replace(" (part)", "").split("+"))
        base_peak, base_exchange = base_peak or peak, within if base_exchange is None else base_exchange
        mesh = " x ".join(f"{name} {size}" for name, size in report.mesh.shape.items() if size > 1)
        cells = [f"{report.topology.num_chips}", f"{batch}", mesh, f"{peak / 2**30:.2f} ({peak / base_peak:.3f}x)"]
        cells += [f"{moved.get(name, 0) / 2**20:,.1f}" for name in names]
        cells += [f"{within / 2**20:,.1f} ({within / max(base_exchange, 1):.3f}x)", f"{report.seconds:.0f}"]
        print(" | ".join(cells))
        is_as_expected &= report.fits and peak <= MAX_MEMORY_GROWTH * base_peak
        is_as_expected &= within <= MAX_EXCHANGE_GROWTH * base_exchange
    verdict = "as expected" if is_as_expected else "MORE than expected"
    print(f"\nexpected: peak at most {MAX_MEMORY_GROWTH}x, bytes over axes but data {MAX_EXCHANGE_GROWTH}x: {verdict}")
    return 0 if is_as_expected else 1


if __name__ == "__main__":
    app.run(main)
