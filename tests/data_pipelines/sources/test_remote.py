"""Datasets read through fsspec: the same content as on disk, retried, quarantined, within the limit of the copies."""

import dataclasses
import errno
import functools
import http.server
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data_pipelines.indexing.job import make_index
from data_pipelines.indexing.manifest import folder_stamp
from data_pipelines.pipeline import build_pipeline
from data_pipelines.sources import remote, retry
from data_pipelines.sources.formats import open_source
from data_pipelines.sources.remote import CACHE_DIR, CACHE_GIB, RemotePath, dataset_path, read_at
from data_pipelines.sources.source import Source
from launch.workdir import WorkDir
from tests.data_pipelines.conftest import run_config
from tests.data_pipelines.sources.test_clips import encode, write_folder, write_shard
from tests.data_pipelines.sources.test_hdf5 import write_file
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError, DataError

GOLDEN = Path(__file__).parents[1] / "golden"


class Unreliable(MemoryFileSystem):
    """A store whose reads of some files fail: ``failures`` says how many times more."""

    protocol = "unreliable"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).replace("unreliable://", "memory://"))

    failures: dict[str, int] = {}  # noqa: RUF012 - shared on purpose: fsspec makes the objects

    def get_file(self, rpath: Any, lpath: Any, **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._fail(rpath)
        super().get_file(rpath, lpath, **kwargs)

    def cat_file(self, path: Any, **kwargs: Any) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._fail(path)
        return super().cat_file(path, **kwargs)

    @classmethod
    def _fail(cls, path: str) -> None:
        name = path.rpartition("/")[2]
        if cls.failures.get(name, 0):
            cls.failures[name] -= 1
            raise ConnectionError("503 Service Unavailable")


fsspec.register_implementation("unreliable", Unreliable, clobber=True)


@pytest.fixture(autouse=True)
def _own_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(CACHE_DIR, str(tmp_path / "copies"))
    monkeypatch.setattr(retry, "DELAYS_S", (0.0, 0.0))
    monkeypatch.setattr(remote, "_LISTINGS", {})
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    Unreliable.failures.clear()


def upload(folder: Path, protocol: str = "memory") -> str:
    fsspec.filesystem(protocol).put(f"{folder}/", "/bucket/set", recursive=True)
    return f"{protocol}://bucket/set"


def write_videos(path: Path) -> Path:
    files: dict[str, bytes] = {f"a/{i}.mp4": encode(".mp4", frames=8, level=20 * i) for i in range(3)}
    return write_folder(path, files | {"a/0.txt": b"wave", "captions.csv": b"video,caption\na/1.mp4,walk\n"})


def write_shards(path: Path) -> Path:
    write_shard(path / "0.tar", {"x.mp4": encode(".mp4", frames=8, level=10), "x.txt": b"wave"})
    write_shard(path / "1.tar", {"y.mp4": encode(".mp4", frames=8, level=90), "y.json": b'{"caption": "walk"}'})
    return path


def write_hdf5(path: Path) -> Path:
    path.mkdir()
    write_file(path / "task.hdf5", task="lift", lengths=[5, 7])
    return path


def golden(name: str) -> Callable[[Path], Path]:
    return lambda path: Path(shutil.copytree(GOLDEN / name, path))


def assert_same_content(found: Source, expected: Source) -> None:
    assert found.fingerprint() == expected.fingerprint()
    assert list(found.episodes) == list(expected.episodes)
    assert found.find_broken() == expected.find_broken() == {}
    for record in expected.episodes[:2]:
        for camera in expected.cameras[:1]:
            steps = np.array([0, record.length - 1])
            np.testing.assert_array_equal(
                found.frames(camera, record.index, steps), expected.frames(camera, record.index, steps)
            )
        for key in expected.columns:
            np.testing.assert_array_equal(found.column(key, record.index), expected.column(key, record.index))


@pytest.mark.parametrize(
    "write",
    [
        golden("lerobot_v2.1"),
        golden("lerobot_v3.0"),
        golden("rlds_tfrecord"),
        golden("rlds_array_record"),
        write_hdf5,
        write_videos,
        write_shards,
    ],
    ids=["v2", "v3", "tfrecord", "array_record", "hdf5", "videos", "shards"],
)
def test_dataset_of_every_format_reads_the_same_from_a_store(write: Callable[[Path], Path], tmp_path: Path) -> None:
    local = write(tmp_path / "set")
    assert_same_content(open_source(upload(local)), open_source(local))


def test_dataset_on_a_web_server_reads_the_same(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads http:// through aiohttp")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.func.log_message = lambda *_: None  # type: ignore[attr-defined]
    local = golden("lerobot_v3.0")(tmp_path / "set")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert_same_content(open_source(f"http://127.0.0.1:{server.server_port}/set"), open_source(local))
        server.shutdown()


def test_run_and_index_on_a_store_give_the_samples_of_the_disk(dataset_path: Path, tmp_path: Path) -> None:
    address = upload(dataset_path)
    expected = build_pipeline(run_config(dataset_path), workdir=None).training_windows()[3]
    config = run_config(dataset_path)

    def on_store(index: str) -> RunConfig:
        return dataclasses.replace(config, data=dataclasses.replace(config.data, path=address, index=index))

    make_index(on_store(""), tmp_path / "index", num_workers=1, part_episodes=3)
    for index in ("", str(tmp_path / "index")):
        found = build_pipeline(on_store(index), workdir=None).training_windows()[3]
        np.testing.assert_array_equal(found.video, expected.video)
        np.testing.assert_array_equal(found.actions, expected.actions)


def test_a_read_that_fails_twice_is_tried_again_and_one_that_always_fails_is_quarantined(tmp_path: Path) -> None:
    local = golden("lerobot_v2.1")(tmp_path / "set")
    address = upload(local, "unreliable")
    Unreliable.failures.update({"episode_000001.mp4": 2, "info.json": 1})
    assert open_source(address).find_broken() == {}
    shutil.rmtree(tmp_path / "copies")
    Unreliable.failures.update({"episode_000001.mp4": 10**6, "episode_000002.parquet": 10**6})
    broken = open_source(address).find_broken()
    assert set(broken) == {1, 2}
    assert "503 Service Unavailable" in broken[2]
    Unreliable.failures.update({"info.json": 10**6})
    with pytest.raises(DataError, match=r"^dataset unreliable://bucket/set: meta/info\.json cannot be read: .*503"):
        open_source(address)


@pytest.mark.parametrize(
    ("write", "name"), [(golden("rlds_tfrecord"), "train"), (write_shards, "1.tar")], ids=["tfrecord", "shards"]
)
def test_read_in_the_middle_of_an_open_file_is_tried_again(
    write: Callable[[Path], Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = write(tmp_path / "set")
    found, reads = Unreliable.cat_file, []

    def fail_every_other(self: Unreliable, path: Any, **kwargs: Any) -> bytes:
        if name in path:
            reads.append(kwargs)
            if len(reads) % 2 == 0:
                raise ConnectionError("503 Service Unavailable")
        return found(self, path, **kwargs)

    monkeypatch.setattr(Unreliable, "cat_file", fail_every_other)
    monkeypatch.setattr(remote, "_FETCHED_BYTES", 64)
    assert_same_content(open_source(upload(local, "unreliable")), open_source(local))
    assert len(reads) > 3


def test_folders_to_write_to_or_to_map_are_on_a_disk(dataset_path: Path, tmp_path: Path) -> None:
    config = run_config(dataset_path, index="gs://bucket/index")
    with pytest.raises(ConfigError, match=r"^--out=gs:/bucket/x is an address; expected a path on a disk"):
        make_index(config, Path("gs://bucket/x"), num_workers=1, part_episodes=9)
    with pytest.raises(ConfigError, match=r"^config\.data\.index=gs://bucket/index is an address"):
        build_pipeline(config, workdir=None)
    with pytest.raises(ConfigError, match=r"^--workdir=s3:/bucket/run is an address"):
        WorkDir(Path("s3://bucket/run")).create()


def test_copies_stay_within_their_limit_and_those_not_used_for_longest_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = write_folder(tmp_path / "set", {f"{i}.mp4": bytes([i]) * 1000 for i in range(4)})
    root = dataset_path(upload(local))
    monkeypatch.setenv(CACHE_GIB, str(2500 / 2**30))
    monkeypatch.setattr(remote, "_JUST_USED_S", -1.0)
    copies = [Path(os.fspath(root / f"{i}.mp4")) for i in range(2)]
    os.utime(copies[0], (10**9, copies[0].stat().st_mtime))  # not used since 2001
    Path(os.fspath(root / "2.mp4"))
    assert [copy.exists() for copy in copies] == [False, True]
    assert Path(os.fspath(root / "0.mp4")).read_bytes() == bytes(1000)
    monkeypatch.setenv(CACHE_GIB, "much")
    with pytest.raises(ConfigError, match=r"^WAMJAX_CACHE_GIB=much is no number of GiB"):
        os.fspath(root / "3.mp4")


def test_paths_behave_as_those_of_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = write_videos(tmp_path / "set")
    root = dataset_path(upload(local))
    assert isinstance(root, RemotePath)
    assert str(root / "a") == "memory://bucket/set/a"
    assert (root / "a").is_dir()
    assert not (root / "b").exists()
    assert [p.relative_to(root).as_posix() for p in sorted(root.rglob("*.mp4"))] == [f"a/{i}.mp4" for i in range(3)]
    assert [p.name for p in root.glob("*.csv")] == ["captions.csv"]
    assert sorted(p.name for p in root.iterdir()) == ["a", "captions.csv"]
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "cat_file", lambda *_, **__: b"the whole file")
        with pytest.raises(OSError, match="asked for 2 bytes, got 14: the store does not serve parts of files"):
            read_at(root / "a/0.txt", 1, 2)
    assert read_at(root / "a/0.txt", 1, 2) == b"av" == read_at(local / "a/0.txt", 1, 2)
    with pytest.raises(FileNotFoundError):
        (root / "c").stat()
    assert folder_stamp(root) == folder_stamp(root)
    assert dataset_path(f"file://{local}") == local
    with pytest.raises(ConfigError, match=r"nowhere://x.*cannot be read"):
        dataset_path("nowhere://x")


@pytest.mark.parametrize("name", ["array_record", "parquet"])
def test_local_read_that_fails_for_a_moment_is_tried_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has no errors of its own that tell: the reader looks whether the file is there at all."""
    from data_pipelines.sources import parquet_images, records

    failures = [OSError(errno.ESTALE, "Stale file handle")]

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if failures:
                raise failures.pop()
            return function(*args, **kwargs)

        return call

    if name == "array_record":
        monkeypatch.setattr(records.ArrayRecordFile, "_num_records", failing(records.ArrayRecordFile._num_records))
        (file,) = (GOLDEN / "rlds_array_record").glob("*train*")
        assert len(records.ArrayRecordFile(file)) > 0
    else:
        monkeypatch.setattr(parquet_images.pq, "read_metadata", failing(parquet_images.pq.read_metadata))
        (file,) = (GOLDEN / "lerobot_v3.0/data").rglob("*.parquet")
        with pytest.raises(parquet_images.ImageError, match="no image bytes"):
            parquet_images.ParquetImages().decode(file, "timestamp", np.array([0]))
    assert not failures
