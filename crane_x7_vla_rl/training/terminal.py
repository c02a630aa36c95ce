"""A training outlives its terminal: standard output and error survive it, and so does the start.

A lost ssh session makes every write fail with EIO, a pipe whose reader has ended with EPIPE. A
training of days must not end because of it: its log is in the run's folder, so such writes are
dropped.
"""

from __future__ import annotations

import errno
import io
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

GONE: Final = (errno.EIO, errno.EPIPE)
"""Errors of a terminal without its other end, and of a pipe without a reader."""


class _LossyFile(io.FileIO):
    """A file descriptor whose reader may go away."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return memoryview(data).nbytes


@contextmanager
def outlived() -> Iterator[None]:
    """Keep a command alive inside when its terminal or ssh session is lost.

    Imports and checks take seconds before `Interrupt` takes SIGHUP over. A handler that does
    nothing, in place of SIG_IGN, which `Interrupt` takes for nohup and children would inherit.
    """
    _survive_its_loss()
    before = signal.getsignal(signal.SIGHUP)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _survive_its_loss() -> None:
    """From now on, drop writes to a standard output or error that is closed.

    Streams that other code has replaced stay unchanged.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or not isinstance(stream, io.TextIOWrapper):
            continue
        with suppress(OSError):
            stream.flush()
        file: Any = _LossyFile(stream.fileno(), "wb", closefd=False)
        lossy = io.TextIOWrapper(
            file if stream.write_through else io.BufferedWriter(file),
            stream.encoding, stream.errors,
            line_buffering=stream.line_buffering, write_through=stream.write_through,
        )  # fmt: skip
        setattr(sys, name, lossy)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                handler.setStream(lossy)
