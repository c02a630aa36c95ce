"""Who drives the arm: listens to the trajectories that reach the robot's topic, ours and others'.

Session names and sequence numbers come in with the time they were heard; out go a `Hold` while
another loop drives, and whether our own newest trajectory is known to have arrived.

Two loops never drive for long: a loop first listens; one that hears another stays quiet until that
one was silent for `silence_s`; should both have begun at once, the smaller session name goes on.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from crane_x7_remote.inference.safety import Hold, HoldReason

LISTEN_S = 1.0
"""How long a new link is listened to before the first trajectory."""
SILENCE_S = 2.0
"""Another loop that was not heard for this long has given up the arm."""
ECHO_DECAY = 0.97
"""Per trajectory; a stall of a busy machine is remembered for some seconds."""
ECHO_S = 0.4
"""A trajectory that has not come back from its topic after this is taken for lost."""


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
        self._sent_s: OrderedDict[int, float] = OrderedDict()
        self._in_time = -1
        self._echo_s = 0.0

    @property
    def echo_s(self) -> float:
        """How long our trajectories lately took there and back, the slowest counting most."""
        return self._echo_s

    def link_came_up(self, now_s: float) -> None:
        """Start listening anew; what was sent through the old link may be lost."""
        with self._lock:
            self._listening_since_s = now_s
            self._published_s = None
            self._sent_s.clear()

    def heard(self, session: str, sequence: int, now_s: float) -> None:
        """Note a trajectory that came from the robot's topic."""
        with self._lock:
            if session != self._session:
                self._other, self._other_s = session, now_s
                return
            sent_s = self._sent_s.get(sequence)
            if sent_s is not None and now_s - sent_s <= ECHO_S:
                self._in_time = max(self._in_time, sequence)
                self._echo_s = max(now_s - sent_s, ECHO_DECAY * self._echo_s)

    def published(self, sequence: int, now_s: float) -> None:
        """Note a trajectory of ours that was handed to the socket."""
        with self._lock:
            self._published_s = now_s
            self._sent_s[sequence] = now_s
            while len(self._sent_s) > 256:
                self._sent_s.popitem(last=False)

    def has_arrived(self, sequence: int, now_s: float) -> bool:
        """Whether this trajectory of ours came back in time, or still may."""
        with self._lock:
            sent_s = self._sent_s.get(sequence)
            return sent_s is not None and (self._in_time >= sequence or now_s - sent_s <= ECHO_S)

    def verdict(self, now_s: float) -> Hold | None:
        """Return why this loop must not drive now, or None."""
        with self._lock:
            since_s = self._listening_since_s
            if since_s is None or now_s - since_s < self._listen_s:
                return Hold(
                    HoldReason.LISTENING, f"listening {self._listen_s:g} s for another loop"
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
