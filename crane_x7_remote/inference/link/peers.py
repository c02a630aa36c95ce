"""Whose trajectories reach the robot. Sessions, sequence numbers, times → `Hold`, arrivals. Pure.

The loop listens to a topic that carries the trajectories of all loops of a robot. It shows whether
another loop drives, and which of this loop's trajectories have arrived.

Two loops never drive together for long. A loop first listens; while it hears another one it holds,
until the other was silent for `silence_s`. If both start together, the smaller session name wins.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from crane_x7_remote.inference.hold import Hold, HoldReason

LISTEN_S = 1.0
"""How long to listen on a new link before the first trajectory."""
SHORT_LISTEN_S = 0.3
"""The same for a loop that drove until the link broke."""
SILENCE_S = 2.0
"""Another loop that was silent for this long has released the arm."""
LONGEST_S = 5.0
"""A later echo says nothing about the current link."""


@dataclass(frozen=True)
class _Flight:
    """A trajectory of this loop that has not been heard yet."""

    sent_s: float
    lead_s: float
    """It leaves the previous one this long after `sent_s`; if it arrives later, the arm steps."""
    expires_s: float
    """No controller starts it after this time."""


class Peers:
    """What is known about the loops on one robot; `heard` may be called from another thread."""

    def __init__(
        self, session: str, listen_s: float = LISTEN_S, silence_s: float = SILENCE_S
    ) -> None:
        self._session = session
        self._listen_s = listen_s
        self._silence_s = silence_s
        self._lock = threading.Lock()
        self._listening_since_s: float | None = None
        self._other: str | None = None
        self._other_s = 0.0
        self._published_s: float | None = None
        self._in_flight: OrderedDict[int, _Flight] = OrderedDict()
        self._expired: OrderedDict[int, _Flight] = OrderedDict()
        """Trajectories whose echo would only measure the link's delay."""
        self._arrived = -1
        self._newest = self._replaced = -1
        """The newest trajectory published, and the newest one before another loop was heard."""
        self._echoes_s: list[float] = []

    def link_came_up(self, now_s: float) -> None:
        """Start listening again; trajectories sent through the old link may be lost."""
        with self._lock:
            drove_s = self._published_s
            was_driving = drove_s is not None and now_s - drove_s <= self._silence_s
            # Any other loop waits this long after our last trajectory: the arm is still ours.
            head_start_s = self._listen_s - SHORT_LISTEN_S if was_driving else 0.0
            self._listening_since_s = now_s - max(head_start_s, 0.0)
            self._published_s = None
            self._in_flight.clear()
            self._arrived = -1

    def heard(self, session: str, sequence: int, now_s: float) -> None:
        """Note a trajectory from the robot's topic."""
        with self._lock:
            if session != self._session:
                self._other, self._other_s = session, now_s
                self._replaced = self._newest  # the arm may be on the other's path
                return
            self._drop_expired(now_s)  # the robot repeats one that its controller refused, too
            late = self._expired.pop(sequence, None)
            flight = self._in_flight.get(sequence, late)
            if flight is None:
                return
            if late is None:
                self._arrived = sequence
                for older in [key for key in self._in_flight if key <= sequence]:
                    del self._in_flight[older]  # a link keeps the order: it was refused
            if now_s - flight.sent_s < LONGEST_S:
                self._echoes_s.append(now_s - flight.sent_s)

    def take_echoes_s(self) -> list[float]:
        """Return the round trips of this loop's trajectories since the last call."""
        with self._lock:
            echoes_s, self._echoes_s = self._echoes_s, []
            return echoes_s

    def published(self, sequence: int, now_s: float, lead_s: float, expires_s: float) -> None:
        """Note a trajectory of this loop that was passed to the socket, its lead and its expiry."""
        with self._lock:
            self._published_s, self._newest = now_s, sequence
            self._in_flight[sequence] = _Flight(now_s, lead_s, expires_s)

    def withdrawn(self, sequence: int) -> None:
        """Note that a trajectory was not sent after all."""
        with self._lock:
            self._in_flight.pop(sequence, None)

    def overdue_s(self, now_s: float) -> float | None:
        """Return how long the oldest trajectory that may start late has been under way.

        None if none can start late. Expired ones count as lost from now on.
        """
        with self._lock:
            self._drop_expired(now_s)
            flights = self._in_flight
            waits_s = [
                now_s - each.sent_s
                for each in flights.values()
                if now_s - each.sent_s > each.lead_s
            ]
            return max(waits_s, default=None)

    def _drop_expired(self, now_s: float) -> None:
        for sequence in [key for key, each in self._in_flight.items() if now_s > each.expires_s]:
            self._expired[sequence] = self._in_flight.pop(sequence)
        while len(self._expired) > 64:
            self._expired.popitem(last=False)

    def is_lost(self, sequence: int) -> bool:
        """Whether the arm may be elsewhere than on this trajectory of the loop.

        It was not heard and has expired, or another loop was heard after it was published.
        """
        with self._lock:
            if sequence <= self._replaced:
                return True
            return sequence > self._arrived and sequence not in self._in_flight

    def verdict(self, now_s: float) -> Hold | None:
        """Return why this loop must not drive now, or None."""
        with self._lock:
            since_s = self._listening_since_s
            if since_s is None or now_s - since_s < self._listen_s:
                return Hold(
                    HoldReason.LISTENING, f"listening for other loops for {self._listen_s:g} s"
                )
            if self._other is None or now_s - self._other_s > self._silence_s:
                return None
            is_driving = (
                self._published_s is not None and now_s - self._published_s <= self._silence_s
            )
            if is_driving and self._session < self._other:
                return None
            self._published_s = None
            return Hold(
                HoldReason.OTHER_LOOP,
                f"loop {self._other} drives the arm; taking over {self._silence_s:g} s after its"
                " last trajectory",
            )
