"""One rosbridge client on the server: its operations, subscriptions and throttles.

Payloads of the client (`receive`), messages of topics (`offer`) → its `ClientOutbox`. No I/O, no
clock. Operations, throttling and the merging of several subscriptions to a topic follow
rosbridge_suite (v2 protocol). Unlike in rosbridge_suite, the state that a client can create on the
server is bounded, and its mistakes are answered by a status.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import cbor2

from crane_x7_remote.errors import RemoteError
from crane_x7_remote.rosbridge import protocol
from crane_x7_remote.rosbridge.messages import RosVersion
from crane_x7_remote.rosbridge.protocol import brief
from crane_x7_remote.sim_robot.outbox import ClientOutbox, Payload
from crane_x7_remote.sim_robot.ros_types import cbor_obstacle

logger = logging.getLogger(__name__)

COMPRESSIONS = ("none", "cbor")
LEVELS: tuple[protocol.StatusLevel, ...] = ("info", "warning", "error", "none")

LONGEST_NAME = 256
"""Characters of an id, topic, type, action or operation; ROS allows no longer topic names."""
LONGEST_STATUS = 500
MOST_SUBSCRIPTIONS = 256
"""Limit per client, over all topics and ids."""
MOST_ADVERTISED = 256
LONGEST_THROTTLE_MS = 1e9

Operation = Mapping[str, Any]


class OperationError(RemoteError):
    """A client requested something that the server cannot do; says what was expected."""


@dataclass(frozen=True)
class GoalKey:
    """Identifies an action goal across all clients; `goal_id` alone is the client's own choice."""

    client: int
    action: str
    goal_id: str


class Publication:
    """One message of a topic, encoded at most once for each compression.

    With `type_name` and `version`, a message that a released rosbridge cannot send is not sent.
    """

    def __init__(
        self,
        topic: str,
        message: Operation,
        type_name: str | None = None,
        version: RosVersion = 2,
    ) -> None:
        self._operation = protocol.publish(topic, dict(message))
        self.topic = topic
        self._type_name, self._version = type_name, version
        self._encoded: dict[str, Payload] = {}

    def payload(self, compression: str) -> Payload:
        """Return the encoded payload; raises OperationError if the message cannot be encoded."""
        if compression not in self._encoded:
            encode = self._cbor if compression == "cbor" else self._json
            try:
                self._encoded[compression] = encode()
            except (TypeError, ValueError, RecursionError, cbor2.CBOREncodeError) as error:
                raise OperationError(
                    f"publish {self.topic}: the message cannot be forwarded with compression"
                    f" {compression!r}: {error}"
                ) from error
        return self._encoded[compression]

    def _cbor(self) -> bytes:
        if self._type_name is not None:
            obstacle = cbor_obstacle(self._type_name, self._operation["msg"], self._version)
            if obstacle is not None:
                raise ValueError(f"a released rosbridge cannot pack {self._type_name}.{obstacle}")
        return protocol.encode_cbor(self._operation)

    def _json(self) -> str:
        """As JSON, in which a real rosbridge writes null for NaN and infinity."""
        text = protocol.encode_json(self._operation)
        if "NaN" in text or "Infinity" in text:
            return protocol.encode_json(_finite_or_null(self._operation))
        return text


def _finite_or_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class SessionHost(Protocol):
    """The server's interface for its sessions."""

    def establish(self, topic: str, type_name: str | None) -> None:
        """Check that `topic` may be used with this type; raise OperationError."""

    def publish(self, topic: str, message: Operation) -> None:
        """Deliver a client's message to the robot and to all subscribers; raise RemoteError."""

    def start_goal(self, key: GoalKey, action_type: str, args: Operation) -> None:
        """Pass a goal to the robot; raise RemoteError."""

    def cancel_goal(self, key: GoalKey) -> None:
        """Ask the robot to cancel a goal; raise RemoteError."""


