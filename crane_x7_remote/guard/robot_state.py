"""The guard's view of the robot. Joint states with stamps → clock, newest state, rest. Pure.

The guard runs next to the robot, so a joint state takes a millisecond to arrive, and is stamped by
the controller's clock. Times are seconds on the guard's monotonic clock, unless their name contains
`robot`; so a step of the robot's clock changes only the offset.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from crane_x7_remote.rosbridge import messages
from crane_x7_vla_rl.robot import ARM_DOF
from crane_x7_vla_rl.types import Array, JointState

STEP_S = 0.05
"""A stamp further ahead than this shows that the clock was stepped; one further back is late."""
BACK_S = 0.3
"""Stamps that are late by the same amount for this long show that the clock was set back."""
DRIFT = 200e-6
"""Two quartz clocks drift apart by up to this rate."""
REST_S = 0.3
"""The arm is at rest when no joint moved by more than REST_RAD for this long."""
REST_RAD = 0.01


@dataclass(frozen=True, eq=False)
class MeasuredJoints:
    """The newest joint state."""

    state: JointState
    taken_s: float
    """When it was measured."""
    arrival_s: float


class RobotState:
    """Follows one robot's joint states."""

    def __init__(self) -> None:
        self.offset_s: float | None = None
        """The robot's clock minus ours."""
        self.newest: MeasuredJoints | None = None
        self._seen_s = 0.0
        self._late: tuple[float, float] | None = None
        """(start, offset) of states that are late by one amount."""
        self._path: deque[tuple[float, Array]] = deque()

    def hear(self, message: Mapping[str, Any], now_s: float) -> bool:
        """Process a JointState message; return whether the robot's clock was stepped.

        Raises MessageError.
        """
        state = messages.joint_state(message)
        stamp_s = messages.read_stamp(message)
        if stamp_s <= 0:
            raise messages.MessageError(
                f"joint state's header stamp is {stamp_s}, expected the robot's time"
            )
        stepped = self._follow_clock(stamp_s - now_s, now_s)
        assert self.offset_s is not None
        taken_s = min(stamp_s - self.offset_s, now_s)
        self.newest = MeasuredJoints(state, taken_s, now_s)
        self._path.append((now_s, state.position_rad))
        while now_s - self._path[0][0] > REST_S + 0.2:
            self._path.popleft()
        return stepped

    def robot_time(self, now_s: float) -> float:
        """Return the robot's time; requires a first joint state."""
        assert self.offset_s is not None
        return now_s + self.offset_s

    def is_fresh(self, now_s: float) -> bool:
        """Whether the newest state is recent: the robot's side runs, and its clock is known."""
        return self.newest is not None and now_s - self.newest.taken_s <= STEP_S

    def is_at_rest(self, now_s: float) -> bool:
        """Whether no joint of the arm has moved for REST_S."""
        recent = [position[:ARM_DOF] for at_s, position in self._path if now_s - at_s <= REST_S]
        covers = bool(self._path) and now_s - self._path[0][0] >= REST_S
        return covers and len(recent) > 1 and bool((np.ptp(recent, axis=0) <= REST_RAD).all())

    def _follow_clock(self, offset_s: float, now_s: float) -> bool:
        """Add stamp − arrival; the fastest message counts, as it was delayed least."""
        if self.offset_s is None:
            self.offset_s, self._seen_s = offset_s, now_s
            return False
        expected_s = self.offset_s - DRIFT * (now_s - self._seen_s)
        ahead_s = offset_s - expected_s
        if ahead_s >= -STEP_S:
            self._late = None
        elif self._late is None or abs(offset_s - self._late[1]) > STEP_S:
            self._late = (now_s, offset_s)
        is_back = self._late is not None and now_s - self._late[0] >= BACK_S
        if ahead_s > 0 or is_back:
            self.offset_s, self._seen_s, self._late = offset_s, now_s, None
        return ahead_s > STEP_S or is_back
