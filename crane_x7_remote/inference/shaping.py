"""From what the policy wants to a trajectory that may leave: keeps what is running, asks the gates.

A chunk, the measured joints and the moment come in; a `Shaped` trajectory or a `Hold` goes out. No
I/O; the clocks' readings are handed in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crane_x7_remote.inference.peers import Peers
from crane_x7_remote.inference.safety import (
    Hold,
    HoldReason,
    Limits,
    SafeCommand,
    check_chunk,
    check_motion,
    first_step,
)
from crane_x7_remote.inference.trajectory import Timing, build, flown, is_followed
from crane_x7_remote.rosbridge.messages import StampedJoints
from crane_x7_vla_rl.robot import ARM_DOF
from crane_x7_vla_rl.types import Array, JointState, Trajectory

LEAD_MARGIN_S = 0.02
"""On top of the round trip: what a busy machine adds now and then."""
RESTART_LEAD_S = 0.1
"""Lead of a path that starts from the measured state: time for the controller to come there from
what it wanted before, a servo's sag away, without haste."""
MAX_LEAD_S = 0.2
UNKNOWN_RTT_S = 0.03
SHORTEST_HORIZON_S = 0.1
"""A trajectory that would have to be at rest sooner than this is not worth starting."""


@dataclass(frozen=True)
class Moment:
    """Now, on both clocks, and how far away the robot is."""

    now_s: float
    """Our monotonic clock."""
    robot_s: float
    """The robot's time, as far as known."""
    rtt_s: float | None

    @property
    def lead_s(self) -> float:
        """Time to the robot: half a round trip, and as much again because the robot's time is only
        known from messages that took the other half to come."""
        rtt_s = UNKNOWN_RTT_S if self.rtt_s is None else self.rtt_s
        return min(rtt_s + LEAD_MARGIN_S, MAX_LEAD_S)


@dataclass(frozen=True, eq=False)
class Shaped:
    """A trajectory that keeps all limits, and the step of the chunk that is due next."""

    trajectory: Trajectory
    target_rad: Array
    """(8,)."""
    leave_by_s: float
    """Our monotonic clock: sent later, it would arrive after it has left the running path, and the
    arm's controller would step from one to the other."""


class Shaper:
    """Makes the trajectories of one loop, each one going on from the one before."""

    def __init__(self, session: str, validity_s: float, limits: Limits, peers: Peers) -> None:
        self._session = session
        self._validity_s = validity_s
        self._limits = limits
        self._peers = peers
        self._running: Trajectory | None = None
        self._sequence = 0

    def sent(self, trajectory: Trajectory) -> None:
        """Note that this one left: the next goes on from it."""
        self._running = flown(self._running, trajectory)
        self._sequence = trajectory.sequence

    def forget(self) -> None:
        """Start the next trajectory from the measured state."""
        self._running = None

    def shape(
        self, chunk: object, stamp_s: float, joints: StampedJoints, moment: Moment
    ) -> Shaped | Hold:
        """Return the trajectory that answers the frame stamped `stamp_s`, or why there is none."""
        measured_s = _measured_s(joints, moment)
        running = self._followed(joints.state, measured_s, moment.now_s)
        lead_s = moment.lead_s if running else max(moment.lead_s, RESTART_LEAD_S)
        robot_s = max(moment.robot_s, stamp_s)
        if running is None and self._is_moving(joints.state, robot_s - measured_s):
            return Hold(
                HoldReason.JOINTS_STALE,
                f"arm moves and was measured {robot_s - measured_s:.3f} s ago: where to start from"
                " is not known",
            )
        timing = Timing(stamp_s, robot_s, lead_s, self._validity_s, measured_s)
        if timing.takeover_s + SHORTEST_HORIZON_S > timing.validity_s:
            return Hold(
                HoldReason.TOO_LATE,
                f"trajectory would begin {timing.takeover_s:.3f} s after its frame, valid for"
                f" {timing.validity_s:g} s; a slow policy needs a longer TRAJECTORY_VALIDITY",
            )
        command = check_chunk(chunk, joints.state, timing.takeover_s, self._limits)
        if isinstance(command, Hold):
            return command
        trajectory = self._build(command, joints.state, running, timing)
        hold = check_motion(trajectory, joints.state, measured_s, self._limits)
        if hold is not None:
            return hold
        target = command.position_rad[first_step(command, timing.takeover_s)]
        leave_by_s = moment.now_s + lead_s - (moment.rtt_s or 0.0) / 2
        return Shaped(trajectory, target, leave_by_s)

    def brake(self, joints: StampedJoints, moment: Moment) -> Trajectory | None:
        """Return the shortest way to rest; None when the arm is not moving by our doing."""
        running = self._running
        if running is None:
            return None
        if moment.robot_s >= running.stamp_s + running.time_from_start_s[-1]:
            return None
        measured_s = _measured_s(joints, moment)
        followed = self._followed(joints.state, measured_s, moment.now_s)
        robot_s = moment.robot_s
        timing = Timing(robot_s, robot_s, moment.lead_s, self._validity_s, measured_s)
        return self._build(None, joints.state, followed, timing)

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
        """Whether the arm may have left the place where it was measured."""
        speed = np.nan_to_num(np.abs(measured.velocity_rad_s[:ARM_DOF]), nan=0.0)
        return bool(speed.max() * age_s > self._limits.tracking_rad)

    def _followed(self, measured: JointState, measured_s: float, now_s: float) -> Trajectory | None:
        """Return the running trajectory if it arrived and the arm is on it."""
        running = self._running
        if running is None or not self._peers.has_arrived(running.sequence, now_s):
            return None
        return running if is_followed(running, measured, measured_s, self._limits) else None


def _measured_s(joints: StampedJoints, moment: Moment) -> float:
    """Return when the joints were measured, on the robot's clock."""
    if joints.stamp_s > 0:
        return joints.stamp_s
    return moment.robot_s - (moment.now_s - joints.arrival_s)
