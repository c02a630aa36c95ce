"""Operations that a server wraps in fragments (`fragment`) or images (`png`) → JSON text. Pure.

Everything is bounded: the stored bytes, the number of unfinished messages and their age, the
pixels.

Source: ROSBRIDGE_PROTOCOL.md, 3.1.1 and 3.1.2, and the server's capabilities/fragmentation.py and
internal/pngcompression.py. A released server gives every fragmented publication the id 0, and
under Python 3 a `total` with decimals, whose integer part counts.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeGuard

import cv2
import numpy as np

from crane_x7_remote.rosbridge.protocol import MAX_MESSAGE_BYTES, Operation, ProtocolError, brief
from crane_x7_vla_rl.images import PNG_SIGNATURE

MAX_OPEN = 8
"""Most unfinished messages at the same time; a further one drops the oldest."""
MAX_AGE_S = 5.0
"""A message whose last fragment has not arrived after this is dropped; a camera frame is useless by
then."""
MAX_FRAGMENTS = 16 * 1024
"""Per message; a server sends fragments of 1 kB and more, and each one costs memory in addition to
its text."""
RGB_8_BIT = (8, 2)
"""Bit depth and colour type in the IHDR of the images into which rosbridge packs text."""


@dataclass
class _Open:
    """A message with some of its fragments."""

    began_s: float
    pieces: dict[int, str] = field(default_factory=dict)
    size: int = 0
    is_given_up: bool = False
    """Lost: its remaining fragments are ignored; number 0 starts over."""


_Key = tuple[str | int, int]
"""Id and total: ids repeat, and the total distinguishes messages of different length."""


class Fragments:
    """Joins fragments in any order, within `max_bytes` over all unfinished messages."""

    def __init__(self, max_bytes: int, on_lost: Callable[[str, float], None]) -> None:
        """`on_lost` gets the reason and time of each discarded message, once."""
        self._max_bytes = max_bytes
        self._on_lost = on_lost
        self._open: dict[_Key, _Open] = {}

    def add(self, operation: Operation, now_s: float) -> str | None:
        """Add a fragment; return the whole text with the last one. Raises ProtocolError for an
        invalid fragment."""
        key, num, piece = _read_fragment(operation)
        self.expire(now_s)
        message = self._open.get(key)
        if message is not None and message.pieces.get(num, piece) != piece:
            self._give_up(key, "a fragment arrived twice with different content", now_s)
        if message is None or (message.is_given_up and num == 0):
            message = self._begin(key, now_s)
        if message.is_given_up or num in message.pieces:
            return None
        if self._waiting + len(piece) > self._max_bytes:
            self._give_up(key, f"fragments have more than {self._max_bytes} bytes", now_s)
            return None
        message.pieces[num] = piece
        message.size += len(piece)
        if len(message.pieces) < key[1]:
            return None
        del self._open[key]
        return "".join(message.pieces[index] for index in range(key[1]))

    def expire(self, now_s: float) -> None:
        """Discard messages that are too old."""
        for key, message in list(self._open.items()):
            if now_s - message.began_s > MAX_AGE_S:
                self._give_up(key, f"the rest did not arrive within {MAX_AGE_S:g} s", now_s)
                del self._open[key]

    def clear(self) -> None:
        """Forget everything: the rest will not arrive over a new connection."""
        self._open.clear()

    @property
    def _waiting(self) -> int:
        return sum(message.size for message in self._open.values())

    def _begin(self, key: _Key, now_s: float) -> _Open:
        self._open.pop(key, None)
        while len(self._open) >= MAX_OPEN:
            oldest = next(iter(self._open))
            self._give_up(oldest, f"more than {MAX_OPEN} fragmented messages at a time", now_s)
            del self._open[oldest]
        self._open[key] = _Open(now_s)
        return self._open[key]

    def _give_up(self, key: _Key, why: str, now_s: float) -> None:
        message = self._open[key]
        if not message.is_given_up:
            self._on_lost(why, now_s)
        message.pieces, message.size, message.is_given_up = {}, 0, True


def _read_fragment(operation: Operation) -> tuple[_Key, int, str]:
    name, num, total = operation.get("id"), operation.get("num"), operation.get("total")
    data = operation.get("data")
    if (
        not (isinstance(name, str) or _is_whole(name))
        or not _is_whole(num)
        or not (_is_whole(total) or isinstance(total, float))
        or not isinstance(data, str)
    ):
        raise ProtocolError(
            f"fragment has id={brief(name)}, num={brief(num)}, total={brief(total)},"
            f" data={brief(data)}; expected an id, two numbers and text"
        )
    if not 1 <= total <= MAX_FRAGMENTS or not 0 <= num < int(total):
        raise ProtocolError(
            f"fragment {brief(num)} of {brief(total)}, expected 0 up to the total, which is at most"
            f" {MAX_FRAGMENTS}"
        )
    key = name[:200] if isinstance(name, str) else name
    return (key, int(total)), num, data


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def unpack_png(operation: Operation, max_bytes: int = MAX_MESSAGE_BYTES) -> str:
    """Return the text in the pixels of a `png` operation. Raises ProtocolError.

    The header is checked before decompression, so that a small image cannot grow beyond
    `max_bytes`.
    """
    data = operation.get("data")
    try:
        content = base64.b64decode(data, validate=True) if isinstance(data, str) else b""
    except (binascii.Error, ValueError):
        content = b""
    if not content.startswith(PNG_SIGNATURE) or len(content) < 26:
        raise ProtocolError(f"png contains {brief(data)}, expected a PNG in base64")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    if (content[24], content[25]) != RGB_8_BIT or not 0 < 3 * width * height <= max_bytes:
        raise ProtocolError(
            f"png is an image of {width}×{height}, {content[24]} bits, colour type"
            f" {content[25]}; expected 8 bits, colour type 2 and at most {max_bytes} bytes"
        )
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.shape != (height, width, 3):
        raise ProtocolError(f"png of {len(content)} bytes cannot be decoded")
    try:
        rgb: bytes = np.ascontiguousarray(pixels[:, :, ::-1]).tobytes()
        return rgb.decode().rstrip("\n")
    except UnicodeDecodeError as error:
        raise ProtocolError(f"png does not contain UTF-8 text: {error}") from error
