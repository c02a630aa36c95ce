"""The trajectory for a policy's chunk. Chunk, joints, moment → `Shaped` or `Hold`.

Remembers the path that the arm follows, and starts each trajectory on it. No I/O, no clock.

                        stamp        now      now + lead             stamp + validity
    robot's clock  ───────┼───────────┼────────────┼────────────────────────┼──────▶
    trajectory            ·           repeats the  leaves it, follows       at rest,
                                      running one  the chunk                refused from here on

A trajectory is in time when it reaches the robot before `now + lead`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.link.peers import Peers
from crane_x7_remote.inference.safety import SafeCommand, check_chunk, check_motion, first_step
from crane_x7_remote.inference.trajectory import Timing, build, flown, is_followed, state_at
from crane_x7_remote.rosbridge.messages import ParsedTrajectory, StampedJoints, as_trajectory
from crane_x7_vla_rl.robot import ARM_DOF
from crane_x7_vla_rl.types import Array, JointState, Trajectory

RESTART_LEAD_S = 0.2
"""Lead of a path that starts from the measured state: time for the controller to get there from
its previous target. A servo's sag of 0.04 rad takes 6 · 0.04 / 0.2² = 6 rad/s²."""
SHORTEST_RESTART_LEAD_S = 0.1
"""Lead with a slow policy, which leaves no more time; 0.01 rad of sag then takes as much."""
SAME_RAD = 0.001
"""Two paths closer than this at a moment count as the same there."""
STILL_RAD = 2e-5
"""A path that moves the arm by less than this leaves it where it is: see guard.join.SAME_RAD."""
SHORTEST_HORIZON_S = 0.1
"""A trajectory that would have to be at rest sooner than this is not worth starting."""


@dataclass(frozen=True)
class Moment:
    """Now, on both clocks, and how far away the robot is."""

    now_s: float
    """Our monotonic clock."""
    robot_s: float
    """The robot's time, as far as known."""
    round_trip_s: float
    """A usual round trip: half of it to the robot, and half because the robot's time is only known
    from messages that took the other half to arrive."""
    lead_s: float
    """See `link.delay.LinkDelay`."""
    is_guarded: bool = False
    """Whether a guard next to the robot re-times late trajectories."""

    def leave_by_s(self, lead_s: float) -> float:
        """Return until when, on our clock, a path with this lead may be sent."""
        return self.now_s + lead_s - self.round_trip_s / 2


@dataclass(frozen=True)
class GripperTarget:
    """A target of the gripper: its action takes one goal at a time, without a time."""

    send_s: float
    """Our monotonic clock: sent now, it reaches the gripper when its step of the chunk begins."""
    position_rad: float


@dataclass(frozen=True, eq=False)
class Shaped:
    """A trajectory that keeps all limits, and the step of the chunk that is due next."""

    trajectory: Trajectory
    target_rad: Array
    """(8,)."""
    followed: Trajectory | None
    """The running path that it leaves; None if it starts from the measured state."""
    lead_s: float
    leave_by_s: float
    """Our monotonic clock: sent later, it would arrive after it leaves the running path, and the
    arm's controller would step from one to the other."""
    expires_s: float
    """Our monotonic clock: if it arrives later, no controller starts it, or it would not matter."""
    gripper_later: tuple[GripperTarget, ...] = ()
    """The gripper's targets after `target_rad`, in the order of their times."""


