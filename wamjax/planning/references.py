"""What the planner's memory and times are held against: compiled programs, and published runs of other code.

Compiled rows are of this library's own step; nothing of them ran. Published rows ran on hardware, with other code: what
that code is known to do differently is said, what it does not publish is assumed, and both stand in the row.
"""

from __future__ import annotations

import dataclasses

from wamjax.config.backbone import ClipConfig
from wamjax.config.choices import Remat
from wamjax.config.presets import WAN_2_1_T2V_14B
from wamjax.config.schema import LayoutConfig, OptimizerConfig, ParallelConfig, RunConfig, TrainConfig
from wamjax.layout import build_layout
from wamjax.planning.assumption import Band
from wamjax.planning.efficiency import Efficiencies, efficiencies_of
from wamjax.planning.machine import Machine, machine_of_chips, machine_of_topology
from wamjax.planning.plan import OnMachine, plan_on

_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """A step that was compiled ahead of time.

    Attributes:
      experiment: Its file below ``experiments/``.
      overrides: Keys of the configuration that differ, as the command line writes them.
      topology: TPU slice.
      peak_gib: Memory of a device by the compiler.
      step_s: Its estimate of a step (``planning.estimate``, as scheduled); None where the compiler did not end.
      note: Versions, and what is special.
      gap: Where planned memory differs, by kind.
    """

    experiment: str
    overrides: tuple[str, ...] = ()
    topology: str
    peak_gib: float
    step_s: float | None = None
    note: str
    gap: str = ""


_LIBTPU = "jax 0.10.2, libtpu 0.0.51"
_LATER = f"{_LIBTPU}; compiled after the efficiencies were chosen"

