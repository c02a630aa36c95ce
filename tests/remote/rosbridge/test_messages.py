"""ROS messages as they come from the wire ↔ our types: what is taken, and what is refused."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg

from crane_x7_remote.rosbridge import frames, messages, protocol
from crane_x7_remote.rosbridge.messages import MessageError
from crane_x7_vla_rl.robot import ARM_JOINT_NAMES, JOINT_NAMES
from crane_x7_vla_rl.types import Trajectory

STAMP = {"stamp": {"sec": 1_700_000_000, "nanosec": 250_000_000}, "frame_id": "x"}
PICTURE = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], (48, 1, 3))
JPEG = simplejpeg.encode_jpeg(PICTURE, quality=95)
PNG = cv2.imencode(".png", PICTURE)[1].tobytes()


def encoded(content: bytes, picture_format: str = "jpeg") -> frames.EncodedFrame:
    message = {"header": STAMP, "format": picture_format, "data": content}
    return frames.from_message(message, 12.5)


def joints(**changes: Any) -> dict[str, Any]:
    values = list(range(8))
    message: dict[str, Any] = {
        "header": STAMP,
        "name": list(JOINT_NAMES),
        "position": [0.1 * value for value in values],
        "velocity": [0.01 * value for value in values],
        "effort": [],
    }
    return message | changes


# --- types and stamps ----------------------------------------------------------------------------


def test_both_ros_versions_name_the_same_type() -> None:
    assert messages.same_type("sensor_msgs/msg/CompressedImage", "sensor_msgs/CompressedImage")
    assert not messages.same_type("sensor_msgs/Image", "sensor_msgs/CompressedImage")
    assert messages.type_name("std_msgs/String", 2) == "std_msgs/msg/String"
    assert messages.type_name("std_msgs/msg/String", 1) == "std_msgs/String"


@pytest.mark.parametrize("version", [1, 2])
def test_a_stamp_survives_the_way_there_and_back(version: messages.RosVersion) -> None:
    seconds = 1_763_700_000.123456
    stamp = messages.write_stamp(seconds, version)
    assert set(stamp) == ({"secs", "nsecs"} if version == 1 else {"sec", "nanosec"})
    assert messages.read_stamp({"stamp": stamp}) == pytest.approx(seconds, abs=1e-6)
    assert messages.write_stamp(0.999_999_999_9, version) == messages.write_stamp(1.0, version)


@pytest.mark.parametrize(
    ("stamp", "version"),
    [({"secs": 1, "nsecs": 0}, 1), ({"sec": 1, "nanosec": 0}, 2), ({"secs": 0, "nsecs": 0}, 1)],
)
def test_the_keys_of_a_stamp_tell_the_version(stamp: dict[str, int], version: int) -> None:
    assert messages.stamp_version({"header": {"stamp": stamp}}) == version


@pytest.mark.parametrize(
    "stamp", [None, 7, {}, {"secs": 1, "nsecs": 0, "sec": 1, "nanosec": 0}, {"sec": 1, "nsecs": 0}]
)
def test_a_stamp_with_the_keys_of_both_versions_or_none_tells_no_version(stamp: object) -> None:
    with pytest.raises(MessageError, match=r"ROS 1.*ROS 2"):
        messages.stamp_version({"header": {"stamp": stamp}})


@pytest.mark.parametrize(
    "stamp", [None, 5, {}, {"sec": "1", "nanosec": 0}, {"sec": float("nan"), "nanosec": 0},
              {"sec": 10**400, "nanosec": 0}, {"sec": True, "nanosec": 0}],
)  # fmt: skip
def test_what_is_no_stamp_is_refused(stamp: object) -> None:
    with pytest.raises(MessageError, match=r"header\.stamp"):
        messages.read_stamp({"header": {"stamp": stamp}})


# --- pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [JPEG, PNG])
def test_bytes_and_base64_are_the_same_picture(content: bytes) -> None:
    as_bytes = frames.from_message({"header": STAMP, "format": "jpeg", "data": content}, 1.0)
    text = base64.b64encode(content).decode()
    as_text = frames.from_message({"header": STAMP, "format": "jpeg", "data": text}, 1.0)
    assert as_bytes.image_bytes == as_text.image_bytes
    assert as_bytes.stamp_s == 1_700_000_000.25
    image = frames.decode_image(as_text)
    assert image.shape == (48, 64, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - PICTURE).max() <= 4


def test_colours_come_in_the_order_red_green_blue() -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    jpeg = simplejpeg.encode_jpeg(red, colorspace="RGB")
    png = cv2.imencode(".png", np.ascontiguousarray(red[..., ::-1]))[1].tobytes()
    for content in (jpeg, png):
        pixel = frames.decode_image(encoded(content))[8, 8]
        assert pixel[0] > 190
        assert pixel[1:].max() < 10


@pytest.mark.parametrize("kept", [3, 20, len(JPEG) // 2, len(JPEG) - 40])
def test_a_truncated_jpeg_is_refused(kept: int) -> None:
    with pytest.raises(MessageError, match="JPEG of"):
        frames.decode_image(encoded(JPEG[:kept]))


@pytest.mark.parametrize("kept", [10, 30, len(PNG) // 2, len(PNG) - 12])
def test_a_truncated_png_is_refused(kept: int) -> None:
    with pytest.raises(MessageError, match="truncated"):
        frames.decode_image(encoded(PNG[:kept], "png"))


def test_a_huge_picture_is_refused_by_its_header() -> None:
    start = JPEG.index(b"\xff\xc0") + 5
    huge = JPEG[:start] + b"\xea\x60\xea\x60" + JPEG[start + 4 :]
    with pytest.raises(MessageError, match="60000×60000"):
        frames.decode_image(encoded(huge))
    huge_png = PNG[:16] + (10**6).to_bytes(4, "big") * 2 + PNG[24:]
    with pytest.raises(MessageError, match="1000000×1000000"):
        frames.decode_image(encoded(huge_png))


def test_neither_jpeg_nor_png_names_the_format_and_what_came() -> None:
    with pytest.raises(MessageError, match=r"'rgb8'.*expected JPEG or PNG"):
        frames.decode_image(encoded(b"\x00" * 100, "rgb8"))


@pytest.mark.parametrize("content", [None, "", b"", "no base64!", 7, [1, 2]])
def test_what_is_no_picture_is_refused(content: object) -> None:
    with pytest.raises(MessageError, match=r"CompressedImage\.data"):
        frames.from_message({"header": STAMP, "data": content}, 0.0)


DEPTH = np.tile(np.arange(400, 464, dtype=np.uint16), (48, 1))
DEPTH_PNG = cv2.imencode(".png", DEPTH)[1].tobytes()
GREY_JPEG = cv2.imencode(".jpg", PICTURE[..., 0])[1].tobytes()
GREY_PNG = cv2.imencode(".png", PICTURE[..., 0])[1].tobytes()


@pytest.mark.parametrize(
    "picture_format",
    [
        "16UC1; png compressed ",
        "16UC1; compressedDepth",
        "16UC1; compressedDepth png",
        "16UC1; compressedDepth rvl",
        "32FC1; compressedDepth png",
        "32FC1",
        "16SC1; png compressed",
        " 16uc1;png",
        "mono16; png compressed ",
        "rgb8; compressedDepth",
        "mono8; jpeg compressed ",
        "8UC1; png compressed",
    ],
)
def test_what_is_no_picture_in_colour_is_refused_by_its_format(picture_format: str) -> None:
    with pytest.raises(MessageError, match=r"CAMERA_TOPIC.*/color/image_raw/") as caught:
        encoded(JPEG, picture_format)
    assert repr(picture_format) in str(caught.value)


@pytest.mark.parametrize("picture_format", ["", "jpeg", "png", "rgb8; png compressed bgr8"])
@pytest.mark.parametrize(
    "content", [DEPTH_PNG, b"\x01" + bytes(11) + DEPTH_PNG, GREY_PNG, GREY_JPEG]
)
def test_what_is_no_picture_in_colour_is_refused_whatever_its_format_says(
    content: bytes, picture_format: str
) -> None:
    with pytest.raises(MessageError, match=r"/color/image_raw/compressed"):
        frames.decode_image(encoded(content, picture_format))
    direct = frames.EncodedFrame(content, picture_format, 1.0, 1.0)
    with pytest.raises(MessageError):
        frames.decode_image(direct)


@pytest.mark.parametrize(
    ("content", "picture_format"),
    [
        (JPEG, "rgb8; jpeg compressed bgr8"),
        (JPEG, "bgr8; jpeg compressed bgr8"),
        (JPEG, "bayer_rggb8; jpeg compressed bgr8"),
        (JPEG, "8UC3; jpeg compressed bgr8"),
        (JPEG, ""),
        (PNG, "bgr8; png compressed bgr8"),
        (cv2.imencode(".png", PICTURE.astype(np.uint16) * 257)[1].tobytes(), "rgb16; png"),
    ],
)
def test_pictures_in_colour_are_taken_under_every_format_of_image_transport(
    content: bytes, picture_format: str
) -> None:
    image = frames.decode_image(encoded(content, picture_format))
    assert np.abs(image.astype(int) - PICTURE).max() <= 4


def test_a_raw_image_names_the_compressed_topic() -> None:
    raw = {"header": STAMP, "height": 2, "width": 2, "encoding": "rgb8", "is_bigendian": 0,
           "step": 6, "data": bytes(12)}  # fmt: skip
    with pytest.raises(MessageError, match=r"raw sensor_msgs/Image.*image_raw/compressed"):
        frames.from_message(raw, 0.0)


def test_a_depth_topic_is_known_by_its_name() -> None:
    assert frames.is_depth_topic("/camera/depth/image_rect_raw/compressedDepth")
    assert not frames.is_depth_topic("/camera/color/image_raw/compressed")


# --- joints --------------------------------------------------------------------------------------


def test_joints_are_found_in_any_order_among_others() -> None:
    order = [7, 3, 0, 5, 1, 6, 2, 4]
    message = joints(
        name=["wheel", *[JOINT_NAMES[k] for k in order], "crane_x7_gripper_finger_b_joint"],
        position=[99.0, *[0.1 * k for k in order], 98.0],
        velocity=[99.0, *[0.01 * k for k in order], 98.0],
    )
    state = messages.joint_state(message)
    np.testing.assert_allclose(state.position_rad, 0.1 * np.arange(8))
    np.testing.assert_allclose(state.velocity_rad_s, 0.01 * np.arange(8))


@pytest.mark.parametrize("velocity", [[], None, [0.1] * 3, "fast"])
def test_velocities_that_are_not_reported_are_unknown(velocity: object) -> None:
    state = messages.joint_state(joints(velocity=velocity))
    assert np.isnan(state.velocity_rad_s).all()
    assert np.isfinite(state.position_rad).all()


def test_null_as_json_carries_not_a_number_spoils_only_its_own_joint() -> None:
    message = joints(
        name=[*JOINT_NAMES, "wheel"],
        position=[0.1 * k for k in range(8)] + [None],
        velocity=[None, *[0.0] * 7, None],
    )
    state = messages.joint_state(message)
    np.testing.assert_allclose(state.position_rad, 0.1 * np.arange(8))
    assert np.isnan(state.velocity_rad_s).tolist() == [True] + [False] * 7
    assert np.isnan(messages.joint_state(joints(position=[None] * 8)).position_rad).all()


def test_missing_joints_are_named() -> None:
    with pytest.raises(MessageError, match=JOINT_NAMES[3]):
        messages.joint_state(joints(name=["other" if k == 3 else n
                                          for k, n in enumerate(JOINT_NAMES)]))  # fmt: skip


def test_a_joint_named_twice_is_refused() -> None:
    with pytest.raises(MessageError, match="more than once"):
        messages.joint_state(joints(name=[*JOINT_NAMES, JOINT_NAMES[0]], position=[0.0] * 9))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": None},
        {"name": "joint"},
        {"position": None},
        {"position": ["a"] * 8},
        {"position": [0.0] * 5},
        {"position": [10**400] * 8},
        {"position": [True] * 8},
        {"position": b"12345678"},
        {"name": b"12345678"},
        {"name": 10**6000},
    ],
)
def test_what_is_no_joint_state_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MessageError, match="JointState"):
        messages.joint_state(joints(**changes))


def test_not_a_number_passes_to_the_safety_check() -> None:
    state = messages.joint_state(joints(position=[float("nan")] + [0.0] * 7))
    assert np.isnan(state.position_rad[0])


# --- instructions --------------------------------------------------------------------------------


def test_an_instruction_is_stripped_and_may_be_japanese() -> None:
    assert (
        messages.instruction({"data": "  赤いキューブを持ち上げて\n"}) == "赤いキューブを持ち上げて"
    )


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"data": ""}, "empty"),
        ({"data": " \n\t"}, "empty"),
        ({"data": "x" * 100_000}, "100000 bytes"),
        ({"data": "赤" * 400}, "1200 bytes"),
        ({"data": "pick up \ufffd\ufffd"}, "expected UTF-8"),
        ({"data": "pick \ud800 up"}, "Unicode"),
        ({"data": 7}, "expected text"),
        ({}, "expected text"),
        ({"data": "pick", "layout": {}}, "std_msgs/String"),
    ],
)
def test_what_is_no_instruction_is_refused(message: dict[str, Any], words: str) -> None:
    with pytest.raises(MessageError, match=words):
        messages.instruction(message)


# --- trajectories --------------------------------------------------------------------------------


def path(points: int = 3) -> Trajectory:
    rng = np.random.default_rng(1)
    return Trajectory(
        position_rad=rng.uniform(-1, 1, (points, 8)),
        velocity_rad_s=rng.uniform(-1, 1, (points, 8)),
        time_from_start_s=np.round(np.cumsum(rng.uniform(0.01, 0.1, points)), 9),
        stamp_s=1_700_000_000.5,
        sequence=42,
        session="0123abcd",
        valid_s=0.5,
    )


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("names", [JOINT_NAMES, ARM_JOINT_NAMES])
def test_a_trajectory_survives_the_way_over_the_wire(
    version: messages.RosVersion, names: tuple[str, ...]
) -> None:
    sent = path()
    text = protocol.encode_json(protocol.publish("/a", messages.to_ros(sent, names, version)))
    read = messages.trajectory(protocol.decode(text)["msg"])
    assert read.joint_names == names
    np.testing.assert_array_equal(read.position_rad, sent.position_rad[:, : len(names)])
    assert read.velocity_rad_s is not None
    np.testing.assert_array_equal(read.velocity_rad_s, sent.velocity_rad_s[:, : len(names)])
    np.testing.assert_allclose(read.time_from_start_s, sent.time_from_start_s, atol=1e-9)
    assert read.acceleration_rad_s2 is None
    assert (read.stamp_s, read.session, read.sequence, read.valid_s) == (
        sent.stamp_s, "0123abcd", 42, 0.5,
    )  # fmt: skip


def test_somebody_elses_trajectory_has_no_sequence_and_no_validity() -> None:
    message = messages.to_ros(path()) | {"header": STAMP}
    read = messages.trajectory(message)
    assert (read.session, read.sequence, read.valid_s) == (None, None, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"points": None},
        {"points": [7]},
        {"joint_names": "joint"},
        {"joint_names": [1, 2]},
        {"joint_names": ["only_one"]},
        {"points": [{"positions": ["x"] * 8, "time_from_start": {"sec": 1, "nanosec": 0}}]},
        {"points": [{"positions": [0.0] * 8, "time_from_start": None}]},
        {"header": {"stamp": "now"}},
    ],
)
def test_what_is_no_trajectory_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        messages.trajectory(messages.to_ros(path()) | changes)


@pytest.mark.parametrize(("version", "keys"), [(1, {"secs", "nsecs"}), (2, {"sec", "nanosec"})])
def test_every_time_in_a_trajectory_has_the_keys_of_the_version(
    version: messages.RosVersion, keys: set[str]
) -> None:
    message = messages.to_ros(path(), JOINT_NAMES, version)
    assert set(message["header"]["stamp"]) == keys
    assert ("seq" in message["header"]) == (version == 1)
    for point in message["points"]:
        assert set(point["time_from_start"]) == keys


def test_an_array_of_floats_says_its_size() -> None:
    message = messages.float32_array(np.arange(8))
    assert message["data"] == list(range(8))
    assert message["layout"]["dim"][0]["size"] == 8


# --- anything ------------------------------------------------------------------------------------

ODD: list[Any] = [
    None, True, -1, 10**6000, float("nan"), float("inf"), "", "x", "\ud800", b"", b"\xff\xd8",
    [], [[1]], ["a"] * 8, [10**400] * 8, {}, {1: 2}, {b"x": 1}, (), list(JOINT_NAMES), [{}],
    {"stamp": {"sec": 10**6000, "nanosec": 0}}, {"stamp": {"sec": 1, "nanosec": "0"}},
]  # fmt: skip


def mutated(value: Any, random: random.Random) -> Any:
    """A copy with fields replaced or gone at random, at every depth."""
    if random.random() < 0.1:
        return random.choice(ODD)
    if isinstance(value, dict):
        kept = [key for key in value if random.random() > 0.03]
        return {key: mutated(value[key], random) for key in kept}
    if isinstance(value, list) and random.random() < 0.3:
        return [mutated(item, random) for item in value]
    return value


@pytest.mark.parametrize(
    "read",
    [
        lambda message: frames.from_message(message, 0.0),
        messages.joint_state,
        messages.instruction,
        messages.trajectory,
        messages.read_stamp,
    ],
)
def test_whatever_comes_is_read_or_refused_with_words(
    read: Callable[[dict[str, Any]], object],
) -> None:
    point = {"positions": [0.1] * 8, "velocities": [0.0] * 8, "time_from_start": STAMP["stamp"]}
    whole = joints(data="AAAA", format="jpeg", joint_names=list(JOINT_NAMES), points=[point])
    chance, refusals = random.Random(5), []
    for _ in range(2000):
        message = mutated(whole, chance)
        if not isinstance(message, dict):
            continue
        try:
            read(message)
        except MessageError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert max(map(len, refusals)) < 500