class TrajectoryPlanner:
    """Makes the trajectories of one loop; each continues the previous one."""

    def __init__(self, session: str, validity_s: float, limits: Limits, peers: Peers) -> None:
        self._session = session
        self._validity_s = validity_s
        self._limits = limits
        self._peers = peers
        self._running: Trajectory | None = None
        self._before: Trajectory | None = None
        """The path before the newest one."""
        self._sequence = 0

    def sent(self, shaped: Shaped) -> None:
        """Note that this trajectory was sent: the next one continues it."""
        self._before = shaped.followed
        self._running = flown(shaped.followed, shaped.trajectory)
        self._sequence = shaped.trajectory.sequence

    def retimed(self, parsed: ParsedTrajectory) -> bool:
        """Take the guard's re-timed trajectory as the running one, unless a newer one was sent.

        The guard moves only the arm. The gripper has its own goals: here it rests where our path
        has it, so that the next path can continue from there within its limits.
        """
        path = as_trajectory(parsed)
        if path is None or self._running is None or path.sequence != self._running.sequence:
            return False
        first_s = path.stamp_s + path.time_from_start_s[0]
        gripper_rad = float(state_at(self._running, first_s)[0][-1])
        path, before = _resting_gripper(path, gripper_rad), self._before
        if before is not None:
            apart = np.abs(state_at(before, first_s)[0] - path.position_rad[0])[:ARM_DOF].max()
            before = _resting_gripper(before, gripper_rad) if apart <= SAME_RAD else None
        self._running = flown(before, path)
        return True

    def braked(self, brake: Trajectory) -> None:
        """Note that this path to rest was sent: the next one has a later sequence number, and
        starts from the measured state."""
        self._sequence = brake.sequence
        self.forget()

    def forget(self) -> None:
        """Start the next trajectory from the measured state."""
        self._running = self._before = None

    def shape(
        self, chunk: object, stamp_s: float, joints: StampedJoints, moment: Moment
    ) -> Shaped | Hold:
        """Return the trajectory for the frame stamped `stamp_s`, or why there is none."""
        hold = self._unconfirmed(moment)
        if hold is not None:
            return hold
        measured_s = _measured_s(joints, moment)
        running = self._followed(joints.state, measured_s)
        if running is None and self._is_moving(joints.state, moment.robot_s - measured_s):
            return Hold(
                HoldReason.JOINTS_STALE,
                f"the arm moves and was last measured {moment.robot_s - measured_s:.3f} s ago: its"
                " current position is unknown",
            )
        lead_s = moment.lead_s if running is not None else self._restart_lead_s(stamp_s, moment)
        timing = Timing(stamp_s, moment.robot_s, lead_s, self._validity_s, measured_s)
        if timing.takeover_s + SHORTEST_HORIZON_S > timing.validity_s:
            return Hold(HoldReason.TOO_LATE, _too_late(timing, moment))
        command = check_chunk(chunk, joints.state, timing.takeover_s, self._limits)
        if isinstance(command, Hold):
            return command
        trajectory = self._build(command, joints.state, running, timing)
        hold = check_motion(trajectory, joints.state, measured_s, self._limits)
        if hold is not None:
            return hold
        first = first_step(command, timing.takeover_s)
        return Shaped(
            trajectory,
            followed=running,
            target_rad=command.position_rad[first],
            lead_s=lead_s,
            leave_by_s=moment.leave_by_s(lead_s),
            expires_s=_expires_s(trajectory, running, moment),
            gripper_later=_gripper_later(command, first, timing, moment),
        )

    def brake(self, joints: StampedJoints, moment: Moment) -> Trajectory | Hold | None:
        """Return the shortest path to rest; None unless a trajectory of this loop moves the arm."""
        running = self._running
        if running is None:
            return None
        if moment.robot_s >= running.stamp_s + running.time_from_start_s[-1]:
            return None
        hold = self._unconfirmed(moment)
        if hold is not None:
            return hold
        measured_s = _measured_s(joints, moment)
        followed = self._followed(joints.state, measured_s)
        robot_s = moment.robot_s
        timing = Timing(robot_s, robot_s, moment.lead_s, self._validity_s, measured_s)
        return self._build(None, joints.state, followed, timing)

    def _unconfirmed(self, moment: Moment) -> Hold | None:
        """Return why the running path is not known well enough to continue it without a guard."""
        overdue_s = self._peers.overdue_s(moment.now_s)
        if overdue_s is None or moment.is_guarded:
            return None
        return Hold(
            HoldReason.UNCONFIRMED,
            f"a trajectory has not come back from its topic for {overdue_s:.3f} s; the next one"
            " is sent when it has come back or expired",
        )

    def _restart_lead_s(self, stamp_s: float, moment: Moment) -> float:
        """Return the lead of a path that starts from the measured state."""
        left_s = self._validity_s - 2 * SHORTEST_HORIZON_S - (moment.robot_s - stamp_s)
        return max(moment.lead_s, min(RESTART_LEAD_S, left_s), SHORTEST_RESTART_LEAD_S)

    def _build(
        self,
        command: SafeCommand | None,
        measured: JointState,
        running: Trajectory | None,
        timing: Timing,
    ) -> Trajectory:
        return build(
            command,
            measured,
            running,
            timing,
            self._limits,
            sequence=self._sequence + 1,
            session=self._session,
        )

    def _is_moving(self, measured: JointState, age_s: float) -> bool:
        """Whether the arm may have left its measured position."""
        speed = np.nan_to_num(np.abs(measured.velocity_rad_s[:ARM_DOF]), nan=0.0)
        return bool(speed.max() * age_s > self._limits.tracking_rad)

    def _followed(self, measured: JointState, measured_s: float) -> Trajectory | None:
        """Return the running trajectory, unless it was lost or the arm does not follow it."""
        running = self._running
        if running is None or self._peers.is_lost(running.sequence):
            return None
        return running if is_followed(running, measured, measured_s, self._limits) else None


