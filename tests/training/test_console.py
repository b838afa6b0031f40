"""What is shown: a line when it is due, nothing on a terminal's bar that is not asked for, readable events."""

from pathlib import Path

import pytest
from tensorboardX.proto import event_pb2

from wamjax.training.console import Console, TensorBoard, format_metrics
from wamjax.training.hooks import StepReport, Throughput


def _report(step: int, *, is_first: bool = False) -> StepReport:
    return StepReport(step=step, metrics={"loss/total": 1.0 / step}, step_s=0.5, data_wait_s=0.1, is_first=is_first)


def test_console_prints_first_due_and_last_step_and_every_validation(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(num_steps=7, first_step=0, every_steps=3, throughput=Throughput(samples_per_step=8))
    for step in range(1, 8):
        console.on_step(_report(step, is_first=step == 1))
    console.on_validation(7, {"validation/total": 0.5})
    console.close()
    output = capsys.readouterr().err
    lines = output.splitlines()
    assert [line.split()[1] for line in lines] == ["1/7", "3/7", "6/7", "7/7", "7/7"]
    assert "loss/total 0.3333" in lines[1]
    assert "throughput/samples_per_s 16" in lines[1]
    assert "\r" not in output  # no progress bar in a file


def test_format_metrics_keeps_four_digits_of_any_size() -> None:
    assert format_metrics({"a": 0.0, "b": 1.23456, "c": 1.5e-7}) == "a 0  b 1.235  c 1.50e-07"


def _scalars(directory: Path) -> list[tuple[int, str, float]]:
    """Reads event files without TensorBoard: length, checksum, protobuf, checksum."""
    found = []
    for path in sorted(directory.iterdir()):
        raw = path.read_bytes()
        while raw:
            size = int.from_bytes(raw[:8], "little")
            event = event_pb2.Event.FromString(raw[12 : 12 + size])  # pyright: ignore[reportAttributeAccessIssue]: generated
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            raw = raw[16 + size :]
    return found


def test_tensorboard_events_hold_the_metrics_of_due_steps(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, first_step=0, every_steps=2, throughput=Throughput(samples_per_step=8))
    for step in range(1, 5):
        board.on_step(_report(step))
    board.sync()
    board.close()
    losses = [(step, value) for step, tag, value in _scalars(tmp_path) if tag == "loss/total"]
    assert losses == [(2, 0.5), (4, 0.25)]
