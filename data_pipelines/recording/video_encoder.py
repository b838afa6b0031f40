"""H.264 files that hold the frames of many episodes, one after another.

Owns encoding of a clip and its appending to a file without re-encoding; does not own file names or the episode table.
"""

from __future__ import annotations

import dataclasses
import io
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """How clips are encoded.

    Attributes:
        fps: Frames per second, an integer as LeRobot's info.json wants.
        keyframe_every: Longest distance between keyframes in frames. 15 is where random access to short clips is
            fastest for H.264 (250 is several times slower on single frames); every clip starts with one.
        crf: x264's constant rate factor; lower is better and larger.
        preset: x264 speed preset.
    """

    fps: int
    keyframe_every: int = 15
    crf: int = 20
    preset: str = "slow"


def encode_clip(frames: npt.NDArray[np.uint8], settings: VideoSettings) -> bytes:
    """Encodes one clip as an mp4 file in memory: H.264, yuv420p, frame n at exactly n / fps.

    Args:
        frames: uint8 [f, h, w, 3], RGB; f at least 1, h and w even (yuv420p halves the colour planes).
        settings: Rate, quality and keyframe distance.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: An odd height or width.
    """
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise ValueError(f"image size {height}x{width}: expected even numbers for H.264 yuv420p; change --size")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=settings.fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, settings.fps)
        stream.codec_context.thread_count = 1  # one clip is short; also makes the bytes independent of the machine
        stream.options = {
            "crf": str(settings.crf),
            "preset": settings.preset,
            "g": str(settings.keyframe_every),
            # No scene-cut keyframes: a fixed grid. No B-frames: decoding order is display order, first pts is 0.
            "sc_threshold": "0",
            "bf": "0",
            # x264's AVX-512 macroblock tree reads memory that nothing wrote, so now and then the same frames give other
            # bytes. Its C code gives those that it gives with AVX2, and takes a sixth of a recording.
            "x264-params": "asm=0",
        }
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = index
            frame.time_base = Fraction(1, settings.fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


class Mp4Appender:
    """One mp4 file to which encoded clips are appended packet by packet."""

    def __init__(self, path: Path, settings: VideoSettings) -> None:
        """Opens the file for writing.

        Args:
            path: File to create; its folder must exist.
            settings: Those every clip was encoded with.
        """
        self._settings = settings
        self._container: Any = av.open(str(path), "w", format="mp4")
        self._stream: Any = None
        self.num_frames = 0
        self.num_bytes = 0

    def __enter__(self) -> Mp4Appender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, clip: bytes) -> None:
        """Copies the packets of a clip from `encode_clip` behind what the file holds."""
        with av.open(io.BytesIO(clip), "r") as source:
            template: Any = source.streams.video[0]
            if self._stream is None:
                self._stream = self._container.add_stream_from_template(template)
                self._extradata = template.codec_context.extradata
            # One header serves the whole file, so every clip must have been encoded alike.
            assert template.codec_context.extradata == self._extradata
            ticks_per_frame = Fraction(1, self._settings.fps) / template.time_base
            assert ticks_per_frame.denominator == 1
            offset = self.num_frames * ticks_per_frame.numerator
            for packet in source.demux(template):
                if packet.dts is None:  # the flush packet at the end of a demux
                    continue
                packet.pts += offset
                packet.dts += offset
                packet.stream = self._stream
                self._container.mux(packet)
                self.num_frames += 1
        self.num_bytes += len(clip)

    def close(self) -> None:
        """Writes the index and closes the file."""
        self._container.close()
