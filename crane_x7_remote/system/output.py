"""Output of other programs: chunks of bytes → lines of text for a log, each of bounded length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from crane_x7_vla_rl.log_text import shown as shown
from crane_x7_vla_rl.secret_text import remember as remember

LINE_BYTES: Final = 1 << 20
"""A longer line is cut, and its rest discarded."""


class LineSplitter:
    """Splits a stream into lines; neither a line nor an unfinished rest grows without limit."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False
        """Whether the current line is already too long."""

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Yield each line that ended in `chunk`."""
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            yield from self._take(piece)
            if not self._skipping:
                yield self._cut()
            self._rest, self._skipping = b"", False
        yield from self._take(rest)

    def _take(self, piece: bytes) -> Iterator[str]:
        if self._skipping:
            return
        self._rest += piece[: LINE_BYTES + 1 - len(self._rest)]
        if len(self._rest) > LINE_BYTES:
            yield self._cut() + "…"
            self._rest, self._skipping = b"", True

    def end(self) -> Iterator[str]:
        """Yield the text after the last line break."""
        if self._rest:
            yield self._cut()
        self._rest, self._skipping = b"", False

    def _cut(self) -> str:
        return self._rest[:LINE_BYTES].decode(errors="replace").rstrip()
