"""ROS messages as rosbridge carries them (dicts) ↔ our types. Pure, no clock.

Legend: T trajectory points, n joints named in a message. ROS 1 and ROS 2 differ in the keys of a
stamp (secs/nsecs against sec/nanosec) and in type names; both are read, one is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import numpy as np
import numpy.typing as npt

from crane_x7_remote.errors import RemoteError
from crane_x7_remote.rosbridge.protocol import brief
from crane_x7_vla_rl.joint_names import JointsError, places_of_joints
from crane_x7_vla_rl.prompt import MAX_INSTRUCTION_BYTES, clean_instruction
from crane_x7_vla_rl.robot import JOINT_NAMES
from crane_x7_vla_rl.types import Array, JointState, Trajectory

Message = Mapping[str, Any]
RosVersion = Literal[1, 2]

FRAME_ID = re.compile(
    r"vla/(?P<session>[0-9a-f]{8})/(?P<sequence>\d{1,18})/(?P<valid_ms>\d{1,9})(?P<retimed>/retimed)?"
)
"""The format of session, sequence number and validity in `header.frame_id` of our trajectories; the
guard marks one that it re-timed."""


class MessageError(RemoteError):
    """A message cannot be used; names the field, its value and the expected value."""


@dataclass(frozen=True, eq=False, slots=True)
class StampedJoints:
    """A joint state with the robot's stamp and the time of its arrival on our monotonic clock."""

    state: JointState
    stamp_s: float
    arrival_s: float


@dataclass(frozen=True, eq=False, slots=True)
class ParsedTrajectory:
    """A received JointTrajectory; numbers unchecked, the last four fields None if not ours."""

    joint_names: tuple[str, ...]
    position_rad: Array
    """(T, n)."""
    velocity_rad_s: Array | None
    """(T, n), or None if no point has velocities."""
    acceleration_rad_s2: Array | None
    """(T, n), or None if no point has accelerations."""
    time_from_start_s: Array
    """(T,)."""
    stamp_s: float
    session: str | None
    sequence: int | None
    valid_s: float | None


# --- types and stamps ----------------------------------------------------------------------------


def same_type(first: str, second: str) -> bool:
    """Return whether two type names are equal: "sensor_msgs/msg/X" is "sensor_msgs/X"."""
    return _short(first) == _short(second)


def type_name(name: str, version: RosVersion) -> str:
    """Return "package/Name" as the ROS version spells it."""
    package, _, rest = _short(name).partition("/")
    return f"{package}/{rest}" if version == 1 else f"{package}/msg/{rest}"


def _short(name: str) -> str:
    package, _, rest = name.partition("/")
    return f"{package}/{rest.removeprefix('msg/').removeprefix('action/')}"


def read_stamp(message: Message) -> float:
    """Return the stamp of a header (or message with a header) in s; raises MessageError."""
    header = message.get("header", message)
    stamp = header.get("stamp") if isinstance(header, Mapping) else None
    return _read_time(stamp, "header.stamp")


def _read_time(value: object, where: str) -> float:
    if isinstance(value, Mapping):
        seconds = value.get("sec", value.get("secs"))
        nanoseconds = value.get("nanosec", value.get("nsecs"))
        if _is_number(seconds) and _is_number(nanoseconds):
            total = float(seconds) + float(nanoseconds) * 1e-9
            if np.isfinite(total):
                return total
    raise MessageError(f"{where} is {brief(value)}, expected sec and nanosec (or secs and nsecs)")


def stamp_version(message: Message) -> RosVersion:
    """Return the ROS version of a message's header, from the keys of its stamp.

    Raises MessageError if there is no stamp or it has the keys of both.
    """
    header = message.get("header", message)
    stamp = header.get("stamp") if isinstance(header, Mapping) else None
    keys = stamp if isinstance(stamp, Mapping) else {}
    is_1, is_2 = "secs" in keys or "nsecs" in keys, "sec" in keys or "nanosec" in keys
    if is_1 == is_2:
        raise MessageError(
            f"header.stamp is {brief(stamp)}, expected either secs and nsecs (ROS 1) or sec and"
            " nanosec (ROS 2)"
        )
    return 1 if is_1 else 2


