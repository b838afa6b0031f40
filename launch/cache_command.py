"""Encodes a dataset's windows and prompts once, with the frozen encoders a backbone reads through.

  wamjax data cache --config=EXPERIMENT --vae=DIR --text_encoder=DIR [--image_encoder=DIR] --out=DIR

DIR of an encoder is a reference checkpoint or what `wamjax weights import` made of it. Training reads the result with
--config.data.latents=OUT. Killed and started again, the job goes on where it was. Several machines share --out with
--num_workers and --worker; none waits for another. What it costs is in OUT/worker-*/ledger.jsonl (wamjax ledger). Of a
run in buckets each has a folder of its own: --bucket=NAME --out=OUT/NAME.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from absl import flags

from data_pipelines.buckets.pipeline import find_bucket, open_bucket_windows
from data_pipelines.latents.job import LatentJob, Worker
from data_pipelines.latents.manifest import (
    MANIFEST_FILE,
    TRAIN,
    VALIDATION,
    Manifest,
    check_begun,
    check_same,
    describe,
)
from data_pipelines.latents.pipeline import open_text_cache, prompts_to_embed
from data_pipelines.latents.samples import SampleFields
from data_pipelines.pipeline import NORMALISATION_FILE, Pipeline, build_pipeline
from data_pipelines.sources.remote import refuse_address
from launch import distributed
from launch.experiment import config_from_flags, define_config_flag, define_source_flag, select_source
from launch.frozen_encoders import EncoderFolders, FrozenEncoders, find_tokenizer
from launch.patch_latents import LEDGER_FOLDER, fill_patch_latents
from launch.workdir import WorkDir
from wamjax.config.blocks import reads_pixels
from wamjax.config.pixel_windows import num_pictures, pixel_windows
from wamjax.config.schema import ParallelConfig, RunConfig
from wamjax.errors import ConfigError
from wamjax.flops.ledger import zflops
from wamjax.flops.precompute import PrecomputeLedger
from wamjax.flops.utilisation import Denominator
from wamjax.parallel.mesh import build_mesh
from wamjax.training.precompute_log import PrecomputeLog

# Flags that say nothing where no encoder runs.
_OF_ENCODERS = (
    "bucket", "vae", "text_encoder", "tokenizer", "image_encoder", "batch_size", "shard_windows", "chunk_frames",
    "dtype", "num_workers", "worker",
)  # fmt: skip


def define_flags() -> None:
    """Defines the flags of ``wamjax data cache``."""
    define_config_flag()
    define_source_flag()
    flags.DEFINE_string("bucket", None, "Which bucket of config.data.buckets, by name.")
    flags.DEFINE_string("vae", None, "Folder of the autoencoder.")
    flags.DEFINE_string("text_encoder", None, "Folder of the text encoder.")
    flags.DEFINE_bool(
        "patches", False, "No encoders: latents are patches of config.clip.stride, a prompt is a random embedding."
    )
    flags.DEFINE_string("tokenizer", None, "Its tokenizer; by default in its folder, or in `tokenizer` beside it.")
    flags.DEFINE_string("image_encoder", None, "Folder of the image encoder, for a backbone with an image branch.")
    flags.DEFINE_string("out", None, "Folder to fill, or to go on filling.", required=True)
    flags.DEFINE_integer("batch_size", 8, "Windows encoded together, over all devices.", lower_bound=1)
    flags.DEFINE_integer("shard_windows", 256, "Windows of a file: what is lost at most when killed.", lower_bound=1)
    flags.DEFINE_integer(
        "chunk_frames", 4, "Frames the autoencoder takes at a time (4 n); 0 for whole clips.", lower_bound=0
    )
    flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Dtype of the text and image encoders.")
    flags.DEFINE_integer("num_workers", 1, "Processes that fill --out, each started with its --worker.", lower_bound=1)
    flags.DEFINE_integer("worker", 0, "Which of them this one is, from 0.", lower_bound=0)
    distributed.define_device_flags()


def run(argv: list[str]) -> int:
    """Makes what is missing of the folder."""
    if argv:
        raise ConfigError(f"unexpected argument {argv[0]!r}; wamjax data cache takes flags only")
    values, config = flags.FLAGS, select_source(config_from_flags())
    if reads_pixels(config):
        raise ConfigError(f"{config.name} has no config.backbone: it reads pixels and needs no latents")
    if num_pictures(config) and not values.patches:
        raise ConfigError(
            f"config.layout.formulation={config.layout.formulation} of {config.name} reads pictures of single cameras, "
            "which the encoders of wamjax data cache do not make; --patches makes samples of a small one"
        )
    if values.worker >= values.num_workers:
        raise ConfigError(f"--worker={values.worker} is not below --num_workers={values.num_workers}; count from 0")
    if (values.bucket is None) != (not config.data.buckets.sets):
        known = ", ".join(bucket.name for bucket in config.data.buckets.sets) or "none"
        raise ConfigError(f"--bucket={values.bucket}: one bucket at a time; config.data.buckets has {known}")
    refuse_address(values.out, "--out")
    out, run = Path(values.out), config
    if values.patches:
        return _fill_patches(config, out)
    for name in ("vae", "text_encoder"):
        if getattr(values, name) is None:
            raise ConfigError(f"--{name}=FOLDER is missing: latents are made with it (or --patches, without encoders)")
    if values.bucket:
        config = find_bucket(run, values.bucket)
    pixels = pixel_windows(config)
    if (out / MANIFEST_FILE).exists():
        check_begun(Manifest.load(out), config, values.shard_windows, out)
    distributed.start_devices(values.cpu_devices)
    mesh = build_mesh(ParallelConfig(data=1, fsdp=-1, context=1, tensor=1))
    if values.batch_size % mesh.devices.size:
        raise ConfigError(f"--batch_size={values.batch_size} does not divide by the {mesh.devices.size} devices")
    worker = Worker(index=values.worker, count=values.num_workers)
    own = WorkDir(out / f"worker-{worker.index:04d}")
    own.create()
    with own.locked():
        text = Path(values.text_encoder)
        folders = EncoderFolders(
            vae=Path(values.vae),
            text=text,
            tokenizer=find_tokenizer(text, values.tokenizer and Path(values.tokenizer)),
            image=values.image_encoder and Path(values.image_encoder),
        )
        encoders = FrozenEncoders(folders, config, mesh, dtype=values.dtype, chunk_frames=values.chunk_frames or None)
        pipeline = open_bucket_windows(run, values.bucket) if values.bucket else build_pipeline(pixels, workdir=None)
        manifest = _agree(out, config, pipeline, encoders)
        device = mesh.devices.flat[0]
        denominator = Denominator(device_kind=device.device_kind, num_devices=mesh.devices.size, dtype="float32")
        ledger = PrecomputeLedger(job="latents", flops_per_run=encoders.flops_per_run, denominator=denominator)
        log = PrecomputeLog(own.path, ledger)
        try:
            print(_fill(out, config, pipeline, manifest, encoders, worker, log), flush=True)
        finally:
            log.close()
    return 0


def _fill_patches(config: RunConfig, out: Path) -> int:
    """Makes latents of a backbone that reads pixels, which no encoder makes."""
    for name in _OF_ENCODERS:
        if flags.FLAGS[name].present:
            raise ConfigError(
                f"--{name} belongs to encoders; --patches cuts pixels in one process without: leave it out"
            )
    if config.data.buckets.sets:
        raise ConfigError("--patches has no buckets; empty config.data.buckets")
    own = WorkDir(out / LEDGER_FOLDER)
    own.create()
    with own.locked():
        fill_patch_latents(config, out)
    what = "pictures or features of them"
    if config.backbone is not None:
        what = f"patches of {' x '.join(map(str, config.clip.stride))} pixels (config.clip.stride)"
    print(f"{out}: {what}, complete")
    return 0


def _agree(out: Path, config: RunConfig, pipeline: Pipeline, encoders: FrozenEncoders) -> Manifest:
    """Returns the manifest of ``out``, written if this is the first start, or refuses to mix two kinds of latents."""
    summary = pipeline.summary
    dataset = {key: summary[key] for key in ("path", "fingerprint", "fps", "quarantined", "too_short")}
    dataset |= {"episodes": summary["episodes"], "steps": summary["steps"]}
    wanted = describe(
        config,
        pipeline.index,
        dataset=dataset,
        encoders=encoders.fingerprints,
        shard_windows=flags.FLAGS.shard_windows,
        prompts=pipeline.prompts,
        made_with=_describe_encoders(encoders),
    )
    if (out / MANIFEST_FILE).exists():
        found = Manifest.load(out)
        check_same(found, wanted, out)
        if flags.FLAGS.worker == 0 and found.made_with != wanted.made_with:  # the encoders lie elsewhere now
            wanted.save(out)
    else:
        pipeline.normalisation.save(out / NORMALISATION_FILE)
        wanted.save(out)
    return wanted


def _describe_encoders(encoders: FrozenEncoders) -> dict[str, Any]:
    """Returns what evaluation needs to encode as this job does (``Manifest.made_with``)."""
    values = flags.FLAGS
    found = {"vae": str(Path(values.vae).resolve()), "chunk_frames": encoders.clips.chunk_frames, "dtype": values.dtype}
    if values.image_encoder:
        found["image_encoder"] = str(Path(values.image_encoder).resolve())
    return found


def _fill(
    out: Path,
    config: RunConfig,
    pipeline: Pipeline,
    manifest: Manifest,
    encoders: FrozenEncoders,
    worker: Worker,
    log: PrecomputeLog,
) -> str:
    """Encodes the prompts (the first worker) and this worker's windows; returns what was done, in words."""
    lines = []
    if worker.index == 0:
        started = time.perf_counter()
        _, report = open_text_cache(out, encoders.fingerprints["text"]).embed(
            prompts_to_embed(manifest.prompts, config), encoders.encode_prompts
        )
        if report.computed:
            log.add(samples=0, runs={"text": report.computed}, seconds=time.perf_counter() - started)
        lines.append(f"prompts: {report.computed} encoded, {report.found} were there")
    job = LatentJob(
        out,
        manifest,
        {TRAIN: pipeline.reader(pipeline.index.train), VALIDATION: pipeline.reader(pipeline.index.validation)},
        frames_per_latent=config.clip.stride[0],
        batch_size=flags.FLAGS.batch_size,
        num_threads=config.data.num_threads,
    )
    images = {"image": 1} if "image" in encoders.fingerprints else {}
    windows, seconds, flops = 0, 0.0, 0
    fields = SampleFields(config, pipeline)
    for shard in job.run(worker, lambda batch: {**encoders.clips.encode_windows(batch), **fields(batch)}):
        runs = {
            "vae": encoders.clips.clips_per_window * shard.windows,
            **{k: n * shard.windows for k, n in images.items()},
        }
        log.add(samples=shard.windows, runs=runs, seconds=shard.seconds)
        windows, seconds = windows + shard.windows, seconds + shard.seconds
        flops += sum(count * encoders.flops_per_run[name] for name, count in runs.items())
    train, held_out = (manifest.splits[split].windows for split in (TRAIN, VALIDATION))
    rate = f", {windows / seconds:.2f} per second" if windows else ""
    lines.append(f"windows: {windows:,} encoded now{rate}, {zflops({'encoders': flops}):.3e} ZFLOP")
    lines.append(f"{out}: {train:,} training and {held_out:,} held-out windows of {manifest.record_bytes:,} bytes")
    unfinished = sum(len(job.find_missing(Worker(index=i, count=worker.count))) for i in range(worker.count))
    lines.append(f"shards of other workers still missing: {unfinished}" if unfinished else "complete")
    return "\n".join(lines)
