"""The ROS messages that this robot has installed: decoded JSON of a client → the complete message.

Every field is present, in order and of the right type; otherwise FieldError is raised. Rules of
rosbridge_library (branches ros1 and ros2, message_conversion.py and cbor_conversion.py): missing
fields are 0 or empty, unknown ones an error; but a time reads the keys that it knows and ignores
the rest. ROS 1 knows secs and nsecs, ROS 2 these and sec and nanosec. A header without a readable
stamp is stamped "now". Field lists: the .msg files of common_msgs, control_msgs and actionlib_msgs.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from crane_x7_remote.errors import RemoteError
from crane_x7_remote.rosbridge.messages import RosVersion, same_type, write_stamp
from crane_x7_remote.rosbridge.protocol import brief

DEFINITIONS = """
actionlib_msgs/GoalID: time stamp, string id
actionlib_msgs/GoalStatus: actionlib_msgs/GoalID goal_id, uint8 status, string text
actionlib_msgs/GoalStatusArray: std_msgs/Header header, actionlib_msgs/GoalStatus[] status_list
control_msgs/GripperCommand: float64 position, float64 max_effort
control_msgs/GripperCommandGoal: control_msgs/GripperCommand command
control_msgs/JointTrajectoryControllerState: std_msgs/Header header, string[] joint_names,
 trajectory_msgs/JointTrajectoryPoint desired, trajectory_msgs/JointTrajectoryPoint actual,
 trajectory_msgs/JointTrajectoryPoint error
diagnostic_msgs/DiagnosticArray: std_msgs/Header header, diagnostic_msgs/DiagnosticStatus[] status
diagnostic_msgs/DiagnosticStatus: uint8 level, string name, string message, string hardware_id,
 diagnostic_msgs/KeyValue[] values
diagnostic_msgs/KeyValue: string key, string value
geometry_msgs/Point: float64 x, float64 y, float64 z
geometry_msgs/Pose: geometry_msgs/Point position, geometry_msgs/Quaternion orientation
geometry_msgs/PoseStamped: std_msgs/Header header, geometry_msgs/Pose pose
geometry_msgs/Quaternion: float64 x, float64 y, float64 z, float64 w
geometry_msgs/Transform: geometry_msgs/Vector3 translation, geometry_msgs/Quaternion rotation
geometry_msgs/TransformStamped: std_msgs/Header header, string child_frame_id,
 geometry_msgs/Transform transform
geometry_msgs/Twist: geometry_msgs/Vector3 linear, geometry_msgs/Vector3 angular
geometry_msgs/Vector3: float64 x, float64 y, float64 z
rosgraph_msgs/Clock: time clock
sensor_msgs/CompressedImage: std_msgs/Header header, string format, uint8[] data
sensor_msgs/Image: std_msgs/Header header, uint32 height, uint32 width, string encoding,
 uint8 is_bigendian, uint32 step, uint8[] data
sensor_msgs/JointState: std_msgs/Header header, string[] name, float64[] position,
 float64[] velocity, float64[] effort
sensor_msgs/RegionOfInterest: uint32 x_offset, uint32 y_offset, uint32 height, uint32 width,
 bool do_rectify
std_msgs/Bool: bool data
std_msgs/Empty:
std_msgs/Float32: float32 data
std_msgs/Float32MultiArray: std_msgs/MultiArrayLayout layout, float32[] data
std_msgs/Float64: float64 data
std_msgs/Float64MultiArray: std_msgs/MultiArrayLayout layout, float64[] data
std_msgs/Int32: int32 data
std_msgs/MultiArrayDimension: string label, uint32 size, uint32 stride
std_msgs/MultiArrayLayout: std_msgs/MultiArrayDimension[] dim, uint32 data_offset
std_msgs/String: string data
tf2_msgs/TFMessage: geometry_msgs/TransformStamped[] transforms
trajectory_msgs/JointTrajectory: std_msgs/Header header, string[] joint_names,
 trajectory_msgs/JointTrajectoryPoint[] points
trajectory_msgs/JointTrajectoryPoint: float64[] positions, float64[] velocities,
 float64[] accelerations, float64[] effort, duration time_from_start
"""
OF_ROS_1 = """
control_msgs/GripperCommandActionFeedback: std_msgs/Header header,
 actionlib_msgs/GoalStatus status, control_msgs/GripperCommandResult feedback
control_msgs/GripperCommandActionGoal: std_msgs/Header header, actionlib_msgs/GoalID goal_id,
 control_msgs/GripperCommandGoal goal
control_msgs/GripperCommandActionResult: std_msgs/Header header, actionlib_msgs/GoalStatus status,
 control_msgs/GripperCommandResult result
control_msgs/GripperCommandResult: float64 position, float64 effort, bool stalled, bool reached_goal
sensor_msgs/CameraInfo: std_msgs/Header header, uint32 height, uint32 width,
 string distortion_model, float64[] D, float64[9] K, float64[9] R, float64[12] P, uint32 binning_x,
 uint32 binning_y, sensor_msgs/RegionOfInterest roi
