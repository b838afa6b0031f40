"""The ledger of a precompute job goes on where a killed process left it."""

from pathlib import Path

import pytest

from wamjax.errors import DataError
from wamjax.flops.precompute import PrecomputeLedger
from wamjax.flops.utilisation import Denominator
from wamjax.training.precompute_log import PrecomputeLog
from wamjax.training.records import read_records

# 8 chips x 989.5e12 for half a second are 3,958e12 FLOPs: four runs are an eighth of it.
VAE_FLOPS = 3_958 * 10**12 // 32


def ledger(job: str = "latents") -> PrecomputeLedger:
    h200 = Denominator(device_kind="NVIDIA H200", num_devices=8, dtype="bfloat16")
    return PrecomputeLedger(job=job, flops_per_run={"vae": VAE_FLOPS, "text": 11}, denominator=h200)


def test_job_killed_and_started_again_ends_with_the_sums_of_one_that_was_not(tmp_path: Path) -> None:
    log = PrecomputeLog(tmp_path, ledger())
    log.add(samples=4, runs={"vae": 4, "text": 1}, seconds=0.5)
    log.add(samples=4, runs={"vae": 4}, seconds=0.5)
    log.close()
    with open(tmp_path / "ledger.jsonl", "a") as file:
        file.write('{"kind": "precompute", "jo')  # killed while writing
    log = PrecomputeLog(tmp_path, ledger())
    line = log.add(samples=2, runs={"vae": 2}, seconds=0.25)
    log.close()
    assert read_records(tmp_path / "ledger.jsonl")[-1] == line
    assert (line["kind"], line["job"], line["step"], line["samples"]) == ("precompute", "latents", 3, 10)
    assert line["runs"] == {"vae": 10, "text": 1, "image": 0}
    assert line["encoder_flops"] == {"vae": 10 * VAE_FLOPS, "text": 11, "image": 0}
    assert line["wall"]["seconds"] == 1.25


def test_utilisation_is_that_of_the_batch_with_its_denominator(tmp_path: Path) -> None:
    wall = ledger().record(samples=4, runs={"vae": 4}, seconds=0.5)["wall"]
    assert (wall["mfu"], wall["mfu_reason"]) == (0.125, None)
    assert "NVIDIA H200" in wall["mfu_denominator"]


def test_folder_of_another_job_is_refused(tmp_path: Path) -> None:
    log = PrecomputeLog(tmp_path, ledger())
    log.add(samples=1, runs={"vae": 1}, seconds=1.0)
    log.close()
    with pytest.raises(DataError, match="is of 'latents' and this job makes 'prompts'"):
        PrecomputeLog(tmp_path, ledger("prompts"))
