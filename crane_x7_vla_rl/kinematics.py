"""Forward and inverse kinematics of the CRANE-X7: joints → frames, and frames → joints.

Pure functions over arrays, from the dimensions in `robot`. World frame: mounting surface under the
robot, z up, x forward, robot base at the origin; the base link is on a plate of `BASE_PLATE_M`.
Angles in rad, lengths in m. The tool frame has the gripper base's orientation and is between the
fingertips of the closed gripper: its z axis points out of the gripper, and the fingers open along
its x axis.

With both twist joints (3 and 5) at 0 the arm is planar: pan rotates the plane, tilt, elbow and
lower arm move within it, and the wrist rotates the gripper. A grasp from above then has a closed
form; any other pose is found by damped least squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.robot import (
    ARM_DOF,
    ARM_JOINTS,
    BASE_PLATE_M,
    DOF,
    FINGER_A,
    FINGER_B,
    FINGER_LENGTH_M,
    LOWER_RAD,
    UPPER_RAD,
    Joint,
)

Array = npt.NDArray[np.float64]

TOOL_M: Final = FINGER_A.origin_m[2] + FINGER_LENGTH_M
"""From the gripper base's frame along its z to the tool frame."""

_PAN, _TILT, _TWIST, _ELBOW, _LOWER_TWIST, _LOWER, _WRIST = range(ARM_DOF)
_ORIGINS_Z: Final = [joint.origin_m[2] for joint in ARM_JOINTS]
SHOULDER_Z_M: Final = BASE_PLATE_M + _ORIGINS_Z[_PAN] + _ORIGINS_Z[_TILT]
"""Height of the tilt axis above the mounting surface."""
UPPER_ARM_M: Final = _ORIGINS_Z[_TWIST] + _ORIGINS_Z[_ELBOW]
"""Tilt axis to elbow axis."""
FOREARM_M: Final = _ORIGINS_Z[_LOWER_TWIST] + _ORIGINS_Z[_LOWER]
"""Elbow axis to the axis of the lower arm's revolute part."""
HAND_M: Final = _ORIGINS_Z[_WRIST] + TOOL_M
"""Axis of the lower arm's revolute part to the tool frame."""

POSITION_TOLERANCE_M: Final = 1e-4
ROTATION_TOLERANCE_RAD: Final = 1e-3


class UnreachableError(ValueError):
    """The arm cannot reach the pose; names the pose and the limit."""


def _rotation(axis: Sequence[float], angle: float) -> Array:
    """Return the (3, 3) rotation by `angle` about the unit `axis` (Rodrigues)."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])  # (3, 3)
    turned: Array = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return turned


def _joint_frame(joint: Joint, angle: float) -> Array:
    """Return the child link's (4, 4) frame in its parent's."""
    frame = np.eye(4)
    frame[:3, :3] = _rotation(joint.axis, angle)
    frame[:3, 3] = joint.origin_m
    return frame


def link_frames(position_rad: npt.ArrayLike) -> Array:
    """Return the frames of all links in the world.

    `position_rad`: (7,) arm or (8,) arm and gripper (default 0).
    Returns (10, 4, 4): base link, the seven arm links (the last is the gripper base), finger A,
    finger B.
    """
    position = np.asarray(position_rad, dtype=np.float64)  # (7,) or (8,)
    if position.shape not in {(ARM_DOF,), (DOF,)}:
        raise ValueError(f"position_rad has shape {position.shape}, expected (7,) or (8,)")
    gripper = float(position[ARM_DOF]) if len(position) == DOF else 0.0
    frame = np.eye(4)  # (4, 4)
    frame[2, 3] = BASE_PLATE_M
    frames = [frame]
    for joint, angle in zip(ARM_JOINTS, position, strict=False):
        frame = frame @ _joint_frame(joint, float(angle))
        frames.append(frame)
    fingers = [frame @ _joint_frame(finger, gripper) for finger in (FINGER_A, FINGER_B)]
    return np.stack(frames + fingers)  # (10, 4, 4)


def tool_frame(position_rad: npt.ArrayLike) -> Array:
    """Return the tool's (4, 4) frame in the world at `position_rad`, (7,) or (8,)."""
    frame: Array = link_frames(position_rad)[ARM_DOF].copy()
    frame[:3, 3] += TOOL_M * frame[:3, 2]
    return frame


