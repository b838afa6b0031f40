"""Logs that follow the checkpoint: nothing lost, nothing counted twice, whatever moment the process died."""

import json
from pathlib import Path

import pytest

from wamjax.errors import DataError
from wamjax.training.records import RecordLog, discarded_path, read_records, rewind


def _write(path: Path, steps: range, **values: float) -> None:
    log = RecordLog(path)
    for step in steps:
        log.append({"step": step, **values})
    log.close()


def test_append_to_a_killed_log_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = RecordLog(path)
    log.append({"step": 1, "loss": 0.1})
    assert read_records(path) == [{"step": 1, "loss": 0.1}]  # neither synced nor closed


def test_floats_survive_the_log_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    values = {"a": 0.1 + 0.2, "b": 1e-45, "c": -0.0, "d": 2**60, "e": 10**30}
    _write(path, range(1, 2), **values)
    assert {key: repr(value) for key, value in read_records(path)[0].items() if key != "step"} == {
        key: repr(value) for key, value in values.items()
    }


def test_values_that_are_not_finite_are_written_as_text(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = RecordLog(path)
    log.append({"step": 1, "loss": float("nan"), "nested": {"norm": [float("inf")]}})
    log.close()
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "step": 1,
        "loss": "nan",
        "nested": {"norm": ["inf"]},
    }


def test_rewind_moves_later_records_aside(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, range(1, 8))
    assert rewind(path, 5) == 2
    assert [record["step"] for record in read_records(path)] == [1, 2, 3, 4, 5]
    assert [record["step"] for record in read_records(discarded_path(path))] == [6, 7]
    assert discarded_path(path) == tmp_path / "metrics.discarded.jsonl"


def test_rewind_twice_keeps_everything_discarded(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, range(1, 4))
    rewind(path, 2)
    _write(path, range(3, 6))
    rewind(path, 0)
    assert read_records(path) == []
    assert [record["step"] for record in read_records(discarded_path(path))] == [3, 1, 2, 3, 4, 5]


def test_rewind_at_the_end_of_the_log_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, range(1, 4))
    before = path.read_bytes()
    assert rewind(path, 3) == 0
    assert path.read_bytes() == before
    assert not discarded_path(path).exists()


def test_half_written_last_line_is_read_over_and_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, range(1, 4))
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')
    assert [record["step"] for record in read_records(path)] == [1, 2, 3]
    assert rewind(path, 3) == 1
    assert json.loads(discarded_path(path).read_text()) == {"half_written_line": '{"step": 4, "lo'}
    _write(path, range(4, 5))
    assert [record["step"] for record in read_records(path)] == [1, 2, 3, 4]


def test_broken_line_in_the_middle_is_refused_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2 is not a record"):
        read_records(path)


def test_log_of_a_process_that_does_not_write_makes_no_file(tmp_path: Path) -> None:
    log = RecordLog(tmp_path / "metrics.jsonl", is_writer=False)
    log.append({"step": 1})
    log.sync()
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_missing_log_has_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "none.jsonl") == []
    assert rewind(tmp_path / "none.jsonl", 0) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full to play a full disk")
def test_append_on_a_full_disk_raises_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = RecordLog(tmp_path / "metrics.jsonl")
    with pytest.raises(DataError, match=r"cannot write .*metrics\.jsonl: No space left on device"):
        log.append({"step": 1})
