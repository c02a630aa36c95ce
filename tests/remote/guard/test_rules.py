"""The guard's allow-list: what is not needed for driving is refused, what passes is built again."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
from guard_rig import (
    ACTION,
    ARM,
    CAMERA,
    GRIPPER,
    INSTRUCTION,
    JOINTS,
    PREDICTION,
    goal,
    prediction,
    trajectory,
)

from crane_x7_remote.guard.requests import (
    Drive,
    Follow,
    Forward,
    GripperGoal,
    Nothing,
    Refused,
    Say,
    Stop,
)
from crane_x7_remote.guard.rules import STATE_TOPIC, STOP_TOPIC, AllowList, Names
from crane_x7_remote.rosbridge.loop_status import LoopStatus
from crane_x7_remote.rosbridge.topics import CAMERA_POSE_TOPIC, STATUS_TOPIC

RULES = AllowList(Names())


def read(operation: Any, rules: AllowList = RULES) -> Any:
    return rules.read(operation if isinstance(operation, str | bytes) else json.dumps(operation))


def refused(operation: Any, rules: AllowList = RULES) -> Refused:
    with pytest.raises(Refused) as caught:
        read(operation, rules)
    return caught.value


def publish(topic: str, message: Any, **more: Any) -> dict[str, Any]:
    return {"op": "publish", "topic": topic, "msg": message, **more}


@pytest.mark.parametrize(
    ("topic", "kind"),
    [
        (CAMERA, "sensor_msgs/CompressedImage"),
        (CAMERA, "sensor_msgs/msg/CompressedImage"),
        (JOINTS, "sensor_msgs/JointState"),
        (ARM, "trajectory_msgs/JointTrajectory"),
        (PREDICTION, "trajectory_msgs/msg/JointTrajectory"),
        (INSTRUCTION, "std_msgs/String"),
        (INSTRUCTION, None),
        (STATUS_TOPIC, "std_msgs/String"),
        (CAMERA_POSE_TOPIC, "std_msgs/msg/String"),
        (f"{GRIPPER}/result", "control_msgs/GripperCommandActionResult"),
    ],
)
def test_what_driving_needs_may_be_subscribed(topic: str, kind: str | None) -> None:
    asked = {"op": "subscribe", "id": "a", "topic": topic, "type": kind, "compression": "cbor",
             "throttle_rate": 6.5, "queue_length": 1, "fragment_size": 9, "x": {}}  # fmt: skip
    request = read(asked)
    assert isinstance(request, Forward)
    assert request.operation == {
        "op": "subscribe", "id": "a", "topic": topic, "type": RULES.subscribed[topic],
        "compression": "cbor", "throttle_rate": 7, "queue_length": 1,
    }  # fmt: skip


def test_the_wrist_camera_passes_where_the_guard_knows_its_topic() -> None:
    asked = {"op": "subscribe", "topic": "/wrist/compressed", "compression": "cbor"}
    assert refused(asked).kind == "topic"
    knowing = AllowList(Names(wrist_camera="/wrist/compressed"))
    request = read(asked, knowing)
    assert isinstance(request, Forward)
    assert request.operation["type"] == "sensor_msgs/CompressedImage"
    assert refused(publish("/wrist/compressed", {}), knowing).kind == "topic"


def test_a_loops_status_passes_as_the_fields_that_are_known() -> None:
    status = LoopStatus("0a1b2c3d", "wave", "accepted", None, 10.0, 4.5, None, 7, False)
    text = status.message()["data"][:-1] + ', "more": [1, 2]}'
    assert read(publish(STATUS_TOPIC, {"data": text})) == Say(STATUS_TOPIC, status.message())
    assert read({"op": "advertise", "topic": STATUS_TOPIC, "type": "std_msgs/String"}) == Nothing()
    for data in ("", "dance", "{}", 7, "x" * 50_000):
        assert refused(publish(STATUS_TOPIC, {"data": data})).kind == "message"


def test_no_client_may_say_where_the_camera_stands() -> None:
    assert refused(publish(CAMERA_POSE_TOPIC, {"data": "{}"})).kind == "topic"
    assert refused({"op": "advertise", "topic": CAMERA_POSE_TOPIC}).kind == "topic"


@pytest.mark.parametrize("topic", [STOP_TOPIC, STATE_TOPIC])
def test_the_guards_own_topics_are_not_asked_of_rosbridge(topic: str) -> None:
    assert read({"op": "subscribe", "topic": topic}) == Follow(topic)
    assert read({"op": "unsubscribe", "topic": topic}) == Follow(topic, wanted=False)


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ({"op": "call_service", "service": "/rosapi/topics"}, "operation call_service"),
        ({"op": "advertise_service", "service": "/x", "type": "y"}, "operation advertise_service"),
        ({"op": "fragment", "id": "1", "data": "{", "num": 0, "total": 2}, "operation fragment"),
        ({"op": "png", "data": ""}, "operation png"),
        ({"op": "auth", "mac": ""}, "operation auth"),
        ({"op": "rm -rf"}, "operation unknown"),
        ({"op": "subscribe", "topic": "/rosout"}, "topic"),
        ({"op": "subscribe"}, "topic"),
        ({"op": "subscribe", "topic": ["x"]}, "topic"),
        ({"op": "subscribe", "topic": CAMERA, "type": "sensor_msgs/Image"}, "type"),
        ({"op": "subscribe", "topic": CAMERA, "type": 7}, "type"),
        ({"op": "subscribe", "topic": CAMERA, "compression": "png"}, "compression"),
        ({"op": "subscribe", "topic": CAMERA, "compression": "cbor-raw"}, "compression"),
        ({"op": "subscribe", "topic": CAMERA, "compression": ["none"]}, "compression"),
        ({"op": "subscribe", "topic": CAMERA, "throttle_rate": -1}, "message"),
        ({"op": "subscribe", "topic": CAMERA, "throttle_rate": 1e9}, "message"),
        ({"op": "subscribe", "topic": CAMERA, "throttle_rate": "1"}, "message"),
        ({"op": "subscribe", "topic": CAMERA, "queue_length": 10**6}, "message"),
        ({"op": "subscribe", "topic": CAMERA, "id": "x" * 129}, "message"),
        ({"op": "subscribe", "topic": CAMERA, "id": "a\nb"}, "message"),
        ({"op": "subscribe", "topic": CAMERA, "id": {"a": 1}}, "message"),
        ({"op": "advertise", "topic": "/cmd_vel", "type": "geometry_msgs/Twist"}, "topic"),
        ({"op": "advertise", "topic": ACTION}, "action_topic"),
        ({"op": "advertise", "topic": ARM, "type": "std_msgs/String"}, "type"),
        (publish("/cmd_vel", {}), "topic"),
        (publish(JOINTS, {}), "topic"),
        (publish(CAMERA, {}), "topic"),
        (publish(STATE_TOPIC, {"data": "{}"}), "topic"),
        (publish(ACTION, {"data": [0.0] * 8}), "action_topic"),
        (publish(ARM, [1]), "message"),
        (publish(INSTRUCTION, {"data": 5}), "message"),
        (publish(INSTRUCTION, {"data": "a" * 2000}), "message"),
        (publish(STOP_TOPIC, {"data": 1}), "message"),
        (publish(STOP_TOPIC, {"data": "true"}), "message"),
        ({**goal(), "action": "/crane_x7_arm_controller/follow_joint_trajectory"}, "action"),
        ({**goal(), "action_type": "control_msgs/action/FollowJointTrajectory"}, "type"),
        (goal("NaN"), "message"),
        (goal(True), "message"),
        (goal(10**400), "message"),
        ({**goal(), "args": 3}, "message"),
        ("[]", "unreadable"),
        ("{", "unreadable"),
        ("3", "unreadable"),
        ('{"op": 3}', "unreadable"),
        (b"\xa1bop", "binary"),
        (b"", "binary"),
    ],
)  # fmt: skip
def test_everything_else_is_refused_by_kind(operation: Any, kind: str) -> None:
    assert refused(operation).kind == kind


def test_a_trajectory_is_built_again_from_its_fields() -> None:
    message = trajectory()
    wild = {**message, "extra": {"deep": [1]}, "header": {**message["header"], "seq": 7, "x": 1}}
    wild["points"] = [{**message["points"][0], "y": "z"}]
    assert read(publish(ARM, wild)) == Drive(message, is_prediction=False)
    assert read(publish(PREDICTION, prediction())) == Drive(prediction(), is_prediction=True)


def test_a_trajectory_of_ros_1_keeps_its_keys() -> None:
    message = trajectory()
    message["header"] = {"seq": 3, "stamp": {"secs": 5, "nsecs": 6}, "frame_id": ""}
    message["points"][0]["time_from_start"] = {"secs": 0, "nsecs": 7}
    built = read(publish(ARM, message)).message
    assert built["header"] == {"seq": 0, "stamp": {"secs": 5, "nsecs": 6}, "frame_id": ""}
    assert built["points"][0]["time_from_start"] == {"secs": 0, "nsecs": 7}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400", "1" + "0" * 400, '"1"', "true"])
@pytest.mark.parametrize("field", ["positions", "velocities", "accelerations", "effort"])
def test_a_trajectory_of_what_is_no_number_is_refused(number: str, field: str) -> None:
    message = trajectory()
    message["points"][0][field] = ["!"] * 7
    text = json.dumps(publish(ARM, message)).replace('"!"', number)
    assert refused(text).kind == "message"


@pytest.mark.parametrize(
    "change",
    [
        {"points": [{}] * 1001},
        {"points": 5},
        {"points": [[]]},
        {"joint_names": ["a"] * 33},
        {"joint_names": ["a" * 129]},
        {"joint_names": ["\x1b[2J"]},
        {"joint_names": None},
        {"header": None},
        {"header": {"stamp": {"sec": -1, "nanosec": 0}}},
        {"header": {"stamp": {"sec": 0, "nanosec": 10**9}}},
        {"header": {"stamp": {"sec": 2**31, "nanosec": 0}}},
        {"header": {"stamp": {"sec": 1.5, "nanosec": 0}}},
        {"header": {"stamp": {"sec": 0, "nsecs": 0}}},
        {"header": {"stamp": "now"}},
        {"header": {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": "a\nb"}},
        {"points": [{"positions": [0.0] * 33, "time_from_start": {"sec": 0, "nanosec": 0}}]},
        {"points": [{"positions": [0.0] * 7}]},
    ],
)
def test_a_trajectory_of_wrong_fields_is_refused(change: dict[str, Any]) -> None:
    assert refused(publish(ARM, trajectory() | change)).kind == "message"


def test_a_gripper_goal_is_built_again() -> None:
    request = read({**goal(0.5), "feedback": True, "fragment_size": 5})
    assert request == GripperGoal(0.5, (goal(0.5),), GRIPPER, "goal/1")
    cancel = read({"op": "cancel_action_goal", "id": "goal/1", "action": GRIPPER, "x": 1})
    assert cancel == Forward({"op": "cancel_action_goal", "id": "goal/1", "action": GRIPPER})


def test_a_gripper_goal_of_ros_1_is_checked_alike() -> None:
    message = {
        "header": {"stamp": {"secs": 1, "nsecs": 2}},
        "goal_id": {"id": "a", "stamp": {"secs": 9, "nsecs": 9}},
        "goal": {"command": {"position": 0.25, "max_effort": 1.0}, "x": 1},
    }
    request = read(publish(f"{GRIPPER}/goal", message))
    assert request.position_rad == 0.25
    (operation,) = request.operations
    assert operation["msg"] == {
        "goal_id": {"stamp": {"secs": 0, "nsecs": 0}, "id": "a"},
        "goal": {"command": {"position": 0.25, "max_effort": 1.0}},
    }
    assert refused(publish(f"{GRIPPER}/goal", {"goal": {}})).kind == "message"
    cancel = read(publish(f"{GRIPPER}/cancel", {"id": "a", "stamp": {"secs": 5, "nsecs": 5}}))
    assert cancel.operation["msg"] == {"stamp": {"secs": 0, "nsecs": 0}, "id": "a"}


def test_an_instruction_and_a_stop_are_read() -> None:
    said = read(publish(INSTRUCTION, {"data": " pick up the red cube "}))
    assert said == Say(INSTRUCTION, {"data": "pick up the red cube"})
    assert read(publish(STOP_TOPIC, {"data": True}, reason="a\nhand")) == Stop(True, "a hand")
    assert read(publish(STOP_TOPIC, {"data": False})) == Stop(False, None)


def test_advertising_what_may_be_published_is_taken_by_the_guard() -> None:
    for topic, kind in ((ARM, "trajectory_msgs/JointTrajectory"), (STOP_TOPIC, "std_msgs/Bool")):
        assert read({"op": "advertise", "topic": topic, "type": kind}) == Nothing()
    assert read({"op": "set_level", "level": "none"}) == Nothing()


def test_the_action_topic_passes_only_when_it_is_allowed() -> None:
    rules = AllowList(Names(passes_action=True))
    said = read(publish(ACTION, {"data": [0.5] * 8, "layout": {"x": 1}}), rules)
    assert said.message["data"] == [0.5] * 8
    for data in ([float("nan")] * 8, [0.0] * 9, [1e39] * 8, "x"):
        assert refused(publish(ACTION, {"data": data}), rules).kind == "message"
    assert "GUARD_PASS_ACTION" in str(refused(publish(ACTION, {"data": []})))


def test_topics_that_are_empty_are_nobodys() -> None:
    rules = AllowList(Names(arm="", trajectory="", gripper_action="", instruction="", camera=""))
    for topic in ("", "/", "/goal", ARM):
        assert refused(publish(topic, trajectory()), rules).kind == "topic"
    assert refused({**goal(), "action": ""}, rules).kind == "action"


def test_further_topics_can_be_allowed_to_be_read_alone() -> None:
    rules = AllowList(Names(more={"/diagnostics": "diagnostic_msgs/DiagnosticArray"}))
    assert isinstance(read({"op": "subscribe", "topic": "/diagnostics"}, rules), Forward)
    assert refused(publish("/diagnostics", {}), rules).kind == "topic"


def test_the_allow_list_is_printed() -> None:
    text = "\n".join(RULES.lines())
    for topic in (CAMERA, JOINTS, ARM, PREDICTION, INSTRUCTION, STOP_TOPIC, STATE_TOPIC, GRIPPER):
        assert topic in text
    assert ACTION not in text
    assert "refused" in text


@pytest.mark.parametrize("depth", [100, 990, 100_000])
def test_deep_messages_are_refused(depth: int) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        deep = opening * depth + "1" + closing * depth
        text = f'{{"op":"publish","topic":"{ARM}","msg":{deep}}}'
        assert refused(text).kind in ("message", "unreadable")
        assert refused(f'{{"op":"subscribe","topic":{deep}}}').kind in ("topic", "unreadable")


def test_a_message_over_the_limit_is_refused_unread() -> None:
    assert refused('{"op":"x","y":"' + "a" * 300_000 + '"}').kind == "unreadable"


def test_whatever_comes_is_refused_in_words_that_stand_on_one_line() -> None:
    """No message gets through to an exception, and none gets its control characters into a log."""
    chance = random.Random(0)
    values: list[Any] = [
        *(None, True, 0, -1, 2.5, float("nan"), 10**400, "", "\x1b[2J\n", "a" * 300),
        *([], {}, [[]], {"data": "x"}, {"stamp": 1}, ARM, CAMERA, STOP_TOPIC, GRIPPER),
    ]
    seeds = [
        publish(ARM, trajectory()),
        publish(PREDICTION, prediction()),
        goal(),
        publish(INSTRUCTION, {"data": "x"}),
        publish(STOP_TOPIC, {"data": True}),
        {"op": "subscribe", "id": "a", "topic": CAMERA, "type": "x", "throttle_rate": 1},
        publish(f"{GRIPPER}/goal", {"goal_id": {"id": "a"}, "goal": {"command": {}}}),
    ]
    said = set()
    for _ in range(4000):
        operation = json.loads(json.dumps(chance.choice(seeds)))
        for _ in range(chance.randint(1, 3)):
            _damage(operation, chance, values)
        try:
            read(operation)
        except Refused as refusal:
            said.add(str(refusal))
    assert len(said) > 100
    assert all(text.isprintable() and len(text) < 700 for text in said)


def _damage(value: Any, chance: random.Random, values: list[Any]) -> None:
    """Replace something, anywhere inside."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return
    key = chance.choice(keys)
    if isinstance(value[key], dict | list) and value[key] and chance.random() < 0.7:
        _damage(value[key], chance, values)
    else:
        value[key] = copy.deepcopy(chance.choice(values))
