"""The arm's trajectory controller and the gripper's action controller, as on the real robot.

Parsed messages, the robot's time → joint targets. No I/O, no clock. Both follow ros2_control's
controllers (joint_trajectory_controller and gripper_action_controller, Humble) at their 200 Hz
update rate. The trajectory controller also interprets the validity and sequence that the loop
writes into a trajectory, and measures the executed path (see `executed`), so that a test can check
what reached the robot.

Updates follow a steady clock, trajectories the robot's clock. `now_s` is always the steady one: the
robot's clock as if it had never been stepped. `step_clock` moves the robot's clock against it.

Legend: K points of a trajectory, N updates, 7 arm joints; times in s, angles in rad.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

import numpy as np

from crane_x7_remote.rosbridge.messages import ParsedTrajectory
from crane_x7_remote.rosbridge.protocol import brief
from crane_x7_remote.sim_robot.executed import TICK_S, TOLERANCE, Executed, ExecutionFigures
from crane_x7_remote.sim_robot.spline import Array, Spline, SplineSample
from crane_x7_vla_rl.robot import (
    ARM_DOF,
    ARM_JOINT_NAMES,
    CONTROLLER_HZ,
    LOWER_RAD,
    UPPER_RAD,
)

OnUpdates = Callable[[Array, Array], None]
"""Gets the times (N,) of updates on the steady clock and their desired positions (N, 7)."""

REMEMBERED_SESSIONS = 64
"""Sessions whose newest sequence is kept; the least recently used one is dropped first."""
LONGEST_CATCH_UP_TICKS = 20 * CONTROLLER_HZ
"""After a longer stall of the process, the ticks in between are skipped."""
LARGEST_POSITION_RAD = 1e3
LARGEST_DERIVATIVE = 1e6
"""Largest velocity of a joint in rad/s and acceleration in rad/s²."""
LARGEST_OFFSET_S = 1e6
LARGEST_STAMP_S = 1e10
"""Largest distance of a stamp from now."""
LARGEST_PATH_RAD = 1e6
"""Bound of a path between its points. No user means values beyond these; numbers such as 1.7e308
would overflow in the spline and produce NaN."""
SHORTEST_SPAN_S = 1e-9
"""Resolution of ROS times; closer points cannot be distinguished."""


class Refusal(StrEnum):
    """Why a trajectory is not executed."""

    MALFORMED = "malformed"
    JOINT_NAMES = "joint_names"
    NO_POINTS = "no_points"
    LENGTHS = "lengths"
    TIMES = "times"
    NON_FINITE = "non_finite"
    OUT_OF_RANGE = "out_of_range"
    ENDED_IN_THE_PAST = "ended_in_the_past"
    EXPIRED = "expired"
    OUT_OF_ORDER = "out_of_order"


class TrajectoryRefused(Exception):
    """A trajectory is not executed; the one before continues."""

    def __init__(self, reason: Refusal, detail: str) -> None:
        super().__init__(f"trajectory refused, {reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class ControllerReport(ExecutionFigures):
    """Trajectories accepted and refused so far, and the executed path."""

    accepted: int
    rejected: dict[str, int]
    """Reason → count."""


class TrajectoryController:
    """Executes the newest accepted trajectory; starts by holding `position_rad` (7,).

    `on_updates` gets every executed update, for a benchmark. `path_follows_clock`: the running path
    is sampled at the robot's clock, as by ros2_control. A step of that clock is then a step of the
    arm, which no program in front of the controller can prevent.
    """

    def __init__(
        self,
        position_rad: Array,
        now_s: float,
        on_updates: OnUpdates | None = None,
        path_follows_clock: bool = False,
    ) -> None:
        self._zero_s = now_s
        self._tick = 0
        self._stepped_s = 0.0  # Robot's clock minus steady clock.
        self._desired: Array = np.array(position_rad, dtype=np.float64)
        self._spline = Spline(np.zeros(1), self._desired[None])
        self._active_from_s = -np.inf  # On the robot's clock, like the spline's times.
        self._executed = Executed(self._desired)
        self._on_updates = on_updates
        self._path_follows_clock = path_follows_clock
        self._newest_sequence: OrderedDict[str, int] = OrderedDict()
        self._accepted = 0
        self._rejected: Counter[str] = Counter()

    @property
    def report(self) -> ControllerReport:
        return ControllerReport(
            accepted=self._accepted,
            rejected=dict(self._rejected),
            **asdict(self._executed.measured),
        )

    def accept(self, trajectory: ParsedTrajectory, now_s: float) -> None:
        """Let `trajectory` replace the running one from now on.

        Past points are skipped; up to the first future point, the arm moves from its current
        desired position. Raises TrajectoryRefused.
        """
        self.update(now_s)
        robot_now_s = now_s - self._zero_s + self._stepped_s
        try:
            spline = self._checked(trajectory, robot_now_s)
        except TrajectoryRefused as refusal:
            self.count_refusal(refusal.reason)
            raise
        self._remember(trajectory.session, trajectory.sequence)
        self._spline, self._active_from_s = spline, robot_now_s
        self._accepted += 1

    def count_refusal(self, reason: Refusal) -> None:
        """Count a refused trajectory, including one that could not be parsed."""
        self._rejected[str(reason)] += 1

    def step_clock(self, seconds: float, now_s: float) -> None:
        """Set the robot's clock forward, or back where negative, by `seconds`.

        The running path continues unchanged, unless `path_follows_clock`: then it is sampled at the
        new time from the next update on, and the arm jumps along it; before the path became active
        it stands still.
        """
        self.update(now_s)
        self._stepped_s += seconds
        if not self._path_follows_clock:
            self._spline = replace(self._spline, time_s=self._spline.time_s + seconds)
            self._active_from_s += seconds

    def update(self, now_s: float) -> Array:
        """Execute all 5 ms updates up to `now_s`; return the desired position (7,) at the last
        one."""
        tick = int((now_s - self._zero_s) * CONTROLLER_HZ)
        if tick <= self._tick:
            return self._desired
        first = max(self._tick + 1, tick - LONGEST_CATCH_UP_TICKS)
        times = np.arange(first, tick + 1, dtype=np.float64) * TICK_S
        robot_times = times + self._stepped_s
        positions = self._spline.sample(robot_times).position_rad  # (N, 7)
        positions = np.where((robot_times < self._active_from_s)[:, None], self._desired, positions)
        self._executed.add(positions)
        if self._on_updates is not None:
            self._on_updates(self._zero_s + times, positions)
        self._tick = tick
        self._desired = positions[-1]
        return self._desired

    def _checked(self, trajectory: ParsedTrajectory, now: float) -> Spline:
        """Return the spline of `trajectory`; times count from `_zero_s` on the robot's clock."""
        offsets = np.asarray(trajectory.time_from_start_s, dtype=np.float64)
        tables = _in_arm_order(trajectory)
        start = trajectory.stamp_s - self._zero_s if trajectory.stamp_s != 0 else now
        if not abs(start - now) <= LARGEST_STAMP_S:
            raise TrajectoryRefused(
                Refusal.OUT_OF_RANGE,
                f"its stamp is {trajectory.stamp_s:g} s, now + {start - now:g} s",
            )
        times = start + offsets
        if offsets[0] < 0 or (np.diff(times) < SHORTEST_SPAN_S).any():
            raise TrajectoryRefused(
                Refusal.TIMES,
                f"time_from_start is {brief(offsets.tolist())}, expected increasing from 0",
            )
        self._check_age(trajectory, now - start, now - float(times[-1]))
        spline = Spline(times, *tables)
        if now <= spline.time_s[0] - SHORTEST_SPAN_S:
            spline = spline.prepended(now, self._state(now))
        if not spline.reach_rad() <= LARGEST_PATH_RAD:
            raise TrajectoryRefused(
                Refusal.OUT_OF_RANGE,
                f"its path reaches {spline.reach_rad():g} rad between its points,"
                f" expected at most {LARGEST_PATH_RAD:g}",
            )
        return spline

    def _state(self, now: float) -> SplineSample:
        """Return the current desired position and its derivatives, (1, 7) each."""
        if now >= self._active_from_s:
            return self._spline.sample(np.array([now]))
        rest = np.zeros((1, ARM_DOF))
        return SplineSample(self._desired[None], rest, rest)

    def _check_age(self, trajectory: ParsedTrajectory, age_s: float, over_s: float) -> None:
        """Refuse by time since the stamp, time since the last point, and sequence."""
        valid_s, session, sequence = trajectory.valid_s, trajectory.session, trajectory.sequence
        if valid_s is not None and age_s > valid_s:
            raise TrajectoryRefused(
                Refusal.EXPIRED, f"{age_s:.3f} s after its frame, valid for {valid_s} s"
            )
        if over_s > 0:
            raise TrajectoryRefused(
                Refusal.ENDED_IN_THE_PAST, f"its last point was due {over_s:.3f} s ago"
            )
        newest = -1 if session is None else self._newest_sequence.get(session, -1)
        if sequence is not None and sequence <= newest:
            raise TrajectoryRefused(
                Refusal.OUT_OF_ORDER, f"sequence {sequence} of {session} came after {newest}"
            )

    def _remember(self, session: str | None, sequence: int | None) -> None:
        if session is None or sequence is None:
            return
        self._newest_sequence[session] = sequence
        self._newest_sequence.move_to_end(session)
        if len(self._newest_sequence) > REMEMBERED_SESSIONS:
            self._newest_sequence.popitem(last=False)


