"""Detects impossible joint states. Every valid JointState → `JointFault` or None. Pure.

A single state looks plausible; compared with the previous ones, no arm can have moved that way. The
watch looks for positions that change faster than the joints can move; for values that alternate
between two positions, or messages of two layouts, as when several nodes publish on the topic; for
velocities that contradict the change of positions. The gripper is not checked: a finger may snap
off an object.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from crane_x7_vla_rl.robot import ARM_DOF, JOINT_NAMES, VELOCITY_RAD_S
from crane_x7_vla_rl.types import Array, JointState

SPEED_FACTOR = 1.2
"""A joint may seem this much faster than its limit: stamps are not exact."""
SLACK_RAD = 0.05
"""It may also jump by this much: encoder steps, play, a stamp that jitters."""
ZIGZAG_RAD, ZIGZAG_RAD_S2 = 0.03, 15.0
"""There and back within three messages, by more than this plus the displacement due to an
acceleration of twice the arm's limit, is not a movement."""
ALTERNATIONS, ALTERNATION_S = 3, 2.0
"""This many within this time are not a coincidence."""
VELOCITY_BIN_S, VELOCITY_BINS = 0.25, 4
"""Displacement is compared with the mean reported velocity, over VELOCITY_BINS intervals of at
least VELOCITY_BIN_S."""
VELOCITY_SLACK_RAD, VELOCITY_SHARE = 0.2, 0.7
"""They may differ by this, plus this share of the larger one: filters, coarse units, a servo (or
simulation) that reads its velocity at the end of each of its steps."""
VELOCITY_PERIOD_S = 0.05
"""Messages further apart than this say too little about the motion between them."""
UNSEEN_RAD_S2 = 2.0
"""A quarter of the arm's acceleration: times the square of the time between two messages, the arm
may have moved this far without showing a velocity."""
CONTRADICTIONS = 4
"""This many intervals in a row must contradict."""
LONG_GAP_S = 1.0
"""After a gap this long nothing is compared; the arm may have been anywhere."""
AGREE_S, LONGEST_AGREE_S = 1.0, 8.0
"""How long states must agree before they are trusted again; doubled each time they fail soon."""
SOON_S = 10.0
LOOK = "look at `ros2 topic info -v {topic}`"


class FaultKind(StrEnum):
    """The problem of the joint states."""

    IMPOSSIBLE = "impossible"
    """No arm moves like this."""
    CONFLICT = "conflict"
    """They contradict each other: several publishers, or velocities against positions."""


@dataclass(frozen=True)
class JointFault:
    """Why joint states are not trusted at the moment."""

    kind: FaultKind
    detail: str
    until_s: float
    """Time until which they are not trusted, on our monotonic clock; extended by new findings."""


Layout = tuple[object, ...]
"""The layout of one publisher's messages: names, and which lists are filled."""


@dataclass(frozen=True, eq=False)
class _Measurement:
    position: Array
    """(7,)."""
    measured_s: float
    arrival_s: float
    is_stamped: bool