COMPILED: tuple[Compiled, ...] = (
    Compiled(experiment="pretrain/wan_14b_480p.py", topology="v5p:4x4x4", peak_gib=46.07, step_s=5.493, note=_LIBTPU),
    Compiled(
        experiment="pretrain/wan_14b_480p.py",
        overrides=("backbone.remat=exchanged",),
        topology="v5p:4x4x4",
        peak_gib=52.16,
        step_s=5.474,
        note=_LIBTPU,
    ),
    Compiled(experiment="pretrain/wan_14b_720p.py", topology="v5p:4x4x4", peak_gib=31.85, step_s=23.584, note=_LATER),
    Compiled(experiment="pretrain/wan_1_3b_480p.py", topology="v5p:2x2x4", peak_gib=48.78, step_s=3.951, note=_LATER),
    Compiled(experiment="pretrain/wan_14b_480p.py", topology="tpu7x:4x4x4", peak_gib=23.63, step_s=1.400, note=_LATER),
    Compiled(
        experiment="pretrain/wan_14b_480p.py",
        overrides=("parallel.context=8", "parallel.rules=fsdp", "train.global_batch_size=32"),
        topology="v6e:16x16",
        peak_gib=28.62,
        step_s=2.404,
        note=_LATER,
    ),
    Compiled(
        experiment="pretrain/wan_14b_480p.py",
        overrides=("parallel.context=8", "parallel.rules=fsdp"),
        topology="tpu7x:4x4x4",
        peak_gib=36.66,
        step_s=1.569,
        note=_LATER,
    ),
    Compiled(
        experiment="pretrain/wan_14b_480p.py",
        overrides=("train.global_batch_size=32",),
        topology="v6e:16x16",
        peak_gib=22.26,
        step_s=2.622,
        note=_LATER,
    ),
    Compiled(experiment="pretrain/wan_14b_720p.py", topology="v6e:16x16", peak_gib=8.81, step_s=4.644, note=_LATER),
    Compiled(
        experiment="systems/dreamzero_14b_droid.py",
        topology="v5p:4x4x4",
        peak_gib=46.13,
        step_s=12.337,
        note=_LATER,
        gap="state and kept activations are 27.5 GiB (planned 27.7), all else 18.6 (planned 13.4)",
    ),
    Compiled(
        experiment="systems/dreamzero_14b_droid.py",
        overrides=("backbone.remat=attention",),
        topology="v5p:4x4x4",
        peak_gib=70.51,
        step_s=12.32,
        note=_LATER,
        gap="state and kept activations are 52.2 GiB (planned 52.7), all else 18.4 (planned 13.4)",
    ),
    Compiled(
        experiment="systems/dreamzero_14b_droid.py",
        overrides=("backbone.remat=attention",),
        topology="v6e:16x16",
        peak_gib=17.41,
        step_s=3.230,
        note=_LATER,
        gap="state and kept activations are 13.8 GiB (planned 14.0), all else 3.6 (planned 5.3)",
    ),
    Compiled(
        experiment="systems/dreamzero_14b_droid.py",
        overrides=("train.global_batch_size=64",),
        topology="v6e:8x8",
        peak_gib=25.79,
        step_s=6.103,
        note=_LATER,
    ),
    Compiled(
        experiment="systems/unipi.py:inverse_dynamics",
        overrides=("train.global_batch_size=1024",),
        topology="v5e:2x2",
        peak_gib=0.205,
        step_s=0.00513,
        note=_LIBTPU,
        gap="kept activations are one layer's output of 0.06 GiB less than planned",
    ),
    Compiled(
        experiment="systems/unipi.py:inverse_dynamics",
        overrides=("train.global_batch_size=4096",),
        topology="v5e:2x2",
        peak_gib=1.018,
        step_s=0.02110,
        note=_LIBTPU,
    ),
    Compiled(
        experiment="systems/unipi.py:inverse_dynamics",
        overrides=("train.global_batch_size=1024", "inverse_dynamics.num_layers=6"),
        topology="v5e:2x2",
        peak_gib=0.454,
        step_s=0.00984,
        note=_LIBTPU,
    ),
    Compiled(
        experiment="systems/lingbot_va_robotwin.py", topology="v5p:4x4x4", peak_gib=9.99, step_s=1.519, note=_LATER
    ),
    Compiled(
        experiment="systems/cosmos_policy_libero.py", topology="v5p:4x4x4", peak_gib=25.43, step_s=2.777, note=_LATER
    ),
    Compiled(experiment="systems/fast_wam_libero.py", topology="v5p:4x4x4", peak_gib=5.86, step_s=0.736, note=_LATER),
    Compiled(
        experiment="systems/latent_plan.py",
        topology="v5p:2x2x4",
        peak_gib=28.61,
        step_s=3.144,
        note=_LATER,
        gap="kept activations are 21.1 GiB (planned 21.7), all else 7.5 (planned 10.0)",
    ),
    Compiled(
        experiment="systems/kairos_4b.py",
        topology="v5p:4x4x4",
        peak_gib=51.91,
        step_s=7.367,
        note=f"{_LATER}; planned time has no partial gradients of windows' queries, one for each 128 or 256 keys",
        gap="such gradients of both kinds of windows lie side by side, 13.4 and 6.7 GiB (planned one at a time)",
    ),
    Compiled(
        experiment="systems/gr1.py",
        topology="v5e:4x4",
        peak_gib=8.44,
        step_s=0.709,
        note=f"{_LATER}; planned time knows neither heads of 24 and 32 in rows of 128 lanes nor what pictures move",
        gap="frames of the loss are 3.6 GiB (planned 1.1), attention at work 5.3 (planned 4.4)",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A run that someone measured.

    Attributes:
      name: Whose, of what.
      config: The closest configuration of ours.
      machine: What it ran on.
      step_s: Measured seconds of a step; None where only MFU is published.
      mfu: Published MFU; None where a step time is.
      backward_products: Products of its attention's backward pass: 5 fused, 7 where two kernels compute scores twice.
      is_fitted: Whether an efficiency was chosen by this row.
      note: What is assumed of it.
    """

    name: str
    config: RunConfig
    machine: Machine
    step_s: float | None = None
    mfu: float | None = None
    backward_products: int = 5
    is_fitted: bool = False
    note: str

    def predict(self) -> OnMachine:
        """Returns our plan of the run."""
        efficiencies = efficiencies_of(self.machine.chip.name)
        if self.backward_products != 5:
            efficiencies = _slowed(efficiencies, 5 / self.backward_products)
        return plan_on(self.config, build_layout(self.config), self.machine, efficiencies)


def _slowed(efficiencies: Efficiencies, share: float) -> Efficiencies:
    """Returns ``efficiencies`` with a backward pass of attention that does so much less per second."""
    band = efficiencies.attention_backward
    slow = Band(low=band.low * share, mid=band.mid * share, high=band.high * share)
    return dataclasses.replace(efficiencies, attention_backward=slow)


_720P = ClipConfig(num_frames=81, height=720, width=1280)
_480P = ClipConfig(num_frames=81, height=480, width=832)
_93_FRAMES = ClipConfig(num_frames=93, height=480, width=832)  # 37,440 tokens


def _wan_14b(clip: ClipConfig, parallel: ParallelConfig, *, batch: int, pad: int, remat: Remat = "full") -> RunConfig:
    block = dataclasses.replace(WAN_2_1_T2V_14B.block, compute_dtype="bfloat16")
    return RunConfig(
        name="wan_14b",
        backbone=dataclasses.replace(WAN_2_1_T2V_14B, block=block, remat=remat),
        clip=clip,
        layout=LayoutConfig(formulation="video", pad_multiple=pad),
        optimizer=OptimizerConfig(ema_decay=0.0),
        parallel=parallel,
        train=TrainConfig(num_steps=1_000, global_batch_size=batch),
    )


_ULYSSES_4 = ParallelConfig(context=4, rules="fsdp_context")
_MAXDIFFUSION = "split backward kernel; context 4 assumed"

PUBLISHED: tuple[Published, ...] = (
    Published(
        name="Wan2.1-14B 720p, MaxDiffusion",
        config=_wan_14b(_720P, _ULYSSES_4, batch=1, pad=2560),
        machine=machine_of_topology("v5p:2x2x1"),
        step_s=36.0,
        backward_products=7,
        is_fitted=True,
        note=f"{_MAXDIFFUSION}; full rematerialisation",
    ),
    Published(
        name="the same, activations offloaded",
        config=_wan_14b(_720P, _ULYSSES_4, batch=1, pad=2560, remat="offload"),
        machine=machine_of_topology("v5p:2x2x1"),
        step_s=32.8,
        backward_products=7,
        note=f"{_MAXDIFFUSION}; attention's output kept, block inputs in host memory",
    ),
    Published(
        name="Wan2.2-14B 720p, MaxDiffusion",
        config=_wan_14b(_720P, _ULYSSES_4, batch=16, pad=2560),
        machine=machine_of_chips("tpu7x:32"),
        step_s=13.57,
        backward_products=7,
        note=f"{_MAXDIFFUSION}; full rematerialisation",
    ),
    Published(
        name="Wan2.1-14B, Megatron (CP4 TP2)",
        config=_wan_14b(
            _93_FRAMES, ParallelConfig(fsdp=-1, context=4, tensor=2, rules="fsdp"), batch=16, pad=512, remat="full"
        ),
        machine=machine_of_chips("h100:128"),
        mfu=0.329,
        note="37,440 tokens; batch 16 and full rematerialisation assumed",
    ),
    Published(
        name="Wan2.1-14B, Megatron",
        config=_wan_14b(_93_FRAMES, ParallelConfig(fsdp=-1, context=4, rules="fsdp"), batch=8, pad=512),
        machine=machine_of_chips("gb200:32"),
        mfu=0.315,
        note="37,440 tokens; CP4, batch 8 and full rematerialisation assumed",
    ),
    Published(
        name="Wan2.1-14B, FSDP",
        config=_wan_14b(_480P, ParallelConfig(fsdp=-1), batch=8, pad=512),
        machine=machine_of_chips("h100:8"),
        mfu=0.178,
        note="81 frames at 480p, batch and full rematerialisation assumed; nothing says what held it back",
    ),
    Published(
        name="Wan2.1-14B, FSDP",
        config=_wan_14b(_480P, ParallelConfig(fsdp=-1), batch=64, pad=512),
        machine=machine_of_chips("h100:64"),
        mfu=0.231,
        note="as above",
    ),
)
