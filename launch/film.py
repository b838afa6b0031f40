"""Pictures and films of frames: true beside predicted, as PNG and H.264.

Owns composing frames and encoding them. Does not know where frames come from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Frames = npt.NDArray[np.uint8]

_GAP = 4  # pixels between pictures
_BACKGROUND = (24, 26, 30)
_INK = (232, 234, 237)
_CONTEXT = (120, 128, 140)  # border of frames the model was given
_PREDICTED = (255, 159, 28)  # border of frames the model made up
_TEXT_HEIGHT = 20
_CRF = "23"
# Small canvases are enlarged by whole factors up to about these widths, so that a viewer sees something.
_FILM_WIDTH = 384
_STRIP_WIDTH = 192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Frames that happened beside frames that were predicted.

    Attributes:
      true: uint8 ``[f H W 3]``.
      predicted: uint8 ``[f H W 3]``, equal to ``true`` where the model was given the frame.
      given: bool ``[f]``: frames the model was given rather than asked for.
      title: What is shown, in a few words.
    """

    true: Frames
    predicted: Frames
    given: npt.NDArray[np.bool_]
    title: str


def write_strip(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Writes one PNG: for each comparison a row of true and below it a row of predicted frames, time to the right."""
    strips = [_strip(comparison) for comparison in comparisons]
    width = max(strip.shape[1] for strip in strips)  # windows at an episode's end have fewer real frames
    legend = _text("true above, predicted below; frames with a grey border were given to the model", width)
    picture = np.concatenate([legend, *(_widened(strip, width) for strip in strips)])
    Image.fromarray(picture).save(path, optimize=True)


def write_film(path: Path, comparisons: Iterable[Comparison], *, fps: int) -> None:
    """Writes one MP4 (H.264, yuv420p): true on the left, predicted on the right, one comparison after the other.

    Args:
      path: File to write.
      comparisons: At least one; all of one frame size.
      fps: Frames shown per second.
    """
    write_video(path, (frame for comparison in comparisons for frame in _film_frames(comparison)), fps=fps)


def write_video(path: Path, frames: Iterable[Frames], *, fps: int) -> None:
    """Encodes uint8 frames ``[H W 3]`` of one even size as MP4 (H.264, yuv420p)."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=fps, options={"crf": _CRF})
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        assert stream is not None, "a film needs frames"
        container.mux(stream.encode(None))


def _strip(comparison: Comparison) -> Frames:
    """Returns a titled picture of two rows, true over predicted."""
    rows = [
        np.concatenate(
            [_framed(_enlarged(frame, _STRIP_WIDTH), colour) for frame, colour in zip(frames, colours, strict=True)],
            axis=1,
        )
        for frames, colours in (
            (comparison.true, [_CONTEXT] * len(comparison.true)),
            (comparison.predicted, [_CONTEXT if given else _PREDICTED for given in comparison.given]),
        )
    ]
    body = np.concatenate(rows)
    return np.concatenate([_text(comparison.title, body.shape[1]), body])


def _film_frames(comparison: Comparison) -> Iterable[Frames]:
    """Yields the titled frames of one comparison, sides padded to even sizes."""
    for true, predicted, given in zip(comparison.true, comparison.predicted, comparison.given, strict=True):
        left, right = (_enlarged(frame, _FILM_WIDTH) for frame in (true, predicted))
        body = np.concatenate(
            [_framed(left, _CONTEXT), _framed(right, _CONTEXT if given else _PREDICTED)],
            axis=1,
        )
        half = body.shape[1] // 2
        labels = np.concatenate(
            [_text("true", half), _text("given" if given else "predicted", body.shape[1] - half)], axis=1
        )
        yield _evened(np.concatenate([_text(comparison.title, body.shape[1]), labels, body]))


def _enlarged(frame: Frames, width: int) -> Frames:
    """Returns the frame enlarged by the largest whole factor that keeps it within ``width`` (at least 1)."""
    factor = max(1, width // frame.shape[1])
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)


def _framed(frame: Frames, colour: tuple[int, int, int]) -> Frames:
    """Returns the frame with a coloured border and a gap around it."""
    border = np.array(colour, np.uint8)
    inner = np.empty((frame.shape[0] + _GAP, frame.shape[1] + _GAP, 3), np.uint8)
    inner[:] = border
    inner[_GAP // 2 : -_GAP // 2, _GAP // 2 : -_GAP // 2] = frame
    outer = np.empty((inner.shape[0] + _GAP, inner.shape[1] + _GAP, 3), np.uint8)
    outer[:] = np.array(_BACKGROUND, np.uint8)
    outer[_GAP // 2 : -_GAP // 2, _GAP // 2 : -_GAP // 2] = inner
    return outer


def _text(text: str, width: int) -> Frames:
    """Returns a line of text as a picture ``[20 width 3]``; what does not fit is cut off."""
    image = Image.new("RGB", (width, _TEXT_HEIGHT), _BACKGROUND)
    ImageDraw.Draw(image).text((_GAP, 3), text, fill=_INK, font=ImageFont.load_default(12))
    return np.array(image)


def _widened(picture: Frames, width: int) -> Frames:
    """Returns the picture with background to its right up to ``width``."""
    wide = np.empty((picture.shape[0], width, 3), np.uint8)
    wide[:] = np.array(_BACKGROUND, np.uint8)
    wide[:, : picture.shape[1]] = picture
    return wide


def _evened(frame: Frames) -> Frames:
    """Returns the frame with a background row or column added where a side is odd (chroma is halved)."""
    pad = [(0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)]
    return np.pad(frame, pad)
