"""Client and loop on real sockets: servers as a ROS 1 rosbridge, silent ones, depth cameras."""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest
from links import RecordingServer
from loop_rig import PICTURE, RunningLoop, SwingingPolicy, wait_until
from ros1_rig import CAMERA, JOINTS, Ros1Bridge

from crane_x7_remote.rosbridge import messages, protocol
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_vla_rl.robot import HOME_RAD, JOINT_NAMES
from crane_x7_vla_rl.types import ActionChunk, Observation

ARM, GOAL = "/crane_x7_arm_controller/joint_trajectory", "/crane_x7_gripper_controller/gripper_cmd"
DEPTH = cv2.imencode(".png", np.full((48, 64), 700, np.uint16))[1].tobytes()


class Stays(SwingingPolicy):
    """Holds the arm where it is; the gripper goes where `gripper_rad` says."""

    gripper_rad = 0.0

    def predict(self, observations: Sequence[Observation]) -> list[Any]:
        target = np.append(HOME_RAD[:7], self.gripper_rad)
        return [ActionChunk(np.tile(target, (5, 1)), 0.1) for _ in observations]


def client(server: RecordingServer, **config: Any) -> RosbridgeClient:
    return RosbridgeClient(ClientConfig(host="127.0.0.1", port=server.port, **config))


def stamped(version: messages.RosVersion = 2) -> dict[str, Any]:
    return messages.compressed_image(PICTURE, 1000.0 + time.monotonic(), version)


def as_text(message: dict[str, Any]) -> str:
    return protocol.encode_json(protocol.publish(CAMERA, message))


def in_fragments(text: str, size: int, name: object = 0) -> list[dict[str, Any]]:
    total = (len(text) - 1) / size + 1
    return [
        {"op": "fragment", "id": name, "data": text[at : at + size], "num": num, "total": total}
        for num, at in enumerate(range(0, len(text), size))
    ]


# --- ROS 1 ---------------------------------------------------------------------------------------


def test_the_loop_drives_a_ros_1_robot_with_its_keys_and_its_gripper_topic() -> None:
    policy = Stays()
    with Ros1Bridge() as server, RunningLoop(server.port, policy) as running:
        running.wait_driving()
        wait_until(lambda: server.of("publish", f"{GOAL}/goal"), 5, "a gripper goal")
        policy.gripper_rad = 0.7
        wait_until(lambda: len(server.of("publish", f"{GOAL}/goal")) == 2, 5, "another goal")
    arm = server.of("publish", ARM)
    assert arm
    for operation in [*arm, *server.of("publish", "/vla/predicted_trajectory")]:
        message = operation["msg"]
        assert set(message["header"]["stamp"]) == {"secs", "nsecs"}
        assert all(set(p["time_from_start"]) == {"secs", "nsecs"} for p in message["points"])
        times = [messages._read_time(p["time_from_start"], "") for p in message["points"]]
        assert times == sorted(set(times))
    goals = server.of("publish", f"{GOAL}/goal")
    assert [goal["msg"]["goal"]["command"]["position"] for goal in goals] == [0.0, 0.7]
    assert not server.of("send_action_goal")
    advertised = server.received.index(server.of("advertise", f"{GOAL}/goal")[0])
    assert advertised < server.received.index(goals[0])
    assert server.of("advertise", f"{GOAL}/goal")[0]["type"] == (
        "control_msgs/GripperCommandActionGoal"
    )


def test_stamps_of_both_versions_hold_and_are_named() -> None:
    with Ros1Bridge() as server, RunningLoop(server.port, Stays()) as running:
        server.joints_version = 2
        running.wait_hold("ros_version_unknown")
        assert not server.of("publish", ARM)
        doubt = running.client.link.ros_version_doubt or ""
        assert CAMERA in doubt
        assert JOINTS in doubt


def stamped_topics(server: RecordingServer) -> set[str]:
    """Topics published so far, without the loop's status: a string, the same in both versions."""
    return {operation["topic"] for operation in server.of("publish")} - {"/vla/status"}


def test_nothing_with_a_stamp_is_published_while_no_stamp_tells_the_version() -> None:
    with RecordingServer() as server, RunningLoop(server.port, Stays()) as running:
        running.wait_hold("no_frame")
        assert running.client.link.ros_version is None
        assert stamped_topics(server) == set()
        server.send(as_text(stamped(1)))
        wait_until(lambda: running.client.link.ros_version == 1, 5, "ROS 1 is known")
        running.wait_hold("no_joints")
        assert stamped_topics(server) == set()


