"""The rosbridge v2 protocol without I/O: bytes ↔ operations, and builders of operations.

An operation is a dict with a text "op". Text payloads are JSON, binary ones CBOR (from a server,
for subscriptions with compression "cbor"). Nothing here unpickles.
Source: ROSBRIDGE_PROTOCOL.md of RobotWebTools/rosbridge_suite, branch ros2.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from io import BytesIO
from typing import Any, Literal

import cbor2
import numpy as np

from crane_x7_remote.errors import RemoteError

Operation = dict[str, Any]
Payload = str | bytes
Compression = Literal["none", "cbor"]
StatusLevel = Literal["error", "warning", "info", "none"]

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""Larger payloads are refused; forty times a 640×480 JPEG of high quality."""

GOAL_SUCCEEDED = 4
"""action_msgs/GoalStatus.STATUS_SUCCEEDED."""
GOAL_CANCELED = 5
"""action_msgs/GoalStatus.STATUS_CANCELED."""
GOAL_ABORTED = 6
"""action_msgs/GoalStatus.STATUS_ABORTED."""


ANSWERS = frozenset(
    {"service_response", "action_feedback", "action_result", "action_status", "pong"}
)
"""Expected operations of a server that need no answer; a client may listen to results."""
UNKNOWN_OPERATION = re.compile(
    r"unknown op(?:eration|code)?\W{1,4}(\w{1,40})"
    r"|op(?:eration|code)?\W{1,4}(\w{1,40})\W{1,4}is (?:unknown|not (?:known|supported))",
    re.I,
)

TYPED_ARRAYS = {
    69: "<u2", 70: "<u4", 71: "<u8", 72: "i1", 77: "<i2", 78: "<i4", 79: "<i8",
    85: "<f4", 86: "<f8",
}  # fmt: skip
"""CBOR tag → numpy type: rosbridge packs every numeric array of a message, such as
JointState.position, into one of these (RFC 8746; rosbridge_library/internal/cbor_conversion.py)."""
FLOAT64_ARRAY = 86


class ProtocolError(RemoteError):
    """A payload is not a rosbridge operation; contains what was received."""


def decode(payload: Payload, max_bytes: int = MAX_MESSAGE_BYTES) -> Operation:
    """Return the operation in `payload`. Raises ProtocolError.

    NaN and infinities pass, as through a real server: the code that uses a number checks it.
    """
    if len(payload) > max_bytes:
        raise ProtocolError(f"payload of {len(payload)} bytes, expected at most {max_bytes}")
    try:
        operation = json.loads(payload) if isinstance(payload, str) else _decode_cbor(payload)
    except (ValueError, RecursionError, cbor2.CBORDecodeError) as error:
        kind = "JSON text" if isinstance(payload, str) else "CBOR"
        raise ProtocolError(f"expected {kind}, got {payload[:60]!r}: {error}") from error
    if not isinstance(operation, dict) or not isinstance(operation.get("op"), str):
        raise ProtocolError(f"expected an object with the text 'op', got {brief(operation)}")
    return operation


def brief(value: object) -> str:
    """Return `value` as text of at most 60 characters; safe for any value from a peer."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of 5000 digits; a thousand lists in lists
        return f"a {type(value).__name__} that is too long or too deep to show"
    return text if len(text) <= 60 else text[:59] + "…"


def _decode_cbor(payload: bytes) -> Any:
    stream = BytesIO(payload)
    value = cbor2.load(stream, tag_hook=_unpack_typed_array)
    if stream.tell() != len(payload):
        raise ValueError(f"{len(payload) - stream.tell()} bytes after the end of the value")
    return value


def _unpack_typed_array(tag: cbor2.CBORTag, immutable: bool) -> Any:
    del immutable
    numpy_type = TYPED_ARRAYS.get(tag.tag)
    if numpy_type is None or not isinstance(tag.value, bytes):
        return tag
    return np.frombuffer(tag.value, numpy_type).tolist()


def encode_json(operation: Mapping[str, Any]) -> str:
    """Return `operation` as JSON text; byte strings become base64, as rosbridge does."""
    return json.dumps(operation, default=_base64, separators=(",", ":"))


def _base64(value: object) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode("ascii")
    raise TypeError(f"{type(value).__name__} cannot be sent as JSON")


def encode_cbor(operation: Mapping[str, Any]) -> bytes:
    """Return `operation` as CBOR; byte strings stay byte strings, lists of floats become typed
    arrays, as in a real rosbridge."""
    return cbor2.dumps(_with_typed_arrays(operation))


def _with_typed_arrays(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_typed_arrays(item) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    if value and all(isinstance(item, float) for item in value):
        return cbor2.CBORTag(FLOAT64_ARRAY, np.array(value, "<f8").tobytes())
    return [_with_typed_arrays(item) for item in value]


def unknown_operation(text: str) -> str | None:
    """Return the operation that a server reports as unknown in the text of its `status`."""
    found = UNKNOWN_OPERATION.search(text[:400])
    return None if found is None else found[1] or found[2]


def subscribe(
    topic: str,
    type_name: str,
    *,
    id: str,
    throttle_rate_ms: int = 0,
    compression: Compression = "none",
) -> Operation:
    """Subscribe to `topic`, with at most one message per `throttle_rate_ms`; the same id changes a
    running subscription."""
    return {
        "op": "subscribe",
        "id": id,
        "topic": topic,
        "type": type_name,
        "throttle_rate": throttle_rate_ms,
        "queue_length": 1,
        "compression": compression,
    }


def unsubscribe(topic: str, *, id: str) -> Operation:
    """End the subscription `id`."""
    return {"op": "unsubscribe", "id": id, "topic": topic}


def advertise(topic: str, type_name: str, *, id: str) -> Operation:
    """Advertise `topic`."""
    return {"op": "advertise", "id": id, "topic": topic, "type": type_name}


def unadvertise(topic: str, *, id: str) -> Operation:
    """End the advertisement of `topic`."""
    return {"op": "unadvertise", "id": id, "topic": topic}


def publish(topic: str, msg: Mapping[str, Any]) -> Operation:
    """One message on `topic`."""
    return {"op": "publish", "topic": topic, "msg": msg}


def send_action_goal(
    action: str, action_type: str, args: Mapping[str, Any], *, id: str
) -> Operation:
    """Start an action (ROS 2 branch); the server answers with `action_result` of the same id."""
    return {
        "op": "send_action_goal",
        "id": id,
        "action": action,
        "action_type": action_type,
        "args": args,
        "feedback": False,
    }


def action_result(
    id: str, action: str, values: Mapping[str, Any] | str, status: int, result: bool
) -> Operation:
    """The result of an action: its values, or the reason as text if `result` is False."""
    return {
        "op": "action_result",
        "id": id,
        "action": action,
        "values": values,
        "status": status,
        "result": result,
    }


def status(level: StatusLevel, text: str, id: str | None = None) -> Operation:
    """A status message of the server about the operation `id`."""
    operation: Operation = {"op": "status", "level": level, "msg": text}
    return operation if id is None else operation | {"id": id}
