"""Training in buckets: one state, one compiled step for each size, exact accounts."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import TINY
from wamjax.batch import fake_batch
from wamjax.config.buckets import BucketConfig, BucketsConfig
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.flops.ledger import Ledger, StepCost
from wamjax.flops.model import count_flops
from wamjax.flops.utilisation import Denominator
from wamjax.parallel.mesh import build_mesh, make_global_batch
from wamjax.training.buckets import build_bucket_programs, join_programs
from wamjax.training.hooks import BUCKET, StepReport, StepWork, Throughput

SETS = (
    BucketConfig(name="short", canvas=(8, 24), num_frames=3),
    BucketConfig(name="long", canvas=(16, 24), num_frames=5),
)


def in_buckets(config: RunConfig = TINY, *sets: BucketConfig, grid_embedding: str = "none") -> RunConfig:
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, grid_embedding=grid_embedding),
        data=dataclasses.replace(
            config.data, video_statistics="none", buckets=BucketsConfig(sets=sets or SETS, batch_multiple=2)
        ),
        train=dataclasses.replace(config.train, global_batch_size=2),
    )


@pytest.mark.slow
def test_a_step_of_each_bucket_trains_the_one_state_as_its_own_program_would() -> None:
    config = in_buckets()
    mesh = build_mesh(config.parallel, jax.devices()[:1])
    programs = build_bucket_programs(config, mesh)
    joined = join_programs(programs, config)
    state, expected = joined.init(None, None), None
    for number, (name, program) in enumerate(programs.items()):
        batch: Any = make_global_batch(fake_batch(program.config, program.config.train.global_batch_size), mesh)
        if name == "long":
            expected, metrics = program.step(jax.tree.map(jnp.copy, state), batch)
            assert BUCKET not in metrics
        state, found = joined.step(state, batch)
        assert float(found[BUCKET]) == number
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert programs["short"].config.train.global_batch_size > programs["long"].config.train.global_batch_size == 2


def test_parameters_that_depend_on_the_canvas_are_refused_by_name() -> None:
    large = BucketConfig(name="large", canvas=(32, 48), num_frames=3)
    config = in_buckets(TINY, SETS[0], large, grid_embedding="learned")
    with pytest.raises(ConfigError, match=r"^parameter grid_embedding.* has shape .* in bucket 'short' and .*'large'"):
        build_bucket_programs(config, build_mesh(config.parallel, jax.devices()[:1]))


class OneSource:
    @property
    def num_windows(self) -> dict[str, int]:
        return {"dataset": 10}

    def count_samples(self, position: int) -> dict[str, int]:
        return {"dataset": position}


def bucket_ledger() -> tuple[Ledger, dict[str, StepCost]]:
    config = in_buckets()
    programs = build_bucket_programs(config, build_mesh(config.parallel, jax.devices()[:1]))
    costs = {
        name: StepCost(
            count=count_flops(program.config, program.layout),
            samples=program.config.train.global_batch_size,
            sources=OneSource(),
        )
        for name, program in programs.items()
    }
    ledger = Ledger(
        count=costs["short"].count,
        samples_per_step=costs["short"].samples,
        denominator=Denominator(device_kind="cpu", num_devices=1, dtype="float32"),
        sources=OneSource(),
        buckets=costs,
        evaluation_samples={"short": 4, "long": 2},
    )
    return ledger, costs


def test_ledger_counts_every_step_at_the_cost_of_its_bucket_over_a_resume() -> None:
    ledger, costs = bucket_ledger()
    order = ["long", "short", "short", "long", "short"]
    for step, name in enumerate(order[:2], 1):
        ledger.record(step, 1.0, 0.1, bucket=name)
    resumed, _ = bucket_ledger()
    resumed.resume(ledger.totals)
    line: dict[str, Any] = {}
    for step, name in enumerate(order[2:], 3):
        line = resumed.record(step, 1.0, 0.1, bucket=name)
        assert line["this_step"]["hardware_flops"] == costs[name].samples * costs[name].count.hardware_total
        assert line["bucket"] == name
    totals = resumed.totals
    wanted = {name: order.count(name) * cost.samples for name, cost in costs.items()}
    assert totals["buckets"] == wanted
    assert totals["samples"] == sum(wanted.values()) == totals["sources"]["dataset"]
    assert sum(totals["model_flops"].values()) == sum(
        wanted[name] * cost.count.model_total for name, cost in costs.items()
    )
    assert sum(totals["tokens"].values()) == sum(
        wanted[name] * sum(cost.count.tokens.values()) for name, cost in costs.items()
    )
    one = sum({"short": 4, "long": 2}[name] * sum(c.count.hardware_forward.values()) for name, c in costs.items())
    assert line["evaluation_flops_per_validation"] == one
    for name, samples in resumed.evaluation_samples.items():
        resumed.record_evaluation(samples, bucket=name)
    assert resumed.totals["evaluation"] == {"samples": 6, "hardware_flops": one}


def test_throughput_is_that_of_the_buckets_that_came() -> None:
    work = [StepWork(samples=8, tokens=80, flops=800), StepWork(samples=2, tokens=60, flops=900)]
    throughput = Throughput(samples_per_step=0, peak_flops_per_s=1000.0, buckets=work)
    for step, bucket in enumerate((0, 1, 1), 1):
        throughput.add(StepReport(step=step, metrics={BUCKET: float(bucket)}, step_s=2.0, data_wait_s=0.0))
    figures = throughput.read()
    assert figures["throughput/samples_per_s"] == pytest.approx(12 / 6)
    assert figures["throughput/tokens_per_s"] == pytest.approx(200 / 6)
    assert figures["throughput/mfu"] == pytest.approx(2600 / 6 / 1000)
