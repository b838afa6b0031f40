"""RLDS datasets written by the real ``tensorflow-datasets`` package (see golden/write_rlds.py)."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.sources.formats import open_source
from data_pipelines.sources.records import masked_crc32c
from wamjax.errors import DataError

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TFRECORD = GOLDEN / "rlds_tfrecord"
TRAIN = "tiny_rlds-train.tfrecord-00000-of-00001"
IMAGE, WRIST = "observation/image", "observation/wrist_image"
LENGTHS = {0: 6, 1: 4, 2: 8}  # by the episode's number when it was written


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A copy of the TFRecord dataset, in a folder named by its version, for the test to damage."""
    return Path(shutil.copytree(TFRECORD, tmp_path / "tiny_rlds/1.0.0"))


@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
def test_golden_dataset_reads_as_it_was_written(kind: str) -> None:
    source = open_source(GOLDEN / f"rlds_{kind}")
    assert (source.format, source.fps, source.cameras) == (f"RLDS {kind}", None, (IMAGE, WRIST))
    assert source.columns == ("action", "observation/state")
    assert source.find_broken() == {}
    assert source.features[WRIST].shape == (16, 24, 3)
    written = [int(source.column("observation/state", record.index)[0, 1]) for record in source.episodes]
    assert sorted(written) == [0, 1, 2]  # the package shuffles the records of a split
    for record, number in zip(source.episodes, written, strict=True):
        assert (record.length, record.task) == (LENGTHS[number], "close the box" if number == 1 else "open the box")
        steps = np.arange(record.length)
        expected = np.stack([number + steps / 8, -steps], -1)
        np.testing.assert_array_equal(source.column("action", record.index), expected.astype(np.float32))
        wanted = steps[1::2]
        np.testing.assert_array_equal(
            source.frames(WRIST, record.index, wanted).mean((1, 2, 3)),
            50 * number + wanted,  # PNG
        )
        colours = [[20 * step + 10, 60 * number + 30, 90] for step in wanted]
        np.testing.assert_allclose(source.frames(IMAGE, record.index, wanted).mean((1, 2)), colours, atol=2)  # JPEG


def test_rate_is_known_by_the_name_of_the_dataset(damaged: Path) -> None:
    for file in list(damaged.glob("tiny_rlds-*")):
        file.rename(file.with_name(file.name.replace("tiny_rlds", "droid")))
    info = damaged / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"name": "droid"}))
    assert open_source(damaged).fps == 15


def test_folder_above_one_version_is_opened_and_above_two_is_refused(damaged: Path) -> None:
    assert len(open_source(damaged.parent).episodes) == 3
    shutil.copytree(damaged, damaged.parent / "1.1.0")
    with pytest.raises(DataError, match=r"holds versions 1\.0\.0, 1\.1\.0: name the folder of one of them"):
        open_source(damaged.parent)


def test_shard_cut_off_inside_a_record_keeps_those_before(damaged: Path) -> None:
    file = damaged / TRAIN
    file.write_bytes(file.read_bytes()[:-700])
    source = open_source(damaged)
    assert source.find_broken() == {
        1: f"{TRAIN} holds 1 records, dataset_info.json declares 2: it is cut off inside a record"
    }
    assert [episode.length > 0 for episode in source.episodes] == [True, False, True]


def test_damaged_length_is_not_followed(damaged: Path) -> None:
    file = damaged / TRAIN
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(bytes(content))
    assert open_source(damaged).find_broken()[0].endswith("declares 2: it has a damaged record length")


def test_damaged_record_is_quarantined_alone(damaged: Path) -> None:
    file = damaged / TRAIN
    content = bytearray(file.read_bytes())
    (length,) = struct.unpack_from("<Q", content)
    content[12 : 12 + length] = b"\xff" * length
    file.write_bytes(bytes(content))
    broken = open_source(damaged).find_broken()
    assert list(broken) == [0]
    assert broken[0].startswith(f"{TRAIN}: record 0 cannot be decoded: ")


def test_missing_shard_is_one_quarantined_episode(damaged: Path) -> None:
    (damaged / TRAIN).unlink()
    source = open_source(damaged)
    assert source.find_broken() == {0: f"{TRAIN} cannot be read: No such file or directory"}
    assert len(source.episodes) == 2


def test_array_record_that_is_none_is_quarantined(tmp_path: Path) -> None:
    path = Path(shutil.copytree(GOLDEN / "rlds_array_record", tmp_path / "set"))
    name = "tiny_rlds-val.array_record-00000-of-00001"
    (path / name).write_bytes(b"x" * 70_000)
    assert open_source(path).find_broken() == {2: f"{name} cannot be read: no ArrayRecord file"}


def test_dataset_without_a_readable_shard_is_refused(damaged: Path) -> None:
    for file in damaged.glob("*.tfrecord-*"):
        file.unlink()
    with pytest.raises(DataError, match=rf"has no episode: {TRAIN} cannot be read") as caught:
        open_source(damaged)
    assert "\n" not in str(caught.value)


def test_unreadable_metadata_is_refused_in_one_line(damaged: Path) -> None:
    (damaged / "features.json").write_text("{")
    with pytest.raises(DataError, match="its metadata cannot be read: ") as caught:
        open_source(damaged)
    assert "\n" not in str(caught.value)


def test_checksum_of_the_standard_example() -> None:
    # RFC 3720 appendix B.4: CRC-32C of 32 zero bytes is 0x8a9136aa.
    crc = 0x8A9136AA
    assert masked_crc32c(bytes(32)) == (((crc >> 15) | (crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF
