"""Safety checks. Frame, joints, chunk, trajectory → what is safe, or a `Hold` that says why. Pure.

In the order of a frame's journey: `check_frame` and `check_joints` (good enough to act on?),
`check_chunk` (are the policy's targets sane?), `check_motion` (does the finished trajectory keep
every limit, seen from the last measured state?). A `Hold` means: publish nothing; the trajectory
published before ends at rest.

Legend: T steps or points; 8 joints in the order of `robot.JOINT_NAMES`, rad.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crane_x7_remote.inference.hold import Hold, HoldReason
from crane_x7_remote.inference.limits import MARGIN_RAD, Limits
from crane_x7_remote.rosbridge.joint_watch import JointFault
from crane_x7_vla_rl import robot
from crane_x7_vla_rl.types import ActionChunk, Array, JointState, Trajectory


@dataclass(frozen=True, eq=False)
class SafeCommand:
    """A chunk with every target finite, inside the joint limits and near the arm."""

    position_rad: Array
    """(T, 8)."""
    due_s: Array
    """(T,) seconds after the frame's stamp at which each target is due."""


def check_frame(
    age_s: float | None, stamp_s: float, any_frame: bool, max_age_s: float
) -> Hold | None:
    """Return why the newest unused frame must not be acted on, or None.

    `age_s` is the larger of its ages by arrival and by stamp, None without an unused frame;
    `any_frame` tells whether a frame was ever received; `stamp_s` is its header stamp.
    """
    if not any_frame:
        return Hold(HoldReason.NO_FRAME, "no camera frame received yet")
    if age_s is None:
        return Hold(HoldReason.NO_NEW_FRAME, "no camera frame received since the last one used")
    if not np.isfinite(stamp_s) or stamp_s <= 0:
        return Hold(
            HoldReason.FRAME_UNSTAMPED,
            f"frame's header stamp is {stamp_s}, expected the robot's time",
        )
    if not age_s <= max_age_s:
        return Hold(
            HoldReason.FRAME_STALE,
            f"frame is {age_s:.3f} s old, expected at most {max_age_s:g} s",
        )
    return None


def check_joints(
    joints: JointState | None,
    age_s: float,
    limits: Limits,
    max_age_s: float,
    *,
    fault: JointFault | None = None,
) -> Hold | None:
    """Return why the measured joints must not be acted on, or None.

    `fault` is the contradiction between them and earlier ones.
    """
    if joints is None:
        return Hold(HoldReason.NO_JOINTS, "no usable joint state received yet")
    if not age_s <= max_age_s:
        return Hold(
            HoldReason.JOINTS_STALE,
            f"joint state is {age_s:.3f} s old, expected at most {max_age_s:g} s",
        )
    position, velocity = joints.position_rad, joints.velocity_rad_s
    if not np.isfinite(position).all() or np.isinf(velocity).any():
        return Hold(
            HoldReason.JOINTS_NOT_FINITE,
            f"measured positions are {position.tolist()}, velocities {velocity.tolist()}",
        )
    if fault is not None:
        return Hold(HoldReason(f"joints_{fault.kind}"), fault.detail)
    outside = np.maximum(limits.lower_rad - position, position - limits.upper_rad)
    if (outside > limits.measured_slack_rad).any():
        return Hold(HoldReason.JOINTS_OUT_OF_LIMITS, _worst(position, outside, "measured at"))
    return None


def check_chunk(
    chunk: object, measured: JointState, elapsed_s: float, limits: Limits
) -> SafeCommand | Hold:
    """Return the chunk as safe targets, or why it is refused.

    `chunk` is the policy's unchecked return value; `elapsed_s` is the time from the frame's stamp
    to the start of the trajectory: targets due before that are skipped, so they are not checked
    for jumps.
    """
    if not isinstance(chunk, ActionChunk):
        return Hold(
            HoldReason.POLICY_OUTPUT,
            f"policy returned {type(chunk).__name__}, expected an ActionChunk",
        )
    targets = chunk.position_rad
    if len(targets) > limits.max_steps:
        return Hold(
            HoldReason.POLICY_OUTPUT,
            f"chunk has {len(targets)} steps, expected at most {limits.max_steps}",
        )
    if not np.isfinite(targets).all():
        step, joint = np.argwhere(~np.isfinite(targets))[0]
        return Hold(
            HoldReason.ACTION_NOT_FINITE,
            f"target of {robot.JOINT_NAMES[joint]} in step {step} is {targets[step, joint]}",
        )
    outside = np.maximum(limits.lower_rad - targets, targets - limits.upper_rad)  # (T, 8)
    if outside.max() > limits.clamp_rad:
        step = int(outside.max(axis=1).argmax())
        arm_is_fine = outside[:, : robot.ARM_DOF].max() <= limits.clamp_rad
        reason = HoldReason.GRIPPER_RANGE if arm_is_fine else HoldReason.JOINT_LIMIT
        return Hold(reason, _worst(targets[step], outside[step], f"target in step {step}"))
    command = SafeCommand(
        position_rad=np.clip(targets, limits.lower_rad, limits.upper_rad),
        due_s=np.arange(1, len(targets) + 1, dtype=np.float64) * chunk.period_s,
    )
    return _check_jump(command, measured, elapsed_s, limits)