std_msgs/Header: uint32 seq, time stamp, string frame_id
"""
OF_ROS_2 = """
sensor_msgs/CameraInfo: std_msgs/Header header, uint32 height, uint32 width,
 string distortion_model, float64[] d, float64[9] k, float64[9] r, float64[12] p, uint32 binning_x,
 uint32 binning_y, sensor_msgs/RegionOfInterest roi
std_msgs/Header: time stamp, string frame_id
"""
INTEGERS = {
    "int32": (-(2**31), 2**31 - 1), "uint8": (0, 2**8 - 1), "uint32": (0, 2**32 - 1),
}  # fmt: skip
LARGEST_FLOAT32 = 3.4028235677973366e38
"""Larger doubles round to infinity (IEEE 754)."""
TIME_KEYS = {1: (("secs",), ("nsecs",)), 2: (("sec", "secs"), ("nanosec", "nsecs"))}
"""Per ROS version the keys of a time that rosbridge reads; the first one present counts."""
TIME_RANGES = {
    (1, "time"): ("uint32", "uint32"), (1, "duration"): ("int32", "int32"),
    (2, "time"): ("int32", "uint32"), (2, "duration"): ("int32", "uint32"),
}  # fmt: skip
MOST_ELEMENTS = 10_000
"""Messages in an array: 4 MB of "{}" would become a gigabyte of empty trajectory points."""


class FieldError(RemoteError):
    """A message does not fit its type; says which field, what came and what was expected."""


@dataclass(frozen=True)
class Field:
    """A field of a message type."""

    kind: str
    """Type of each element: a primitive, time, duration or another message's type."""
    is_array: bool
    length: int | None
    """Length of an array of fixed length."""


Fields = Mapping[str, Field]


@cache
def known_types(version: RosVersion) -> Mapping[str, Fields]:
    """Return the fields of each installed type, named "package/Name"."""
    lines = (DEFINITIONS + (OF_ROS_1 if version == 1 else OF_ROS_2)).replace("\n ", " ")
    types = (line.split(":") for line in lines.splitlines() if line)
    return {name: _fields(text) for name, text in sorted(types)}


def _fields(text: str) -> Fields:
    fields = {}
    for declaration in filter(None, text.strip().split(", ")):
        kind, name = declaration.split()
        match = re.fullmatch(r"([\w/]+)(\[(\d*)\])?", kind)
        assert match is not None, declaration
        length = int(match[3]) if match[3] else None
        fields[name] = Field(match[1], match[2] is not None, length)
    return fields


def fields_of(type_name: str, version: RosVersion) -> Fields | None:
    """Return the fields of a type under any spelling that the ROS version knows; None if unknown.

    ROS 1 knows "package/Name" only, ROS 2 "package/msg/Name" as well.
    """
    if version == 1 and type_name.count("/") != 1:
        return None
    package, _, name = type_name.partition("/")
    return known_types(version).get(f"{package}/{name.removeprefix('msg/')}")


def alternatives(type_name: str, version: RosVersion) -> str:
    """Return the installed alternatives to an unknown type: its package's types, or the
    packages."""
    package = type_name.partition("/")[0]
    known = known_types(version)
    siblings = [name for name in known if name.startswith(package + "/")]
    return ", ".join(siblings or sorted({name.partition("/")[0] for name in known}))


def convert(type_name: str, message: object, version: RosVersion, now_s: float) -> dict[str, Any]:
    """Return `message` as the ROS side receives it; raises FieldError.

    Times keep the ROS version's own keys. NaN and infinity pass, as with a real server.
    """
    return _Conversion(type_name, version, now_s).message(type_name, message, "")


