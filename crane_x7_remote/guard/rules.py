"""What may pass from a client to the robot. Bytes → a request made of known fields, or `Refused`.

Pure. Nothing passes unchanged: every operation is decoded, compared with the allow-list and rebuilt
from the fields that driving needs, each checked for type and size. The core judges the numbers of a
trajectory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from crane_x7_remote.guard import rebuild
from crane_x7_remote.guard.requests import (
    ACTION_TOPIC,
    Drive,
    Follow,
    Forward,
    GripperGoal,
    Nothing,
    Operation,
    Refused,
    Request,
    Say,
    Stop,
)
from crane_x7_remote.rosbridge import loop_status, messages, protocol, record_status
from crane_x7_remote.rosbridge.protocol import brief
from crane_x7_remote.rosbridge.topics import (
    CAMERA_POSE_TOPIC,
    RECORD_STATUS_TOPIC,
    RECORD_TOPIC,
    STATUS_TOPIC,
    STRING,
)

STOP_TOPIC = "/vla/stop"
"""std_msgs/Bool: true brakes the arm and blocks everything, false resumes."""
STATE_TOPIC = "/vla/guard"
"""std_msgs/String, JSON: whether and why everything is stopped, who drives, counters."""

MAX_BYTES = 256 * 1024
"""Largest message; 200 points over 8 joints take 100 KB."""
MAX_THROTTLE_MS = 60_000
MAX_QUEUE = 100
ACTION_VALUES, MAX_ACTION = 8, 1e3

COMPRESSIONS: tuple[protocol.Compression, ...] = ("none", "cbor")
KNOWN_OPERATIONS = frozenset(
    {
        "advertise", "advertise_action", "advertise_service", "action_feedback", "action_result",
        "auth", "call_service", "cancel_action_goal", "fragment", "png", "publish",
        "send_action_goal", "service_response", "set_level", "status", "subscribe", "unadvertise",
        "unadvertise_action", "unadvertise_service", "unsubscribe",
    }
)  # fmt: skip
"""Operations of the rosbridge protocol, named in the counters; any other is "unknown"."""
TRAJECTORY = "trajectory_msgs/JointTrajectory"
GRIPPER_ACTION_TYPE = "control_msgs/action/GripperCommand"
GOAL_TYPES = {"goal": "control_msgs/GripperCommandActionGoal", "cancel": "actionlib_msgs/GoalID"}
RESULT_TYPES = {
    "result": "control_msgs/GripperCommandActionResult",
    "feedback": "control_msgs/GripperCommandActionFeedback",
    "status": "actionlib_msgs/GoalStatusArray",
}
"""The topics below a ROS 1 action that clients publish, and those that they subscribe."""


# --- the allow-list ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Names:
    """The robot's topics; see settings.Settings. An empty name is never allowed."""

    camera: str = "/camera/color/image_raw/compressed"
    wrist_camera: str = ""
    joint_states: str = "/joint_states"
    instruction: str = "/vla/update_instruction"
    arm: str = "/crane_x7_arm_controller/joint_trajectory"
    trajectory: str = "/vla/predicted_trajectory"
    action: str = "/vla/predicted_action"
    gripper_action: str = "/crane_x7_gripper_controller/gripper_cmd"
    passes_action: bool = False
    """Whether `action` may be published: older controllers execute it."""
    more: Mapping[str, str] = field(default_factory=dict)
    """Further topics → types that may be subscribed."""


