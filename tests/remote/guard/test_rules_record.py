"""What a recorder and its controls say passes the guard, and nothing else on their topics."""

from __future__ import annotations

import json
from typing import Any

import pytest

from crane_x7_remote.guard.requests import Forward, Nothing, Refused, Say
from crane_x7_remote.guard.rules import AllowList, Names
from crane_x7_remote.rosbridge import record_status
from crane_x7_remote.rosbridge.messages import MessageError
from crane_x7_remote.rosbridge.record_status import RecordStatus
from crane_x7_remote.rosbridge.topics import RECORD_STATUS_TOPIC, RECORD_TOPIC

RULES = AllowList(Names())
STATUS = RecordStatus(True, 3, 41, 4.1, 3, "data/real")


def read(op: str, topic: str, **more: Any) -> Any:
    return RULES.read(json.dumps({"op": op, "topic": topic, **more}))


@pytest.mark.parametrize("word", ["start", "stop", "discard"])
def test_words_for_the_recorder_pass(word: str) -> None:
    asked = read("publish", RECORD_TOPIC, msg={"data": word})
    assert asked == Say(RECORD_TOPIC, {"data": word})


@pytest.mark.parametrize(
    "message",
    [{"data": "Start"}, {"data": "start "}, {"data": 1}, {"data": ["start"]}, {},
     {"data": "start", "x": 1}, {"data": "start" * 9999}],
)  # fmt: skip
def test_other_words_are_refused_with_those_expected(message: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="expected data with start or stop or discard"):
        read("publish", RECORD_TOPIC, msg=message)


def test_the_recorders_state_passes_built_again() -> None:
    values = json.loads(STATUS.message()["data"])
    asked = read("publish", RECORD_STATUS_TOPIC, msg={"data": json.dumps({**values, "x": "<b>"})})
    assert asked == Say(RECORD_STATUS_TOPIC, STATUS.message())
    assert record_status.read(STATUS.message()) == STATUS


@pytest.mark.parametrize(
    ("name", "value"),
    [("recording", 1), ("recording", None), ("episode", -1), ("episode", True), ("frames", 1.5),
     ("seconds", -0.1), ("seconds", "1"), ("seconds", float("inf")), ("kept", 2**60),
     ("folder", 3), ("folder", "x" * 1025)],
)  # fmt: skip
def test_a_state_with_a_wrong_value_is_refused_and_names_it(name: str, value: object) -> None:
    values = {**json.loads(STATUS.message()["data"]), name: value}
    with pytest.raises(MessageError, match=f"{RECORD_STATUS_TOPIC}: {name} is "):
        record_status.read({"data": json.dumps(values)})


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 5000, "x" * 9000, None, 3])
def test_a_state_that_is_no_object_is_refused(text: object) -> None:
    with pytest.raises(Refused, match=RECORD_STATUS_TOPIC):
        read("publish", RECORD_STATUS_TOPIC, msg={"data": text})


@pytest.mark.parametrize("topic", [RECORD_TOPIC, RECORD_STATUS_TOPIC])
def test_anyone_may_listen_and_advertise(topic: str) -> None:
    assert isinstance(read("subscribe", topic, type="std_msgs/String"), Forward)
    assert read("advertise", topic, type="std_msgs/msg/String") == Nothing()
    assert RULES.advertised[topic] == "std_msgs/String"
    with pytest.raises(Refused, match="type is"):
        read("subscribe", topic, type="std_msgs/Bool")