@dataclass
class TopicSubscriptions:
    """A client's subscriptions to one topic, each under its own id, merged as rosbridge does."""

    throttle_s: dict[str | None, float] = field(default_factory=dict)
    compression: dict[str | None, str] = field(default_factory=dict)
    type_name: str | None = None
    last_sent_s: float = -math.inf

    def is_due(self, now_s: float) -> bool:
        """Whether a message may be sent now, given the shortest throttle requested."""
        return now_s - self.last_sent_s >= min(self.throttle_s.values(), default=0.0)

    @property
    def encoding(self) -> str:
        return "cbor" if "cbor" in self.compression.values() else "none"


class ClientSession:
    """State of one connected client."""

    def __init__(
        self,
        number: int,
        hub: SessionHost,
        outbox: ClientOutbox,
        clock: Callable[[], float],
        ros_version: RosVersion = 2,
    ) -> None:
        self.number = number
        self.outbox = outbox
        self.subscriptions: dict[str, TopicSubscriptions] = {}
        self.advertised: dict[str, str] = {}
        """Topic → type name."""
        self._hub = hub
        self._clock = clock
        self._level = "error"
        self._operations: dict[str, Callable[[Operation], None]] = {
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "advertise": self._advertise,
            "unadvertise": self._unadvertise,
            "publish": self._publish,
            "set_level": self._set_level,
            "status": lambda _: None,
        }
        # ROS 1 runs its actions on topics; its rosbridge has no operations for them.
        if ros_version == 2:
            self._operations["send_action_goal"] = self._send_action_goal
            self._operations["cancel_action_goal"] = self._cancel_action_goal

    def receive(self, payload: Payload, max_bytes: int = protocol.MAX_MESSAGE_BYTES) -> None:
        """Execute one WebSocket message; every mistake is answered by a status operation."""
        operation_id = None
        try:
            operation = protocol.decode(payload, max_bytes)
            operation_id = _text(operation, "id", None)
            handle = self._operations.get(operation["op"])
            if handle is None:
                known = ", ".join(self._operations)
                raise OperationError(f"Unknown operation {brief(operation['op'])}; known: {known}")
            handle(operation)
        except RemoteError as error:
            self.report("error", str(error), operation_id)
        except Exception as error:  # No client message may end the link or the server.
            logger.exception("client %d: an operation failed", self.number)
            self.report("error", f"internal error: {brief(error)}", operation_id)

    def offer(self, publication: Publication) -> None:
        """Queue a topic's message if the client subscribes to it and its throttle lets it pass."""
        subscription = self.subscriptions.get(publication.topic)
        now_s = self._clock()
        if subscription is None or not subscription.is_due(now_s):
            return
        subscription.last_sent_s = now_s
        self.outbox.message(publication.payload(subscription.encoding))

    def report(
        self, level: protocol.StatusLevel, text: str, operation_id: str | None = None
    ) -> None:
        """Send a status operation, unless the client's level is above this one."""
        if LEVELS.index(level) >= LEVELS.index(self._level):
            self.reply(protocol.status(level, _short(text), operation_id))

    def reply(self, operation: dict[str, Any]) -> None:
        """Send an operation to this client alone."""
        self.outbox.reply(protocol.encode_json(operation))

    def _subscribe(self, operation: Operation) -> None:
        topic = _topic(operation)
        type_name = _text(operation, "type", None)
        compression = _text(operation, "compression", "none") or "none"
        throttle_ms = operation.get("throttle_rate") or 0
        if compression not in COMPRESSIONS:
            raise OperationError(
                f"subscribe {topic}: compression {brief(compression)} is not supported;"
                f" expected one of {', '.join(COMPRESSIONS)}"
            )
        if not _is_number(throttle_ms) or not 0 <= throttle_ms <= LONGEST_THROTTLE_MS:
            raise OperationError(
                f"subscribe {topic}: throttle_rate is {brief(throttle_ms)}, expected milliseconds"
            )
        self._hub.establish(topic, type_name)
        subscription_id = _text(operation, "id", None)
        self._check_room(topic, subscription_id)
        subscription = self.subscriptions.setdefault(topic, TopicSubscriptions())
        subscription.type_name = type_name or subscription.type_name
        subscription.throttle_s[subscription_id] = throttle_ms / 1000
        subscription.compression[subscription_id] = compression

    def _check_room(self, topic: str, subscription_id: str | None) -> None:
        count = sum(len(each.throttle_s) for each in self.subscriptions.values())
        known = self.subscriptions.get(topic)
        is_new = known is None or subscription_id not in known.throttle_s
        if is_new and count >= MOST_SUBSCRIPTIONS:
            raise OperationError(
                f"subscribe {topic}: this client has {count} subscriptions, expected at most"
                f" {MOST_SUBSCRIPTIONS}; unsubscribe first"
            )

    def _unsubscribe(self, operation: Operation) -> None:
        topic, subscription_id = _topic(operation), _text(operation, "id", None)
        subscription = self.subscriptions.get(topic)
        if subscription is None:
            return
        if subscription_id is None:
            subscription.throttle_s.clear()
        subscription.throttle_s.pop(subscription_id, None)
        subscription.compression.pop(subscription_id, None)
        if not subscription.throttle_s:
            del self.subscriptions[topic]

    def _advertise(self, operation: Operation) -> None:
        topic, type_name = _topic(operation), _text(operation, "type", None)
        if type_name is None:
            raise OperationError(f"advertise {topic}: type is missing")
        self._hub.establish(topic, type_name)
        if topic not in self.advertised and len(self.advertised) >= MOST_ADVERTISED:
            raise OperationError(
                f"advertise {topic}: this client advertises {len(self.advertised)} topics, expected"
                f" at most {MOST_ADVERTISED}; unadvertise first"
            )
        self.advertised[topic] = type_name

    def _unadvertise(self, operation: Operation) -> None:
        self.advertised.pop(_topic(operation), None)

    def _publish(self, operation: Operation) -> None:
        topic, message = _topic(operation), operation.get("msg", {})
        if not isinstance(message, Mapping):
            raise OperationError(
                f"publish {topic}: msg is {type(message).__name__}, expected an object"
            )
        self._hub.establish(topic, None)
        self._hub.publish(topic, message)

    def _send_action_goal(self, operation: Operation) -> None:
        key = self._goal_key(operation)
        args, action_type = operation.get("args", {}), _text(operation, "action_type", None)
        if action_type is None:
            raise OperationError(f"send_action_goal {key.action}: action_type is missing")
        try:
            if not isinstance(args, Mapping):
                raise OperationError(f"args are {type(args).__name__}, expected an object")
            self._hub.start_goal(key, action_type, args)
        except RemoteError as error:
            reason = _short(str(error))
            self.reply(protocol.action_result(key.goal_id, key.action, reason, 0, False))
            raise OperationError(f"send_action_goal {key.action}: {error}") from error

    def _cancel_action_goal(self, operation: Operation) -> None:
        self._hub.cancel_goal(self._goal_key(operation))

    def _goal_key(self, operation: Operation) -> GoalKey:
        action = _text(operation, "action", None)
        if action is None:
            raise OperationError(f"{operation['op']}: action is missing, expected its name")
        return GoalKey(self.number, action, _text(operation, "id", None) or "")

    def _set_level(self, operation: Operation) -> None:
        level = _text(operation, "level", None)
        if level not in LEVELS:
            raise OperationError(f"set_level: level is {brief(level)}, expected one of {LEVELS}")
        self._level = level


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(operation: Operation, name: str, default: str | None) -> str | None:
    value = operation.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise OperationError(
            f"{brief(operation['op'])}: {name} is {type(value).__name__}, expected a string"
        )
    if len(value) > LONGEST_NAME:
        raise OperationError(
            f"{brief(operation['op'])}: {name} has {len(value)} characters, expected at most"
            f" {LONGEST_NAME}"
        )
    return value


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_STATUS else text[: LONGEST_STATUS - 1] + "…"


def _topic(operation: Operation) -> str:
    topic = _text(operation, "topic", None)
    if not topic:
        raise OperationError(f"{operation['op']}: topic is missing, expected its name")
    return topic if topic.startswith("/") else "/" + topic