class _Conversion:
    """An incoming message; `where` is the path to a field, "" for the message."""

    def __init__(self, root: str, version: RosVersion, now_s: float) -> None:
        self._root, self._version, self._now_s = root, version, now_s
        self._primitives: dict[str, Callable[[object, str], Any]] = {
            "string": self._string, "bool": self._bool,
            "float32": self._float32, "float64": self._float64,
        }  # fmt: skip

    def message(self, kind: str, value: object, where: str) -> dict[str, Any]:
        fields = fields_of(kind, self._version)
        if fields is None:
            raise self._error(where, value, "a type that is installed")
        if not isinstance(value, dict):
            raise self._error(where, value, "an object")
        for name in value:
            if name not in fields:
                raise FieldError(
                    f"{self._root} has no field {brief(_join(where, str(name)))};"
                    f" known: {', '.join(fields)}"
                )
        given_s = self._now_s if same_type(kind, "std_msgs/Header") else 0.0
        return {
            name: self._field(field, value[name], _join(where, name), given_s)
            if name in value
            else self._default(field, given_s)
            for name, field in fields.items()
        }

    def _field(self, field: Field, value: object, where: str, unread_s: float) -> Any:
        if not field.is_array:
            return self._element(field.kind, value, where, unread_s)
        if field.kind == "uint8":
            return self._bytes(value, where)
        if not isinstance(value, list | tuple):
            raise self._error(where, value, "a list")
        if field.length not in (None, len(value)):
            raise self._error(where, value, f"{field.length} elements")
        if field.kind in ("float64", "float32") and all(type(each) is float for each in value):
            return list(value)
        if fields_of(field.kind, self._version) is not None and len(value) > MOST_ELEMENTS:
            raise self._error(where, len(value), f"at most {MOST_ELEMENTS} elements")
        return [self._element(field.kind, each, where, 0.0) for each in value]

    def _element(self, kind: str, value: object, where: str, unread_s: float) -> Any:
        if kind in self._primitives:
            return self._primitives[kind](value, where)
        if kind in INTEGERS:
            return self._integer(kind, value, where)
        if kind in ("time", "duration"):
            return self._time(kind, value, where, unread_s)
        return self.message(kind, value, where)

    def _default(self, field: Field, unread_s: float = 0.0) -> Any:
        if field.is_array:
            empty: Any = b"" if field.kind == "uint8" else []
            return empty if field.length is None else [0.0] * field.length
        if field.kind in ("time", "duration"):
            return write_stamp(unread_s, self._version)
        fields = fields_of(field.kind, self._version)
        if fields is not None:
            return {name: self._default(each) for name, each in fields.items()}
        return {"string": "", "bool": False}.get(field.kind, 0 if field.kind in INTEGERS else 0.0)

    def _time(self, kind: str, value: object, where: str, unread_s: float) -> dict[str, int]:
        """Missing parts of a time keep their value: 0, or now in a header that is present."""
        time = write_stamp(unread_s, self._version)
        if kind == "time" and value == "now":
            return write_stamp(self._now_s, self._version)
        if not isinstance(value, Mapping):
            if self._version == 1 or isinstance(value, str | list | tuple):
                return time
            raise self._error(where, value, "an object with sec and nanosec")
        ranges = TIME_RANGES[self._version, kind]
        keys = TIME_KEYS[self._version]
        for name, known, bounds in zip(time, keys, ranges, strict=True):
            given = next((key for key in known if key in value), None)
            if given is not None:
                time[name] = self._integer(bounds, value[given], _join(where, given))
        return time

    def _integer(self, kind: str, value: object, where: str) -> int:
        lowest, highest = INTEGERS[kind]
        if isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest:
            return value
        raise self._error(where, value, f"an integer from {lowest} to {highest}")

    def _float64(self, value: object, where: str) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                pass  # Such as an integer of 400 digits; reported below.
        raise self._error(where, value, "a number that fits a float64")

    def _float32(self, value: object, where: str) -> float:
        number = self._float64(value, where)
        if LARGEST_FLOAT32 <= abs(number) < float("inf"):
            raise self._error(where, value, "a number that fits a float32")
        return number

    def _bool(self, value: object, where: str) -> bool:
        if not isinstance(value, bool):
            raise self._error(where, value, "true or false")
        return value

    def _string(self, value: object, where: str) -> str:
        if not isinstance(value, str):
            raise self._error(where, value, "a string")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self._error(where, value, "valid Unicode") from error
        return value

    def _bytes(self, value: object, where: str) -> bytes:
        try:
            if isinstance(value, str):
                return b64decode(value)
            if isinstance(value, bytes | list):
                return bytes(value)
        except (binascii.Error, ValueError, TypeError) as error:
            raise self._error(where, value, "base64 or bytes") from error
        raise self._error(where, value, "base64 or bytes")

    def _error(self, where: str, value: object, expected: str) -> FieldError:
        field = where or "the message"
        return FieldError(f"{self._root}: {field} is {brief(value)}, expected {expected}")


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def cbor_obstacle(type_name: str, message: object, version: RosVersion) -> str | None:
    """Return the field that a released rosbridge cannot encode in CBOR, None if it can encode all.

    It packs numeric arrays of any length and treats every other array as one of messages: arrays of
    strings and of times fail on ROS 1, those of fixed length on both, unless they are empty.
    """
    fields = fields_of(type_name, version) or {}
    for name, field in fields.items():
        value = message.get(name) if isinstance(message, Mapping) else None
        if field.is_array and value:
            is_plain = fields_of(field.kind, version) is None
            is_named = field.kind in ("string", "time", "duration")
            if is_plain and (field.length is not None or (version == 1 and is_named)):
                return name
        elements = value if isinstance(value, list) else [value]
        for element in elements if fields_of(field.kind, version) else ():
            inner = cbor_obstacle(field.kind, element, version)
            if inner is not None:
                return f"{name}.{inner}"
    return None
