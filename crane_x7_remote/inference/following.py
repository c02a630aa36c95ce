"""Whether the arm follows its trajectories. Trajectories heard, joints measured → `Hold`. Pure.

The loop holds when the arm departs from its path for a second (blocked, torque off, emergency
stop), until the arm is at rest.

Displacements are compared, not positions: for an arm off its path, the path restarts from the
measured state, so a blocked arm would always be on it. The gripper is not checked; it closes on
objects. Legend: 7 arm joints, rad; times on the robot's clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_vla_rl.robot import ARM_DOF, JOINT_NAMES
from crane_x7_vla_rl.types import Array, JointState, Trajectory

WINDOWS_S = (1.0, 4.0)
"""Windows of the comparison; the longer one finds slow paths."""
LAG_S = 0.5
"""An arm may trail its path by this much; a servo takes 0.2 s, a busy simulation more."""
PERSISTS_S = 0.3
"""The arm must depart from its path for this long before the loop holds."""
REST_S, REST_RAD = 1.0, 0.02
"""An arm that moved by less than REST_RAD for REST_S is at rest; the loop then retries."""
FORGET_S = 1.5
"""From this long after the end of its path, something else may move the arm."""
LONG_GAP_S = 0.5
"""After a gap this long in the measured states, the comparison restarts."""
SPACING_S = 0.015
"""Measured states closer together than this are skipped."""


@dataclass(frozen=True, eq=False)
class _Point:
    time_s: float
    sent: Array
    """(7,) displacement of the path since the start of the comparison."""
    measured: Array
    """(7,)."""


class FollowWatch:
    """Watches one arm for one loop; everything but `heard` runs on the loop's thread."""

    def __init__(self, tracking_rad: float, needs_echo: bool = True) -> None:
        """`needs_echo`: a trajectory counts from the time it was heard on the robot's topic,
        otherwise from its stamp."""
        self._tracking_rad = tracking_rad
        self._needs_echo = needs_echo
        self._sent: dict[int, Trajectory] = {}
        self._heard: deque[tuple[int, float]] = deque(maxlen=64)
        self._path: Trajectory | None = None
        self._points: deque[_Point] = deque()
        self._since_s: float | None = None
        self._fault: str | None = None

    @property
    def hold(self) -> Hold | None:
        """Why the arm must not be driven, or None."""
        if self._fault is None:
            return None
        return Hold(
            HoldReason.NOT_FOLLOWING,
            f"{self._fault}: blocked, torque off, emergency stop, or a controller that is not"
            f" active (`ros2 control list_controllers`); retried after {REST_S:g} s at rest",
        )

    def sent(self, trajectory: Trajectory) -> None:
        """Note a trajectory that was passed to the socket."""
        self._sent[trajectory.sequence] = trajectory
        while len(self._sent) > 64:
            del self._sent[next(iter(self._sent))]
        if not self._needs_echo:
            self.heard(trajectory.sequence, trajectory.stamp_s)

    def heard(self, sequence: int, robot_s: float) -> None:
        """Note that a trajectory was heard on the robot's topic, at this time of the robot; may be
        called from another thread."""
        self._heard.append((sequence, robot_s))

    def restart(self) -> None:
        """Forget sent trajectories: a new link, a step of the clock, or another loop that drove."""
        self._sent.clear()
        self._path = None
        self._forget_points()

    def observe(self, joints: JointState, measured_s: float) -> Hold | None:
        """Process a measured state; return `hold`."""
        position = joints.position_rad[:ARM_DOF]
        if not np.isfinite(position).all():
            return self.hold
        self._add(position, measured_s)
        if self._fault is None:
            self._fault = self._judge(measured_s)
            if self._fault is not None:
                self.restart()
        elif self._rests():
            self._fault = None
            self.restart()
        return self.hold

    def _add(self, position: Array, measured_s: float) -> None:
        last = self._points[-1] if self._points else None
        if last is not None and not 0 <= measured_s - last.time_s <= LONG_GAP_S:
            self._forget_points()
            last = None
        if last is not None and measured_s - last.time_s < SPACING_S:
            return
        gone = self._follow_path(measured_s if last is None else last.time_s, measured_s)
        if last is not None:
            gone = gone + last.sent
        path = self._path
        if path is not None and measured_s > path.stamp_s + path.valid_s + FORGET_S:
            self._path = None
        self._points.append(_Point(measured_s, gone, position))
        while self._points[0].time_s < measured_s - WINDOWS_S[-1] - LAG_S - LONG_GAP_S:
            self._points.popleft()

    def _follow_path(self, since_s: float, until_s: float) -> Array:
        """Return the path's displacement in between, (7,); it switches to each trajectory when that
        is heard, unless the trajectory has ended by then."""
        gone = np.zeros(ARM_DOF)
        while self._heard and self._heard[0][1] <= until_s:
            sequence, heard_s = self._heard.popleft()
            trajectory = self._sent.pop(sequence, None)
            if trajectory is None or heard_s > trajectory.stamp_s + trajectory.valid_s:
                continue
            if heard_s > since_s:
                gone = gone + self._gone(since_s, heard_s)
                since_s = heard_s
            self._path = trajectory
        return gone + self._gone(since_s, until_s)

    def _gone(self, since_s: float, until_s: float) -> Array:
        """Return the path's displacement in between, (7,): the integral of its velocity, because a
        path may start elsewhere than the previous one ended."""
        path = self._path
        if path is None:
            return np.zeros(ARM_DOF)
        knots = path.time_from_start_s + path.stamp_s
        inside = knots[(knots > since_s) & (knots < until_s)]
        times = np.concatenate([[since_s], inside, [until_s]])
        speed = np.array(
            [
                np.interp(times, knots, path.velocity_rad_s[:, joint], left=0.0, right=0.0)
                for joint in range(ARM_DOF)
            ]
        )  # (7, n)
        steps = (speed[:, 1:] + speed[:, :-1]) / 2 * np.diff(times)
        return np.asarray(steps.sum(axis=1))

    def _judge(self, now_s: float) -> str | None:
        """Describe how the arm departs from its path, if it has for long enough."""
        if self._path is None:
            return None
        found = next(filter(None, (self._parted(window_s) for window_s in WINDOWS_S)), None)
        if found is None:
            self._since_s = None
            return None
        if self._since_s is None:
            self._since_s = now_s
        return found if now_s - self._since_s >= PERSISTS_S else None

    def _parted(self, window_s: float) -> str | None:
        end = self._points[-1]
        start_s = end.time_s - window_s
        if self._points[0].time_s > start_s - LAG_S:
            return None
        start = next(point for point in self._points if point.time_s >= start_s)
        first = self._sent_around(start.time_s)
        last = self._sent_around(end.time_s)
        moved = end.measured - start.measured
        least = last.min(axis=0) - first.max(axis=0) - self._tracking_rad
        most = last.max(axis=0) - first.min(axis=0) + self._tracking_rad
        excess = np.maximum(least - moved, moved - most)
        joint = int(excess.argmax())
        if excess[joint] <= 0:
            return None
        wanted = float(end.sent[joint] - start.sent[joint])
        return (
            f"{JOINT_NAMES[joint]} moved {moved[joint]:.3f} rad in {window_s:g} s, but its path"
            f" moved {wanted:.3f} rad"
        )

    def _sent_around(self, time_s: float) -> Array:
        """Return the range of the path's positions for an arm that trails it, (n, 7)."""
        return np.array(
            [each.sent for each in self._points if time_s - LAG_S <= each.time_s <= time_s]
        )

    def _rests(self) -> bool:
        end_s = self._points[-1].time_s
        if self._points[0].time_s > end_s - REST_S:
            return False
        recent = [each.measured for each in self._points if each.time_s >= end_s - REST_S]
        return bool(np.ptp(np.array(recent), axis=0).max() <= REST_RAD)

    def _forget_points(self) -> None:
        self._points.clear()
        self._since_s = None
