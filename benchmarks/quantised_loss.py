"""Loss of training with the blocks' products rounded to int8 and fp8, against products that are not rounded.

    pip install 'wamjax[quantised]' && python benchmarks/quantised_loss.py [STEPS]

Every side is ``wamjax train`` on experiments/quickstart.py for STEPS steps (default 200), with the same data in order.
A run, not rounded and of another seed, shows how far two runs differ without any rounding. Printed: the mean of
the training loss over each quarter of the run, and its ratio to the run that is not rounded.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

EXPERIMENT = Path(__file__).resolve().parents[1] / "experiments" / "quickstart.py"
SIDES = {
    "not rounded": (),
    "int8": ("--config.model.matmul=int8",),
    "fp8": ("--config.model.matmul=fp8",),
    "not rounded, another seed": ("--config.train.seed=1",),
}


def train(workdir: Path, num_steps: int, overrides: tuple[str, ...]) -> np.ndarray:
    """Trains one side; returns its loss at every step."""
    subprocess.run(
        [
            *(sys.executable, "-m", "launch.cli", "train", f"--config={EXPERIMENT}", f"--workdir={workdir}"),
            *("--cpu_devices=2", f"--config.train.num_steps={num_steps}", "--config.checkpoint.every_steps=0"),
            *overrides,
        ],
        check=True,
        cwd=EXPERIMENT.parents[1],
        stdout=subprocess.DEVNULL,
    )
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return np.array([json.loads(line)["loss/total"] for line in lines if "loss/total" in line])


def main() -> None:
    """Trains all sides and prints the table."""
    num_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as folder:
        losses = {
            name: train(Path(folder) / str(number), num_steps, overrides)
            for number, (name, overrides) in enumerate(SIDES.items())
        }
    quarters = {name: [part.mean() for part in np.array_split(loss, 4)] for name, loss in losses.items()}
    print(f"{num_steps} steps of the quickstart; mean loss of each quarter (ratio to the run that is not rounded)")
    for name, means in quarters.items():
        cells = (f"{mean:.4f} ({mean / own:.3f})" for mean, own in zip(means, quarters["not rounded"], strict=True))
        print(f"{name:<26}", *cells, sep="  ")


if __name__ == "__main__":
    main()
