"""What a rosbridge server makes of a client's JSON, by ROS version; figures of its sources."""

from __future__ import annotations

import re
from typing import Any

import pytest

from crane_x7_remote.sim_robot.ros_types import (
    MOST_ELEMENTS,
    FieldError,
    cbor_obstacle,
    convert,
    fields_of,
    known_types,
)

NOW = 1_700_000_000.0
TRAJECTORY, JOINTS = "trajectory_msgs/JointTrajectory", "sensor_msgs/JointState"
VERSIONS = pytest.mark.parametrize("version", [1, 2])


def time_of(version: Any, value: object) -> dict[str, int]:
    point = {"points": [{"time_from_start": value}]}
    time: dict[str, int] = convert(TRAJECTORY, point, version, NOW)["points"][0]["time_from_start"]
    return time


def stamp_of(version: Any, header: object) -> dict[str, int]:
    stamp: dict[str, int] = convert(JOINTS, {"header": header}, version, NOW)["header"]["stamp"]
    return stamp


@VERSIONS
def test_every_field_refers_to_a_known_type(version: Any) -> None:
    for name in known_types(version):
        assert convert(name, {}, version, NOW).keys() == known_types(version)[name].keys()


def test_ros_1_drops_the_keys_of_ros_2_and_ros_2_reads_both() -> None:
    assert time_of(1, {"sec": 3, "nanosec": 5}) == {"secs": 0, "nsecs": 0}
    assert time_of(1, {"secs": 3, "nsecs": 5}) == {"secs": 3, "nsecs": 5}
    assert time_of(2, {"secs": 3, "nsecs": 5}) == {"sec": 3, "nanosec": 5}
    assert time_of(2, {"sec": 3, "nanosec": 5}) == {"sec": 3, "nanosec": 5}
    assert time_of(2, {"sec": 3, "secs": 4, "nanosec": 5}) == {"sec": 3, "nanosec": 5}
    assert time_of(2, {"seconds": 3}) == {"sec": 0, "nanosec": 0}


def test_a_header_with_a_stamp_that_is_not_read_is_stamped_now_and_without_a_header_0() -> None:
    now_1, now_2 = (
        {"secs": 1_700_000_000, "nsecs": 0},
        {"sec": 1_700_000_000, "nanosec": 0},
    )
    assert stamp_of(1, {"stamp": {"sec": 3, "nanosec": 5}}) == now_1
    assert stamp_of(1, {}) == now_1
    assert stamp_of(1, {"stamp": "now"}) == now_1
    assert stamp_of(1, {"stamp": {"secs": 0, "nsecs": 0}}) == {"secs": 0, "nsecs": 0}
    assert stamp_of(2, {}) == stamp_of(2, {"stamp": "now"}) == now_2
    assert convert(JOINTS, {}, 1, NOW)["header"]["stamp"] == {"secs": 0, "nsecs": 0}


def test_seq_is_a_field_of_ros_1_alone() -> None:
    assert convert(JOINTS, {"header": {"seq": 7}}, 1, NOW)["header"]["seq"] == 7
    assert convert(JOINTS, {}, 1, NOW)["header"]["seq"] == 0
    with pytest.raises(FieldError, match=re.escape("no field 'header.seq'")):
        convert(JOINTS, {"header": {"seq": 7}}, 2, NOW)