def _check_jump(
    command: SafeCommand, measured: JointState, elapsed_s: float, limits: Limits
) -> SafeCommand | Hold:
    first = command.position_rad[first_step(command, elapsed_s)]
    jump = np.abs(first - measured.position_rad)[: robot.ARM_DOF]
    if jump.max() > limits.max_jump_rad:
        joint = int(jump.argmax())
        return Hold(
            HoldReason.JUMP,
            f"first target of {robot.JOINT_NAMES[joint]} is {jump[joint]:.2f} rad from its"
            f" position, expected at most {limits.max_jump_rad:g}",
        )
    return command


def first_step(command: SafeCommand, elapsed_s: float) -> int:
    """Return the index of the first target that is not yet due, at most that of the last one."""
    due = int(np.searchsorted(command.due_s, elapsed_s, side="right"))
    return min(due, len(command.due_s) - 1)


def check_motion(
    trajectory: Trajectory, measured: JointState, measured_s: float, limits: Limits
) -> Hold | None:
    """Return which limit the trajectory violates, starting from the measured state, or None.

    Between two points the controller runs the cubic through both positions and velocities; its
    acceleration is linear in time, so both ends of each piece bound it. `measured_s` is the robot's
    time of `measured`. Measured values may differ by `tracking_rad` and `tracking_rad_s`.
    """
    times = trajectory.time_from_start_s
    p, v = trajectory.position_rad, trajectory.velocity_rad_s
    if not (np.isfinite(p).all() and np.isfinite(v).all() and np.isfinite(times).all()):
        return Hold(HoldReason.ACTION_NOT_FINITE, "trajectory contains values that are not finite")
    if v[-1].any():
        return Hold(
            HoldReason.NOT_AT_REST,
            f"velocity at the last point is {v[-1].tolist()} rad/s, expected 0",
        )
    outside = np.maximum(limits.lower_rad - p, p - limits.upper_rad)  # (T, 8)
    # An arm that was measured a little outside may start there, but must not go further out.
    m = measured.position_rad
    allowed = MARGIN_RAD + np.clip(
        np.maximum(limits.lower_rad - m, m - limits.upper_rad), 0.0, limits.measured_slack_rad
    )
    if (outside > allowed).any():
        step = int((outside - allowed).max(axis=1).argmax())
        return Hold(
            HoldReason.POSITION, _worst(p[step], outside[step], "position of the trajectory")
        )
    return _check_pieces(times, p, v, limits) or _check_start(
        trajectory, measured, measured_s, limits
    )


def _check_pieces(times: Array, p: Array, v: Array, limits: Limits) -> Hold | None:
    h = np.diff(times)[:, None]  # (T - 1, 1)
    if (h <= 0).any():
        return Hold(HoldReason.VELOCITY, "times of the trajectory's points do not increase")
    slope = np.diff(p, axis=0) / h
    start = (6 * slope - 4 * v[:-1] - 2 * v[1:]) / h
    end = (-6 * slope + 2 * v[:-1] + 4 * v[1:]) / h
    slack = 1.02
    turns = start * end < 0  # the velocity peaks inside the piece, where acceleration is zero
    inside = start**2 * h / (2 * np.where(turns, start - end, 1.0))
    speed = np.maximum(np.abs(v[:-1]), np.where(turns, np.abs(v[:-1] + inside), 0.0))
    for reason, unit, values, bound in (
        (HoldReason.VELOCITY, "rad/s", speed, robot.VELOCITY_RAD_S),
        (HoldReason.ACCELERATION, "rad/s²", np.maximum(abs(start), abs(end)), None),
    ):
        bound = limits.acceleration_rad_s2 * slack if bound is None else bound
        over = values - bound
        if over.size and over.max() > 0:
            piece, joint = np.unravel_index(int(over.argmax()), over.shape)
            return Hold(
                reason,
                f"{robot.JOINT_NAMES[joint]} would reach {values[piece, joint]:.3f} {unit},"
                f" expected at most {bound[joint]:.3f}",
            )
    return None


def _check_start(
    trajectory: Trajectory, measured: JointState, measured_s: float, limits: Limits
) -> Hold | None:
    """Check the arm alone: the gripper follows its own goals, and stops at what it holds."""
    arm = slice(robot.ARM_DOF)
    ahead_s = trajectory.stamp_s + trajectory.time_from_start_s[0] - measured_s
    span = max(abs(ahead_s), 0.0)
    distance = np.abs(trajectory.position_rad[0] - measured.position_rad)[arm]
    too_far = distance - limits.velocity_rad_s[arm] * span - limits.tracking_rad
    if too_far.max() > 0:
        return Hold(HoldReason.VELOCITY, _worst(distance, too_far, "distance to the first point"))
    known = np.nan_to_num(measured.velocity_rad_s - trajectory.velocity_rad_s[0], nan=0.0)
    change = np.abs(known)[arm]
    too_sudden = change - limits.acceleration_rad_s2[arm] * span - limits.tracking_rad_s
    if too_sudden.max() > 0:
        return Hold(HoldReason.ACCELERATION, _worst(change, too_sudden, "change of velocity"))
    return None


def _worst(values: Array, excess: Array, what: str) -> str:
    joint = int(excess.argmax())
    return (
        f"{robot.JOINT_NAMES[joint]}: {what} {values[joint]:.3f},"
        f" {excess[joint]:.3f} outside the limit"
    )
