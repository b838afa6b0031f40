"""A run on a mixture of two folders of latents: one stream, one ledger, samples and epochs of each source."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.latents.pipeline import open_latents
from data_pipelines.mixtures.pipeline import open_data
from data_pipelines.mixtures.settings import resolve_mixture
from data_pipelines.pipeline import build_pipeline
from launch import cli
from tests.data_pipelines.conftest import write_episodes
from tests.data_pipelines.latent_folders import fill_latents, latent_run
from wamjax.config import bridge
from wamjax.config.pixel_windows import pixel_windows
from wamjax.config.schema import (
    CheckpointConfig,
    EvaluateConfig,
    LogConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from wamjax.config.sources import FilterConfig, MixtureConfig, MixtureSource
from wamjax.errors import ConfigError

STEPS, BATCH = 4, 8


def mixed_latents(folder: Path) -> RunConfig:
    """Two datasets, each with its latents; the second has three times the weight and another stride."""
    sources = []
    for name, weight, stride, lengths in (("a", 1.0, 2, (20, 26, 24)), ("b", 3.0, 1, (14, 17, 12, 16))):
        own = latent_run(write_episodes(folder / name, lengths=lengths), folder / f"{name}-latents")
        own = dataclasses.replace(own, data=dataclasses.replace(own.data, frame_stride=stride))
        fill_latents(own, build_pipeline(pixel_windows(own), workdir=None), Path(own.data.latents))
        sources.append(
            MixtureSource(name=name, path=own.data.path, latents=own.data.latents, weight=weight, frame_stride=stride)
        )
    config = latent_run(folder / "unused", "")
    return dataclasses.replace(
        config,
        name="mixed_latents",
        data=dataclasses.replace(config.data, mixture=MixtureConfig(sources=tuple(sources))),
        optimizer=OptimizerConfig(warmup_steps=1, decay_steps=STEPS),
        parallel=ParallelConfig(fsdp=-1),
        train=TrainConfig(num_steps=STEPS, global_batch_size=BATCH),
        checkpoint=CheckpointConfig(every_steps=STEPS),
        evaluate=EvaluateConfig(every_steps=0),
        log=LogConfig(tensorboard=False, progress_bar=False, every_steps=1),
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_run_on_two_folders_of_latents_counts_samples_and_epochs_of_each(tmp_path: Path) -> None:
    config = mixed_latents(tmp_path)
    experiment, workdir = tmp_path / "experiment.py", tmp_path / "run"
    experiment.write_text(
        "from wamjax.config import bridge\n\n\ndef get_config():\n"
        f"    return bridge.to_config_dict(bridge.from_json({bridge.to_json(config)!r}))\n"
    )
    command = ["train", f"--config={experiment}", f"--workdir={workdir}"]
    assert cli.main(command) == 0
    pipeline = open_data(resolve_mixture(config), workdir=None)
    stream, counts = pipeline.train_stream(0, 1), {"a": 0, "b": 0}
    records = lines(workdir / "ledger.jsonl")
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    for record in records:
        for source in next(stream).provenance[:, 0]:
            counts["ab"[int(source)]] += 1
        assert record["sources"] == counts
        assert record["epochs"] == pytest.approx({n: counts[n] / pipeline.num_windows[n] for n in counts}, abs=1e-6)
    stream.close()
    assert 0 < counts["a"] < counts["b"]
    losses = [record["loss/total"] for record in lines(workdir / "metrics.jsonl") if "loss/total" in record]
    assert len(losses) == STEPS
    assert np.isfinite(losses).all()
    assert cli.main(["ledger", str(workdir)]) == 0


def test_latents_made_with_other_filters_are_refused_both_ways(tmp_path: Path) -> None:
    config = latent_run(write_episodes(tmp_path / "set", lengths=(20, 26, 24)), tmp_path / "latents")
    filtered = dataclasses.replace(config, data=dataclasses.replace(config.data, filters=FilterConfig(min_steps=22)))
    fill_latents(filtered, build_pipeline(pixel_windows(filtered), workdir=None), tmp_path / "latents")
    assert len(open_data(filtered, workdir=None).training_windows()) > 0  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(
        ConfigError, match=r"made with config\.data\.filters=\{.*'min_steps': 22.* and this run has None"
    ):
        open_data(config, workdir=None)


def test_inspection_of_latents_counts_windows_and_names_damaged_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = latent_run(write_episodes(tmp_path / "set", lengths=(20, 26, 24)), tmp_path / "latents")
    pipeline = build_pipeline(pixel_windows(config), workdir=None)
    folder = fill_latents(config, pipeline, tmp_path / "latents")
    report = tmp_path / "report.json"

    def inspect() -> dict[str, Any]:
        assert cli.main(["data", "inspect", str(folder), f"--json={report}"]) == 0
        return json.loads(report.read_text())

    found = inspect()
    windows = len(pipeline.index.train) + len(pipeline.index.validation)
    assert (found["format"], found["episodes"], found["fps"]) == ("cached latents", 3, 30.0)
    assert found["frames"] == 3 * windows
    assert found["damaged"] == found["quarantined"] == []
    assert found["cameras"] == ["observation.images.left", "observation.images.right"]
    shard = next(folder.glob("train-*"))
    first = open_latents(config, workdir=None).training_windows()[0].actions
    content = bytearray(shard.read_bytes())
    content[content.index(np.asarray(first).tobytes())] ^= 1
    shard.write_bytes(content)
    damaged = inspect()["damaged"]
    assert len(damaged) == 1
    assert f"of {shard} cannot be read" in damaged[0]
    assert damaged[0] in capsys.readouterr().out


@pytest.mark.slow
def test_index_of_a_backbones_run_gives_the_clips_that_are_encoded(tmp_path: Path) -> None:
    for formulation in ("joint", "video"):
        config = latent_run(write_episodes(tmp_path / f"{formulation}-set"), tmp_path / "latents")
        config = dataclasses.replace(config, layout=dataclasses.replace(config.layout, formulation=formulation))
        experiment = tmp_path / "experiment.py"
        experiment.write_text(
            "from wamjax.config import bridge\n\n\ndef get_config():\n"
            f"    return bridge.to_config_dict(bridge.from_json({bridge.to_json(config)!r}))\n"
        )
        index = tmp_path / f"{formulation}-index"
        command = ["data", "index", f"--config={experiment}", f"--out={index}", "--num_workers=1"]
        assert cli.main(command) == 0
        indexed = dataclasses.replace(config, data=dataclasses.replace(config.data, index=str(index)))
        found, expected = (build_pipeline(pixel_windows(own), workdir=None) for own in (indexed, config))
        assert found.index.train.starts.tolist() == expected.index.train.starts.tolist()
        assert found.index.validation.episodes.tolist() == expected.index.validation.episodes.tolist()
        assert found.normalisation.digest == expected.normalisation.digest