@VERSIONS
@pytest.mark.parametrize(
    ("message", "where"),
    [
        ({"speed": 1}, "no field 'speed'"),
        ({"points": [{"time": 1}]}, "no field 'points.time'"),
        ({"points": 3}, "points is 3"),
        ({"points": [3]}, "points is 3"),
        ({"points": None}, "points is None"),
        ({"points": [{"positions": [None]}]}, "points.positions"),
        ({"points": [{"positions": ["1"]}]}, "points.positions"),
        ({"points": [{"positions": [True]}]}, "points.positions"),
        ({"points": [{"positions": [10**400]}]}, "float64"),
        ({"points": [{"positions": {}}]}, "points.positions"),
        ({"points": [{"time_from_start": {"secs": 1e9}}]}, "points.time_from_start.secs"),
        ({"points": [{"time_from_start": {"secs": 2**31}}]}, "points.time_from_start.secs"),
        ({"points": [{"time_from_start": {"secs": 10**400}}]}, "points.time_from_start.secs"),
        ({"points": [{"time_from_start": {"nsecs": "x"}}]}, "points.time_from_start.nsecs"),
        ({"header": {"stamp": {"secs": -(2**40)}}}, "header.stamp.secs"),
        ({"header": {"frame_id": 5}}, "header.frame_id"),
        ({"joint_names": "abc"}, "joint_names"),
        ({"joint_names": ["\ud800"]}, "valid Unicode"),
        ({"points": [{}] * (MOST_ELEMENTS + 1)}, "at most 10000 elements"),
        ([], "the message"),
        (float("nan"), "the message"),
    ],
)
def test_what_does_not_fit_is_named(version: Any, message: object, where: str) -> None:
    with pytest.raises(FieldError, match=re.escape(where)) as caught:
        convert(TRAJECTORY, message, version, NOW)
    assert len(str(caught.value)) < 300


@VERSIONS
def test_a_deep_message_is_refused_at_its_first_level(version: Any) -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"points": [deep]}
    with pytest.raises(FieldError, match=re.escape("no field 'points.points'")):
        convert(TRAJECTORY, deep, version, NOW)
    while deep:  # Freed level by level.
        deep = deep["points"][0]


@VERSIONS
def test_numbers_keep_their_values_and_whole_ones_become_floats(version: Any) -> None:
    points = [{"positions": [1, -0.5, float("inf"), 1.7e308]}]
    read = convert(TRAJECTORY, {"points": points}, version, NOW)["points"][0]["positions"]
    assert read == [1.0, -0.5, float("inf"), 1.7e308]
    assert all(type(value) is float for value in read)


def test_a_float32_has_a_range() -> None:
    assert convert("std_msgs/Float32", {"data": float("inf")}, 2, NOW) == {"data": float("inf")}
    with pytest.raises(FieldError, match="float32"):
        convert("std_msgs/Float32", {"data": 1e39}, 2, NOW)


@VERSIONS
def test_bytes_come_as_base64_bytes_or_numbers(version: Any) -> None:
    for data in ("AAH/", b"\x00\x01\xff", [0, 1, 255]):
        read = convert("sensor_msgs/CompressedImage", {"data": data}, version, NOW)
        assert read["data"] == b"\x00\x01\xff"
    for data in ("A", 10**9, [256], [-1], ["x"], {}, None):
        with pytest.raises(FieldError, match="data"):
            convert("sensor_msgs/CompressedImage", {"data": data}, version, NOW)


def test_type_names_are_spelled_as_each_version_loads_them() -> None:
    assert fields_of("sensor_msgs/JointState", 1) == fields_of("sensor_msgs/JointState", 2)
    assert fields_of("sensor_msgs/msg/JointState", 1) is None
    assert fields_of("sensor_msgs/msg/JointState", 2) is not None
    assert fields_of("control_msgs/GripperCommandActionGoal", 2) is None
    for wrong in ("", "JointState", "/", "a/b/c/d", "sensor_msgs//JointState"):
        assert fields_of(wrong, 1) is None
        assert fields_of(wrong, 2) is None


def test_a_released_rosbridge_packs_no_list_of_strings_on_ros_1() -> None:
    joints = convert(JOINTS, {"name": ["a"], "position": [1.0]}, 1, NOW)
    assert cbor_obstacle(JOINTS, joints, 1) == "name"
    assert cbor_obstacle(JOINTS, joints, 2) is None
    assert cbor_obstacle(JOINTS, joints | {"name": []}, 1) is None, "an empty list is no obstacle"
    path = convert(TRAJECTORY, {"joint_names": ["a"], "points": [{}]}, 1, NOW)
    assert cbor_obstacle(TRAJECTORY, path, 1) == "joint_names"
    assert cbor_obstacle(TRAJECTORY, path | {"joint_names": []}, 1) is None
    for version in (1, 2):
        camera = convert("sensor_msgs/CameraInfo", {}, version, NOW)  # type: ignore[arg-type]
        assert cbor_obstacle("sensor_msgs/CameraInfo", camera, version) in {"K", "k"}  # type: ignore[arg-type]
