"""What a folder of latents says of its making is read as it was written, or named as damaged."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.latents.manifest import MANIFEST_FILE, VERSION, Manifest
from launch.run_samples import Whereabouts
from wamjax.errors import ConfigError, DataError


def write(folder: Path, made_with: Any) -> None:
    content = {"version": VERSION, "dataset": {}, "settings": {}, "encoders": {}, "fields": [], "splits": {}}
    content |= {"shard_windows": 1, "prompts": [], "made_with": made_with}
    (folder / MANIFEST_FILE).write_text(json.dumps(content))


def test_how_encoders_ran_is_read(tmp_path: Path) -> None:
    made = {"vae": "weights/vae", "image_encoder": "weights/clip", "dtype": "float32", "chunk_frames": None}
    write(tmp_path, made)
    assert Manifest.load(tmp_path).made_with == made


@pytest.mark.parametrize(
    ("made_with", "words"),
    [
        (None, "made_with is None; expected an object"),
        ([], r"made_with is \[\]"),
        ({"vae": 5}, "made_with has vae=5; expected"),
        ({"chunk_frames": "4"}, "chunk_frames='4'"),
        ({"chunk_frames": True}, "chunk_frames=True"),
        ({"place": "x"}, "place='x'"),
    ],
)
def test_damaged_account_of_the_encoders_is_named(tmp_path: Path, made_with: Any, words: str) -> None:
    write(tmp_path, made_with)
    with pytest.raises(DataError, match=f"{MANIFEST_FILE} is damaged: .*{words}"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("name", ["latents", "vae", "image_encoder"])
def test_empty_folder_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name} is empty"):
        Whereabouts(**{name: ""})
