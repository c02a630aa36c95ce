"""Frames of an episode → an MP4 that any browser plays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from crane_x7_vla_rl.data.files import write_whole
from crane_x7_vla_rl.mp4 import write_mp4
from crane_x7_vla_rl.types import Image

OPTIONS: Final = {"crf": "20", "preset": "fast", "threads": "1"}
LEAST_SIDE: Final = 256
"""Smaller images are enlarged by a whole factor, to be visible."""


def write_video(path: Path, frames: Sequence[Image], fps: float) -> None:
    """Write (H, W, 3) uint8 frames at `fps`; raises OSError."""
    times = max(2, -(-LEAST_SIDE // min(frames[0].shape[:2])))  # even sides
    large = (image.repeat(times, 0).repeat(times, 1) for image in frames)
    write_whole(path, lambda partial: write_mp4(str(partial), large, fps, OPTIONS))
