"""A client's trajectory message → numbers to judge, or an error for the loop. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from crane_x7_remote.guard.join import Situation
from crane_x7_remote.rosbridge import messages
from crane_x7_remote.rosbridge.messages import MessageError, ParsedTrajectory
from crane_x7_vla_rl.robot import ARM_DOF, ARM_JOINT_NAMES, JOINT_NAMES
from crane_x7_vla_rl.types import Trajectory

Key = tuple[str, int]
"""Session and sequence number."""


def key_of(parsed: ParsedTrajectory) -> Key:
    """Return session and sequence number; raises MessageError if it is not a loop's trajectory."""
    if parsed.session is None or parsed.sequence is None or parsed.valid_s is None:
        raise MessageError(
            "trajectory has no frame_id vla/<session>/<sequence>/<valid_ms>, so its age and order"
            " cannot be checked"
        )
    return parsed.session, parsed.sequence


def check_numbers(parsed: ParsedTrajectory) -> None:
    """Raise MessageError unless the arm's joints have finite points at increasing times."""
    times, velocity = parsed.time_from_start_s, parsed.velocity_rad_s
    if sorted(parsed.joint_names) != sorted(ARM_JOINT_NAMES):
        raise MessageError(
            f"trajectory's {len(parsed.joint_names)} joints are not the arm's 7 joints"
        )
    if len(times) == 0 or velocity is None:
        raise MessageError("trajectory has no points with positions and velocities")
    if not all(np.isfinite(each).all() for each in (times, parsed.position_rad, velocity)):
        raise MessageError("trajectory contains values that are not finite")
    if times[0] < 0 or (np.diff(times) <= 0).any() or times[-1] > 60.0:
        raise MessageError(
            "times of the trajectory's points must increase, from at least 0 to at most 60 s"
        )
    if np.abs(parsed.position_rad).max() > 10 or np.abs(velocity).max() > 100:
        raise MessageError(
            "trajectory contains positions above 10 rad or velocities above 100 rad/s"
        )
    if not 0 < parsed.stamp_s < 1e11:
        raise MessageError(f"trajectory's header stamp is {parsed.stamp_s}, expected its frame's")


def on_our_clock(parsed: ParsedTrajectory, at: Situation, offset_s: float) -> Trajectory:
    """Return the trajectory stamped on our clock; the gripper stays where it is measured."""
    columns = [parsed.joint_names.index(name) for name in ARM_JOINT_NAMES]
    assert parsed.velocity_rad_s is not None
    count = len(parsed.time_from_start_s)
    grip = np.full((count, 1), at.running.position_rad[-1, ARM_DOF])
    assert parsed.session is not None
    assert parsed.sequence is not None
    assert parsed.valid_s is not None
    return Trajectory(
        position_rad=np.hstack([parsed.position_rad[:, columns], grip]),
        velocity_rad_s=np.hstack([parsed.velocity_rad_s[:, columns], np.zeros((count, 1))]),
        time_from_start_s=parsed.time_from_start_s,
        stamp_s=parsed.stamp_s - offset_s,
        sequence=parsed.sequence,
        session=parsed.session,
        valid_s=parsed.valid_s,
    )


def retold(
    prediction: ParsedTrajectory, path: Trajectory, version: messages.RosVersion
) -> dict[str, Any]:
    """Return `path` over 8 joints, its gripper as in the prediction, marked as re-timed."""
    gripper = JOINT_NAMES[-1]
    position, velocity = path.position_rad.copy(), path.velocity_rad_s.copy()
    if gripper in prediction.joint_names:
        column = prediction.joint_names.index(gripper)
        for ours, theirs in (
            (position, prediction.position_rad), (velocity, prediction.velocity_rad_s),
        ):  # fmt: skip
            if theirs is not None:
                times = prediction.time_from_start_s
                ours[:, -1] = np.interp(path.time_from_start_s, times, theirs[:, column])
    path = replace(path, position_rad=position, velocity_rad_s=velocity)
    message = messages.to_ros(path, JOINT_NAMES, version)
    message["header"]["frame_id"] += "/retimed"
    return message
