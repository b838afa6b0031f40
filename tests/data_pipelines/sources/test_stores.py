"""Datasets and latents read from Google's object store (its emulator) and from a web server, over real connections."""

import dataclasses
import functools
import http.server
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from data_pipelines.indexing.job import make_index
from data_pipelines.latents.pipeline import open_latents
from data_pipelines.mixtures.pipeline import open_data
from data_pipelines.pipeline import build_pipeline
from data_pipelines.sources import remote, retry
from data_pipelines.sources.formats import open_source
from data_pipelines.sources.remote import CACHE_DIR
from tests.data_pipelines.conftest import run_config, write_episodes
from tests.data_pipelines.latent_folders import fill_latents, latent_run
from tests.data_pipelines.sources.test_clips import encode, write_shard
from wamjax.batch import WamBatch
from wamjax.config.pixel_windows import pixel_windows
from wamjax.config.schema import LayoutConfig, RunConfig
from wamjax.errors import DataError

GOLDEN = Path(__file__).parents[1] / "golden"
REFUSED = 507  # no status that gcsfs tries again by itself, for minutes
pytestmark = pytest.mark.slow


class Faults:
    """Which files a server refuses, how many times more, and how often it did."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.refused = 0

    def strike(self, path: str) -> bool:
        """Returns whether a request for ``path`` is refused now."""
        name = next((name for name in self.left if name in path and self.left[name]), None)
        if name is None:
            return False
        self.left[name] -= 1
        self.refused += 1
        return True


class Files(http.server.SimpleHTTPRequestHandler):
    """A web server that lists folders and serves parts of files, which Python's own does not."""

    faults: Faults

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.faults.strike(self.path):
            return self.send_error(REFUSED)
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not found:
            return super().do_GET()
        content = Path(self.translate_path(self.path)).read_bytes()
        part = content[int(found[1]) : int(found[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {found[1]}-{int(found[1]) + len(part) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)
        return None


@dataclasses.dataclass(frozen=True)
class Store:
    """A place elsewhere.

    Attributes:
      put: Copies a folder there and returns its address.
      faults: What its server refuses.
    """

    put: Callable[[Path], str]
    faults: Faults


@pytest.fixture(params=["gs", "http"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv(CACHE_DIR, str(tmp_path / "copies"))
    monkeypatch.setattr(retry, "DELAYS_S", (0.0, 0.0))
    monkeypatch.setattr(remote, "_LISTINGS", {})
    yield from (_google if request.param == "gs" else _web)(tmp_path / "served", monkeypatch)


def _web(folder: Path, _: pytest.MonkeyPatch) -> Iterator[Store]:
    pytest.importorskip("aiohttp", reason="fsspec reads http:// through aiohttp (pip install aiohttp)")
    folder.mkdir()
    handler = type("Served", (Files,), {"faults": Faults()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def put(source: Path) -> str:
            shutil.copytree(source, folder / source.name)
            return f"http://127.0.0.1:{server.server_port}/{source.name}"

        yield Store(put, handler.faults)
        server.shutdown()


def _google(_: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    gcsfs = pytest.importorskip("gcsfs", reason="needs the gcs extra")
    emulator = pytest.importorskip(
        "gcp_storage_emulator.server", reason="needs an emulator of the store (pip install gcp-storage-emulator)"
    )
    faults = Faults()
    answer = emulator.RequestHandler.do_GET

    def get(handler: Any) -> None:
        if faults.strike(handler.path):
            handler.send_error(REFUSED)
        else:
            answer(handler)

    monkeypatch.setattr(emulator.RequestHandler, "do_GET", get)
    monkeypatch.setattr(emulator.RequestHandler, "log_error", lambda *_: None, raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as free:
        port = free.server_port
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    gcsfs.GCSFileSystem.clear_instance_cache()
    server.start()

    def put(source: Path) -> str:
        files = [path for path in source.rglob("*") if path.is_file()]
        for path in files:
            name = path.relative_to(source).as_posix()
            gcsfs.GCSFileSystem().pipe_file(f"bucket/{source.name}/{name}", path.read_bytes())
        return f"gs://bucket/{source.name}"

    yield Store(put, faults)
    server.stop()
    gcsfs.GCSFileSystem.clear_instance_cache()


def lerobot(path: Path) -> RunConfig:
    return run_config(write_episodes(path))


def rlds(kind: str) -> Callable[[Path], RunConfig]:
    def write(path: Path) -> RunConfig:
        return run_config(
            Path(shutil.copytree(GOLDEN / kind, path)),
            layout=LayoutConfig(num_blocks=1, frames_per_block=2, actions_per_block=2),
            canvas=(32, 32),
            views=(("observation/image", 0, 0, 32, 32),),
            state_key="observation/state",
            frame_stride=1,
        )

    return write


def shards(path: Path) -> RunConfig:
    for number in range(3):
        video = encode(".mp4", frames=12, level=10 + 40 * number)
        write_shard(path / f"{number}.tar", {"x.mp4": video, "x.txt": b"wave", "y.mp4": video})
    fields = {"views": (("video", 0, 0, 32, 64),), "state_key": "", "action_key": "", "decoded_frames_mib": 0}
    return run_config(path, **fields)


FORMATS = {
    "lerobot": lerobot,
    "array_record": rlds("rlds_array_record"),
    "tfrecord": rlds("rlds_tfrecord"),
    "webdataset": shards,
}


def with_data(config: RunConfig, **fields: Any) -> RunConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **fields))


def first_batches(config: RunConfig) -> list[WamBatch]:
    stream = open_data(config, workdir=None).train_stream(0, 1)
    batches = [next(stream) for _ in range(2)]
    stream.close()
    return batches


@pytest.mark.parametrize("kind", FORMATS)
def test_index_and_first_batches_are_those_of_the_disk(kind: str, store: Store, tmp_path: Path) -> None:
    config = FORMATS[kind](tmp_path / "set")
    expected = first_batches(config)
    elsewhere = with_data(config, path=store.put(tmp_path / "set"))
    jax.tree.map(np.testing.assert_array_equal, first_batches(elsewhere), expected)
    index = tmp_path / "index"
    make_index(elsewhere, index, num_workers=2, part_episodes=3)
    jax.tree.map(np.testing.assert_array_equal, first_batches(with_data(elsewhere, index=str(index))), expected)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("lerobot", "file-000.parquet"), ("array_record", "val"), ("tfrecord", "val"), ("webdataset", "1.tar")],
)
def test_read_that_fails_is_tried_again_and_then_quarantined(
    kind: str, name: str, store: Store, tmp_path: Path
) -> None:
    config = FORMATS[kind](tmp_path / "set")
    sound = open_source(tmp_path / "set")
    address = store.put(tmp_path / "set")
    if kind == "lerobot":
        name = "file-000.mp4"
    store.faults.left = {name: 2}
    assert open_source(address).find_broken() == {}
    assert store.faults.refused == 2
    shutil.rmtree(tmp_path / "copies", ignore_errors=True)
    store.faults.left = {name: 10**6}
    if kind == "lerobot":  # all its episodes lie in that file
        with pytest.raises(DataError, match=r"8 of 8 episodes are broken, more than config\.data\.broken_budget=.*507"):
            build_pipeline(with_data(config, path=address), workdir=None)
        return
    found = open_source(address)
    assert 0 < len(found.find_broken()) < len(sound.episodes)
    assert all(name in reason and "507" in reason for reason in found.find_broken().values())


def test_folder_that_is_not_there_is_refused_in_one_line(store: Store, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.txt").write_text("a")
    address = store.put(tmp_path / "set")
    for missing in (f"{address}-missing", address.replace("/bucket/", "/nobucket/")):
        if missing != address:
            with pytest.raises(
                DataError, match=r"-missing does not exist|^gs://nobucket/set does not exist.*or bucket$"
            ):
                open_source(missing)


def test_latents_are_read_as_from_the_disk_and_a_shard_that_fails_stops_the_run(store: Store, tmp_path: Path) -> None:
    local = latent_run(write_episodes(tmp_path / "set"), tmp_path / "latents")
    fill_latents(local, build_pipeline(pixel_windows(local), workdir=None), tmp_path / "latents")
    elsewhere = with_data(local, latents=store.put(tmp_path / "latents"))
    store.faults.left = {"train-00000": 2}
    jax.tree.map(np.testing.assert_array_equal, first_batches(elsewhere), first_batches(local))
    assert store.faults.refused == 2
    shutil.rmtree(tmp_path / "copies")
    windows = open_latents(elsewhere, workdir=None).training_windows()
    assert not any("train-" in name for _, _, names in os.walk(tmp_path / "copies") for name in names)
    store.faults.left = {"train-00000": 10**6}
    with pytest.raises(DataError, match=r"^record 0 of .*train-00000.* cannot be read: .*507"):
        windows[0]
