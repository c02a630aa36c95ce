"""The only MP4 writer. Frames (H, W, 3) uint8 RGB → H.264 in a file or a buffer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import BinaryIO, Final

import av
import numpy as np

from crane_x7_vla_rl.types import Image

CODEC: Final = "libx264"


def rate(fps: float) -> Fraction:
    """Return the frame rate as a fraction that a container can hold."""
    return Fraction(fps).limit_denominator(1001)


def write_mp4(
    target: str | BinaryIO,
    frames: Iterable[Image],
    fps: float,
    options: Mapping[str, str],
    *,
    pixels: str = "yuv420p",
) -> int:
    """Encode `frames`, all of the first one's size, and return their number.

    `options` are libx264's. Browsers play only pixels of yuv420p, whose sides must be even. Raises
    OSError, the base class of av's errors of files.
    """
    container_options = {"movflags": "+faststart"} if isinstance(target, str) else {}
    count, stream = 0, None
    with av.open(target, "w", format="mp4", options=container_options) as container:
        for image in frames:
            if stream is None:
                stream = container.add_stream(CODEC, rate=rate(fps), options=dict(options))
                stream.height, stream.width, stream.pix_fmt = *image.shape[:2], pixels
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
            count += 1
        if stream is not None:
            container.mux(stream.encode(None))
    return count