def test_a_server_that_says_it_knows_no_actions_gets_the_goal_by_topic() -> None:
    with Ros1Bridge() as server, RunningLoop(server.port, Stays()) as running:
        server.camera_version = server.joints_version = 2
        wait_until(lambda: server.of("send_action_goal"), 20, "a goal as action")
        assert not server.of("publish", f"{GOAL}/goal")
        text = "Unknown operation: send_action_goal.  Allowed operations: ['publish']"
        server.send(protocol.status("error", text, server.of("send_action_goal")[0]["id"]))
        wait_until(lambda: server.of("publish", f"{GOAL}/goal"), 5, "the goal by topic")
        running.wait_driving()
    assert len(server.of("send_action_goal")) == 1
    assert len(server.of("publish", f"{GOAL}/goal")) == 1


# --- silence -------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [CAMERA])
def test_a_camera_that_cannot_be_sent_as_cbor_arrives_without_it(
    broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with Ros1Bridge((JOINTS, broken)) as server, client(server) as robot:
        assert robot.wait_frame(None, 15) is not None
        assert [s["compression"] for s in server.of("subscribe", CAMERA)] == ["cbor", "none"]
        assert len(server.of("unsubscribe", CAMERA)) == 1
        wait_until(lambda: robot.link.no_frame_because is None, 5, "no cause any more")
        wait_until(lambda: "only without cbor" in caplog.text, 10, "the cause is named")
    lines = [record.message for record in caplog.records if "no message on" in record.message]
    assert len(lines) == 1
    for words in (CAMERA, "sensor_msgs/CompressedImage", f"rostopic hz {CAMERA}", "without cbor"):
        assert words in lines[0]


def test_silent_topics_are_named_once_and_in_the_hold(caplog: pytest.LogCaptureFixture) -> None:
    with RecordingServer() as server, RunningLoop(server.port, Stays()) as running:
        wait_until(lambda: running.client.link.no_joints_because, 15, "silence is noticed")
        time_s = time.monotonic()
        wait_until(lambda: time.monotonic() > time_s + 3, 10, "three more pings")
        link = running.client.link
        for topic, because in ((CAMERA, link.no_frame_because), (JOINTS, link.no_joints_because)):
            assert f"ros2 topic hz {topic}" in (because or "")
            assert f"rostopic hz {topic}" in (because or "")
        hold = running.loop._ready.frame(None, False)
        assert hold is not None
        assert f"no message on {CAMERA}" in hold.detail
        assert [s["compression"] for s in server.of("subscribe", JOINTS)] == ["none"]
    named = [record.message for record in caplog.records if "no message on" in record.message]
    assert len(named) == 2  # the camera and the joints; instructions may be silent


def test_a_new_throttle_does_not_bring_back_the_cbor_that_failed() -> None:
    with RecordingServer() as server, client(server) as robot:
        wait_until(lambda: len(server.of("subscribe", CAMERA)) == 2, 15, "the fallback")
        begin_s, age_s = time.monotonic(), 0.0
        while robot.link.throttle_rate_ms == 0 or len(server.of("subscribe", CAMERA)) < 3:
            assert time.monotonic() - begin_s < 15, "no other throttle was requested"
            age_s = min(age_s + 0.02, 0.3)
            message = messages.compressed_image(PICTURE, 5000.0 + time.monotonic() - age_s)
            server.send(as_text(message))
            time.sleep(1 / 60)
        asked = [(s["compression"], s["throttle_rate"]) for s in server.of("subscribe", CAMERA)]
        assert asked == [("cbor", 0), ("none", 0), ("none", 50)]


# --- wrapped -------------------------------------------------------------------------------------


def test_frames_in_fragments_and_in_a_png_and_in_both_arrive() -> None:
    with RecordingServer() as server, client(server) as robot:
        wait_until(lambda: len(server.of("subscribe")) >= 3, 10, "subscriptions")
        last = None
        for kind in ("fragments", "png", "png in fragments", "out of order"):
            text = as_text(stamped())
            if "png" in kind:
                text = json.dumps(_png(text))
            pieces: list[Any] = [text] if kind == "png" else in_fragments(text, 1000)
            for piece in reversed(pieces) if kind == "out of order" else pieces:
                server.send(piece)
            newer = robot.wait_frame(last, 5)
            assert newer is not None, kind
            assert newer.image_bytes == PICTURE
            last = newer
        assert robot.link.refused_messages == {}


def _png(text: str) -> dict[str, Any]:
    content = text.encode()
    height = -(-len(content) // 300)
    rgb = np.frombuffer(content.ljust(300 * height, b"\n"), np.uint8).reshape(height, 100, 3)
    encoded = cv2.imencode(".png", np.ascontiguousarray(rgb[:, :, ::-1]))[1].tobytes()
    return {"op": "png", "data": base64.b64encode(encoded).decode()}


@pytest.mark.parametrize(
    ("operations", "kind"),
    [
        ([{"op": "fragment", "id": 0, "num": 0}], "fragment"),
        (in_fragments("x" * 60, 20)[:2], "fragment"),
        (in_fragments("x" * 300_000, 50_000), "fragment"),
        ([{"op": "png", "data": "AAAA"}], "png"),
        ([{"op": "bson", "data": "AAAA"}], "operation"),
        (in_fragments("no operation", 4), "payload"),
    ],
)
def test_what_cannot_be_unwrapped_is_counted_and_is_the_reason_for_no_frame(
    operations: list[dict[str, Any]], kind: str
) -> None:
    with RecordingServer() as server, client(server, max_message_bytes=200_000) as robot:
        wait_until(lambda: len(server.of("subscribe")) >= 3, 10, "subscriptions")
        for operation in operations:
            server.send(operation)
        wait_until(lambda: robot.link.refused_messages, 15, "it is counted")
        assert robot.link.refused_messages == {kind: 1}
        assert kind in (robot.link.no_frame_because or "") or kind == "payload"
        assert robot.link.no_frame_because
        server.send(as_text(stamped()))
        assert robot.wait_frame(None, 5) is not None
        assert robot.link.no_frame_because is None
        assert robot.link.reconnects == 0


def test_answers_to_our_own_operations_are_no_unknown_ones() -> None:
    with RecordingServer() as server, client(server) as robot:
        wait_until(lambda: len(server.of("subscribe")) >= 3, 10, "subscriptions")
        for name in ("service_response", "action_result", "action_feedback"):
            server.send({"op": name, "id": "x"})
        server.send(as_text(stamped()))
        assert robot.wait_frame(None, 5) is not None
        assert robot.link.refused_messages == {}


def test_a_flood_of_made_up_operations_is_counted_and_logged_for_a_few(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with RecordingServer() as server, client(server) as robot:
        wait_until(lambda: len(server.of("subscribe")) >= 3, 10, "subscriptions")
        for number in range(500):
            server.send({"op": f"evil\n{number}"})
        wait_until(lambda: robot.link.refused_messages.get("operation") == 500, 10, "counted")
    lines = [record.message for record in caplog.records if "unknown operation" in record.message]
    assert len(lines) <= 16
    assert "\n" not in "".join(lines)


# --- cameras that are none -----------------------------------------------------------------------


FRAMELESS = ("no_frame", "no_new_frame")
"""The second one where a good picture was used before."""


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        ({"format": "16UC1; png compressed ", "data": DEPTH}, "16UC1"),
        ({"format": "16UC1; compressedDepth png", "data": bytes(12) + DEPTH}, "compressedDepth"),
        ({"format": "jpeg", "data": DEPTH}, "a depth image"),
        ({"encoding": "rgb8", "step": 6, "height": 2, "width": 2, "data": bytes(12)}, "raw"),
    ],
)
def test_a_camera_that_is_none_is_not_driven_with_and_the_hold_says_why(
    picture: dict[str, Any], words: str
) -> None:
    with Ros1Bridge() as server, RunningLoop(server.port, Stays()) as running:
        server.picture = picture
        wait_until(lambda: running.client.link.no_frame_because, 5, "the cause is known")
        running.wait_hold(*FRAMELESS)
        because = running.client.link.no_frame_because or ""
        assert words in because
        assert "/camera/color/image_raw/compressed" in because
        hold = running.loop._ready.frame(None, False)
        assert hold is not None
        assert words in hold.detail
        sent = running.sent()
        running.wait_hold(*FRAMELESS, ticks=5)
        assert running.sent() == sent


def test_a_topic_named_compressed_depth_is_refused_by_its_name() -> None:
    topic = "/camera/depth/image_rect_raw/compressedDepth"
    with RecordingServer() as server, client(server, camera_topic=topic) as robot:
        wait_until(lambda: len(server.of("subscribe")) >= 3, 10, "subscriptions")
        server.send(protocol.encode_json(protocol.publish(topic, stamped())))
        wait_until(lambda: robot.link.refused_messages, 5, "refused")
        assert robot.latest_frame() is None
        assert "/camera/color/image_raw/compressed" in (robot.link.no_frame_because or "")


def test_joint_states_that_are_not_ours_are_the_reason_for_no_joints() -> None:
    wheels = messages.joint_state_to_ros(["wheel"], [0.0], [0.0], 1000.0)
    good = messages.joint_state_to_ros(JOINT_NAMES, HOME_RAD, [0.0] * 8, 1000.1)
    with RecordingServer() as server, client(server) as robot:
        wait_until(lambda: len(server.of("subscribe")) >= 3, 10, "subscriptions")
        server.send(protocol.publish(JOINTS, wheels))
        wait_until(lambda: "lacks" in (robot.link.no_joints_because or ""), 5, "the cause")
        server.send(protocol.publish(JOINTS, good))
        wait_until(lambda: robot.joints() is not None, 5, "joints")
        assert robot.link.no_joints_because is None
        assert robot.link.ros_version == 2
