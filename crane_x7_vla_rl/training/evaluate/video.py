"""Frames of an episode → an MP4 that any browser plays."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np

from crane_x7_vla_rl.data.files import write_whole
from crane_x7_vla_rl.types import Image

OPTIONS: Final = {"crf": "20", "preset": "fast", "threads": "1"}
LEAST_SIDE: Final = 256
"""Smaller pictures are enlarged by whole pixels, so that one can see them."""


def write_video(path: Path, frames: Sequence[Image], fps: float) -> None:
    """Write (H, W, 3) uint8 frames at `fps`; raises OSError."""
    write_whole(path, lambda partial: _encode(partial, frames, fps))


def _encode(path: Path, frames: Sequence[Image], fps: float) -> None:
    height, width, _ = frames[0].shape
    times = max(2, -(-LEAST_SIDE // min(height, width)))  # even sides, as the pixel format needs
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=dict(OPTIONS))
        stream.width, stream.height, stream.pix_fmt = width * times, height * times, "yuv420p"
        for image in frames:
            large = np.ascontiguousarray(image.repeat(times, 0).repeat(times, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(large, format="rgb24")))
        container.mux(stream.encode(None))