def write_stamp(seconds: float, version: RosVersion) -> dict[str, int]:
    """Return a time or duration in s in the format of the ROS version, rounded to ns."""
    total = round(seconds * 1e9)
    whole, rest = divmod(total, 1_000_000_000)
    return {"secs": whole, "nsecs": rest} if version == 1 else {"sec": whole, "nanosec": rest}


def _is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a number that fits a float; JSON allows integers of 400 digits."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**1023
    return isinstance(value, float)


# --- in ------------------------------------------------------------------------------------------


def joint_state(message: Message) -> JointState:
    """Return our eight joints from a JointState in any order; other joints are ignored.

    A joint that is missing, duplicate or without a position raises MessageError. Velocities that
    are not reported become NaN, and so does null, which a server writes for NaN in JSON.
    """
    names, positions = message.get("name"), _nulls_as_nan(message.get("position"))
    velocities = _nulls_as_nan(message.get("velocity")) or []
    if not isinstance(names, list | tuple) or not _are_numbers(positions):
        raise MessageError(
            f"JointState has name={brief(names)}, position={brief(positions)}; expected a list of"
            " names and a list of numbers"
        )
    try:
        places = places_of_joints(names, len(positions))
    except JointsError as error:
        raise MessageError(
            f"JointState has {brief(list(names))}, not from the CRANE-X7's joint_state_broadcaster?"
            f" It {error}"
        ) from error
    position = np.array([positions[place] for place in places], dtype=np.float64)
    velocity = np.full(len(places), np.nan)
    if _are_numbers(velocities) and len(velocities) == len(names):
        velocity = np.array([velocities[place] for place in places], dtype=np.float64)
    return JointState(position, velocity)


def _nulls_as_nan(values: Any) -> Any:
    if isinstance(values, list | tuple) and None in values:
        return [float("nan") if value is None else value for value in values]
    return values


def _are_numbers(values: object) -> TypeGuard[Sequence[float]]:
    return isinstance(values, list | tuple) and all(_is_number(value) for value in values)


def instruction(message: Message) -> str:
    """Return the task in a std_msgs/String, in one line; raises MessageError if it is invalid."""
    text = message.get("data")
    if not isinstance(text, str):
        raise MessageError(f"instruction is {brief(text)}, expected text")
    if len(message) > 1:
        raise MessageError(
            f"instruction has the fields {brief(list(message))}, expected a"
            " std_msgs/String with only data"
        )
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise MessageError(f"instruction is not valid Unicode: {error}") from error
    if size > MAX_INSTRUCTION_BYTES:
        raise MessageError(
            f"instruction has {size} bytes, expected at most {MAX_INSTRUCTION_BYTES}"
        )
    if "�" in text:
        raise MessageError(f"instruction is {brief(text)}, expected UTF-8 text")
    if not text.strip():
        raise MessageError("instruction is empty, expected a task such as 'pick up the red cube'")
    try:
        return clean_instruction(text)
    except ValueError as error:
        raise MessageError(str(error)) from error


def trajectory(message: Message) -> ParsedTrajectory:
    """Return a JointTrajectory; raises MessageError unless the lengths of its lists match."""
    names, points = message.get("joint_names"), message.get("points")
    if not isinstance(points, list) or not all(isinstance(point, Mapping) for point in points):
        raise MessageError(f"JointTrajectory.points is {brief(points)}, expected points")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise MessageError(f"JointTrajectory.joint_names is {brief(names)}, expected names")
    header = message.get("header", {})
    frame_id = header.get("frame_id") if isinstance(header, Mapping) else None
    ours = FRAME_ID.fullmatch(frame_id) if isinstance(frame_id, str) else None

    def rows(key: str) -> Array | None:
        is_given = any(point.get(key) for point in points)
        return _rows(points, key, len(names)) if is_given else None

    return ParsedTrajectory(
        joint_names=tuple(names),
        position_rad=_rows(points, "positions", len(names)),
        velocity_rad_s=rows("velocities"),
        acceleration_rad_s2=rows("accelerations"),
        time_from_start_s=np.array(
            [_read_time(point.get("time_from_start"), "time_from_start") for point in points]
        ),
        stamp_s=read_stamp(message),
        session=ours["session"] if ours else None,
        sequence=int(ours["sequence"]) if ours else None,
        valid_s=int(ours["valid_ms"]) / 1e3 if ours else None,
    )


