"""A TCP link of a given rate and delay that can be cut, or lose everything without a word.

Bytes at `port` → wait for their turn on the one line of their direction, travel → `target_port`.
All connections share the line, as they share a mobile network. A sender feels the rate once
`QUEUE_S` of its bytes wait, as before a router with a short queue.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from dataclasses import dataclass
from typing import Final, Self

CHUNK_BYTES: Final = 1400
"""About one packet of Ethernet."""
QUEUE_S: Final = 0.05
SOCKET_BYTES: Final = 32 * 1024
"""Of the sockets' receive buffers: what a sender may have on its way unnoticed."""


@dataclass(frozen=True)
class LinkShape:
    """One link, the same in both directions."""

    mbit_s: float | None = None
    """None: as fast as the loopback."""
    round_trip_s: float = 0.0


class _Line:
    """One direction: bytes leave one after another, and arrive later."""

    def __init__(self, shape: LinkShape) -> None:
        self._byte_s = 0.0 if shape.mbit_s is None else 8e-6 / shape.mbit_s
        self._delay_s = shape.round_trip_s / 2
        self._lock = threading.Lock()
        self._free_s = 0.0
        self.sent_bytes = 0

    def departs(self, count: int) -> float:
        """Take a turn for `count` bytes; return when they arrive."""
        with self._lock:
            self.sent_bytes += count
            self._free_s = max(self._free_s, time.monotonic()) + count * self._byte_s
            return self._free_s + self._delay_s

    @property
    def waits_s(self) -> float:
        """How long the queue before this line is."""
        return self._free_s - time.monotonic()


class _Way:
    """One connection in one direction: what it read, and when that arrives."""

    def __init__(self, source: socket.socket, sink: socket.socket, line: _Line) -> None:
        self.source, self.sink, self._line = source, sink, line
        self._travelling: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def take(self) -> None:
        """Read until the source ends."""
        with contextlib.suppress(OSError):
            while chunk := self.source.recv(CHUNK_BYTES):
                self._travelling.put((self._line.departs(len(chunk)), chunk))
                time.sleep(max(0.0, self._line.waits_s - QUEUE_S))
        self._travelling.put((self._line.departs(0), b""))

    def arrive(self) -> bytes:
        """Wait for the next bytes; empty at the end."""
        due_s, chunk = self._travelling.get()
        time.sleep(max(0.0, due_s - time.monotonic()))
        return chunk


class SlowLink:
    """A context manager; `up` leads to the target, `down` comes from it."""

    def __init__(self, target_port: int, shape: LinkShape | None = None) -> None:
        self._target = target_port
        shape = shape or LinkShape()
        self.up, self.down = _Line(shape), _Line(shape)
        self._light = threading.Event()
        self._light.set()
        self._ends: list[socket.socket] = []
        self._lost: set[socket.socket] = set()
        self._closing = False
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def go_dark(self) -> None:
        """Forward nothing more and close nothing; what comes meanwhile arrives later."""
        self._light.clear()

    def come_back(self) -> None:
        """End `go_dark`."""
        self._light.set()

    def lose_connections(self) -> None:
        """Forget the connections that are open, as a router does: no end is told. New ones work."""
        self._lost |= set(self._ends)

    def cut(self) -> None:
        """Close the connections that are open. New ones work."""
        self._close(list(self._ends))

    # --- own threads -----------------------------------------------------------------------------

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        self._light.wait()
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
        try:
            far.connect(("127.0.0.1", self._target))
        except OSError:
            self._close([near, far])
            return
        self._ends += [near, far]
        if self._closing:
            self._close([near, far])
        for way in (_Way(near, far, self.up), _Way(far, near, self.down)):
            threading.Thread(target=way.take, daemon=True).start()
            threading.Thread(target=self._deliver, args=(way,), daemon=True).start()

    def _deliver(self, way: _Way) -> None:
        with contextlib.suppress(OSError):
            while chunk := way.arrive():
                self._light.wait()
                if way.sink in self._lost:
                    return
                way.sink.sendall(chunk)
        if way.sink not in self._lost:
            self._close([way.source, way.sink])

    def _close(self, ends: list[socket.socket]) -> None:
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._light.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