def _in_arm_order(trajectory: ParsedTrajectory) -> list[Array]:
    """Return positions and, if present, velocities and accelerations, (K, 7) each, in the order of
    ARM_JOINT_NAMES; or refuse. Accelerations without velocities are ignored."""
    names = list(trajectory.joint_names)
    if sorted(names) != sorted(ARM_JOINT_NAMES):
        missing = sorted(set(ARM_JOINT_NAMES) - set(names))
        unknown = sorted(set(names) - set(ARM_JOINT_NAMES))
        raise TrajectoryRefused(
            Refusal.JOINT_NAMES,
            f"{len(names)} joints, expected the {ARM_DOF} of the arm once each;"
            f" missing {brief(missing)}, unknown {brief(unknown)}",
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
    limits = (LARGEST_OFFSET_S, LARGEST_POSITION_RAD, LARGEST_DERIVATIVE, LARGEST_DERIVATIVE)
    for table, limit in zip((times, *tables), limits, strict=False):
        if not np.isfinite(table).all():
            raise TrajectoryRefused(Refusal.NON_FINITE, "a time or a joint's value is not finite")
        if np.abs(table).max() > limit:
            raise TrajectoryRefused(
                Refusal.OUT_OF_RANGE,
                f"a value of size {np.abs(table).max():g}, expected at most {limit:g}"
                " (s, rad, rad/s, rad/s²)",
            )
    return [table[:, order] for table in tables]


@dataclass(frozen=True)
class GripperResult:
    """How a gripper goal ended, in the fields of control_msgs/action/GripperCommand's result."""

    position_rad: float
    reached_goal: bool = False
    stalled: bool = False
    preempted: bool = False
    """A newer goal replaced it, or it was cancelled."""


class GripperController:
    """Drives the gripper to the newest goal; starts by holding `position_rad`."""

    GOAL_TOLERANCE_RAD = 0.01
    STALL_VELOCITY_RAD_S = 0.001
    STALL_TIMEOUT_S = 1.0
    """All three: defaults of gripper_action_controller."""

    def __init__(self, position_rad: float) -> None:
        self.target_rad = position_rad
        self._is_running = False
        self._measured_rad = position_rad
        self._moved_s = 0.0

    def accept(self, position_rad: float, now_s: float) -> GripperResult | None:
        """Accept a goal; return the result of the goal that it replaces, if any.

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
        """Update with the measured state; return the goal's result if it was reached or stalled."""
        self._measured_rad = position_rad
        if abs(velocity_rad_s) > self.STALL_VELOCITY_RAD_S:
            self._moved_s = now_s
        if not self._is_running:
            return None
        reached = abs(self.target_rad - position_rad) < self.GOAL_TOLERANCE_RAD
        stalled = not reached and now_s - self._moved_s > self.STALL_TIMEOUT_S
        self._is_running = not (reached or stalled)
        return None if self._is_running else GripperResult(position_rad, reached, stalled)
