"""WebDataset tar shards of videos with captions: members are listed once, and read where they lie.

Owns the listing. The members of one sample share the name up to the first dot of the file name; the video is one of
``.mp4``, ``.webm``, ``.mkv``, the caption ``.txt`` or ``.json``. Source of the format: webdataset/webdataset, README,
"The WebDataset Format".
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

from data_pipelines.sources.captions import CAPTION_SUFFIXES, CaptionError, parse_caption
from data_pipelines.sources.clips import VIDEO_SUFFIXES, Clip, ClipSource
from data_pipelines.sources.remote import read_at
from data_pipelines.sources.retry import retry_read
from data_pipelines.sources.source import first_line
from data_pipelines.sources.video import ArchiveMember


def open_webdataset(path: Path, **options: Any) -> ClipSource:
    """Opens a folder of tar shards; ``options`` as ``ClipSource``.

    Raises:
      DataError: As ``ClipSource``.
    """
    clips = [clip for shard in find_shards(path) for clip in _list_shard(path, shard)]
    return ClipSource(path, clips, format_name="WebDataset", **options)


def find_shards(path: Path) -> list[Path]:
    """Returns all tar files under ``path``, sorted."""
    return sorted(path.rglob("*.tar"))


def _list_shard(path: Path, shard: Path) -> list[Clip]:
    """Returns the samples of a shard that have a video; the rest of a damaged shard is one clip that says so."""
    samples: dict[str, dict[str, list[ArchiveMember]]] = {}
    members: list[ArchiveMember] = []
    try:
        members, problem = retry_read(lambda: _list_members(shard), str(shard))
    except OSError as error:
        problem = error.strerror or first_line(error)
    for member in members:
        folder, _, file = member.name.rpartition("/")
        stem, dot, suffix = file.partition(".")
        samples.setdefault(f"{folder}/{stem}", {}).setdefault(f"{dot}{suffix}".lower(), []).append(member)
    name = shard.relative_to(path).as_posix()
    clips = [clip for parts in samples.values() for clip in _sample_clips(name, shard, parts)]
    if problem:
        reason = f"{name} cannot be read after {len(members)} members: {problem}"
        clips.append(Clip(name=name, path=shard, problem=reason))
    return clips


def _list_members(shard: Path) -> tuple[list[ArchiveMember], str | None]:
    """Returns the files of a shard, and why the listing ended before the shard did.

    Raises:
      OSError: The shard cannot be read.
    """
    members: list[ArchiveMember] = []
    end = 0
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                end = info.offset_data + info.size
                if info.isfile():
                    members.append(ArchiveMember(name=info.name, offset=info.offset_data, size=info.size))
            # `tarfile` takes a damaged header for the end; the true end is a block of zeros.
            if read_at(shard, archive.offset, tarfile.BLOCKSIZE).strip(b"\0") or end > shard.stat().st_size:
                return members, "a damaged header"
    except tarfile.TarError as error:
        return members, first_line(error)
    return members, None


def _sample_clips(shard_name: str, shard: Path, parts: dict[str, list[ArchiveMember]]) -> list[Clip]:
    """Returns the video of one sample with its caption; none where the sample has no video."""
    videos = [member for suffix in VIDEO_SUFFIXES for member in parts.get(suffix, [])]
    if not videos:
        return []
    name = f"{shard_name}:{videos[0].name}"
    if len(videos) > 1:
        problem = f"{name}: its sample has {len(videos)} videos: which one is meant nothing tells"
        return [Clip(name=name, path=shard, member=videos[0], problem=problem)]
    caption = ""
    for suffix in CAPTION_SUFFIXES:
        for member in parts.get(suffix, [])[:1]:
            try:
                caption = parse_caption(read_at(shard, member.offset, member.size), suffix)
            except (CaptionError, OSError) as error:
                problem = f"{shard_name}:{member.name} cannot be read: {error}"
                return [Clip(name=name, path=shard, member=videos[0], problem=problem)]
        if caption:
            break
    return [Clip(name=name, path=shard, member=videos[0], caption=caption)]