def _rows(points: Sequence[Message], key: str, count: int) -> Array:
    rows = [point.get(key) for point in points]
    for index, row in enumerate(rows):
        if not _are_numbers(row) or len(row) != count:
            raise MessageError(
                f"JointTrajectory.points[{index}].{key} is {brief(row)}, expected {count} numbers"
            )
    return np.array(rows, dtype=np.float64).reshape(len(rows), count)


def as_trajectory(parsed: ParsedTrajectory) -> Trajectory | None:
    """Return one of our own trajectories over all 8 joints; None for any other."""
    session, sequence, valid_s = parsed.session, parsed.sequence, parsed.valid_s
    velocity = parsed.velocity_rad_s
    if session is None or sequence is None or valid_s is None or velocity is None:
        return None
    if sorted(parsed.joint_names) != sorted(JOINT_NAMES) or not len(parsed.time_from_start_s):
        return None
    columns = [parsed.joint_names.index(name) for name in JOINT_NAMES]
    return Trajectory(
        position_rad=parsed.position_rad[:, columns],
        velocity_rad_s=velocity[:, columns],
        time_from_start_s=parsed.time_from_start_s,
        stamp_s=parsed.stamp_s,
        sequence=sequence,
        session=session,
        valid_s=valid_s,
    )


# --- out -----------------------------------------------------------------------------------------


def to_ros(
    path: Trajectory, joint_names: Sequence[str] = JOINT_NAMES, version: RosVersion = 2
) -> dict[str, Any]:
    """Return a JointTrajectory over `joint_names`, a selection of robot.JOINT_NAMES."""
    columns = [JOINT_NAMES.index(name) for name in joint_names]
    points = [
        {
            "positions": position,
            "velocities": velocity,
            "accelerations": [],
            "effort": [],
            "time_from_start": write_stamp(offset, version),
        }
        for position, velocity, offset in zip(
            path.position_rad[:, columns].tolist(),
            path.velocity_rad_s[:, columns].tolist(),
            path.time_from_start_s.tolist(),
            strict=True,
        )
    ]
    frame_id = f"vla/{path.session}/{path.sequence}/{round(path.valid_s * 1e3)}"
    header = _header(path.stamp_s, version, frame_id)
    return {"header": header, "joint_names": list(joint_names), "points": points}


def compressed_image(jpeg: bytes, stamp_s: float, version: RosVersion = 2) -> dict[str, Any]:
    """Return a CompressedImage with JPEG data."""
    header = _header(stamp_s, version, "camera_color_optical_frame")
    return {"header": header, "format": "jpeg", "data": jpeg}


def joint_state_to_ros(
    names: Sequence[str],
    position_rad: npt.ArrayLike,
    velocity_rad_s: npt.ArrayLike,
    stamp_s: float,
    version: RosVersion = 2,
) -> dict[str, Any]:
    """Return a JointState; the vectors have the order of `names`."""
    return {
        "header": _header(stamp_s, version, ""),
        "name": list(names),
        "position": np.asarray(position_rad, dtype=np.float64).tolist(),
        "velocity": np.asarray(velocity_rad_s, dtype=np.float64).tolist(),
        "effort": [],
    }


def string(text: str) -> dict[str, str]:
    """Return a std_msgs/String."""
    return {"data": text}


def float32_array(values: npt.ArrayLike) -> dict[str, Any]:
    """Return a std_msgs/Float32MultiArray with one dimension."""
    flat = np.asarray(values, dtype=np.float32).ravel()
    layout = {"dim": [{"label": "", "size": flat.size, "stride": flat.size}], "data_offset": 0}
    return {"layout": layout, "data": flat.tolist()}


def action_goal(
    goal: Message, name: str, stamp_s: float, version: RosVersion = 1
) -> dict[str, Any]:
    """Return an actionlib goal message for `<action>/goal`.

    The stamp of the goal's id is 0: the action server then uses its own time. Otherwise the goal
    could look older than one from a node whose clock is ahead (actionlib, StatusTracker).
    """
    goal_id = {"stamp": write_stamp(0.0, version), "id": name}
    return {"header": _header(stamp_s, version, ""), "goal_id": goal_id, "goal": goal}


def _header(stamp_s: float, version: RosVersion, frame_id: str) -> dict[str, Any]:
    header: dict[str, Any] = {"stamp": write_stamp(stamp_s, version), "frame_id": frame_id}
    return {"seq": 0} | header if version == 1 else header