class JointWatch:
    """Watches one topic. Fed by one thread; any thread may read the fault."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._fault: JointFault | None = None
        self._agree_s = AGREE_S
        self.reset()

    def reset(self) -> None:
        """Reset for a new link; a detected fault stays for its time."""
        self._seen: deque[_Measurement] = deque(maxlen=3)
        self._arrivals: deque[float] = deque(maxlen=20)
        self._layout: Layout | None = None
        self._switches: deque[float] = deque(maxlen=ALTERNATIONS)
        self._zigzags: deque[float] = deque(maxlen=ALTERNATIONS)
        self._places = ""
        self._velocity = _VelocityCheck()

    def fault(self, now_s: float) -> JointFault | None:
        """Return why joint states are not trusted at `now_s`, or None."""
        fault = self._fault
        return fault if fault is not None and now_s < fault.until_s else None

    def take(
        self, state: JointState, measured_s: float, arrival_s: float, layout: Layout, stamped: bool
    ) -> None:
        """Process a message. `measured_s` is when it was measured, on our clock: by its stamp if
        that can be trusted (`stamped`), by its arrival otherwise."""
        position = state.position_rad[:ARM_DOF]
        if not np.isfinite(position).all():
            return
        if self._seen and arrival_s - self._seen[-1].arrival_s > LONG_GAP_S:
            self.reset()
        self._seen.append(_Measurement(position, measured_s, arrival_s, stamped))
        self._arrivals.append(arrival_s)
        if self._layout is not None and layout != self._layout:
            self._switches.append(arrival_s)
        self._layout = layout
        velocity = state.velocity_rad_s[:ARM_DOF]
        too_fast, zigzag = self._too_fast(), self._zigzag(arrival_s)
        found = (
            self._alternates(self._switches, arrival_s, "messages of two layouts (names, velocity)")
            or zigzag
            or self._velocity.take(position, velocity, measured_s)
        )
        if found is not None:
            self._report(FaultKind.CONFLICT, found, arrival_s)
        elif too_fast is not None:
            self._report(FaultKind.IMPOSSIBLE, too_fast, arrival_s)

    @property
    def _period_s(self) -> float:
        """Mean time between the last messages."""
        arrivals = self._arrivals
        return (arrivals[-1] - arrivals[0]) / max(len(arrivals) - 1, 1)

    def _between_s(self, first: _Measurement, second: _Measurement) -> float:
        """Return the time between two measurements: by stamps where plausible, else by arrivals."""
        by_arrival_s = second.arrival_s - first.arrival_s
        if first.is_stamped and second.is_stamped:
            by_stamp_s = second.measured_s - first.measured_s
            if 0 < by_stamp_s <= by_arrival_s + LONG_GAP_S:
                return max(by_stamp_s, self._period_s)
        return max(by_arrival_s, self._period_s)

    def _too_fast(self) -> str | None:
        if len(self._seen) < 2:
            return None
        before, now = self._seen[-2], self._seen[-1]
        between_s = self._between_s(before, now)
        moved = np.abs(now.position - before.position)
        excess = moved - SPEED_FACTOR * VELOCITY_RAD_S[:ARM_DOF] * between_s - SLACK_RAD
        joint = int(excess.argmax())
        if excess[joint] <= 0:
            return None
        return (
            f"{JOINT_NAMES[joint]} went from {before.position[joint]:.3f} to"
            f" {now.position[joint]:.3f} rad within {between_s * 1e3:.1f} ms, its limit is"
            f" {VELOCITY_RAD_S[joint]:.3f} rad/s: several publishers on {self._topic}, or a faulty"
            " encoder"
        )

    def _zigzag(self, now_s: float) -> str | None:
        if len(self._seen) == 3:
            first, second, third = self._seen
            there, back = second.position - first.position, third.position - second.position
            longest_s = max(self._between_s(first, second), self._between_s(second, third))
            least = ZIGZAG_RAD + ZIGZAG_RAD_S2 * longest_s**2
            turns = (there * back < 0) & (np.minimum(np.abs(there), np.abs(back)) > least)
            if turns.any():
                self._zigzags.append(now_s)
                joint = int((np.abs(there) * turns).argmax())
                places = f"{second.position[joint]:.3f} and {third.position[joint]:.3f} rad"
                self._places = f"{JOINT_NAMES[joint]} at {places}"
        return self._alternates(self._zigzags, now_s, self._places)

    def _alternates(self, times: deque[float], now_s: float, what: str) -> str | None:
        if len(times) < ALTERNATIONS or now_s - times[0] > ALTERNATION_S:
            return None
        return f"several publishers on {self._topic}: {what} alternate"

    def _report(self, kind: FaultKind, found: str, now_s: float) -> None:
        before = self._fault
        if before is None or now_s - before.until_s > SOON_S:
            self._agree_s = AGREE_S
        elif now_s >= before.until_s:
            self._agree_s = min(2 * self._agree_s, LONGEST_AGREE_S)
        if before is not None and now_s < before.until_s and before.kind is FaultKind.CONFLICT:
            kind, found = before.kind, before.detail.partition("; look at")[0]
        hint = LOOK.format(topic=self._topic)
        self._fault = JointFault(kind, f"{found}; {hint}", now_s + self._agree_s)


@dataclass(frozen=True, eq=False)
class _Piece:
    """An interval of at least VELOCITY_BIN_S."""

    start_s: float
    end_s: float
    moved: Array
    """(7,)."""
    said: Array
    """(7,) displacement by the reported velocities."""
    unsure: Array
    """(7,) possible displacement between two messages that no velocity shows."""


class _VelocityCheck:
    """Compares the joints' displacement with their reported velocities."""

    def __init__(self) -> None:
        self._pieces: deque[_Piece] = deque(maxlen=VELOCITY_BINS)
        self._messages: list[tuple[float, Array, Array]] = []
        self._contradictions = 0

    def take(self, position: Array, velocity: Array, measured_s: float) -> str | None:
        """Process a message; return the contradiction, once per interval."""
        messages = self._messages
        if messages and abs(measured_s - messages[-1][0]) > LONG_GAP_S:
            messages.clear()
            self._pieces.clear()
        messages.append((measured_s, position, velocity))
        if measured_s - messages[0][0] < VELOCITY_BIN_S:
            return None
        self._pieces.append(_piece(messages))
        self._messages = messages[-1:]
        if len(messages) - 1 < VELOCITY_BIN_S / VELOCITY_PERIOD_S:
            self._pieces.clear()
        return self._contradiction() if len(self._pieces) == VELOCITY_BINS else None

    def _contradiction(self) -> str | None:
        moved, said, unsure = (
            np.sum([getattr(piece, name) for piece in self._pieces], axis=0)
            for name in ("moved", "said", "unsure")
        )
        allowed = VELOCITY_SLACK_RAD + VELOCITY_SHARE * np.maximum(np.abs(said), np.abs(moved))
        excess = np.nan_to_num(np.abs(moved - said) - allowed - unsure, nan=-1.0)
        joint = int(excess.argmax())
        self._contradictions = self._contradictions + 1 if excess[joint] > 0 else 0
        if self._contradictions < CONTRADICTIONS:
            return None
        span_s = self._pieces[-1].end_s - self._pieces[0].start_s
        return (
            f"{JOINT_NAMES[joint]} moved {moved[joint]:.3f} rad in {span_s:.2f} s, but by its"
            f" reported velocities {said[joint]:.3f} rad: they contradict each other (several"
            " publishers, or a driver with wrong velocities)"
        )


def _piece(messages: list[tuple[float, Array, Array]]) -> _Piece:
    """Integrate the velocities, each over the time until the next message; if stamps jitter, the
    sum of these times is scaled to the time that passed."""
    times = np.array([measured_s for measured_s, _, _ in messages])
    velocity = np.array([speed for _, _, speed in messages])  # (n, 7)
    steps = np.maximum(np.diff(times), 0.0)[:, None]
    steps = steps * ((times[-1] - times[0]) / steps.sum())
    said = ((velocity[1:] + velocity[:-1]) / 2 * steps).sum(axis=0)
    unsure = (np.abs(np.diff(velocity, axis=0)) * steps / 2 + UNSEEN_RAD_S2 * steps**2).sum(axis=0)
    return _Piece(float(times[0]), float(times[-1]), messages[-1][1] - messages[0][1], said, unsure)
