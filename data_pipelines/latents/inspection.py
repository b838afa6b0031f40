"""What a folder of cached latents holds, and which of its records cannot be read.

Owns the reading of every record once. What the folder was made of, its manifest says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.latents.manifest import TRAIN, VALIDATION, Manifest
from data_pipelines.latents.pipeline import open_text_cache
from data_pipelines.latents.records import SplitRecords
from wamjax.errors import DataError


def inspect_latents(folder: Path) -> dict[str, Any]:
    """Returns what ``wamjax data inspect`` says of a folder of latents, in JSON types.

    ``episodes``, ``fps`` and ``quarantined`` are the dataset's that it was made of, ``frames`` the latent frames of its
    windows; ``damaged`` has the records and prompts that cannot be read.

    Raises:
      DataError: It has no manifest, or a shard is missing or of another length.
    """
    manifest = Manifest.load(folder)
    dataset = manifest.dataset
    damaged: list[str] = []
    frames = not_finite = 0
    for split in (TRAIN, VALIDATION):
        records = SplitRecords(folder, manifest, split)
        for number in range(len(records)):
            try:
                latents = records[number]["latents"]
            except DataError as error:
                damaged.append(str(error))
                continue
            frames += len(latents)
            not_finite += not np.isfinite(latents.astype(np.float32)).all()
    texts = open_text_cache(folder, manifest.encoders["text"])
    for prompt in manifest.prompts:
        try:
            texts.read(prompt)
        except DataError as error:
            damaged.append(str(error))
    quarantined = [{"episode": int(index), "reason": reason} for index, reason in dataset["quarantined"].items()]
    return {
        "path": str(folder),
        "format": "cached latents",
        "episodes": dataset["episodes"],
        "frames": frames,
        "fps": dataset["fps"],
        "cameras": list(dict.fromkeys(view[0] for view in manifest.settings["data.views"])),
        "quarantined": quarantined,
        "quarantined_count": len(quarantined),
        "dataset": dataset["path"],
        "fingerprint": manifest.fingerprint,
        "encoders": manifest.encoders,
        "windows": {split: of_split.windows for split, of_split in manifest.splits.items()},
        "record_bytes": manifest.record_bytes,
        "prompts": len(manifest.prompts),
        "windows_not_finite": int(not_finite),
        "damaged": damaged,
    }
