"""Bytes ↔ rosbridge operations: what is read, and what is refused with which words."""

from __future__ import annotations

import json
import math

import cbor2
import numpy as np
import pytest

from crane_x7_remote.rosbridge import protocol
from crane_x7_remote.rosbridge.protocol import ProtocolError


def test_json_and_cbor_carry_the_same_operation() -> None:
    operation = protocol.publish("/a", {"position": [0.5, -1.25], "name": ["x", "y"], "n": 3})
    assert protocol.decode(protocol.encode_json(operation)) == operation
    assert protocol.decode(protocol.encode_cbor(operation)) == operation


def test_bytes_stay_bytes_in_cbor_and_become_base64_in_json() -> None:
    operation = protocol.publish("/camera", {"data": b"\xff\xd8\x00"})
    assert protocol.decode(protocol.encode_cbor(operation))["msg"]["data"] == b"\xff\xd8\x00"
    assert protocol.decode(protocol.encode_json(operation))["msg"]["data"] == "/9gA"


@pytest.mark.parametrize(("tag", "numpy_type"), sorted(protocol.TYPED_ARRAYS.items()))
def test_typed_arrays_of_a_real_rosbridge_become_lists(tag: int, numpy_type: str) -> None:
    values = np.array([1, 2, 100], numpy_type)
    payload = cbor2.dumps({"op": "publish", "msg": cbor2.CBORTag(tag, values.tobytes())})
    assert protocol.decode(payload)["msg"] == values.tolist()


def test_not_a_number_and_numbers_too_large_pass_to_whoever_uses_them() -> None:
    operation = protocol.decode('{"op":"publish","msg":{"a":NaN,"b":1e400,"c":-Infinity}}')
    assert math.isnan(operation["msg"]["a"])
    assert operation["msg"]["b"] == math.inf
    assert operation["msg"]["c"] == -math.inf


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ("", "JSON text"),
        ("{", "JSON text"),
        ("[" * 100_000, "JSON text"),
        ("[1, 2]", "'op'"),
        ('{"topic": "/a"}', "'op'"),
        ('{"op": 7}', "'op'"),
        (b"", "CBOR"),
        (b"\xff\xff", "CBOR"),
        (cbor2.dumps({"op": "publish"})[:-2], "CBOR"),
        (cbor2.dumps({"op": "publish"}) + b"\x00", "1 bytes after the end"),
        (cbor2.dumps([1]), "'op'"),
        (cbor2.dumps({"op": "x", "m": cbor2.CBORTag(86, b"seven b")}), "CBOR"),
    ],
)
def test_what_is_no_operation_is_refused(payload: str | bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        protocol.decode(payload)


@pytest.mark.parametrize(
    "payload",
    [
        cbor2.dumps({"op": 10**6000}),
        "[" * 900 + "]" * 900,
        b"\xa1\x62op\xd8\x1c\x81\xd8\x1d\x00",  # a list that holds itself
    ],
)
def test_what_python_cannot_print_is_refused_in_words_all_the_same(payload: str | bytes) -> None:
    with pytest.raises(ProtocolError, match="'op'"):
        protocol.decode(payload)


def test_an_error_shows_the_beginning_of_what_came_and_no_more() -> None:
    with pytest.raises(ProtocolError) as caught:
        protocol.decode("<html>" + "x" * 100_000)
    assert "<html>" in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("payload", ["x" * 101, b"x" * 101])
def test_an_over_large_payload_is_refused_before_it_is_read(payload: str | bytes) -> None:
    with pytest.raises(ProtocolError, match="101 bytes, expected at most 100"):
        protocol.decode(payload, max_bytes=100)


def test_what_json_cannot_carry_is_an_error_of_ours() -> None:
    with pytest.raises(TypeError, match="ndarray"):
        protocol.encode_json({"op": "publish", "msg": np.zeros(2)})


def test_requests_have_the_fields_that_rosbridge_reads() -> None:
    request = protocol.subscribe("/a", "std_msgs/String", id="1", throttle_rate_ms=50)
    assert request == {
        "op": "subscribe",
        "id": "1",
        "topic": "/a",
        "type": "std_msgs/String",
        "throttle_rate": 50,
        "queue_length": 1,
        "compression": "none",
    }
    goal = protocol.send_action_goal("/grip", "control_msgs/action/GripperCommand", {}, id="g")
    assert (goal["op"], goal["action_type"]) == (
        "send_action_goal",
        "control_msgs/action/GripperCommand",
    )
    assert "id" not in protocol.status("info", "hello")
    assert json.loads(protocol.encode_json(protocol.status("error", "no", "7")))["id"] == "7"


@pytest.mark.parametrize(
    ("text", "operation"),
    [
        (
            "Unknown operation: send_action_goal.  Allowed operations: ['publish']",
            "send_action_goal",
        ),
        ("operation 'send_action_goal' is unknown; known: publish", "send_action_goal"),
        ("unknown op send_action_goal", "send_action_goal"),
        ("Unknown operation: x.  Allowed operations: ['send_action_goal']", "x"),
        ("send_action_goal: no action server", None),
        ("", None),
    ],
)
def test_which_operation_a_server_does_not_know_is_read_from_its_status(
    text: str, operation: str | None
) -> None:
    assert protocol.unknown_operation(text) == operation