def _expires_s(trajectory: Trajectory, running: Trajectory | None, moment: Moment) -> float:
    """Return until when, on our clock, the arm may come onto the trajectory.

    A controller refuses one that has ended; a guard re-times it while it is valid. One that rests
    where the running path does changes nothing: it counts as started as long as it is valid, or the
    next would start from a measured arm that sags.
    """
    away_rad = np.inf
    if running is not None:
        away = trajectory.position_rad[:, :ARM_DOF] - running.position_rad[-1, :ARM_DOF]
        away_rad = np.abs(away).max()
    after_s = float(trajectory.time_from_start_s[-1])
    if moment.is_guarded or away_rad <= STILL_RAD:
        after_s = trajectory.valid_s
    return moment.now_s + trajectory.stamp_s + after_s - moment.robot_s


def _gripper_later(
    command: SafeCommand, first: int, timing: Timing, moment: Moment
) -> tuple[GripperTarget, ...]:
    """Return the gripper's targets of the steps after `first` that begin before the path ends."""
    begins_s = command.due_s[first:-1]  # a step begins when the one before it is due
    targets = command.position_rad[first + 1 :, ARM_DOF]
    offset_s = moment.now_s + timing.stamp_s - moment.robot_s - moment.round_trip_s / 2
    return tuple(
        GripperTarget(offset_s + float(begin_s), float(target))
        for begin_s, target in zip(begins_s, targets, strict=True)
        if begin_s < timing.validity_s
    )


def _resting_gripper(path: Trajectory, position_rad: float) -> Trajectory:
    position, velocity = path.position_rad.copy(), path.velocity_rad_s.copy()
    position[:, ARM_DOF:], velocity[:, ARM_DOF:] = position_rad, 0.0
    return replace(path, position_rad=position, velocity_rad_s=velocity)


def _too_late(timing: Timing, moment: Moment) -> str:
    """Name the larger delay, link or policy, and the setting that would be enough."""
    before_s = timing.now_s - timing.stamp_s
    would_do_s = math.ceil((timing.takeover_s + 2 * SHORTEST_HORIZON_S) * 10) / 10
    cause = (
        f"link's round trip of {moment.round_trip_s:.2f} s"
        if moment.lead_s > before_s
        else "policy, or the camera before it"
    )
    return (
        f"trajectory would start {timing.takeover_s:.3f} s after its frame ({before_s:.3f} s until"
        f" now, {timing.lead_s:.3f} s to the robot), but is valid for {timing.validity_s:g} s; the"
        f" {cause} needs TRAJECTORY_VALIDITY={would_do_s:g} or more"
    )


def _measured_s(joints: StampedJoints, moment: Moment) -> float:
    """Return when the joints were measured, on the robot's clock."""
    if joints.stamp_s > 0:
        return joints.stamp_s
    return moment.robot_s - (moment.now_s - joints.arrival_s)
