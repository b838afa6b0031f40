"""``Plan``: what a run is and what it needs, from its configuration and, where one is given, a machine.

Puts the parts together and writes them as JSON under stable keys; every part is a pure function in a module of its own.
Nothing here touches a device or builds a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from wamjax.config.finetune import require_matches
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError, WamjaxError
from wamjax.flops.encoders import encoder_flops
from wamjax.flops.execution import Execution
from wamjax.flops.model import FlopCount, count_flops
from wamjax.flops.parameters import list_parameters
from wamjax.layout import Layout, build_layout
from wamjax.planning.assumption import Assumption, Source
from wamjax.planning.cost import Prices, load_prices
from wamjax.planning.efficiency import Efficiencies, efficiencies_of
from wamjax.planning.exchange import list_exchanges
from wamjax.planning.feed import Feed, plan_feed
from wamjax.planning.machine import Machine
from wamjax.planning.memory import MEMORY_SOURCES, MemoryPlan, plan_memory
from wamjax.planning.outlook import Economy, Outlook
from wamjax.planning.placement import Placed, place_parameters
from wamjax.planning.roofline import Resource, Roofline, explain_no_peak, plan_time
from wamjax.planning.run_length import ZETTA, Rates, Wanted, solve_steps
from wamjax.planning.sample import Sample, describe_sample
from wamjax.planning.shards import Shard, make_shard

_EXACT_LENGTHS = ("config.train.num_steps", "--steps", "--tokens", "--zflops")  # the others rest on the step time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The whole run.

    Attributes:
      steps: Optimizer steps.
      samples: Samples over all steps.
      decided_by: What gave the steps.
    """

    steps: int
    samples: int
    decided_by: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnMachine:
    """What a step is on a machine.

    Attributes:
      machine: The machine.
      shard: One device's part of a step.
      memory: Of one device.
      efficiencies: What its time rests on.
      time: Of a step; None where the chip has no listed peak for the compute dtype.
      no_time: Why there is none; empty where there is one.
    """

    machine: Machine
    shard: Shard
    memory: MemoryPlan
    efficiencies: Efficiencies
    time: Roofline | None
    no_time: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is and needs.

    Attributes:
      config: The run.
      layout: Of one sample.
      sample: Pixels, tokens and seconds of one sample.
      flops: FLOPs of one sample.
      encoders: FLOPs of one sample by frozen encoder, where their outputs are not cached; None where no known encoder
        gives what the backbone reads.
      run: The whole run.
      outlook: Its wall time and cost; None without a step time.
      feed: What its input asks of the hosts; None without a step time.
      prices: Of chips.
      on: What a step is on a machine; None without one.
    """

    config: RunConfig
    layout: Layout
    sample: Sample
    flops: FlopCount
    encoders: dict[str, int] | None
    run: Run
    outlook: Outlook | None
    feed: Feed | None
    prices: Prices
    on: OnMachine | None

    @property
    def batch(self) -> int:
        """Samples of a step."""
        return self.config.train.global_batch_size


def make_plan(
    config: RunConfig,
    *,
    machine: Machine | None = None,
    wanted: Wanted | None = None,
    rate: Assumption | None = None,
    efficiencies: Efficiencies | None = None,
    prices: Prices | None = None,
) -> Plan:
    """Returns the plan of ``config``.

    Args:
      config: The run.
      machine: Where it is to run; None for what does not depend on it.
      wanted: What decides its length; None for the configuration.
      rate: Frames of a sample per second, where it is known.
      efficiencies: What a step time rests on; None for those of the machine's chips.
      prices: Of chips; None for the examples.

    Raises:
      ConfigError: Something in the configuration, the machine or the length does not fit together.
    """
    layout = build_layout(config)
    execution = None if machine is None else execution_of(make_shard(config, layout, machine), machine)
    count = count_flops(config, layout, execution)
    sample = describe_sample(config, layout, rate)
    paths = list(list_parameters(config))
    require_matches(config.finetune.frozen, paths, "frozen", "parameter")
    require_matches(config.finetune.trained, paths, "trained", "parameter")
    if not count.num_trained_parameters:
        raise ConfigError(f"config.finetune.frozen={config.finetune.frozen} leaves nothing to train")
    on = None if machine is None else plan_on(config, layout, machine, efficiencies)
    prices = prices or load_prices()
    economy = None if on is None else economy_of(config, on, prices)
    if economy is None and wanted is not None and on is not None and (wanted.deadline_s or wanted.budget_usd):
        raise ConfigError(f"--deadline and --budget_usd need a step time: {on.no_time}")
    rates = Rates(
        batch=config.train.global_batch_size,
        tokens_per_sample=sample.num_tokens,
        model_flops_per_sample=count.model_total,
        elapsed_s=None if economy is None else economy.elapsed_s,
        usd=None if economy is None else economy.usd,
    )
    steps, decided_by = solve_steps(wanted or Wanted(), rates, config.train.num_steps)
    run = Run(steps=steps, samples=steps * rates.batch, decided_by=decided_by)
    return Plan(
        config=config,
        layout=layout,
        sample=sample,
        flops=count,
        encoders=_encoders(config),
        run=run,
        outlook=None if economy is None else economy.outlook(steps),
        feed=None
        if economy is None
        else plan_feed(
            config,
            step_s=economy.step_s.mid,
            num_hosts=economy.machine.num_hosts,
            num_steps=steps,
            clip_hz=sample.rate.value,
        ),
        prices=prices,
        on=on,
    )


def _encoders(config: RunConfig) -> dict[str, int] | None:
    try:
        return encoder_flops(config)
    except WamjaxError:
        return None


def plan_on(config: RunConfig, layout: Layout, machine: Machine, efficiencies: Efficiencies | None = None) -> OnMachine:
    """Returns what a step of ``config`` is on ``machine``.

    Args:
      config: The run.
      layout: Its layout.
      machine: The machine.
      efficiencies: What a step time rests on; None for those of the machine's chips.

    Raises:
      ConfigError: It does not divide over the machine.
    """
    shard = make_shard(config, layout, machine)
    parameters = place_parameters(config, shard.mesh, shard.rules.parameters)
    memory = plan_memory(config, shard, layout.full_pass().schedule, parameters, machine.hbm_bytes)
    count = count_flops(config, layout, execution_of(shard, machine))
    decode_s = decode_seconds(config, machine)
    return time_on(machine, shard, parameters, memory, count, efficiencies, decode_s=decode_s)


def decode_seconds(config: RunConfig, machine: Machine) -> float:
    """Returns the seconds in which a host decodes its part of a batch; 0 for a backbone, which reads cached latents."""
    if config.backbone is not None:
        return 0.0
    return plan_feed(config, step_s=1.0, num_hosts=machine.num_hosts).decode_step_s


def time_on(
    machine: Machine,
    shard: Shard,
    parameters: Sequence[Placed],
    memory: MemoryPlan,
    count: FlopCount,
    efficiencies: Efficiencies | None = None,
    *,
    decode_s: float = 0.0,
) -> OnMachine:
    """Returns the step of ``shard``, whose memory and FLOPs are known already, with its time."""
    efficiencies = efficiencies or efficiencies_of(machine.chip.name)
    no_time, time = explain_no_peak(shard, machine), None
    if not no_time:
        exchanges = list_exchanges(shard, parameters)
        time = plan_time(count, shard, memory, exchanges, machine, efficiencies, decode_s=decode_s)
    return OnMachine(machine=machine, shard=shard, memory=memory, efficiencies=efficiencies, time=time, no_time=no_time)


def execution_of(shard: Shard, machine: Machine) -> Execution:
    """Returns where a step runs, as far as its FLOPs depend on it."""
    return Execution(platform=machine.platform, context=shard.mesh["context"], tensor=shard.mesh["tensor"])


def economy_of(config: RunConfig, on: OnMachine, prices: Prices) -> Economy | None:
    """Returns what runs of any length cost; None without a step time."""
    if on.time is None:
        return None
    return Economy(
        config=config,
        machine=on.machine,
        step_s=on.time.step_s,
        checkpoint_bytes=on.memory.state,
        prices=prices,
    )


def to_json(plan: Plan) -> dict[str, Any]:
    """Returns ``plan`` as JSON holds it; docs/planning.md has the keys."""
    count, sample, run, batch = plan.flops, plan.sample, plan.run, plan.batch
    model, hardware = count.model_total, count.hardware_total
    return {
        "name": plan.config.name,
        "global_batch_size": batch,
        "model": {"parameters": count.num_parameters, "trainable_parameters": count.num_trained_parameters},
        "sample": _sample_json(plan),
        "tokens": {
            "per_sample": sample.num_tokens,
            "by_stream": dict(sample.tokens),
            "padding_per_sample": sample.padding,
            "per_step": batch * sample.num_tokens,
        },
        "attention": {
            "pairs_per_sample": count.num_pairs,
            "dense_pairs_per_sample": count.num_dense_pairs,
            "executed_pairs_per_sample": count.num_executed_pairs,
        },
        "flops": {
            "forward_per_sample": count.forward_total,
            "by_component": dict(count.forward),
            "train_model_per_sample": model,
            "train_hardware_per_sample": hardware,
            "train_model_by_component": dict(count.model),
            "train_hardware_by_component": dict(count.hardware),
            "six_nt_per_sample": count.six_n_t,
            "encoders_per_sample": plan.encoders,
        },
        "flops_per_step": {"model": batch * model, "hardware": batch * hardware, "six_nt": batch * count.six_n_t},
        "run": {
            "samples": run.samples,
            "steps": run.steps,
            "tokens": run.samples * sample.num_tokens,
            "decided_by": run.decided_by,
            "zettaflops_model": run.samples * model / ZETTA,
            "zettaflops_hardware": run.samples * hardware / ZETTA,
            "zettaflops_six_nt": run.samples * count.six_n_t / ZETTA,
            "video_hours": run.samples * sample.seconds / 3600,
            "robot_hours": run.samples * sample.robot_seconds / 3600,
        },
        **({} if plan.on is None else _machine_json(plan.on)),
        **({} if plan.outlook is None else _outlook_json(plan.outlook, plan.prices)),
        **({} if plan.feed is None else {"feed": plan.feed.to_json()}),
        "sources": _sources(plan),
    }


def _sample_json(plan: Plan) -> dict[str, Any]:
    sample, batch = plan.sample, plan.batch
    return {
        "views": list(sample.views),
        "canvas": list(sample.canvas),
        "frames": sample.num_frames,
        "frame_stride": sample.frame_stride,
        "latent_grid": list(sample.latent_grid),
        "token_grid": list(sample.token_grid),
        "seconds": sample.seconds,
        "video_hours_per_step": batch * sample.seconds / 3600,
        "robot_hours_per_step": batch * sample.robot_seconds / 3600,
    }


def _machine_json(on: OnMachine) -> dict[str, Any]:
    machine = on.machine
    return {
        "mesh": dict(on.shard.mesh),
        "machine": {
            "name": machine.name,
            "chip": machine.chip.name,
            "num_chips": machine.num_chips,
            "num_devices": machine.num_devices,
            "num_hosts": machine.num_hosts,
            "num_slices": machine.num_slices,
        },
        "memory": on.memory.to_json(),
        "time": {"reason_unknown": on.no_time} if on.time is None else _time_json(on, on.time),
    }


def _outlook_json(outlook: Outlook, prices: Prices) -> dict[str, Any]:
    return {
        "goodput": {**outlook.goodput.to_json(), "elapsed_s_band": outlook.elapsed_s.to_json()},
        "cost": {
            **outlook.cost.to_json(),
            "chip_hours_band": outlook.chip_hours.to_json(),
            "usd_band": None if outlook.usd is None else outlook.usd.to_json(),
            "warning": prices.warning,
        },
    }


def _time_json(on: OnMachine, time: Roofline) -> dict[str, Any]:
    return {
        "step_s": time.step_s.to_json(),
        "binding": time.binding.name_on(on.machine),
        "mfu": time.mfu,
        "hfu": time.hfu,
        "peak_flops_per_s": time.peak_flops_per_s,
        "resources_s": {r.name_on(on.machine): time.seconds_of(r) for r in Resource},
        "phases": [
            {
                "name": phase.name,
                "resource": phase.resource.name_on(on.machine),
                "work": phase.work,
                "seconds": phase.seconds.to_json(),
            }
            for phase in time.phases
        ],
        "efficiencies": on.efficiencies.to_json(),
    }


def _sources(plan: Plan) -> dict[str, dict[str, str]]:
    """Returns dotted key or prefix -> how its numbers came about; the longest prefix of a key holds."""
    length = Source.EXACT if plan.run.decided_by in _EXACT_LENGTHS else Source.ASSUMED
    sources = {
        "model": (Source.EXACT, "every parameter from the configuration"),
        "tokens": (Source.EXACT, "the layout"),
        "attention": (Source.EXACT, "the layout's schedule"),
        "flops": (Source.EXACT, "closed forms; 1 multiply-add = 2, matrix products only"),
        "flops.six_nt_per_sample": (Source.EXACT, "6 x parameters x tokens, a published convention"),
        "flops_per_step": (Source.EXACT, "per sample x batch"),
        "run": (length, plan.run.decided_by),
        "sample": (Source.EXACT, "the configuration"),
        **dict.fromkeys(
            ("sample.seconds", "sample.video_hours_per_step", "sample.robot_hours_per_step", "run.video_hours",
             "run.robot_hours"),
            (Source.ASSUMED, str(plan.sample.rate)),
        ),
    }  # fmt: skip
    if plan.on is not None:
        sources |= MEMORY_SOURCES
        sources["goodput"] = (Source.ASSUMED, "failures and storage under goodput.assumptions, the expected step time")
        sources["feed"] = (Source.ASSUMED, "videos and decoders under feed.assumptions, the expected step time")
        sources["cost"] = (Source.ASSUMED, f"the expected wall time; prices: {plan.prices.describe()}")
        sources["time"] = (Source.ASSUMED, "work over listed rates at the shares under time.efficiencies")
    return {key: {"source": source.value, "note": note} for key, (source, note) in sources.items()}
