"""Planned goodput: checkpoint interval, what saving and failures cost, and the share of time that makes progress.

With MTBF the mean time between failures of the whole slice, a save that takes s and a checkpoint every t, a run spends
s / t of its steps on saving and repeats t / 2 of them after each failure. The sum is smallest at t = sqrt(2 s MTBF),
where it is sqrt(2 s / MTBF); each failure also costs one restart.

Source: J. W. Young, "A first order approximation to the optimum checkpoint interval" (CACM 1974). What differs: the
buckets of a plan keep failures per elapsed time, restarts included, instead of dropping second-order terms.

The wall-clock buckets are those a run records of itself (``flops.goodput``).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from wamjax.errors import ConfigError
from wamjax.flops import goodput as buckets
from wamjax.planning.assumption import Assumption

_HOUR_S = 3600.0
_LLAMA_3 = "Llama 3 (arXiv 2407.21783)"
_LLAMA_3_GPUS, _LLAMA_3_DAYS, _LLAMA_3_INTERRUPTIONS = 16_384, 54, 419
_LLAMA_3_STORAGE_BYTES_PER_S, _LLAMA_3_HOSTS = 2e12, _LLAMA_3_GPUS // 8
_MAY_BE_ZERO = ("down_s", "startup_s", "compile_s")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoodputAssumptions:
    """What is taken for granted of storage, failures and restarts.

    Attributes:
      chip_mtbf_h: Hours of one chip between failures that stop the run; a slice of n chips fails n times as often.
      host_write_bytes_per_s: Rate at which one host writes its share of a checkpoint.
      host_read_bytes_per_s: Rate at which one host reads it back.
      down_s: From a failure to the start of new processes: notice, replacement, scheduling.
      startup_s: From there to the first step, without reading the checkpoint: imports, devices, data index.
      compile_s: What the first step takes beyond an ordinary one.
    """

    chip_mtbf_h: Assumption
    host_write_bytes_per_s: Assumption
    host_read_bytes_per_s: Assumption
    down_s: Assumption
    startup_s: Assumption
    compile_s: Assumption

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name).value
            if not (math.isfinite(value) and (value > 0 or (value == 0 and field.name in _MAY_BE_ZERO))):
                raise ConfigError(f"goodput assumption {field.name}={value:g}; expected a positive number")


GOODPUT_ASSUMPTIONS = GoodputAssumptions(
    chip_mtbf_h=Assumption(
        name="time between failures of one chip",
        value=_LLAMA_3_GPUS * _LLAMA_3_DAYS * 24 / _LLAMA_3_INTERRUPTIONS,
        unit="h",
        source=f"{_LLAMA_3}, section 3.3.4: {_LLAMA_3_INTERRUPTIONS} unexpected interruptions in {_LLAMA_3_DAYS} days "
        f"on {_LLAMA_3_GPUS:,} H100; no figure is public for TPUs, which take it over",
    ),
    host_write_bytes_per_s=Assumption(
        name="writing of checkpoints, one host",
        value=_LLAMA_3_STORAGE_BYTES_PER_S / _LLAMA_3_HOSTS,
        unit="B/s",
        source=f"{_LLAMA_3}, section 3.3.1: 2 TB/s sustained by the storage, shared by {_LLAMA_3_HOSTS:,} hosts",
    ),
    host_read_bytes_per_s=Assumption(
        name="reading of checkpoints, one host",
        value=_LLAMA_3_STORAGE_BYTES_PER_S / _LLAMA_3_HOSTS,
        unit="B/s",
        source="as for writing",
    ),
    down_s=Assumption(
        name="failure to new processes",
        value=300.0,
        unit="s",
        source="a guess: depends on the cluster's spare capacity",
    ),
    startup_s=Assumption(
        name="start of processes, checkpoint apart",
        value=120.0,
        unit="s",
        source="a guess: depends on the size of the data index",
    ),
    compile_s=Assumption(
        name="compilation",
        value=60.0,
        unit="s",
        source="a guess: TPU programs of 14B steps compile in half a minute to some minutes on two CPU cores",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goodput:
    """What saving and failures do to a run. Times in seconds.

    Attributes:
      checkpoint_bytes: Size of one checkpoint.
      save_s: Time to write it from all hosts. Taken as time in which training stands still; the trainer's own saves
        stop it only while arrays are copied to the hosts, so that less is recorded.
      mtbf_s: Mean time between failures of all chips together.
      optimal_interval_s: sqrt(2 save_s mtbf_s).
      optimal_waste: sqrt(2 save_s / mtbf_s) + restart_s / mtbf_s, first order: the share lost at that interval.
      interval_s: The interval that is planned with, a whole number of steps.
      interval_steps: The same in steps.
      saves: Checkpoints of the run, the last step's included.
      failures: Expected failures.
      restart_s: What one failure costs besides repeated steps.
      buckets: Wall-clock seconds by bucket (``flops.goodput.BUCKETS``).
      elapsed_s: Their sum: start to end.
      goodput: Share of ``elapsed_s`` that is in bucket ``step``.
      assumptions: What was taken for granted.
    """

    checkpoint_bytes: int
    save_s: float
    mtbf_s: float
    optimal_interval_s: float
    optimal_waste: float
    interval_s: float
    interval_steps: int
    saves: int
    failures: float
    restart_s: float
    buckets: dict[str, float]
    elapsed_s: float
    goodput: float
    assumptions: GoodputAssumptions

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain JSON data."""
        return dataclasses.asdict(self)


