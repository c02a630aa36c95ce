"""Camera images for a browser. The camera's JPEG or PNG → a small JPEG, by level of the link.

Each image is made once per level, however many viewers want it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import cv2
import simplejpeg

from crane_x7_remote.dashboard.board import Picture
from crane_x7_remote.rosbridge import frames
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_remote.rosbridge.messages import MessageError
from crane_x7_vla_rl.images import JPEG_START
from crane_x7_vla_rl.types import Image


@dataclass(frozen=True)
class Level:
    """How a viewer gets images."""

    width: int
    """Largest width in pixels."""
    quality: int
    """Of the JPEG."""
    period_s: float
    """Shortest time between two images."""


LEVELS: Final = (
    Level(480, 80, 0.1),
    Level(480, 65, 0.2),
    Level(400, 50, 0.2),
    Level(320, 40, 0.33),
    Level(240, 35, 0.66),
)
"""From a fast link to a slow one. Level 1 takes about 1 Mbit/s, level 4 about 0.1."""
FIRST_LEVEL: Final = 1


def shrink(content: bytes, level: Level) -> bytes:
    """Return the image as a small JPEG; raises MessageError for what is no image."""
    image = _decode(content, level.width)
    height, width = image.shape[:2]
    if width > level.width:
        size = (level.width, max(1, round(height * level.width / width)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    encoded: bytes = simplejpeg.encode_jpeg(image, quality=level.quality, colorsubsampling="420")
    return encoded


def _decode(content: bytes, width: int) -> Image:
    if not content.startswith(JPEG_START):
        return frames.decode_image(EncodedFrame(content, "", 0.0, 0.0))
    size(content)
    try:
        # A decoder that leaves out what would be scaled away is several times faster.
        image: Image = simplejpeg.decode_jpeg(content, fastdct=True, min_width=width, min_height=1)
    except ValueError as error:
        raise MessageError(f"JPEG of {len(content)} bytes cannot be decoded: {error}") from error
    return image


def size(content: bytes) -> tuple[int, int]:
    """Return width and height by the header; raises MessageError for an impossible one."""
    if content.startswith(JPEG_START):
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(content, strict=True)
        except ValueError as error:
            raise MessageError(f"JPEG header cannot be read: {error}") from error
    else:
        width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    if not 0 < width * height <= frames.MAX_IMAGE_PIXELS:
        raise MessageError(f"image is {width}×{height} pixels, which is too many or none")
    return width, height


class Shrinker:
    """The newest image by level; belongs to the event loop."""

    def __init__(self) -> None:
        self._made: dict[Level, tuple[int, bytes]] = {}
        self._locks = {level: asyncio.Lock() for level in LEVELS}

    async def get(self, picture: Picture, level: Level) -> bytes:
        """Return `picture` at this level; empty if it cannot be decoded."""
        async with self._locks[level]:
            number, content = self._made.get(level, (0, b""))
            if number != picture.number:
                content = await asyncio.to_thread(_shrunk, picture.content, level)
                self._made[level] = (picture.number, content)
            return content


def _shrunk(content: bytes, level: Level) -> bytes:
    try:
        return shrink(content, level)
    except MessageError:
        return b""  # the loop holds and says why
