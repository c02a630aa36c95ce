"""Clients' messages rebuilt from known fields, each checked for type and size. Pure.

Raises MessageError, which says what came and what was expected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from crane_x7_remote.guard.requests import Operation
from crane_x7_remote.rosbridge.messages import MessageError
from crane_x7_remote.rosbridge.protocol import brief

MAX_POINTS = 1000
MAX_JOINTS = 32
MAX_NAME = 128
"""Characters of an id, a joint's name or a frame_id."""
MAX_REASON = 200
MAX_SECONDS = 2**31 - 1
"""builtin_interfaces/Time.sec is an int32."""
ROS_1_KEYS, ROS_2_KEYS = ("secs", "nsecs"), ("sec", "nanosec")
NUMBERS = frozenset({int, float})
"""A bool is not a number here, although isinstance treats it as an int."""


def operation_name(operation: Operation) -> str | None:
    """Return the id of an operation, if it has one."""
    value = operation.get("id")
    return None if value is None else name(value, f"{operation['op'][:20]!r}: id")


def name(value: object, where: str) -> str:
    """Return a text that is safe to show, store and send: short, without control characters."""
    if not isinstance(value, str) or len(value) > MAX_NAME or not value.isprintable():
        raise MessageError(
            f"{where} is {brief(value)}, expected up to {MAX_NAME} printable characters"
        )
    return value


def count(operation: Operation, field: str, most: int) -> int:
    """Return a number field of `subscribe`, rounded up to an integer; a missing field is 0."""
    value = operation.get(field) or 0
    if type(value) not in NUMBERS or not 0 <= value <= most:
        raise MessageError(
            f"subscribe: {field} is {brief(value)}, expected a number from 0 to {most}"
        )
    return math.ceil(value)


def numbers(value: object, where: str, most: int) -> list[float]:
    """Return finite floats whose sum is also finite."""
    if isinstance(value, list) and len(value) <= most and NUMBERS.issuperset(map(type, value)):
        try:
            found = [float(number) for number in value]
        except OverflowError:  # an integer of 400 digits
            found = [math.nan]
        if math.isfinite(sum(found)):
            return found
    raise MessageError(f"{where} is {brief(value)}, expected up to {most} numbers, all finite")


def _time(value: object, where: str) -> dict[str, int]:
    """Return a stamp or duration with its original keys."""
    if isinstance(value, Mapping):
        keys = ROS_1_KEYS if "secs" in value else ROS_2_KEYS
        seconds, rest = value.get(keys[0]), value.get(keys[1])
        if type(seconds) is type(rest) is int and 0 <= seconds <= MAX_SECONDS and 0 <= rest < 10**9:
            return {keys[0]: seconds, keys[1]: rest}
    raise MessageError(f"{where} is {brief(value)}, expected sec and nanosec (or secs and nsecs)")


def trajectory(message: Operation) -> dict[str, Any]:
    """Return a JointTrajectory with known fields only."""
    header, joints, points = (message.get(key) for key in ("header", "joint_names", "points"))
    if not isinstance(header, Mapping):
        raise MessageError(f"JointTrajectory.header is {brief(header)}, expected a header")
    if not isinstance(joints, list) or len(joints) > MAX_JOINTS:
        raise MessageError(
            f"JointTrajectory.joint_names is {brief(joints)}, expected up to {MAX_JOINTS} names"
        )
    if not isinstance(points, list) or len(points) > MAX_POINTS:
        raise MessageError(
            f"JointTrajectory.points is {brief(points)}, expected up to {MAX_POINTS} points"
        )
    built: dict[str, Any] = {
        "stamp": _time(header.get("stamp"), "header.stamp"),
        "frame_id": name(header.get("frame_id", ""), "header.frame_id"),
    }
    return {
        "header": ({"seq": 0} | built) if "secs" in built["stamp"] else built,
        "joint_names": [name(joint, "JointTrajectory.joint_names") for joint in joints],
        "points": [_point(point, f"points[{index}]") for index, point in enumerate(points)],
    }


def _point(point: object, where: str) -> dict[str, Any]:
    if not isinstance(point, Mapping):
        raise MessageError(f"JointTrajectory.{where} is {brief(point)}, expected a point")
    return {
        key: numbers(point.get(key) or [], f"{where}.{key}", MAX_JOINTS)
        for key in ("positions", "velocities", "accelerations", "effort")
    } | {"time_from_start": _time(point.get("time_from_start"), f"{where}.time_from_start")}


def gripper_command(goal: Operation) -> tuple[float, float]:
    """Return position (rad) and max_effort of a GripperCommand goal."""
    command = goal.get("command")
    fields = command if isinstance(command, Mapping) else {}
    position, effort = fields.get("position"), fields.get("max_effort", 0.0)
    both = numbers([position, effort], "GripperCommand.command", 2)
    return both[0], max(0.0, both[1])


def goal_id(value: Operation) -> dict[str, Any]:
    """Return an actionlib_msgs/GoalID with stamp 0: the server inserts its own time."""
    return {"stamp": {"secs": 0, "nsecs": 0}, "id": name(value.get("id", ""), "goal_id.id")}


def boolean(message: Operation) -> bool:
    """Return the value of a std_msgs/Bool."""
    value = message.get("data")
    if not isinstance(value, bool):
        raise MessageError(f"std_msgs/Bool.data is {brief(value)}, expected true or false")
    return value


def reason(operation: Operation) -> str | None:
    """Return the reason that `crane-x7-remote stop --reason` adds; Bool has no field for it."""
    value = operation.get("reason")
    if not isinstance(value, str) or not value.strip():
        return None
    return "".join(letter if letter.isprintable() else " " for letter in value[:MAX_REASON])
