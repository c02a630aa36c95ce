"""Keys of a terminal as orders. Standard input → a queue of events; the terminal is restored.

Space starts or stops, d discards, q quits. Without a terminal there are no keys, and no error.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from typing import IO, Final

from crane_x7_remote.record.events import Event, Ordered, Word

POLL_S: Final = 0.1
HELP: Final = "Space: start, stop · d: discard · q: quit"


@contextlib.contextmanager
def key_orders(
    events: queue.SimpleQueue[Event],
    is_recording: Callable[[], bool],
    stream: IO[str] | None = None,
) -> Iterator[bool]:
    """Put an order for each known key; yields whether there is a terminal."""
    stream = stream or sys.stdin
    if stream is None or stream.closed or not stream.isatty():
        yield False
        return
    terminal = stream.fileno()
    before = termios.tcgetattr(terminal)
    stop = threading.Event()
    reader = threading.Thread(
        target=_read, args=(terminal, events, is_recording, stop), name="keys", daemon=True
    )
    try:
        tty.setcbreak(terminal, termios.TCSANOW)
        reader.start()
        yield True
    finally:
        stop.set()
        with contextlib.suppress(termios.error, OSError):  # the terminal may be gone
            termios.tcsetattr(terminal, termios.TCSANOW, before)
        reader.join(2 * POLL_S)


def _read(
    terminal: int,
    events: queue.SimpleQueue[Event],
    is_recording: Callable[[], bool],
    stop: threading.Event,
) -> None:
    while not stop.is_set():
        try:
            if not select.select([terminal], [], [], POLL_S)[0]:
                continue
            typed = os.read(terminal, 64)
        except OSError:
            return
        if not typed:
            return
        for key in typed.decode(errors="ignore"):
            word = order(key, is_recording())
            if word is not None:
                events.put(Ordered(word, "keyboard"))


def order(key: str, is_recording: bool) -> Word | None:
    """Return what a key means."""
    if key == " ":
        return "stop" if is_recording else "start"
    meanings: dict[str, Word] = {"d": "discard", "q": "quit"}
    return meanings.get(key)
