"""Keys of a terminal as orders. Standard input → a queue of events; the terminal is restored.

Space starts or stops, d discards, q quits. Without a terminal there are no keys, and no error.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from typing import IO, Final

from crane_x7_remote.record.events import Event, Ordered, Word
from crane_x7_remote.system.keys import Keys, typed_keys

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
    stop = threading.Event()
    with typed_keys(stream) as keys:
        reader = threading.Thread(
            target=_read, args=(keys, events, is_recording, stop), name="keys", daemon=True
        )
        reader.start()
        try:
            yield True
        finally:
            stop.set()
            reader.join(2 * POLL_S)


def _read(
    keys: Keys,
    events: queue.SimpleQueue[Event],
    is_recording: Callable[[], bool],
    stop: threading.Event,
) -> None:
    while not stop.is_set() and not keys.has_ended:
        key = keys.next(POLL_S)
        word = None if key is None else order(key, is_recording())
        if word is not None:
            events.put(Ordered(word, "keyboard"))


def order(key: str, is_recording: bool) -> Word | None:
    """Return what a key means."""
    if key == " ":
        return "stop" if is_recording else "start"
    meanings: dict[str, Word] = {"d": "discard", "q": "quit"}
    return meanings.get(key)
