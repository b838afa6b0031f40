"""A ``Plan`` as JSON under stable keys, with the source of every figure; docs/planning.md lists them."""

from __future__ import annotations

from typing import Any

from wamjax.planning.assumption import Source
from wamjax.planning.cost import Prices
from wamjax.planning.memory import MEMORY_SOURCES
from wamjax.planning.outlook import Outlook
from wamjax.planning.plan import OnMachine, Plan
from wamjax.planning.roofline import Resource, Roofline
from wamjax.planning.run_length import ZETTA


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
        **_outlook_of(plan),
        **({} if plan.feed is None else {"feed": plan.feed.to_json()}),
        "sources": _sources(plan),
    }


def bucket_json(plan: Plan) -> dict[str, Any]:
    """Returns what of a run in buckets is the one's that ``plan`` is of; keys as ``to_json`` has them."""
    found = to_json(plan)
    keys = ("global_batch_size", "sample", "tokens", "flops", "flops_per_step", "memory", "time")
    return {key: found[key] for key in keys if key in found}


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
        "time": _unknown(on.no_time, "step_s", "binding") if on.time is None else _time_json(on, on.time),
    }


def _unknown(reason: str, *keys: str) -> dict[str, Any]:
    """Returns ``keys`` without values, and why they have none."""
    return {**dict.fromkeys(keys), "reason_unknown": reason}


def _outlook_of(plan: Plan) -> dict[str, Any]:
    if plan.outlook is not None:
        return _outlook_json(plan.outlook, plan.prices)
    return {} if plan.on is None else {"cost": _unknown(plan.on.no_time, "chip_hours", "usd")}


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
    sources = {
        "model": (Source.EXACT, "every parameter from the configuration"),
        "tokens": (Source.EXACT, "the layout"),
        "attention": (Source.EXACT, "the layout's schedule"),
        "flops": (Source.EXACT, "closed forms; 1 multiply-add = 2, matrix products only"),
        "flops.six_nt_per_sample": (Source.EXACT, "6 x parameters x tokens, a published convention"),
        "flops_per_step": (Source.EXACT, "per sample x batch"),
        "run": (plan.run.source, plan.run.decided_by),
        "sample": (Source.EXACT, "the configuration"),
        **dict.fromkeys(
            ("sample.seconds", "sample.video_hours_per_step", "sample.robot_hours_per_step", "run.video_hours",
             "run.robot_hours"),
            (Source.ASSUMED, str(plan.sample.rate)),
        ),
    }  # fmt: skip
    if plan.on is not None:
        sources |= MEMORY_SOURCES
    if plan.outlook is not None:
        sources["goodput"] = (Source.ASSUMED, "failures and storage under goodput.assumptions, the expected step time")
        sources["feed"] = (Source.ASSUMED, "videos and decoders under feed.assumptions, the expected step time")
        sources["cost"] = (Source.ASSUMED, f"the expected wall time; prices: {plan.prices.describe()}")
        sources["time"] = (Source.ASSUMED, "work over listed rates at the shares under time.efficiencies")
    return {key: {"source": source.value, "note": note} for key, (source, note) in sources.items()}
