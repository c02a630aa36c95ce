"""Logging on a separate thread, so that a blocked terminal or a full pipe delays nothing else.

Records of any thread → a bounded queue → the existing handlers. Records beyond the bound are lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from logging.handlers import QueueHandler

MOST_WAITING = 1000
LAST_WORDS_S = 0.5
"""How long the last records may take to be written when the process ends."""


class _LossyHandler(QueueHandler):
    def enqueue(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(record)


@contextlib.contextmanager
def unblocked() -> Iterator[None]:
    """Log lines do not block inside the block. If the last ones cannot be written, the process ends
    with exit code 0 at the end of the block: later code could not print anything either."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(MOST_WAITING)
    lossy = _LossyHandler(waiting)
    root.handlers[:] = [lossy]
    writer = threading.Thread(target=_write, args=(waiting, handlers), daemon=True, name="logs")
    writer.start()
    is_orderly = False
    try:
        yield
        is_orderly = True
    finally:
        deadline_s = time.monotonic() + LAST_WORDS_S
        while waiting.unfinished_tasks and time.monotonic() < deadline_s:
            time.sleep(0.005)
        if waiting.unfinished_tasks and is_orderly:
            os._exit(0)
        root.handlers[:] = handlers


def _write(waiting: queue.Queue[logging.LogRecord], handlers: list[logging.Handler]) -> None:
    while True:
        record = waiting.get()
        for handler in handlers:
            if record.levelno >= handler.level:
                handler.handle(record)
        waiting.task_done()
