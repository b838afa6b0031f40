"""``Plan``: what a run is and what it needs, from its configuration and, where one is given, a machine.

Puts the parts together and writes them as JSON under stable keys; every part is a pure function in a module of its own.
Nothing here touches a device or builds a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
from wamjax.planning.memory import MemoryPlan, plan_memory
from wamjax.planning.outlook import Economy, Outlook
from wamjax.planning.placement import Placed, place_parameters
from wamjax.planning.roofline import Roofline, explain_no_peak, plan_time
from wamjax.planning.run_length import Rates, Wanted, solve_steps
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

    @property
    def source(self) -> Source:
        """How the length came about: limits in money and time rest on the step time."""
        return Source.EXACT if self.decided_by in _EXACT_LENGTHS else Source.ASSUMED


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
        busy_s=on.time.busy_s,
        checkpoint_bytes=on.memory.state,
        prices=prices,
    )
