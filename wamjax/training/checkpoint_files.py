"""Checksums of a checkpoint's files: damage is found before anything tries to decode it.

Owns ``files.json`` inside a checkpoint's folder. The digests in the record (``training.digest``) prove that the arrays
in memory are the ones that were saved; the checksums here prove it of the files, without a device, and spare every
process of a run the hang and the noise of a storage library that stumbles over a broken file on one of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from wamjax.training.checkpoint_record import CheckpointError

MANIFEST = "files.json"


def write_manifest(folder: Path) -> None:
    """Writes size and SHA-256 of every file below ``folder``; complete or absent, never half.

    Raises:
      OSError: A file cannot be read, or the disk is full.
    """
    files = {name: [path.stat().st_size, _sha256(path)] for name, path in _files(folder)}
    half = folder / f"{MANIFEST}.tmp"
    with open(half, "w", encoding="utf-8") as file:
        json.dump(files, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(half, folder / MANIFEST)


def find_broken_files(folder: Path, *, share: int = 0, num_shares: int = 1) -> list[str]:
    """Returns the files of ``folder`` that are missing or not what its manifest says, by relative path.

    A folder without a manifest (the process died between finishing the checkpoint and writing it) has none: its
    arrays are still verified by their digests.

    Args:
      folder: A checkpoint.
      share: Which part of the files to look at, so that processes share the work.
      num_shares: How many parts there are.

    Raises:
      CheckpointError: The manifest itself is damaged.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        entries = sorted((name, int(size), str(digest)) for name, (size, digest) in files.items())
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: {MANIFEST} cannot be read") from error
    mine = entries[share::num_shares]
    return [name for name, size, digest in mine if not _is_intact(folder / name, size, digest)]


def _files(folder: Path) -> list[tuple[str, Path]]:
    return sorted((str(path.relative_to(folder)), path) for path in folder.rglob("*") if path.is_file())


def _is_intact(path: Path, size: int, digest: str) -> bool:
    try:
        return path.stat().st_size == size and _sha256(path) == digest
    except OSError:
        return False


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
