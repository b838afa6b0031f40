import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from data_pipelines.indexing import job
from data_pipelines.indexing.manifest import MANIFEST_FILE, IndexManifest
from data_pipelines.indexing.parts import PartOrder
from data_pipelines.indexing.stored import open_index
from data_pipelines.lock import locked
from data_pipelines.pipeline import build_pipeline, prepare_normalisation
from data_pipelines.sources.formats import open_source
from data_pipelines.sources.lerobot import LeRobotDataset
from tests.data_pipelines.conftest import LENGTHS, TASKS
from tests.data_pipelines.sources.test_clips import encode, write_folder, write_shard
from wamjax.config.schema import RunConfig
from wamjax.config.sources import FilterConfig
from wamjax.errors import ConfigError, DataError

MakeConfig = Callable[..., RunConfig]
WriteDataset = Callable[..., Path]


def make(config: RunConfig, out: Path, part_episodes: int = 3) -> IndexManifest:
    return job.make_index(config, out, num_workers=1, part_episodes=part_episodes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def sound(write_dataset: WriteDataset, tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "set", video_file_bytes=6000)  # several video files, most of several episodes


@pytest.mark.parametrize("decoded_frames_mib", [0, 64])
def test_run_with_an_index_reads_the_samples_of_a_run_without(
    sound: Path, make_config: MakeConfig, tmp_path: Path, decoded_frames_mib: int
) -> None:
    make(make_config(sound), tmp_path / "index")
    pipelines = [
        build_pipeline(make_config(sound, index=index, decoded_frames_mib=decoded_frames_mib), workdir=None)
        for index in ("", str(tmp_path / "index"))
    ]
    streams = [pipeline.train_stream(0, 1) for pipeline in pipelines]
    for _ in range(5):
        jax.tree.map(np.testing.assert_array_equal, *(next(stream) for stream in streams))
    for stream in streams:
        stream.close()
    jax.tree.map(np.testing.assert_array_equal, *(p.validation_windows().batch([0, 5, 40]) for p in pipelines))
    without, with_index = (pipeline.summary for pipeline in pipelines)
    assert pipelines[0].normalisation == pipelines[1].normalisation
    assert with_index.pop("index") == str(tmp_path / "index")
    assert with_index.pop("train")["episodes"] == len(without["train"]["episodes"])
    assert with_index.pop("validation")["windows"] == without["validation"]["windows"]
    assert with_index == {key: value for key, value in without.items() if key not in ("index", "train", "validation")}


def test_index_is_the_same_however_it_is_split_into_parts(sound: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    whole = make(make_config(sound), tmp_path / "whole", part_episodes=100)
    parts = make(make_config(sound), tmp_path / "parts", part_episodes=3)
    assert parts == whole
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_job_that_was_killed_makes_what_is_missing(
    sound: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[range] = []
    make_part = job.make_part

    def make_two(order: PartOrder) -> int:
        if len(made) == 2:
            (order.folder.parent / f".{order.folder.name}.half").mkdir()  # what a kill leaves
            raise KeyboardInterrupt
        made.append(order.episodes)
        return make_part(order)

    monkeypatch.setattr(job, "make_part", make_two)
    with pytest.raises(KeyboardInterrupt):
        make(make_config(sound), tmp_path / "index", part_episodes=2)
    with pytest.raises(DataError, match=r"has no index\.json \(config\.data\.index\): expected a folder that wamjax"):
        open_index(make_config(sound, index=str(tmp_path / "index")))
    monkeypatch.setattr(job, "make_part", lambda order: made.append(order.episodes) or make_part(order))
    make(make_config(sound), tmp_path / "index", part_episodes=2)
    assert made == [range(2), range(2, 4), range(4, 6), range(6, 8)]
    make(make_config(sound), tmp_path / "other", part_episodes=100)
    assert contents(tmp_path / "index") == contents(tmp_path / "other")


def test_parts_of_other_settings_are_refused(
    sound: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(order: PartOrder) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "make_part", stop)
    with pytest.raises(KeyboardInterrupt):
        make(make_config(sound), tmp_path / "index")
    with pytest.raises(ConfigError, match=r"holds parts that were begun with another index .*: delete .*parts"):
        make(make_config(sound, split_seed=5), tmp_path / "index")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"frame_stride": 4}, "config.layout.frames_per_block x config.data.frame_stride)=4 and this run has 8"),
        ({"window_stride": 2}, "config.data.window_stride=1 and this run has 2"),
        ({"split_seed": 1}, "config.data.split_seed=0 and this run has 1"),
        ({"filters": FilterConfig(min_steps=3)}, "config.data.filters.min_steps=0 and this run has 3"),
        ({"state_key": "other"}, "does not hold feature 'other', only observation.state, action"),
        ({"views": (("top", 0, 0, 32, 32),)}, "does not hold camera 'top'"),
    ],
)
def test_index_of_other_settings_is_refused_in_one_line(
    sound: Path, make_config: MakeConfig, tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    make(make_config(sound), tmp_path / "index")
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        open_index(make_config(sound, index=str(tmp_path / "index"), **changed))
    assert "\n" not in str(caught.value)


def test_copied_dataset_is_recognised_and_a_changed_one_refused(
    sound: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    make(make_config(sound), tmp_path / "index")
    copy = Path(shutil.copytree(sound, tmp_path / "copy", copy_function=shutil.copyfile))  # with times of its own
    open_index(make_config(copy, index=str(tmp_path / "index")))
    video = next(copy.rglob("*.mp4"))
    video.write_bytes(video.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"was made of a dataset with fingerprint .* it changed since; make another"):
        open_index(make_config(copy, index=str(tmp_path / "index")))
    with pytest.raises(DataError, match=r"holds the index of a dataset with fingerprint .* is \w+ now"):
        make(make_config(copy), tmp_path / "index")


def test_index_whose_dataset_was_only_touched_is_renewed(sound: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    before = make(make_config(sound), tmp_path / "index")
    os.utime(next(sound.rglob("*.mp4")), (1, 1))
    after = make(make_config(sound), tmp_path / "index")
    assert after.dataset["stamp"] != before.dataset["stamp"]
    assert after.fingerprint == before.fingerprint == IndexManifest.load(tmp_path / "index").fingerprint


def test_broken_files_are_quarantined_by_reason_and_budgeted(
    sound: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    file, _ = LeRobotDataset(sound).locate("observation.images.left", 3)
    file.write_bytes(file.read_bytes()[:200])
    expected = LeRobotDataset(sound).find_broken()
    assert 0 < len(expected) < len(LENGTHS)
    manifest = make(make_config(sound, broken_budget=0.9), tmp_path / "index", part_episodes=1)
    assert manifest.quarantined == expected
    source, index = open_index(make_config(sound, broken_budget=0.9, index=str(tmp_path / "index")))
    assert index.quarantined == source.find_broken() == expected
    assert sorted(index.records) == sorted(set(range(len(LENGTHS))) - set(expected))
    with pytest.raises(DataError, match=r"episodes are broken, more than config\.data\.broken_budget=0\.05 allows: ep"):
        make(make_config(sound), tmp_path / "refused")
    assert not (tmp_path / "refused" / MANIFEST_FILE).exists()


def test_filters_are_applied_in_the_parts(sound: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    filters = FilterConfig(
        min_steps=15, idle_motion=1.5, max_idle=0.4
    )  # dim 0 moves by 1 each step: all idle but noise
    config = make_config(sound, filters=filters, index=str(tmp_path / "index"))
    manifest = make(config, tmp_path / "index")
    direct = build_pipeline(make_config(sound, filters=filters), workdir=None).index
    _, stored = open_index(config)
    assert manifest.unwanted == direct.unwanted == {i: manifest.unwanted[i] for i, n in enumerate(LENGTHS) if n < 15}
    np.testing.assert_array_equal(stored.train.starts, direct.train.starts)
    np.testing.assert_array_equal(stored.train.episodes, direct.train.episodes)
    unfiltered = build_pipeline(make_config(sound), workdir=None).index
    assert 0 < len(direct.train) < len(unfiltered.train)


def test_stored_episodes_are_found_by_index_and_no_other(sound: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    make(make_config(sound), tmp_path / "index")
    source, index = open_index(make_config(sound, index=str(tmp_path / "index")))
    assert [(r.index, r.length, r.task) for r in source.episodes] == [
        (i, n, TASKS[i % 2]) for i, n in enumerate(LENGTHS)
    ]
    assert list(index.records.values()) == list(source.episodes)
    with pytest.raises(KeyError):
        index.records[99]


def test_scales_in_the_index_are_used_only_by_the_configuration_they_are_of(
    sound: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    make(make_config(sound), tmp_path / "index")
    config = make_config(sound, index=str(tmp_path / "index"))
    path = prepare_normalisation(config)
    assert (
        build_pipeline(config, workdir=None).normalisation
        == build_pipeline(make_config(sound), workdir=None).normalisation
    )
    path.write_text(path.read_text().replace('"episodes": 6', '"episodes": 7'))
    with pytest.raises(DataError, match="does not match its digest"):
        build_pipeline(config, workdir=None)
    build_pipeline(make_config(sound, index=str(tmp_path / "index"), action_dim=4), workdir=None)  # computes its own


def test_truncated_array_is_refused_naming_the_file(sound: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    make(make_config(sound), tmp_path / "index")
    path = tmp_path / "index" / "windows-train.npy"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"index file .*windows-train\.npy cannot be read: .*; make the index again$"):
        open_index(make_config(sound, index=str(tmp_path / "index")))


def test_index_inside_the_dataset_is_refused(sound: Path, make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="lies inside the dataset"):
        make(make_config(sound), sound / "index")


def test_file_that_breaks_after_indexing_is_named(sound: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    make(make_config(sound), tmp_path / "index")
    source, _ = open_index(make_config(sound, index=str(tmp_path / "index"), decoded_frames_mib=0))
    file, _ = LeRobotDataset(sound).locate("observation.images.right", 2)
    file.write_bytes(b"")
    with pytest.raises(DataError, match=rf"dataset {sound}: episode 2: .*{file.name} cannot be decoded: \w+"):
        source.frames("observation.images.right", 2, np.arange(3))


@pytest.mark.parametrize("kind", ["folder", "shard"])
def test_videos_without_actions_are_indexed_and_read_from_where_they_lie(
    make_config: MakeConfig, tmp_path: Path, kind: str
) -> None:
    files = {f"{i}.mp4": encode(".mp4", frames=12, level=20 + 40 * i) for i in range(3)} | {"1.txt": b"pour tea"}
    path = write_folder(tmp_path / "set", files) if kind == "folder" else tmp_path / "set"
    if kind == "shard":
        write_shard(path / "0.tar", files)
    fields = {"views": (("video", 0, 0, 32, 32),), "state_key": "", "action_key": ""}
    config = make_config(path, index=str(tmp_path / "index"), decoded_frames_mib=0, **fields)
    manifest = make(config, tmp_path / "index")
    stored, index = open_index(config)
    assert manifest.counts["episodes"] == 3
    assert sorted(record.task for record in index.records.values()) == ["", "", "pour tea"]
    steps = np.array([0, 5, 11])
    for episode in range(3):
        expected = open_source(path).frames("video", episode, steps)
        np.testing.assert_array_equal(stored.frames("video", episode, steps), expected)


def test_second_job_on_one_folder_is_refused_in_one_line(sound: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    out = tmp_path / "index"
    refusal = rf"^--out={re.escape(str(out))} is being made by process {os.getpid()} on .*; wait for that job"
    out.mkdir()
    with locked(out / "index.lock", "{holder}"), pytest.raises(ConfigError, match=refusal):
        make(make_config(sound), out)
    assert make(make_config(sound), out).counts["episodes"] == len(LENGTHS)