def jacobian(position_rad: npt.ArrayLike) -> Array:
    """Return (6, 7): the tool's linear (m) over angular (rad) velocity in the world, by joint."""
    frames = link_frames(position_rad)  # (10, 4, 4)
    tool = frames[ARM_DOF][:3, 3] + TOOL_M * frames[ARM_DOF][:3, 2]  # (3,)
    columns = []
    for joint, frame in zip(ARM_JOINTS, frames[1 : ARM_DOF + 1], strict=True):
        axis = frame[:3, :3] @ np.asarray(joint.axis, dtype=np.float64)  # (3,)
        columns.append(np.concatenate([np.cross(axis, tool - frame[:3, 3]), axis]))  # (6,)
    return np.column_stack(columns)  # (6, 7)


def opening_yaw(position_rad: npt.ArrayLike) -> float:
    """Return the direction along which the fingers open, about world z, in [0, π)."""
    x_axis = tool_frame(position_rad)[:3, 0]  # (3,)
    return float(np.arctan2(x_axis[1], x_axis[0]) % np.pi)


def reach(
    point_m: npt.ArrayLike,
    yaw_rad: float,
    *,
    lean_rad: float = 0.0,
    wrist_near_rad: float = np.pi / 2,
) -> Array:
    """Return arm joints (7,) that hold the tool at `point_m`, pointing down, in closed form.

    `point_m`: (3,) in the world. `yaw_rad`: direction along which the fingers open, about world z,
    modulo π (exact for lean 0). `lean_rad`: how far the tool leans outwards from straight down,
    within the arm's plane. Of the wrist angles that give `yaw_rad`, the one nearest to
    `wrist_near_rad` is taken. Raises UnreachableError.
    """
    x, y, z = (float(value) for value in np.asarray(point_m, dtype=np.float64))
    where = f"({x:.3f}, {y:.3f}, {z:.3f}) m"
    if not np.isfinite([x, y, z, yaw_rad, lean_rad]).all():
        raise UnreachableError(f"{where} with yaw {yaw_rad} and lean {lean_rad} is not finite")
    approach = np.pi - lean_rad  # direction of the tool's z axis, from straight up, in the plane
    out = float(np.hypot(x, y)) - HAND_M * np.sin(approach)
    up = z - SHOULDER_Z_M - HAND_M * np.cos(approach)
    distance = float(np.hypot(out, up))
    cosine = (distance**2 - UPPER_ARM_M**2 - FOREARM_M**2) / (2 * UPPER_ARM_M * FOREARM_M)
    if not -1 <= cosine <= 1:
        raise UnreachableError(
            f"{where} is out of reach from above: the lower arm's joint would be {distance:.3f} m "
            f"from the shoulder, the arm spans {abs(UPPER_ARM_M - FOREARM_M):.3f} to "
            f"{UPPER_ARM_M + FOREARM_M:.3f} m"
        )
    bend = float(np.arccos(cosine))
    upper = np.arctan2(out, up) - np.arctan2(
        FOREARM_M * np.sin(bend), UPPER_ARM_M + FOREARM_M * np.cos(bend)
    )
    arm = np.zeros(ARM_DOF)  # (7,)
    arm[_PAN] = np.arctan2(y, x)
    arm[_TILT] = -upper
    arm[_ELBOW] = -bend
    arm[_LOWER] = upper + bend - approach
    arm[_WRIST] = _wrist_angle(arm[_PAN] - yaw_rad, wrist_near_rad)
    _check_limits(arm, where)
    return arm


def _wrist_angle(angle: float, near: float) -> float:
    """Return the one of `angle` + k·π within the wrist's limits that is nearest to `near`."""
    turns = angle + np.pi * np.arange(-4, 5)  # (9,)
    inside = turns[(turns >= LOWER_RAD[_WRIST]) & (turns <= UPPER_RAD[_WRIST])]
    return float(inside[np.argmin(np.abs(inside - near))]) if len(inside) else float(angle)


