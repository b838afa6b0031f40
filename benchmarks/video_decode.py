"""Pixels per second that one core decodes, against what the planner assumes.

    python benchmarks/video_decode.py [--height=480 --width=832 --frames=61]

A synthetic clip (a moving texture with noise) is encoded as H.264 and decoded by PyAV with one thread, RGB conversion
included. Time is that of the processor, so that what else the machine does does not count. Reference: the assumption
``decoded_pixels_per_core_s`` of ``wamjax.planning.feed``.
"""

from __future__ import annotations

import io
import sys
import time

import av
import numpy as np
from absl import app, flags
from scipy.ndimage import gaussian_filter

from wamjax.planning.feed import FEED_ASSUMPTIONS

_REPEATS = 3
_SHIFT = (3, 5)  # rows and columns the texture moves per frame
_NOISE = 4.0  # standard deviation of the noise, of 255


def encode_clip(height: int, width: int, frames: int) -> bytes:
    """Returns an MP4 with ``frames`` frames of a moving texture."""
    rng = np.random.default_rng(0)
    rows, columns = height + frames * _SHIFT[0], width + frames * _SHIFT[1]
    texture = gaussian_filter(rng.uniform(size=(rows, columns, 3)), (2, 2, 0))
    texture = (texture - texture.min()) / np.ptp(texture) * 255
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=16, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            top, left = number * _SHIFT[0], number * _SHIFT[1]
            picture = texture[top : top + height, left : left + width] + rng.normal(0, _NOISE, (height, width, 3))
            frame = av.VideoFrame.from_ndarray(np.clip(picture, 0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def decode_s(clip: bytes) -> float:
    """Returns the processor time of decoding ``clip`` to RGB with one thread."""
    with av.open(io.BytesIO(clip), "r") as container:
        container.streams.video[0].thread_type = "NONE"
        started = time.process_time()
        for frame in container.decode(video=0):
            frame.to_ndarray(format="rgb24")
        return time.process_time() - started


def main(argv: list[str]) -> int:
    """Prints the rate and its ratio to the assumption."""
    values = flags.FLAGS
    pixels = values.height * values.width * values.frames
    clip = encode_clip(values.height, values.width, values.frames)
    rate = pixels / min(decode_s(clip) for _ in range(_REPEATS))
    assumed = FEED_ASSUMPTIONS.decoded_pixels_per_core_s.value
    print(f"{values.frames} frames of {values.height} x {values.width}, {8 * len(clip) / pixels:.3f} bit/pixel")
    print(f"{rate / 1e6:,.1f} Mpixel/s on one core, {rate / assumed:.2f} x the planner's {assumed / 1e6:,.0f}")
    return 0


if __name__ == "__main__":
    flags.DEFINE_integer("height", 480, "Rows of a frame.")
    flags.DEFINE_integer("width", 832, "Columns of a frame.")
    flags.DEFINE_integer("frames", 61, "Frames of the clip.")
    sys.exit(app.run(main))