def plan_goodput(
    *,
    checkpoint_bytes: int,
    num_hosts: int,
    num_chips: int,
    run_s: float,
    step_s: float,
    checkpoint_every_s: float | None = None,
    data_wait_s: float = 0.0,
    evaluation_s: float = 0.0,
    assumptions: GoodputAssumptions | None = None,
) -> Goodput:
    """Returns what saving and failures make of ``run_s`` seconds of training steps.

    Args:
      checkpoint_bytes: Bytes of one checkpoint over all hosts.
      num_hosts: Hosts that write it together.
      num_chips: Chips of which any that fails stops the run.
      run_s: Time of all steps of the run, nothing else in it.
      step_s: Time of one of them.
      checkpoint_every_s: Time of steps between two checkpoints; None for the optimum.
      data_wait_s: Time of the whole run in which steps wait for data.
      evaluation_s: Time of the whole run spent on validation.
      assumptions: None for ``GOODPUT_ASSUMPTIONS``.

    Raises:
      ConfigError: A number is not positive, or failures come faster than the run can get over them.
    """
    taken = GOODPUT_ASSUMPTIONS if assumptions is None else assumptions
    _check(checkpoint_bytes=checkpoint_bytes, num_hosts=num_hosts, num_chips=num_chips, run_s=run_s, step_s=step_s)
    save_s = checkpoint_bytes / (num_hosts * taken.host_write_bytes_per_s.value)
    mtbf_s = taken.chip_mtbf_h.value * _HOUR_S / num_chips
    optimal_s = math.sqrt(2.0 * save_s * mtbf_s)
    if checkpoint_every_s is not None:
        _check(checkpoint_every_s=checkpoint_every_s)
    wanted_s = min(optimal_s if checkpoint_every_s is None else checkpoint_every_s, run_s)
    steps = max(1, round(wanted_s / step_s))
    interval_s = steps * step_s
    saves = max(1, math.ceil(run_s / interval_s - 1e-9))
    restore_s = checkpoint_bytes / (num_hosts * taken.host_read_bytes_per_s.value)
    down_s, startup_s, compile_s = taken.down_s.value, taken.startup_s.value, taken.compile_s.value
    restart_s = down_s + startup_s + restore_s + compile_s
    # Failures strike steps, saves and restarts alike, so that elapsed = undisturbed + elapsed / MTBF x cost of each.
    undisturbed_s = run_s + data_wait_s + saves * save_s + evaluation_s + startup_s + compile_s
    repeated_s = interval_s / 2.0
    share = (restart_s + repeated_s) / mtbf_s
    if share >= 1.0:
        raise ConfigError(
            f"{num_chips:,} chips fail every {mtbf_s:,.0f} s and each failure costs {restart_s + repeated_s:,.0f} s: "
            "the run would not get on; save more often, use fewer chips or a longer MTBF"
        )
    elapsed_s = undisturbed_s / (1.0 - share)
    failures = elapsed_s / mtbf_s
    return Goodput(
        checkpoint_bytes=checkpoint_bytes,
        save_s=save_s,
        mtbf_s=mtbf_s,
        optimal_interval_s=optimal_s,
        optimal_waste=math.sqrt(2.0 * save_s / mtbf_s) + restart_s / mtbf_s,
        interval_s=interval_s,
        interval_steps=steps,
        saves=saves,
        failures=failures,
        restart_s=restart_s,
        buckets={
            buckets.STEP: run_s,
            buckets.DATA_WAIT: data_wait_s,
            buckets.CHECKPOINT_SAVE: saves * save_s,
            buckets.EVALUATION: evaluation_s,
            buckets.STARTUP: startup_s + failures * (startup_s + restore_s),
            buckets.COMPILE: compile_s * (1.0 + failures),
            buckets.LOST_STEPS: failures * repeated_s,
            buckets.DOWN: failures * down_s,
        },
        elapsed_s=elapsed_s,
        goodput=run_s / elapsed_s,
        assumptions=taken,
    )


def _check(**numbers: int | float) -> None:
    """Raises ``ConfigError`` for the first number that is not positive and finite."""
    for name, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"goodput needs {name} above 0, not {value:g}")
