"""The arm's trajectory controller and the gripper's action controller, as on the real robot.

Both follow ros2_control's controllers (joint_trajectory_controller and
gripper_action_controller, Humble) at their 200 Hz update rate. Parsed messages and the robot's time
come in, joint targets go out; nothing here does I/O or reads a clock. Besides, the trajectory
controller understands the validity and sequence that this system's loop writes into a trajectory,
and measures what it executes, so that a test can ask what reached the robot.

Legend: K points of a trajectory, N updates, 7 arm joints; times in s on the robot's clock, angles
in rad.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from crane_x7_remote.rosbridge.messages import ParsedTrajectory
from crane_x7_remote.sim_robot.spline import Array, Spline
from crane_x7_vla_rl.robot import (
    ARM_DOF,
    ARM_JOINT_NAMES,
    CONTROLLER_HZ,
    LOWER_RAD,
    UPPER_RAD,
    VELOCITY_RAD_S,
)

TICK_S = 1 / CONTROLLER_HZ
REMEMBERED_SESSIONS = 64
"""Sessions whose newest sequence is remembered; the one unused for longest is forgotten first."""
LONGEST_CATCH_UP_TICKS = 20 * CONTROLLER_HZ
"""After a longer stall of the process, the ticks in between are skipped."""
TOLERANCE = 1e-3
"""Rounding allowed, in rad and as a share of the velocity limit, before it counts as violation."""


class Refusal(StrEnum):
    """Why a trajectory is not executed."""

    MALFORMED = "malformed"
    JOINT_NAMES = "joint_names"
    NO_POINTS = "no_points"
    LENGTHS = "lengths"
    TIMES = "times"
    NON_FINITE = "non_finite"
    ENDED_IN_THE_PAST = "ended_in_the_past"
    EXPIRED = "expired"
    OUT_OF_ORDER = "out_of_order"


class TrajectoryRefused(Exception):
    """A trajectory is not executed; the one before goes on."""

    def __init__(self, reason: Refusal, detail: str) -> None:
        super().__init__(f"trajectory refused, {reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True)
class ControllerReport:
    """What the controller took, refused and executed so far."""

    accepted: int
    rejected: dict[str, int]
    """Reason → count."""
    max_velocity_ratio: float
    """Largest step between two updates, as a share of what the velocity limit allows."""
    max_step_rad: float
    """Largest step of a joint between two updates of 5 ms."""
    limit_violations: int
    """Updates at which a joint was beyond its position or velocity limit."""


class TrajectoryController:
    """Executes the newest accepted trajectory; starts by holding `position_rad` (7,)."""

    def __init__(self, position_rad: Array, now_s: float) -> None:
        self._zero_s = now_s
        self._tick = 0
        self._spline = Spline(np.zeros(1), np.array(position_rad, dtype=np.float64)[None])
        self._desired: Array = self._spline.position_rad[0]
        self._newest_sequence: OrderedDict[str, int] = OrderedDict()
        self._accepted = 0
        self._rejected: Counter[str] = Counter()
        self._max_ratio = self._max_step = 0.0
        self._violations = 0

    @property
    def report(self) -> ControllerReport:
        return ControllerReport(
            accepted=self._accepted,
            rejected=dict(self._rejected),
            max_velocity_ratio=self._max_ratio,
            max_step_rad=self._max_step,
            limit_violations=self._violations,
        )

    def accept(self, trajectory: ParsedTrajectory, now_s: float) -> None:
        """Let `trajectory` replace the running one from now on.

        Points that are past already are skipped; up to the first point yet to come, the arm moves
        on from where it is wanted now. Raises TrajectoryRefused.
        """
        self.update(now_s)
        try:
            spline = self._checked(trajectory, now_s)
        except TrajectoryRefused as refusal:
            self.count_refusal(refusal.reason)
            raise
        self._spline = spline
        self._accepted += 1

    def count_refusal(self, reason: Refusal) -> None:
        """Count a trajectory that was refused, also one that could not even be parsed."""
        self._rejected[str(reason)] += 1

    def update(self, now_s: float) -> Array:
        """Execute all 5 ms updates up to `now_s`; return the position (7,) wanted at the last."""
        tick = int((now_s - self._zero_s) * CONTROLLER_HZ)
        if tick <= self._tick:
            return self._desired
        first = max(self._tick + 1, tick - LONGEST_CATCH_UP_TICKS)
        updates = np.arange(first, tick + 1, dtype=np.float64)
        positions = self._spline.sample(updates * TICK_S).position_rad  # (N, 7)
        self._measure(np.vstack([self._desired, positions]))
        self._tick = tick
        self._desired = positions[-1]
        return self._desired

    def _measure(self, positions: Array) -> None:
        steps = np.abs(np.diff(positions, axis=0))
        ratios = steps / (VELOCITY_RAD_S[:ARM_DOF] * TICK_S)
        beyond = np.maximum(
            LOWER_RAD[:ARM_DOF] - positions[1:], positions[1:] - UPPER_RAD[:ARM_DOF]
        )
        self._max_step = max(self._max_step, float(steps.max()))
        self._max_ratio = max(self._max_ratio, float(ratios.max()))
        violated = (ratios > 1 + TOLERANCE) | (beyond > TOLERANCE)
        self._violations += int(violated.any(axis=1).sum())

    def _checked(self, trajectory: ParsedTrajectory, now_s: float) -> Spline:
        offsets = np.asarray(trajectory.time_from_start_s, dtype=np.float64)
        tables = _in_arm_order(trajectory)
        if offsets[0] < 0 or (np.diff(offsets) <= 0).any():
            raise TrajectoryRefused(
                Refusal.TIMES, f"time_from_start is {offsets.tolist()}, expected increasing from 0"
            )
        start_s = trajectory.stamp_s if trajectory.stamp_s != 0 else now_s
        self._check_age(trajectory, start_s, float(start_s + offsets[-1]), now_s)
        spline = Spline(start_s + offsets - self._zero_s, *tables)
        now = now_s - self._zero_s
        if now >= spline.time_s[0]:
            return spline
        return spline.prepended(now, self._spline.sample(np.array([now])))

    def _check_age(
        self, trajectory: ParsedTrajectory, start_s: float, end_s: float, now_s: float
    ) -> None:
        valid_s, session, sequence = trajectory.valid_s, trajectory.session, trajectory.sequence
        if valid_s is not None and now_s > start_s + valid_s:
            raise TrajectoryRefused(
                Refusal.EXPIRED, f"{now_s - start_s:.3f} s after its frame, valid for {valid_s} s"
            )
        if end_s < now_s:
            raise TrajectoryRefused(
                Refusal.ENDED_IN_THE_PAST, f"its last point was due {now_s - end_s:.3f} s ago"
            )
        if session is None or sequence is None:
            return
        newest = self._newest_sequence.get(session, -1)
        if sequence <= newest:
            raise TrajectoryRefused(
                Refusal.OUT_OF_ORDER, f"sequence {sequence} of {session} came after {newest}"
            )
        self._newest_sequence[session] = sequence
        self._newest_sequence.move_to_end(session)
        if len(self._newest_sequence) > REMEMBERED_SESSIONS:
            self._newest_sequence.popitem(last=False)


def _in_arm_order(trajectory: ParsedTrajectory) -> list[Array]:
    """Return positions and, where given, velocities and accelerations, (K, 7) each, in the order of
    ARM_JOINT_NAMES; or refuse. Accelerations without velocities say nothing."""
    names = list(trajectory.joint_names)
    if sorted(names) != sorted(ARM_JOINT_NAMES):
        missing = sorted(set(ARM_JOINT_NAMES) - set(names))
        unknown = sorted(set(names) - set(ARM_JOINT_NAMES))
        raise TrajectoryRefused(
            Refusal.JOINT_NAMES,
            f"{len(names)} joints, expected the {ARM_DOF} of the arm once each;"
            f" missing {missing}, unknown {unknown}",
        )
    order = [names.index(name) for name in ARM_JOINT_NAMES]
    times = np.asarray(trajectory.time_from_start_s, dtype=np.float64)
    position = np.asarray(trajectory.position_rad, dtype=np.float64)
    if len(times) == 0 or position.size == 0:
        raise TrajectoryRefused(Refusal.NO_POINTS, "no points with positions")
    tables = [position]
    for derivative in (trajectory.velocity_rad_s, trajectory.acceleration_rad_s2):
        if derivative is None:
            break
        tables.append(np.asarray(derivative, dtype=np.float64))
    for table in tables:
        if table.shape != (len(times), len(names)):
            raise TrajectoryRefused(
                Refusal.LENGTHS, f"values of shape {table.shape} for {len(names)} joints"
            )
    if not all(np.isfinite(table).all() for table in (times, *tables)):
        raise TrajectoryRefused(Refusal.NON_FINITE, "a time or a joint's value is not finite")
    return [table[:, order] for table in tables]


@dataclass(frozen=True)
class GripperResult:
    """How a gripper goal ended, in the fields of control_msgs/action/GripperCommand's result."""

    position_rad: float
    reached_goal: bool = False
    stalled: bool = False
    preempted: bool = False
    """A newer goal took its place, or it was cancelled."""