def _check_limits(arm: Array, where: str) -> None:
    """Raise UnreachableError that names the joint furthest outside its limits."""
    excess = np.maximum(arm - UPPER_RAD[:ARM_DOF], LOWER_RAD[:ARM_DOF] - arm)  # (7,)
    worst = int(np.argmax(excess))
    if excess[worst] > 1e-9:
        joint = ARM_JOINTS[worst]
        raise UnreachableError(
            f"{where} is out of reach from above: {joint.name} would be {arm[worst]:.3f} rad, "
            f"its limits are {joint.lower_rad} … {joint.upper_rad}"
        )


def _pose_error(frame: Array, wanted: Array) -> Array:
    """Return (6,): the remaining translation (m) over rotation vector (rad), in the world."""
    turn = wanted[:3, :3] @ frame[:3, :3].T  # (3, 3)
    axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    sine = float(np.linalg.norm(axis)) / 2
    cosine = (float(np.trace(turn)) - 1) / 2
    if sine > 1e-9:
        rotation = axis / (2 * sine) * np.arctan2(sine, cosine)
    elif cosine > 0:
        rotation = axis / 2
    else:  # half a turn: the axis is the longest column of turn + 1
        halves = turn + np.eye(3)  # (3, 3)
        column = halves[:, int(np.argmax(np.linalg.norm(halves, axis=0)))]
        rotation = np.pi * column / np.linalg.norm(column)
    return np.concatenate([wanted[:3, 3] - frame[:3, 3], rotation])


def inverse(
    frame: npt.ArrayLike,
    start_rad: npt.ArrayLike,
    *,
    iterations: int = 200,
    damping: float = 0.02,
) -> Array:
    """Return arm joints (7,) within limits whose tool frame is `frame`, found near `start_rad`.

    `frame`: (4, 4) in the world. `start_rad`: (7,) or (8,), the start of the search. Damped least
    squares; joints that would leave their limits are clamped and the search continues with the
    others. Raises UnreachableError, also if the search ends in a local minimum: try another start.
    """
    wanted = np.asarray(frame, dtype=np.float64)  # (4, 4)
    lower, upper = LOWER_RAD[:ARM_DOF], UPPER_RAD[:ARM_DOF]
    arm = np.clip(np.asarray(start_rad, dtype=np.float64)[:ARM_DOF], lower, upper)
    error = _pose_error(tool_frame(arm), wanted)  # (6,)
    for _ in range(iterations):
        if _is_reached(error):
            return arm
        arm = _damped_step(arm, error, damping)
        error = _pose_error(tool_frame(arm), wanted)
    if _is_reached(error):
        return arm
    raise UnreachableError(
        f"no joints found for a tool at {np.round(wanted[:3, 3], 3).tolist()} m: after "
        f"{iterations} steps {np.linalg.norm(error[:3]) * 1e3:.1f} mm and "
        f"{np.linalg.norm(error[3:]):.3f} rad remain; it is out of reach, or try another start"
    )


def _is_reached(error: Array) -> bool:
    return bool(
        np.linalg.norm(error[:3]) < POSITION_TOLERANCE_M
        and np.linalg.norm(error[3:]) < ROTATION_TOLERANCE_RAD
    )


def _damped_step(arm: Array, error: Array, damping: float) -> Array:
    """Return `arm` after one step of at most 0.3 rad per joint against `error`, within limits."""
    lower, upper = LOWER_RAD[:ARM_DOF], UPPER_RAD[:ARM_DOF]
    full = jacobian(arm)  # (6, 7)
    free = np.ones(ARM_DOF, dtype=bool)
    # Far from the goal a linear model holds only for short steps, so damping falls with the error.
    weight = damping * min(1.0, float(np.linalg.norm(error)))
    for _ in range(ARM_DOF):
        columns = full[:, free]  # (6, free joints)
        step = np.zeros(ARM_DOF)
        step[free] = columns.T @ np.linalg.solve(
            columns @ columns.T + (weight**2 + 1e-10) * np.eye(6), error
        )
        step *= min(1.0, 0.3 / max(1e-12, float(np.abs(step).max())))
        stuck = free & (((arm <= lower) & (step < 0)) | ((arm >= upper) & (step > 0)))
        if not stuck.any():
            break
        free &= ~stuck
    stepped: Array = np.clip(arm + np.where(free, step, 0.0), lower, upper)
    return stepped
