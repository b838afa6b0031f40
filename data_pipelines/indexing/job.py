"""The job that makes an index: part by part, over processes, over any number of starts, then put together.

Owns the plan, what is already there, and the merge. A part is a run of episodes; formats whose files can only be opened
all at once (everything but LeRobot) are one part. Killed and started again, the job makes the parts that are missing.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data_pipelines.embodiments.apply import optional_cameras
from data_pipelines.filters import data_columns
from data_pipelines.index import assemble_index
from data_pipelines.indexing.arrays import (
    EPISODE_DTYPE,
    EPISODES,
    KEYFRAMES,
    PLACES,
    VIDEOS,
    column_name,
    create_array,
    split_name,
    video_rows,
    windows_name,
    write_array,
)
from data_pipelines.indexing.manifest import (
    MANIFEST_FILE,
    IndexManifest,
    camera_features,
    check_settings,
    folder_stamp,
    index_fingerprint,
    index_settings,
)
from data_pipelines.indexing.parts import Part, PartOrder, make_part, remove_halves, write_part
from data_pipelines.lock import locked
from data_pipelines.normalisation import write_json
from data_pipelines.sources.formats import open_source, opens_in_parts
from data_pipelines.sources.remote import dataset_path, refuse_address
from data_pipelines.sources.source import Source
from data_pipelines.survey import Survey
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError, DataError

LOCK_FILE = "index.lock"
_PARTS = "parts"
_PLAN = "plan.json"
TRAIN, VALIDATION = "train", "validation"


def make_index(config: RunConfig, out: Path, *, num_workers: int, part_episodes: int) -> IndexManifest:
    """Makes the index of ``config.data.path`` in ``out``, or what of it is missing.

    Args:
      config: Keys, filters and split.
      out: Folder of the index.
      num_workers: Processes.
      part_episodes: Episodes of a part; what a kill costs.

    Raises:
      ConfigError: ``out`` holds or began an index of other settings, another process is making it, or a filter needs
        what the dataset does not have.
      DataError: The dataset cannot be read or is damaged beyond the budget, ``out`` holds the index of another one, or
        a file cannot be written.
    """
    refuse_address(out, "--out")
    path = dataset_path(config.data.path)
    opens_in_parts(path)  # refuses what is no dataset before anything is written
    if out.resolve().is_relative_to(path.resolve()):
        raise ConfigError(f"--out={out} lies inside the dataset {path}: an index is no part of what it indexes")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out={out} cannot be used: {error.strerror}; choose another --out") from error
    refusal = f"--out={out} is being made by {{holder}}; wait for that job, stop it, or choose another --out"
    with locked(out / LOCK_FILE, refusal):
        return _make(config, path, out, num_workers=num_workers, part_episodes=part_episodes)


def _make(config: RunConfig, path: Path, out: Path, *, num_workers: int, part_episodes: int) -> IndexManifest:
    """As ``make_index``, in a folder that is locked."""
    columns, optional = data_columns(config.data), optional_cameras(config.data)
    required = tuple(key for key in camera_features(config.data) if key not in optional)
    in_parts = opens_in_parts(path)
    if (out / MANIFEST_FILE).exists():
        check_settings(IndexManifest.load(out), config, out)
    stamp = folder_stamp(path)
    part = range(0) if in_parts else None
    source = open_source(path, cameras=required, optional_cameras=optional, columns=columns, part=part)
    cameras = tuple(key for key in camera_features(config.data) if key in source.cameras)
    fingerprint = source.fingerprint()
    if (out / MANIFEST_FILE).exists():
        return _keep(IndexManifest.load(out), fingerprint, stamp, out)
    total = len(source.episodes)
    size = part_episodes if in_parts else total
    orders = [
        PartOrder(
            folder=out / _PARTS / f"part-{number:05d}",
            path=path,
            config=config.data,
            cameras=cameras,
            columns=columns,
            episodes=range(first, min(first + size, total)),
        )
        for number, first in enumerate(range(0, total, size))
    ]
    _begin(
        out,
        {
            "index": index_fingerprint(fingerprint, index_settings(config)),
            "cameras": cameras,
            "columns": columns,
            "part_episodes": size,
        },
    )
    _make_parts(orders, None if in_parts else source, num_workers)
    dataset = {
        "path": str(path),
        "format": source.format,
        "fps": source.fps,
        "fingerprint": fingerprint,
        "stamp": stamp,
        "cameras": list(cameras),
        "columns": list(columns),
        "features": {name: {"dtype": f.dtype, "shape": list(f.shape)} for name, f in source.features.items()},
        "tasks": list(source.tasks),
    }
    manifest = merge_parts([Part(order.folder) for order in orders], config, dataset, out)
    if folder_stamp(path) != stamp:
        raise DataError(f"dataset {path} changed while it was indexed: start again once nothing writes to it")
    manifest.save(out)
    shutil.rmtree(out / _PARTS)
    return manifest


def _keep(manifest: IndexManifest, fingerprint: str, stamp: str, out: Path) -> IndexManifest:
    """Returns a complete index that is still right, its stamp renewed where files were copied or touched."""
    if manifest.dataset["fingerprint"] != fingerprint:
        raise DataError(
            f"--out={out} holds the index of a dataset with fingerprint {manifest.dataset['fingerprint']}, that of "
            f"{manifest.dataset['path']} is {fingerprint} now: choose another --out, or delete that index"
        )
    if manifest.dataset["stamp"] != stamp:
        manifest = dataclasses.replace(manifest, dataset={**manifest.dataset, "stamp": stamp})
        manifest.save(out)
    return manifest


def _begin(out: Path, plan: dict[str, Any]) -> None:
    """Writes the plan of ``out`` or checks that the parts there are of the same one."""
    plan = json.loads(json.dumps(plan))
    path = out / _PARTS / _PLAN
    try:
        if not path.exists():
            write_json(path, plan)
        begun = json.loads(path.read_text(encoding="utf-8"))
        remove_halves(path.parent)
    except (OSError, ValueError) as error:
        raise DataError(f"--out={out}: {path} cannot be used: {error}; choose another --out") from error
    changed = [key for key in plan if begun.get(key) != plan[key]]
    if changed:
        raise ConfigError(
            f"--out={out} holds parts that were begun with another {changed[0]} ({begun.get(changed[0])!r}, now "
            f"{plan[changed[0]]!r}): delete {out / _PARTS}, or choose another --out"
        )


def _make_parts(orders: Sequence[PartOrder], source: Source | None, num_workers: int) -> None:
    """Makes the parts that are not there, showing progress; ``source`` is given where it is opened already."""
    missing = [order for order in orders if not order.folder.exists()]
    found = sum(len(order.episodes) for order in orders if order.folder.exists())
    total = sum(len(order.episodes) for order in orders)
    with tqdm(total=total, initial=found, unit="episode", disable=None) as bar:
        if source is not None or num_workers == 1 or len(missing) < 2:
            for order in missing:
                if source is None:
                    make_part(order)
                else:
                    write_part(order, source)
                bar.update(len(order.episodes))
            return
        # Spawned: a forked process would inherit the locks of JAX's and FFmpeg's threads in whatever state they are.
        context = multiprocessing.get_context("spawn")
        workers = min(num_workers, len(missing))
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
            pending = [pool.submit(make_part, order) for order in missing]
            try:
                for done in as_completed(pending):
                    bar.update(done.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone; a pool's workers would wait for it for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def merge_parts(parts: Sequence[Part], config: RunConfig, dataset: dict[str, Any], out: Path) -> IndexManifest:
    """Writes the arrays of the index from its parts and returns its manifest, which is not written yet."""
    survey = Survey(
        records=tuple(record for part in parts for record in part.survey.records),
        broken={index: reason for part in parts for index, reason in part.survey.broken.items()},
        unwanted={index: reason for part in parts for index, reason in part.survey.unwanted.items()},
        idle={index: steps for part in parts for index, steps in part.survey.idle.items()},
    )
    index = assemble_index(survey, config, Path(dataset["path"]))
    _write_episodes(survey, dataset["tasks"], out)
    _write_videos(parts, out)
    for position in range(len(dataset["columns"])):
        _write_column([part.column(position) for part in parts], column_name(position), out)
    for split, windows, episodes in (
        (TRAIN, index.train, index.train_episodes),
        (VALIDATION, index.validation, index.validation_episodes),
    ):
        write_array(out, windows_name(split), np.stack([windows.episodes, windows.starts], axis=1))
        write_array(out, split_name(split), np.array(episodes, np.int32))
    return IndexManifest(
        dataset=dataset,
        settings=index_settings(config),
        counts={
            "episodes": len(survey.records),
            "steps": index.steps,
            "idle_windows": index.idle_windows,
            "tasks": index.task_episodes,
            TRAIN: {"episodes": len(index.train_episodes), "windows": len(index.train)},
            VALIDATION: {"episodes": len(index.validation_episodes), "windows": len(index.validation)},
        },
        quarantined=index.quarantined,
        unwanted=index.unwanted,
        too_short=index.too_short,
    )


def _write_episodes(survey: Survey, tasks: Sequence[str], out: Path) -> None:
    wanted = survey.wanted
    rows = np.zeros(len(wanted), EPISODE_DTYPE)
    numbers = {task: number for number, task in enumerate(tasks)}
    rows["index"] = [record.index for record in wanted]
    rows["length"] = [record.length for record in wanted]
    rows["task"] = [numbers[record.task] for record in wanted]
    rows["offset"] = np.cumsum(rows["length"].astype(np.int64)) - rows["length"]
    write_array(out, EPISODES, rows)


def _write_column(parts: Sequence[npt.NDArray[np.float32]], name: str, out: Path) -> None:
    filled = [part for part in parts if len(part)]
    dims = filled[0].shape[1] if filled else 0
    array = create_array(out, name, np.float32, (sum(len(part) for part in filled), dims))
    position = 0
    for part in filled:
        array[position : position + len(part)] = part
        position += len(part)
    if isinstance(array, np.memmap):
        array.flush()


def _write_videos(parts: Sequence[Part], out: Path) -> None:
    """Writes the video tables; a file that episodes of several parts share is kept once."""
    rows: list[tuple[Any, ...]] = []
    known: dict[tuple[bytes, bytes], int] = {}
    keyframes: list[npt.NDArray[np.int64]] = [np.zeros((0, 2), np.int64)]
    places, position = [], 0
    for part in parts:
        new_rows = np.zeros(len(part.videos), np.int64)
        for number, row in enumerate(part.videos):
            key = (bytes(row["file"]), bytes(row["member"]))
            new_rows[number] = known.setdefault(key, len(rows))
            if new_rows[number] == len(rows):
                first, count = int(row["first_keyframe"]), int(row["num_keyframes"])
                values = {**{name: row[name] for name in row.dtype.names}, "first_keyframe": position}
                rows.append(tuple(v.item() if isinstance(v, np.generic) else v for v in values.values()))
                keyframes.append(part.keyframes[first : first + count])
                position += count
        moved = np.array(part.places)
        has_video = moved[..., 0] >= 0
        moved[..., 0][has_video] = new_rows[moved[..., 0][has_video]]
        places.append(moved)
    write_array(out, VIDEOS, video_rows(rows))
    write_array(out, KEYFRAMES, np.concatenate(keyframes))
    write_array(out, PLACES, np.concatenate(places))


def describe_index(manifest: IndexManifest) -> str:
    """Returns what an index holds and what it leaves out, in words."""
    counts, dataset = manifest.counts, manifest.dataset
    reasons: dict[str, int] = {}
    for reason in manifest.unwanted.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    lines = [
        f"{dataset['path']}: {dataset['format']}, {counts['episodes']:,} episodes, content {dataset['fingerprint']}",
        *(
            f"{name}: {counts[split]['windows']:,} windows of {counts[split]['episodes']:,} episodes"
            for name, split in (("training", TRAIN), ("held out", VALIDATION))
        ),
        f"quarantined: {len(manifest.quarantined)} episodes",
        *(f"  episode {index}: {reason}" for index, reason in list(manifest.quarantined.items())[:20]),
        *(
            [f"  and {len(manifest.quarantined) - 20} more (index.json has all)"]
            if len(manifest.quarantined) > 20
            else []
        ),
        f"left out by filters: {len(manifest.unwanted)} episodes",
        *(f"  {count}: {reason}" for reason, count in reasons.items()),
        f"without room for a block: {len(manifest.too_short)} episodes",
        f"idle: {counts['idle_windows']:,} windows",
    ]
    return "\n".join(lines)
