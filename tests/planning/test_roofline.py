"""The step time of cases that are worked out by hand."""

import dataclasses
from typing import Any

import pytest

from tests.tiny import TINY
from wamjax.config.schema import ParallelConfig, RunConfig
from wamjax.errors import ConfigError
from wamjax.flops.model import count_flops
from wamjax.layout import build_layout
from wamjax.planning.assumption import Band
from wamjax.planning.efficiency import SHARES, Efficiencies, efficiencies_of, with_overrides
from wamjax.planning.exchange import Exchange, list_exchanges
from wamjax.planning.machine import machine_of_chips, machine_of_topology
from wamjax.planning.placement import place_parameters
from wamjax.planning.plan import OnMachine, execution_of, plan_on
from wamjax.planning.roofline import Resource, Roofline, plan_time
from wamjax.planning.shards import make_shard

CONFIG = dataclasses.replace(
    TINY,
    model=dataclasses.replace(TINY.model, compute_dtype="bfloat16"),
    layout=dataclasses.replace(TINY.layout, pad_multiple=256),
    parallel=ParallelConfig(),
)
MACHINE = machine_of_topology("v5e:2x2")


def perfect(hidden: float) -> Efficiencies:
    """Returns efficiencies of one, with so much of the exchange hidden."""
    one = Band(low=1.0, mid=1.0, high=1.0)
    return Efficiencies(
        chips=("TPU",), sources={}, **{name: one for name in SHARES if name != "hidden"},
        hidden=Band(low=hidden, mid=hidden, high=hidden),
    )  # fmt: skip


def planned(config: RunConfig = CONFIG, hidden: float = 0.0) -> OnMachine:
    return plan_on(config, build_layout(config), MACHINE, perfect(hidden))


def time_of(on: OnMachine) -> Roofline:
    assert on.time is not None
    return on.time


def test_matrix_units_do_the_hardware_flops_of_a_devices_share() -> None:
    on = planned()
    count = count_flops(CONFIG, build_layout(CONFIG), execution_of(on.shard, MACHINE))
    batch, devices = CONFIG.train.global_batch_size, 4
    phases = [p for p in time_of(on).phases if p.resource is Resource.MATRIX]
    assert sum(p.work for p in phases) == pytest.approx(batch * count.hardware_total / devices, abs=3)
    assert sum(p.seconds.mid for p in phases) == pytest.approx(batch * count.hardware_total / devices / 197e12)


def test_at_full_efficiency_and_nothing_hidden_the_step_is_the_sum_of_its_phases() -> None:
    time = time_of(planned())
    busy = sum(p.seconds.mid for p in time.phases if p.resource is not Resource.HOST)
    assert time.step_s.mid == pytest.approx(max(busy, time.seconds_of(Resource.HOST)))
    assert time.step_s.high == pytest.approx(busy + time.seconds_of(Resource.HOST))


def test_hidden_exchange_costs_nothing_until_it_is_longer_than_compute() -> None:
    time = time_of(planned(hidden=1.0))
    compute = time.seconds_of(Resource.MATRIX) + time.seconds_of(Resource.MEMORY)
    wires = time.seconds_of(Resource.LINKS)
    assert time.step_s.low == pytest.approx(max(compute, wires, time.seconds_of(Resource.HOST)))


def test_the_binding_resource_is_the_one_with_the_most_seconds() -> None:
    on = planned()
    for num_bytes in (0, 10**12):
        exchange = Exchange(what="x", kind="all-gather", axes=("fsdp",), num_bytes=num_bytes, times=1)
        count = count_flops(CONFIG, build_layout(CONFIG), execution_of(on.shard, MACHINE))
        time = plan_time(count, on.shard, on.memory, [exchange], MACHINE, perfect(0.0))
        most = max(Resource, key=time.seconds_of)
        assert time.binding is most
        assert (time.binding is Resource.LINKS) == bool(num_bytes)


def test_utilisations_are_of_the_listed_peak_of_all_chips() -> None:
    on = planned()
    time, count = time_of(on), count_flops(CONFIG, build_layout(CONFIG), execution_of(on.shard, MACHINE))
    samples = CONFIG.train.global_batch_size
    assert time.peak_flops_per_s == 4 * 197e12
    assert time.mfu == pytest.approx(samples * count.model_total / time.step_s.mid / time.peak_flops_per_s)
    assert time.hfu == pytest.approx(samples * count.hardware_total / time.step_s.mid / time.peak_flops_per_s)