class AllowList:
    """The allow-list of one robot."""

    def __init__(self, names: Names) -> None:
        self._names = names
        gripper = names.gripper_action
        below = {f"{gripper}/{name}": kind for name, kind in RESULT_TYPES.items() if gripper}
        self.own = {STOP_TOPIC: "std_msgs/Bool", STATE_TOPIC: "std_msgs/String"}
        """Topics that the guard publishes to clients directly."""
        self.subscribed = _named(
            {
                **names.more,
                names.camera: "sensor_msgs/CompressedImage",
                names.wrist_camera: "sensor_msgs/CompressedImage",
                names.joint_states: "sensor_msgs/JointState",
                names.instruction: "std_msgs/String",
                names.arm: TRAJECTORY,
                names.trajectory: TRAJECTORY,
                CAMERA_POSE_TOPIC: STRING,
                STATUS_TOPIC: STRING,
                RECORD_TOPIC: STRING,
                RECORD_STATUS_TOPIC: STRING,
                **below,
            }
        )
        """Topic → type of the allowed subscriptions at rosbridge."""
        goals = {f"{gripper}/{name}": kind for name, kind in GOAL_TYPES.items() if gripper}
        self._goals = goals
        self.published = _named(
            {
                names.arm: TRAJECTORY,
                names.trajectory: TRAJECTORY,
                names.instruction: "std_msgs/String",
                STATUS_TOPIC: STRING,
                RECORD_TOPIC: STRING,
                RECORD_STATUS_TOPIC: STRING,
                STOP_TOPIC: "std_msgs/Bool",
                **({names.action: "std_msgs/Float32MultiArray"} if names.passes_action else {}),
                **goals,
            }
        )
        """Topic → type of the allowed publications."""
        self.advertised = _named(
            {
                topic: kind
                for topic, kind in self.published.items()
                if topic not in goals and topic != STOP_TOPIC
            }
        ) | {STATE_TOPIC: "std_msgs/String"}
        """Topic → type that the guard advertises and publishes."""
        self._operations: dict[str, Callable[[Operation, str | None], Request]] = {
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "advertise": self._advertise,
            "unadvertise": _nothing,
            "publish": self._publish,
            "send_action_goal": self._send_action_goal,
            "cancel_action_goal": self._cancel_action_goal,
            "set_level": _nothing,
            "status": _nothing,
        }

    def as_json(self) -> dict[str, dict[str, str]]:
        """Return the allow-list: operation → name → type."""
        hidden = set(self._goals) | {name for name in self.subscribed if self._is_below(name)}
        topics = {"subscribe": self.subscribed | self.own, "publish": self.published}
        listed = {
            verb: {topic: kind for topic, kind in found.items() if topic not in hidden}
            for verb, found in topics.items()
        }
        action = self._names.gripper_action
        return listed | {"action": {action: GRIPPER_ACTION_TYPE} if action else {}}

    def lines(self) -> list[str]:
        """Return the allow-list as text, one rule per line."""
        listed = self.as_json()
        lines = [
            f"{verb:<9}  {topic}  ({kind})"
            for verb in ("subscribe", "publish")
            for topic, kind in listed[verb].items()
        ]
        if self._names.gripper_action:
            lines.append(
                f"action     {self._names.gripper_action}  ({GRIPPER_ACTION_TYPE}; ROS 1: its"
                f" topics {', '.join((*GOAL_TYPES, *RESULT_TYPES))})"
            )
        lines.append("refused    every other operation, topic, type, service and binary message")
        return lines

    def read(self, payload: str | bytes) -> Request:
        """Return the request in one WebSocket message; raises Refused."""
        if isinstance(payload, bytes):
            raise Refused("binary", f"a binary message of {len(payload)} bytes; expected JSON text")
        try:
            operation = protocol.decode(payload, MAX_BYTES)
        except protocol.ProtocolError as error:
            raise Refused("unreadable", str(error)) from error
        try:
            return self._read(operation, rebuild.operation_name(operation))
        except messages.MessageError as error:
            raise Refused("message", str(error), _text(operation.get("id"))) from error

    def _read(self, operation: Operation, operation_id: str | None) -> Request:
        name = operation["op"]
        handle = self._operations.get(name)
        if handle is None:
            kind = name if name in KNOWN_OPERATIONS else "unknown"
            raise Refused(
                f"operation {kind}",
                f"operation {brief(name)} does not pass the guard; allowed:"
                f" {', '.join(self._operations)}",
                operation_id,
            )
        return handle(operation, operation_id)

    # --- operations ------------------------------------------------------------------------------

    def _subscribe(self, operation: Operation, operation_id: str | None) -> Request:
        topic = self._topic(operation, operation_id, self.subscribed | self.own)
        if topic in self.own:
            return Follow(topic)
        asked = operation.get("compression") or "none"
        compression = next((known for known in COMPRESSIONS if known == asked), None)
        if compression is None:
            raise Refused(
                "compression",
                f"subscribe {topic}: compression {brief(asked)} does not pass the guard;"
                f" expected {' or '.join(COMPRESSIONS)}",
                operation_id,
            )
        name = operation_id or f"guard:{topic}"
        built = protocol.subscribe(
            topic,
            self.subscribed[topic],
            id=name,
            throttle_rate_ms=rebuild.count(operation, "throttle_rate", MAX_THROTTLE_MS),
            compression=compression,
        ) | {"queue_length": rebuild.count(operation, "queue_length", MAX_QUEUE)}
        return Forward(built, (topic, name))

    def _unsubscribe(self, operation: Operation, operation_id: str | None) -> Request:
        topic = self._topic(operation, operation_id, self.subscribed | self.own)
        if topic in self.own:
            return Follow(topic, wanted=False)
        name = operation_id or f"guard:{topic}"
        return Forward(protocol.unsubscribe(topic, id=name), (topic, name), ends=True)

    def _advertise(self, operation: Operation, operation_id: str | None) -> Request:
        topic = self._topic(operation, operation_id, self.published)
        if topic not in self._goals:
            return Nothing()  # the guard has advertised it, and publishes it
        name = operation_id or f"guard:{topic}"
        return Forward(protocol.advertise(topic, self._goals[topic], id=name))

    def _publish(self, operation: Operation, operation_id: str | None) -> Request:
        topic = self._topic(operation, operation_id, self.published)
        message = operation.get("msg")
        if not isinstance(message, Mapping):
            raise Refused(
                "message", f"publish {topic}: msg is {brief(message)}, expected an object"
            )
        names = self._names
        if topic in (names.arm, names.trajectory):
            return Drive(rebuild.trajectory(message), is_prediction=topic != names.arm)
        if topic == STOP_TOPIC:
            return Stop(rebuild.boolean(message), rebuild.reason(operation))
        if topic == names.instruction:
            return Say(topic, messages.string(messages.instruction(message)))
        if topic == STATUS_TOPIC:
            return Say(topic, loop_status.read(message).message())
        if topic == RECORD_TOPIC:
            return Say(topic, messages.string(record_status.word(message)))
        if topic == RECORD_STATUS_TOPIC:
            return Say(topic, record_status.read(message).message())
        if topic == names.action:
            values = rebuild.numbers(message.get("data"), "Float32MultiArray.data", ACTION_VALUES)
            if any(abs(value) > MAX_ACTION for value in values):
                raise Refused("message", f"publish {topic}: {brief(values)} are not positions")
            return Say(topic, messages.float32_array(values))
        if topic.endswith("/cancel"):
            return Forward(protocol.publish(topic, rebuild.goal_id(message)))
        return self._goal_on_topic(topic, message)

    def _goal_on_topic(self, topic: str, message: Operation) -> Request:
        """A GripperCommandActionGoal of ROS 1."""
        goal = message.get("goal")
        position_rad, effort = rebuild.gripper_command(goal if isinstance(goal, Mapping) else {})
        goal_id = message.get("goal_id")
        built = {
            "goal_id": rebuild.goal_id(goal_id if isinstance(goal_id, Mapping) else {}),
            "goal": {"command": {"position": position_rad, "max_effort": effort}},
        }
        publish = protocol.publish(topic, built)
        return GripperGoal(position_rad, (publish,), self._names.gripper_action, None)

    def _send_action_goal(self, operation: Operation, operation_id: str | None) -> Request:
        action = self._action(operation, operation_id)
        kind = operation.get("action_type")
        if not isinstance(kind, str) or not messages.same_type(kind, GRIPPER_ACTION_TYPE):
            raise Refused(
                "type",
                f"send_action_goal {action}: action_type is {brief(kind)}, expected"
                f" {GRIPPER_ACTION_TYPE}",
                operation_id,
                action,
            )
        args = operation.get("args")
        try:
            position_rad, effort = rebuild.gripper_command(
                args if isinstance(args, Mapping) else {}
            )
        except messages.MessageError as error:
            raise Refused("message", str(error), operation_id, action) from error
        built = protocol.send_action_goal(
            action,
            GRIPPER_ACTION_TYPE,
            {"command": {"position": position_rad, "max_effort": effort}},
            id=operation_id or "",
        )
        return GripperGoal(position_rad, (built,), action, operation_id)

    def _cancel_action_goal(self, operation: Operation, operation_id: str | None) -> Request:
        action = self._action(operation, operation_id)
        return Forward({"op": "cancel_action_goal", "id": operation_id or "", "action": action})

    # --- their fields ----------------------------------------------------------------------------

    def _is_below(self, topic: str) -> bool:
        gripper = self._names.gripper_action
        return bool(gripper) and topic.startswith(f"{gripper}/")

    def _topic(
        self, operation: Operation, operation_id: str | None, allowed: Mapping[str, str]
    ) -> str:
        """Return the topic if it is allowed, with the client's type, if any."""
        what, topic = operation["op"], operation.get("topic")
        if isinstance(topic, str) and not topic.startswith("/"):
            topic = f"/{topic}"
        if not isinstance(topic, str) or topic not in allowed:
            text = f"{what} {brief(topic)} does not pass the guard"
            if topic == self._names.action and what in ("publish", "advertise"):
                raise Refused(
                    ACTION_TOPIC,
                    f"{topic} is not passed on, as usual: driving does not need it. Only an older"
                    " controller needs it, and moves without the guard's checks"
                    " (GUARD_PASS_ACTION=true)",
                    operation_id,
                )
            raise Refused("topic", text, operation_id)
        kind = operation.get("type")
        if kind and not (isinstance(kind, str) and messages.same_type(kind, allowed[topic])):
            raise Refused(
                "type",
                f"{what} {topic}: type is {brief(kind)}, expected {allowed[topic]}",
                operation_id,
            )
        return topic

    def _action(self, operation: Operation, operation_id: str | None) -> str:
        action, known = operation.get("action"), self._names.gripper_action
        if not known or action not in (known, known.lstrip("/")):
            raise Refused(
                "action",
                f"{operation['op']} {brief(action)} does not pass the guard; allowed:"
                f" {known or 'none'}",
                operation_id,
                _text(action),
            )
        return known


def _nothing(operation: Operation, operation_id: str | None) -> Request:
    del operation, operation_id
    return Nothing()


def _named(topics: Mapping[str, str]) -> dict[str, str]:
    return {topic: kind for topic, kind in topics.items() if topic}


def _text(value: object) -> str | None:
    """Return the id for the answer, if it is valid."""
    return value if isinstance(value, str) and len(value) <= rebuild.MAX_NAME else None
