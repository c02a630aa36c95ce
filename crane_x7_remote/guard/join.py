"""Joins a trajectory to the running one. Two paths, a time → a path. Pure.

A controller that starts a trajectory jumps to the trajectory's position at this moment; if the arm
is elsewhere, it steps. So a trajectory passes only if it agrees with the running path from now
until one lead later, when it has arrived. Any other is re-timed: rebuilt from the running path,
with its points as targets.

Times are seconds on the guard's monotonic clock, or after the stamp of the trajectory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.safety import SafeCommand, check_motion
from crane_x7_remote.inference.trajectory import Timing, build, state_at
from crane_x7_vla_rl.robot import ARM_DOF
from crane_x7_vla_rl.types import Array, JointState, Trajectory

SAME_RAD = 2e-5
"""A step of this size in an update of 5 ms is 0.8 rad/s²; paths that repeat each other agree to
1e-6 rad."""
SAME_RAD_S = 0.002
SHORTEST_HORIZON_S = 0.1
"""A trajectory that would have to be at rest sooner than this is not worth starting."""
ROUNDING_S = 1e-6
UPDATE_S = 0.005
"""Update period of the controller, in which it moves on a straight line."""
STAY_S = 2.0
"""How long a path that takes another one back stays at its end: longer than any tolerated stall."""


@dataclass(frozen=True, eq=False)
class Situation:
    """The state to which a trajectory is joined."""

    now_s: float
    running: Trajectory
    """The path that the controller runs or rests at; stamped on our clock."""
    is_certain: bool
    """False: the controller's target is only known from the arm's measured position."""
    measured: JointState
    measured_s: float
    lead_s: float


def rest(position_rad: Array, now_s: float) -> Trajectory:
    """Return the path that stays at (8,) `position_rad`."""
    return Trajectory(position_rad[None], np.zeros((1, 8)), np.zeros(1), now_s, 0, "", 0.0)


def end_s(path: Trajectory) -> float:
    """Return when `path` is at rest."""
    return path.stamp_s + float(path.time_from_start_s[-1])


def moves_until_s(path: Trajectory) -> float:
    """Return when `path` stops moving."""
    moving = np.flatnonzero(np.abs(path.velocity_rad_s).max(axis=1) > 1e-6)
    last = min(int(moving[-1]) + 1, len(path.time_from_start_s) - 1) if len(moving) else 0
    return path.stamp_s + float(path.time_from_start_s[last])


def joined(wanted: Trajectory, at: Situation, limits: Limits) -> tuple[Trajectory, bool] | Hold:
    """Return the path to send for `wanted`, and whether it was re-timed; or why there is none."""
    if _continues(wanted, at):
        hold = check_motion(wanted, at.measured, at.measured_s, limits)
        return (wanted, False) if hold is None else hold
    hold = _check_points(wanted, limits)
    if hold is not None:
        return hold
    timing = Timing(wanted.stamp_s, at.now_s, at.lead_s, wanted.valid_s, at.measured_s)
    if timing.takeover_s + SHORTEST_HORIZON_S > timing.validity_s:
        return Hold(
            HoldReason.TOO_LATE,
            f"arrived {at.now_s - wanted.stamp_s:.3f} s after its frame, valid for"
            f" {wanted.valid_s:g} s: too late to be re-timed",
        )
    targets = np.clip(wanted.position_rad, limits.lower_rad, limits.upper_rad)
    measured = _with_still_gripper(at)
    path = build(
        SafeCommand(targets, wanted.time_from_start_s),
        measured,
        at.running if at.is_certain else None,
        timing,
        limits,
        sequence=wanted.sequence,
        session=wanted.session,
    )
    return check_motion(path, measured, at.measured_s, limits) or (path, True)


def brake(at: Situation, limits: Limits) -> Trajectory:
    """Return the shortest path to rest from the running path."""
    timing = Timing(at.now_s, at.now_s, at.lead_s, at.lead_s + 1.0, at.measured_s)
    return build(None, at.measured, at.running, timing, limits, sequence=0, session="")


def staying(path: Trajectory, now_s: float) -> Trajectory:
    """Return the rest of `path`, stamped now, with a long stay at its end.

    If the controller starts it within STAY_S, the arm is on `path`: it takes back any trajectory
    sent before it.
    """
    times = path.time_from_start_s + (path.stamp_s - now_s)
    first = max(int(np.searchsorted(times, 0.0, side="right")) - 1, 0)
    begins = np.concatenate([[0.0], times[first:][times[first:] > 0.002]])
    states = [state_at(path, now_s + float(each)) for each in begins]
    stay_s = max(float(times[-1]), 0.0) + STAY_S
    return replace(
        path,
        position_rad=np.vstack([*(position for position, _ in states), path.position_rad[-1]]),
        velocity_rad_s=np.vstack([*(velocity for _, velocity in states), np.zeros(8)]),
        time_from_start_s=np.append(begins, stay_s),
        stamp_s=now_s,
        valid_s=stay_s,
    )


def _with_still_gripper(at: Situation) -> JointState:
    """Return the measured joints with the gripper at rest where the running path has it.

    The guard moves the arm alone. With the measured speed of a gripper that opens meanwhile, one in
    seven first trajectories would have left the gripper's limit on paper, and was refused.
    """
    position, velocity = at.measured.position_rad.copy(), at.measured.velocity_rad_s.copy()
    position[ARM_DOF:], velocity[ARM_DOF:] = at.running.position_rad[-1, ARM_DOF:], 0.0
    return JointState(position, velocity)


def _continues(wanted: Trajectory, at: Situation) -> bool:
    """Whether `wanted` agrees with the running path until it has arrived."""
    if not at.is_certain:
        return False
    first_s = wanted.stamp_s + float(wanted.time_from_start_s[0])
    if first_s > at.now_s + UPDATE_S and not _rests(at.running, at.now_s, first_s):
        return False
    begin_s = max(at.now_s, first_s + ROUNDING_S)
    until_s = max(at.now_s + at.lead_s, begin_s)
    inner = wanted.stamp_s + wanted.time_from_start_s
    inner = inner[(inner >= begin_s) & (inner <= until_s)]
    for look_s in np.concatenate([np.linspace(begin_s, until_s, 6), inner]):
        p, v = state_at(wanted, float(look_s))
        q, w = state_at(at.running, float(look_s))
        apart = np.abs(p - q)[:ARM_DOF].max() > SAME_RAD
        if apart or np.abs(v - w)[:ARM_DOF].max() > SAME_RAD_S:
            return False
    return True


def _rests(path: Trajectory, from_s: float, until_s: float) -> bool:
    """Whether `path` is at rest all that time: a controller then waits at its position."""
    looks = [state_at(path, float(each)) for each in np.linspace(from_s, until_s, 5)]
    positions = np.array([position[:ARM_DOF] for position, _ in looks])
    velocities = np.array([velocity[:ARM_DOF] for _, velocity in looks])
    return bool(np.ptp(positions, axis=0).max() <= SAME_RAD and np.abs(velocities).max() == 0.0)


def _check_points(wanted: Trajectory, limits: Limits) -> Hold | None:
    """Check targets of a path to be rebuilt: inside the limits, and at rest at the end."""
    p = wanted.position_rad
    outside = np.maximum(limits.lower_rad - p, p - limits.upper_rad)
    if outside.max() > limits.measured_slack_rad:
        return Hold(
            HoldReason.POSITION, f"a point is {outside.max():.3f} rad outside the joint limits"
        )
    if wanted.velocity_rad_s[-1].any():
        return Hold(HoldReason.NOT_AT_REST, "velocity at the last point is not 0")
    return None