class GripperController:
    """Drives the gripper to the newest goal; starts by holding `position_rad`."""

    GOAL_TOLERANCE_RAD = 0.01
    STALL_VELOCITY_RAD_S = 0.001
    STALL_TIMEOUT_S = 1.0
    """All three are gripper_action_controller's defaults."""

    def __init__(self, position_rad: float) -> None:
        self.target_rad = position_rad
        self._is_running = False
        self._measured_rad = position_rad
        self._moved_s = 0.0

    def accept(self, position_rad: float, now_s: float) -> GripperResult | None:
        """Take a goal at once; return the result of the goal that it replaces, if any.

        Raises ValueError for a position that is not finite or outside the gripper's range.
        """
        if not LOWER_RAD[-1] - TOLERANCE <= position_rad <= UPPER_RAD[-1] + TOLERANCE:
            raise ValueError(
                f"gripper position is {position_rad} rad,"
                f" expected {LOWER_RAD[-1]} to {UPPER_RAD[-1]}"
            )
        replaced = self.cancel()
        self.target_rad, self._moved_s, self._is_running = position_rad, now_s, True
        return replaced

    def cancel(self) -> GripperResult | None:
        """Stop where the gripper is; return the running goal's result, if one is running."""
        if not self._is_running:
            return None
        self._is_running = False
        self.target_rad = self._measured_rad
        return GripperResult(self._measured_rad, preempted=True)

    def update(
        self, position_rad: float, velocity_rad_s: float, now_s: float
    ) -> GripperResult | None:
        """Take the measured state; return the goal's result when it was reached or stalled."""
        self._measured_rad = position_rad
        if abs(velocity_rad_s) > self.STALL_VELOCITY_RAD_S:
            self._moved_s = now_s
        if not self._is_running:
            return None
        reached = abs(self.target_rad - position_rad) < self.GOAL_TOLERANCE_RAD
        stalled = not reached and now_s - self._moved_s > self.STALL_TIMEOUT_S
        self._is_running = not (reached or stalled)
        return None if self._is_running else GripperResult(position_rad, reached, stalled)
