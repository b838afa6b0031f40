"""What compiling for a TPU generation and pricing the compiled program takes: names, clocks, links, compiler options.

Peaks, memory and link bandwidth as vendors list them are in ``wamjax.flops.hardware``; here is what only the planner
needs. Every figure is an assumption of the estimate and is printed with it. What is marked ``unverified`` no program
of ours has run into and no vendor states.

Clocks: a TPU's listed peak is 2 x multiply-accumulate units x clock, with 4 units of 128 x 128 per core (256 x 256
from v6e on), so the clock follows from the peak; v5p, v6e and tpu7x agree with the clocks published for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from wamjax.flops.hardware import Chip, find_chip

_GIB = 2**30

# Vector memory that one fusion may use, and schedules that overlap more. Source: the flags of XLA's TPU backend
# (the `.flagfile` of a dump lists all), chosen by compiling a 14B training step; not measured one by one.
_SCHEDULER_OPTIONS: Mapping[str, bool | int | str] = {
    "xla_tpu_scoped_vmem_limit_kib": 65536,
    "xla_tpu_enable_async_all_to_all": True,
    "xla_tpu_enable_all_experimental_scheduler_features": True,
    "xla_latency_hiding_scheduler_rerun": 2,
    "xla_tpu_aggressive_opt_barrier_removal": "ENABLED",
    "xla_lhs_prioritize_async_depth_over_stall": "ENABLED",
    "xla_should_allow_loop_variant_parameter_in_chain": "ENABLED",
    "xla_should_add_loop_invariant_op_in_chain": "ENABLED",
    "xla_tpu_enable_scheduler_memory_pressure_tracking": True,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuGeneration:
    """One TPU generation. Rates and sizes are per JAX device, of which a chip may have several.

    Attributes:
      prefix: How topology names begin (``v5p`` of ``v5p:4x4x4``).
      device_kind: ``jax.Device.device_kind`` of its devices.
      dims: Dims of its torus.
      wrap_multiple: A dim wraps around when its size is a multiple of this ...
      wraps_together: ... and, if True, only when all dims are (slices of whole 4 x 4 x 4 cubes).
      clock_hz: Clock that the compiler's cycles count.
      hbm_bytes: Memory that the compiler lets a program use (a vendor's figure less what the runtime reserves).
      streaming_bytes_per_s: Rate of the compiler's own estimate for a large elementwise float32 product-sum of two
        arrays: what its cost model takes for full memory speed.
      host_bytes_per_s: Device to host memory, one way.
      forward_fraction: Share of the peak that a forward attention kernel reaches.
      backward_fraction: The same for backward kernels.
      compiler_options: What ``Lowered.compile`` gets.
      chip_config: Name of the chip's configuration for ``get_topology_desc``; empty for libtpu's default.
      unverified: Fields that are taken over from another generation or from a single source.
    """

    prefix: str
    device_kind: str
    dims: int
    wrap_multiple: int
    wraps_together: bool
    clock_hz: float
    hbm_bytes: int
    streaming_bytes_per_s: float
    host_bytes_per_s: float
    forward_fraction: float = 0.58
    backward_fraction: float = 0.50
    compiler_options: Mapping[str, bool | int | str] = dataclasses.field(default_factory=lambda: _SCHEDULER_OPTIONS)
    chip_config: str = ""
    unverified: tuple[str, ...] = ("forward_fraction", "backward_fraction", "host_bytes_per_s")

    @property
    def chip(self) -> Chip:
        """The vendor's figures."""
        chip = find_chip(self.device_kind)
        assert chip is not None, f"{self.device_kind} is missing in wamjax.flops.hardware"
        return chip

    @property
    def peak_flops_per_s(self) -> float:
        """Listed dense bfloat16 peak of one device."""
        return self.chip.peaks["bfloat16"] / self.chip.devices_per_chip

    @property
    def link_bytes_per_s(self) -> float:
        """One inter-chip link, one way, as one device's share of it (devices of a chip share the chip's links)."""
        return self.chip.link_bytes_per_s / (2 * self.dims) / self.chip.devices_per_chip

    def wraps(self, sizes: tuple[int, ...]) -> tuple[bool, ...]:
        """Returns which dims of a slice of ``sizes`` chips close into a ring."""
        whole = [size > 1 and size % self.wrap_multiple == 0 for size in sizes]
        return tuple(all(whole) if self.wraps_together else closed for closed in whole)


# hbm_bytes: the limit in libtpu 0.0.51's answer to a program that is too large. streaming_bytes_per_s: its cycles for
# a * 2 + b on float32 [16384, 8192], at the clock. Both are reproduced by tests/planning/test_ahead.py.
# Wrap-around: Google Cloud TPU docs ("TPU v4": slices of 4x4x4 cubes; "TPU v5e", "v6e": 16x16 is a torus, less is not).
# host_bytes_per_s: a share of PCIe 4.0 or 5.0, as in "How to Scale Your Model" (jax-ml.github.io/scaling-book).
# forward_fraction, backward_fraction: those of v5p reproduce MaxDiffusion's published 36.0 s per Wan-14B 720p sample on
# four chips to 1 %; the other generations take them over.
GENERATIONS: tuple[TpuGeneration, ...] = (
    TpuGeneration(
        prefix="v4",
        device_kind="TPU v4",
        dims=3,
        wrap_multiple=4,
        wraps_together=True,
        clock_hz=1.05e9,
        hbm_bytes=int(30.75 * _GIB),
        streaming_bytes_per_s=0.947e12,
        host_bytes_per_s=16e9,
        chip_config="megacore",  # libtpu's default shows each core as a device; TPU VMs show the chip
    ),
    TpuGeneration(
        prefix="v5e",
        device_kind="TPU v5 lite",
        dims=2,
        wrap_multiple=16,
        wraps_together=False,
        clock_hz=1.5e9,
        hbm_bytes=int(15.75 * _GIB),
        streaming_bytes_per_s=0.663e12,
        host_bytes_per_s=16e9,
    ),
    TpuGeneration(
        prefix="v5p",
        device_kind="TPU v5",
        dims=3,
        wrap_multiple=4,
        wraps_together=True,
        clock_hz=1.75e9,
        hbm_bytes=int(95.73 * _GIB),
        streaming_bytes_per_s=1.995e12,
        host_bytes_per_s=16e9,
        unverified=("host_bytes_per_s",),
    ),
    TpuGeneration(
        prefix="v6e",
        device_kind="TPU v6 lite",
        dims=2,
        wrap_multiple=16,
        wraps_together=False,
        clock_hz=1.75e9,
        hbm_bytes=int(31.24 * _GIB),
        streaming_bytes_per_s=1.414e12,
        host_bytes_per_s=32e9,
    ),
    TpuGeneration(
        prefix="tpu7x",
        device_kind="TPU7x",
        dims=3,
        wrap_multiple=4,
        wraps_together=True,
        clock_hz=2.2e9,
        hbm_bytes=int(94.74 * _GIB),
        streaming_bytes_per_s=3.149e12,
        host_bytes_per_s=32e9,
    ),
)

BY_PREFIX = {generation.prefix: generation for generation in GENERATIONS}