def test_worse_shares_make_slower_steps() -> None:
    layout = build_layout(CONFIG)
    assumed = efficiencies_of(MACHINE.chip.name)
    worse = with_overrides(assumed, '{"matmul": {"low": 0.1, "mid": 0.2, "high": 0.3}}', "a test")
    fast, slow = (time_of(plan_on(CONFIG, layout, MACHINE, e)) for e in (assumed, worse))
    assert slow.step_s.mid > fast.step_s.mid
    assert slow.step_s.low > fast.step_s.low


def test_no_more_exchange_hides_than_there_is_compute_to_hide_it() -> None:
    on, count = planned(), count_flops(CONFIG, build_layout(CONFIG))
    endless = Exchange(what="x", kind="all-gather", axes=("fsdp",), num_bytes=10**12, times=1)
    time = plan_time(count, on.shard, on.memory, [endless], MACHINE, perfect(0.6))
    assert time.step_s.mid == pytest.approx(time.seconds_of(Resource.LINKS))


def test_decoding_that_takes_longer_than_the_step_is_waited_for() -> None:
    on, count = planned(), count_flops(CONFIG, build_layout(CONFIG))

    def time(decode_s: float) -> Roofline:
        return plan_time(count, on.shard, on.memory, [], MACHINE, perfect(1.0), decode_s=decode_s)

    idle, slow = time(0.0), time(7.0)
    assert slow.busy_s == idle.busy_s
    assert slow.step_s.mid == pytest.approx(7.0 + idle.seconds_of(Resource.HOST))
    assert slow.step_s.high == pytest.approx(idle.step_s.high + 7.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is no JSON object of shares"),
        ("{", "is not JSON"),
        ('{"matmull": {}}', "'matmull' is no share"),
        ('{"matmul": 0.5}', "expected numbers low, mid and high"),
        ('{"matmul": {"low": 0.9, "mid": 0.5, "high": 1}}', "expected 0 < low <= mid <= high <= 1"),
        ('{"matmul": {"low": 0.0, "mid": 0.5, "high": 1}}', "expected 0 < low <= mid <= high <= 1"),
        ('{"matmul": {"low": 0, "mid": 0, "high": 1}}', "mid above 0"),
    ],
)
def test_a_bad_table_of_efficiencies_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        with_overrides(efficiencies_of("TPU v5p"), text, "--efficiencies=x.json")
    assert "\n" not in str(caught.value)


def test_every_chip_has_efficiencies_and_an_unknown_one_none() -> None:
    assert efficiencies_of("TPU v6e").matmul.mid < efficiencies_of("TPU v5p").matmul.mid
    assert efficiencies_of("NVIDIA A100-80GB SXM").chips == ("NVIDIA A100",)
    with pytest.raises(ConfigError, match="no efficiencies are known for Cerebras"):
        efficiencies_of("Cerebras")


# What 4 devices send for 2 layers of width 16: kernels are gathered for both passes, gradients scattered once.
def test_kernels_are_gathered_twice_and_gradients_scattered_once() -> None:
    shard = make_shard(CONFIG, build_layout(CONFIG), MACHINE)
    placed = place_parameters(CONFIG, shard.mesh, shard.rules.parameters)
    found = {e.what: e for e in list_exchanges(shard, placed)}
    split = sum(p.size for p in placed if p.is_gathered)
    assert found["kernels"].num_bytes * found["kernels"].times == pytest.approx(2 * 2 * split, rel=0.01)
    assert found["gradients of kernels"].times * 2 == found["kernels"].times
    assert "heads" not in found


@pytest.mark.parametrize(
    ("method", "remat", "per_layer"), [("ulysses", "none", 12), ("ulysses", "exchanged", 9), ("ring", "none", 4)]
)
def test_attention_exchanges_as_often_as_its_method_says(method: Any, remat: Any, per_layer: int) -> None:
    config = dataclasses.replace(
        CONFIG,
        parallel=ParallelConfig(fsdp=2, context=2, context_method=method),
        model=dataclasses.replace(CONFIG.model, remat=remat),
    )
    shard = make_shard(config, build_layout(config), MACHINE)
    found = {e.what: e for e in list_exchanges(shard, place_parameters(config, shard.mesh, shard.rules.parameters))}
    exchange = found["heads" if method == "ulysses" else "keys and values"]
    assert exchange.times == per_layer * config.model.num_layers
    # Two of four heads x 256 tokens of 4 samples, bfloat16: b n/C k e.
    assert exchange.num_bytes == 4 * 128 * 16 * 2


def test_gpus_name_their_links_differently() -> None:
    time = time_of(plan_on(CONFIG, build_layout(CONFIG), machine_of_chips("h100:8")))
    assert {p.resource.name_on(machine_of_chips("h100:8")) for p in time.phases} >= {"scale-up links", "HBM"}
