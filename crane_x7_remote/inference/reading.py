"""Decodes camera frames, and a slow policy's next one ahead, while the policy computes.

Encoded frames go in, images come out. Decoding takes a millisecond or two, which a policy slower
than the period would have to wait for in each tick.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from crane_x7_remote.rosbridge import messages
from crane_x7_remote.rosbridge.messages import EncodedFrame, MessageError
from crane_x7_vla_rl.types import Image

MARGIN_S = 0.002
"""How much earlier than necessary a frame is decoded ahead: waiting is not exact."""


@dataclass(frozen=True, eq=False)
class _Read:
    frame: EncodedFrame
    result: Image | MessageError
    took_s: float


class FrameReader:
    """Decodes one frame at a time, on the thread that calls."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ahead: _Read | None = None
        self._took_s = 0.0

    @property
    def lead_s(self) -> float:
        """How long before it is needed a frame should be decoded ahead."""
        return 2 * self._took_s + MARGIN_S

    def decode(self, frame: EncodedFrame) -> tuple[Image, float]:
        """Return the image, (H, W, 3) uint8 RGB, and how long decoding it took, s.

        Raises messages.MessageError.
        """
        read, self._ahead = self._ahead, None
        if read is None or read.frame is not frame:
            read = self._read(frame)
        if isinstance(read.result, MessageError):
            raise read.result
        return read.result, read.took_s

    def decode_ahead(self, frame: EncodedFrame | None, used: EncodedFrame | None) -> None:
        """Decode `frame` for the `decode` that follows, if it is one that is not yet used."""
        if frame is not None and frame is not used:
            self._ahead = self._read(frame)

    def _read(self, frame: EncodedFrame) -> _Read:
        started_s = self._clock()
        try:
            result: Image | MessageError = messages.decode_image(frame)
        except MessageError as error:
            result = error
        self._took_s = self._clock() - started_s
        return _Read(frame, result, self._took_s)
