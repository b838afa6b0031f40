"""Trains a world-action model, or goes on with the run in a work directory.

  wamjax train --config=experiments/quickstart.py --workdir=runs/quickstart --cpu_devices=8

If the work directory has a checkpoint the run resumes from it: state, data position, logs and ledger go on as if it
had never stopped. SIGTERM or Ctrl-C saves a checkpoint and exits with status 42.

This module only puts parts together; it is the one place where data meets training.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging
from jax.sharding import Mesh

from data_pipelines.buckets.pipeline import BucketPipeline, open_training_data
from data_pipelines.mixtures.settings import source_config
from data_pipelines.render import render_batch, render_latents, render_pictures
from data_pipelines.stream import ReadAhead
from launch import distributed
from launch.bucket_table import describe_buckets
from launch.experiment import config_from_flags, define_config_flag
from launch.preemption import RESTART_STATUS, StopRequest
from launch.validation import Data, Validation, held_out
from launch.workdir import WorkDir, check_resumable, code_facts, config_hash, settings, write_run
from wamjax.config.blocks import main_block, reads_pixels
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError, WamjaxError
from wamjax.flops.execution import execution_on
from wamjax.flops.goodput import CHECKPOINT_SAVE
from wamjax.flops.ledger import Ledger, StepCost, zflops
from wamjax.flops.model import count_flops
from wamjax.flops.summary import describe as describe_flops
from wamjax.flops.utilisation import Denominator
from wamjax.parallel.mesh import build_mesh, data_shard, make_global_batch
from wamjax.training.base import Base
from wamjax.training.buckets import build_bucket_programs, join_programs
from wamjax.training.checkpoint import CheckpointStore, Restored
from wamjax.training.console import Console, TensorBoard
from wamjax.training.hooks import (
    GoodputRecorder,
    Hook,
    LedgerRecorder,
    MetricRecorder,
    StepWork,
    Throughput,
)
from wamjax.training.loop import LoopPlan, LoopResult, TrainLoop
from wamjax.training.program import TrainProgram, describe_sharding
from wamjax.training.records import RecordLog, rewind


def define_flags() -> None:
    """Defines the flags of ``wamjax train``."""
    define_config_flag()
    flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, logs, pictures.", required=True)
    flags.DEFINE_bool(
        "allow_config_change", False, "Resume although keys that change what is computed differ from the run's."
    )
    distributed.define_device_flags()
    distributed.define_process_flags()


def run(argv: list[str]) -> int:
    """Trains; returns 0 when the run is complete and 42 when it was asked to leave."""
    if argv:
        raise ConfigError(f"unexpected argument {argv[0]!r}; wamjax train takes flags only (see wamjax train --help)")
    began_unix_s = time.time()
    values = flags.FLAGS
    config, workdir = config_from_flags(), WorkDir(Path(values.workdir))
    for of_source in [source_config(config, source) for source in config.data.mixture.sources] or [config]:
        _check_latents(of_source)
    distributed.start_devices(values.cpu_devices, keep_memory=config.model.remat == "none")
    # All keys count here, also those a resumed run may change: processes that save at other steps wait for ever.
    facts = {**settings(config), **code_facts(), "--cpu_devices": str(values.cpu_devices)}
    distributed.start_processes(
        values.coordinator_address, values.num_processes, values.process_id, values.connect_timeout_s, facts
    )
    with contextlib.ExitStack() as stack:
        stack.callback(distributed.stop_processes)
        distributed.run_on_first_process(lambda: _open(workdir, config, values.allow_config_change, stack))
        return train(config, workdir, began_unix_s=began_unix_s)


def train(config: RunConfig, workdir: WorkDir, *, began_unix_s: float) -> int:
    """Trains ``config`` in ``workdir``, which this run holds since ``began_unix_s``; returns the exit status."""
    mesh = build_mesh(config.parallel, batch_size=config.train.part_size)
    programs = build_bucket_programs(config, mesh)
    pipeline = _build_pipeline(config, workdir)
    distributed.check_same_everywhere({"the fingerprint of the dataset": pipeline.fingerprint})
    program = dataclasses.replace(next(iter(programs.values())), config=config)
    ledger = _build_ledger(config, programs, pipeline)
    store = CheckpointStore(workdir.checkpoints, keep=config.checkpoint.keep)
    kept = program.load_base() if config.finetune.needs_base else None
    restored = store.restore_latest(
        program.saved(program.abstract_state), base_hash=kept.hash if kept else None, set_aside=True
    )
    base = kept if kept or restored else program.load_base()
    step, position = (restored.record.step, restored.record.position) if restored else (0, 0)
    if restored:
        ledger.resume(restored.record.ledger)
    distributed.run_on_first_process(lambda: _open_records(workdir, config, program, pipeline, step=step))
    _say(_describe_start(program, ledger, pipeline, restored, base))
    program = join_programs(programs, config, used=pipeline.parts if isinstance(pipeline, BucketPipeline) else None)
    stream = pipeline.train_stream(*data_shard(mesh), position)
    hooks = _build_hooks(config, workdir, ledger, step=step)
    goodput = GoodputRecorder(
        RecordLog(workdir.goodput, is_writer=jax.process_index() == 0),
        began_unix_s=began_unix_s,
        every_steps=config.log.every_steps,
    )
    stop = StopRequest()
    loop = TrainLoop(
        step=program.step,
        batches=_global_batches(stream, mesh, pipeline, picture=workdir.first_batch),
        evaluate=Validation(program, pipeline, ledger),
        save=_Saver(store, program, ledger, kept.hash if kept else None),
        last_good_step=lambda: _last_good_step(store),
        hooks=[*hooks, goodput],
        stop=stop,
        plan=LoopPlan(
            num_steps=config.train.num_steps,
            save_every=config.checkpoint.every_steps,
            evaluate_every=config.evaluate.every_steps,
            max_skipped=config.optimizer.max_skipped,
        ),
    )
    # Closed also when training fails, in this order: a save under way is completed after the logs are whole.
    with _closing(*(hook.close for hook in hooks), stream.close, store.wait, goodput.close), stop.listening():
        if restored:
            state = program.complete(restored.state, kept)
        else:
            state = program.init(None if base else pipeline.video_statistics(), base)
        goodput.start(step)
        result = loop.run(state, step=step, position=position, is_resumed=restored is not None)
        saving_since = time.perf_counter()
        store.wait()
        goodput.on_pause(result.step, CHECKPOINT_SAVE, time.perf_counter() - saving_since)
        goodput.end(result.step, is_complete=result.is_complete)
    _say(_describe_end(result, workdir, ledger, first_step=step))
    return 0 if result.is_complete else RESTART_STATUS


@contextlib.contextmanager
def _closing(*closers: Callable[[], None]) -> Iterator[None]:
    """Calls ``closers`` at the end. Where training failed, its error is the one that is raised, not theirs.

    On a full disk, say, a log cannot be closed either: the message that names the last good checkpoint must win.
    """
    try:
        yield
    except BaseException:
        for close in closers:
            with contextlib.suppress(WamjaxError, OSError):
                close()
        raise
    for close in closers:
        close()


def _open(workdir: WorkDir, config: RunConfig, allow_change: bool, stack: contextlib.ExitStack) -> None:
    """Makes and locks the work directory and checks that this configuration may go on in it."""
    workdir.create()
    stack.enter_context(workdir.locked())
    check_resumable(workdir, config, allow_change=allow_change)


def _check_latents(config: RunConfig) -> None:
    """Raises ``ConfigError`` unless a folder of latents is named exactly where a backbone reads one."""
    if (config.vla is not None or config.gpt is not None) and not config.data.latents:
        raise ConfigError(
            f"config.data.latents is empty: {config.name} trains config.{'gpt' if config.vla is None else 'vla'}, "
            "which reads cached samples; wamjax compare makes those of a small one, and "
            "wamjax.training.program.build_program takes batches of your own"
        )
    if reads_pixels(config) and config.data.latents:
        raise ConfigError(
            f"config.data.latents={config.data.latents} is what a backbone reads, and config.backbone of {config.name} "
            "is none: it reads the pixels of config.data.path; leave it empty"
        )
    if config.backbone is not None and not config.data.latents:
        raise ConfigError(
            f"config.data.latents is empty: {config.name} trains config.backbone, which reads cached latents; make "
            "them with wamjax data cache and name their folder"
        )


def _build_pipeline(config: RunConfig, workdir: WorkDir) -> Data:
    """Returns the pipeline; process 0 computes the normalisation and the others read what it wrote."""
    pipeline = distributed.run_on_first_process(lambda: open_training_data(config, workdir=workdir.path))
    return pipeline or open_training_data(config, workdir=workdir.path)


def _build_ledger(config: RunConfig, programs: Mapping[str, TrainProgram], pipeline: Data) -> Ledger:
    costs = {
        name: StepCost(
            count=count_flops(program.config, program.layout, execution_on(program.mesh)),
            samples=program.config.train.global_batch_size,
            sources=pipeline.parts[name] if isinstance(pipeline, BucketPipeline) else pipeline,
        )
        for name, program in programs.items()
        if not isinstance(pipeline, BucketPipeline) or name in pipeline.parts
    }
    first, devices = next(iter(costs.values())), next(iter(programs.values())).mesh.devices
    return Ledger(
        count=first.count,
        samples_per_step=first.samples,
        sources=pipeline,
        denominator=Denominator(
            device_kind=devices.flat[0].device_kind,
            num_devices=devices.size,
            dtype=main_block(config).compute_dtype,
        ),
        buckets=costs if isinstance(pipeline, BucketPipeline) else {},
        evaluation_samples={
            name: config.evaluate.num_batches * size for name, (_, size) in held_out(config, pipeline).items()
        },
    )


def _open_records(workdir: WorkDir, config: RunConfig, program: TrainProgram, pipeline: Data, *, step: int) -> None:
    """Cuts the logs back to ``step`` and writes ``run.json``."""
    for path in (workdir.metrics, workdir.ledger):
        moved = rewind(path, step)
        if moved:
            logging.warning("%s: %d records beyond step %d moved aside", path, moved, step)
    devices = program.mesh.devices
    facts = {
        "devices": {
            "kind": devices.flat[0].device_kind,
            "platform": devices.flat[0].platform,
            "count": devices.size,
            "processes": jax.process_count(),
            "mesh": dict(program.mesh.shape),
        },
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(program.abstract_params)),
        "num_trained_parameters": sum(leaf.size for leaf in jax.tree.leaves(program.abstract_state["params"])),
        "data": pipeline.summary,
        "data_fingerprint": pipeline.fingerprint,
    }
    write_run(workdir, config, step=step, facts=facts)


def _build_hooks(config: RunConfig, workdir: WorkDir, ledger: Ledger, *, step: int) -> list[Hook]:
    """Returns the hooks of this process: every process accounts, only the first writes."""
    is_writer = jax.process_index() == 0
    every = config.log.every_steps
    hooks: list[Hook] = [
        MetricRecorder(RecordLog(workdir.metrics, is_writer=is_writer), _throughput(config, ledger), every_steps=every),
        LedgerRecorder(RecordLog(workdir.ledger, is_writer=is_writer), ledger, buckets=_bucket_names(config)),
    ]
    if is_writer:
        hooks.append(
            Console(
                num_steps=config.train.num_steps,
                first_step=step,
                every_steps=every,
                throughput=_throughput(config, ledger),
                has_bar=config.log.progress_bar,
            )
        )
    if is_writer and config.log.tensorboard:
        hooks.append(
            TensorBoard(workdir.tensorboard, first_step=step, every_steps=every, throughput=_throughput(config, ledger))
        )
    return hooks


def _throughput(config: RunConfig, ledger: Ledger) -> Throughput:
    peak = ledger.denominator.flops_per_s
    work = [_step_work(ledger.buckets.get(name)) for name in _bucket_names(config)]
    return Throughput(
        samples_per_step=ledger.samples_per_step,
        tokens_per_step=ledger.samples_per_step * ledger.count.num_tokens,
        flops_per_step=ledger.samples_per_step * ledger.count.model_total,
        peak_flops_per_s=None if peak is None else float(peak),
        buckets=work,
    )


def _step_work(cost: StepCost | None) -> StepWork:
    """Returns the work of a step; of a bucket that is not trained on, none."""
    if cost is None:
        return StepWork(samples=0, tokens=0, flops=0)
    count, samples = cost.count, cost.samples
    return StepWork(samples=samples, tokens=samples * count.num_tokens, flops=samples * count.model_total)


def _bucket_names(config: RunConfig) -> list[str]:
    return [bucket.name for bucket in config.data.buckets.sets]


def _global_batches(stream: ReadAhead, mesh: Mesh, pipeline: Data, *, picture: Path) -> Iterator[tuple[Any, int]]:
    """Yields (global batch, position after it); draws the first batch of a run before it is trained on."""
    for rows in stream:
        if jax.process_index() == 0 and not picture.exists():
            if rows.latents is None and rows.prompt_id is None:  # prompts are encoded, or in token ids
                render_pictures(rows, picture)
            elif rows.video is None:
                render_latents(rows, picture)
            else:
                render_batch(rows, picture, prompts=pipeline.prompts)
        yield make_global_batch(rows, mesh), stream.position


@dataclasses.dataclass(frozen=True)
class _Saver:
    """Saves a state together with what else belongs to its step."""

    store: CheckpointStore
    program: TrainProgram
    ledger: Ledger
    base_hash: str | None

    def __call__(self, step: int, state: Any, position: int) -> None:
        self.store.save(
            step,
            self.program.saved(state),
            position=position,
            ledger=self.ledger.totals,
            config_hash=config_hash(self.program.config),
            base_hash=self.base_hash,
        )


def _last_good_step(store: CheckpointStore) -> int | None:
    store.wait()
    return store.steps[-1] if store.steps else None


def _describe_start(
    program: TrainProgram, ledger: Ledger, pipeline: Data, restored: Restored | None, base: Base | None
) -> str:
    """Returns the tables that are shown once: parameters and their shards, FLOPs, data, and where training starts."""
    config, summary = program.config, pipeline.summary
    steps = config.train.num_steps
    if restored is None:
        origin = f"on {base.path} (hash {base.hash})" if base else "from scratch"
        samples = (
            "the samples listed by bucket" if config.data.buckets.sets else f"{config.train.global_batch_size} samples"
        )
        start = f"training {origin}: {steps} steps of {samples}"
    elif restored.record.step >= steps:
        start = f"the run is complete: its checkpoint is of step {restored.record.step} of {steps}"
    else:
        start = f"resuming from checkpoint {restored.record.step} of {steps} (verified)"
    data = (
        f"data: {summary['path']}, {summary['train']['windows']:,} training and "
        f"{summary['validation']['windows']:,} held-out windows, {len(summary['quarantined'])} episodes quarantined"
    )
    for stage in summary.get("shares", ()):
        shares = ", ".join(f"{name} {share:.2%}" for name, share in stage.items() if name != "step")
        data += f"\n  from step {stage['step']}: {shares}"
    tables = [describe_sharding(program), describe_flops(ledger.count)]
    if isinstance(pipeline, BucketPipeline):
        costs = {name: (cost.count, cost.samples) for name, cost in ledger.buckets.items()}
        tables.append(describe_buckets(config, costs, pipeline.shares))
    return "\n\n".join([*tables, data, start])


def _describe_end(result: LoopResult, workdir: WorkDir, ledger: Ledger, *, first_step: int) -> str:
    """Returns the closing lines: what was done, what it cost, where it is."""
    totals = ledger.totals
    cost = (
        f"{totals['samples']:,} samples, {zflops(totals['model_flops']):.3e} ZFLOP (model), "
        f"{totals['wall']['seconds']:.0f} s in steps over all starts"
    )
    if result.is_complete:
        done = f"training complete at step {result.step} ({result.step - first_step} steps now)"
    elif result.step == 0:
        done = "stopped before the first step, with nothing to save; the same command starts again"
    else:
        done = f"stopped at step {result.step} with a checkpoint; the same command resumes"
    return f"{done}\n{cost}\nwork directory: {workdir.path}"


def _say(text: str) -> None:
    """Prints on process 0."""
    if jax.process_index() == 0:
        print(text, flush=True)
