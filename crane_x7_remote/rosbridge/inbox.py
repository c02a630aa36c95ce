"""The newest value of every input. Payloads of the network thread → slots, clocks, faults. No I/O.

Frames are stored undecoded; joint states and instructions are parsed. Any other thread reads the
slots. A new throttle for the camera is passed to `on_throttle`.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from crane_x7_remote.rosbridge import frames, messages, protocol
from crane_x7_remote.rosbridge.clock import Staleness
from crane_x7_remote.rosbridge.envelopes import Fragments, unpack_png
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_remote.rosbridge.joint_watch import JointFault, JointWatch, Layout
from crane_x7_remote.rosbridge.messages import RosVersion, StampedJoints
from crane_x7_remote.rosbridge.robot_clocks import ClockReport, RobotClocks
from crane_x7_remote.rosbridge.silence import SilenceWatch
from crane_x7_remote.rosbridge.throttle import Throttle
from crane_x7_remote.rosbridge.version import VersionWatch
from crane_x7_vla_rl.log_text import shown

logger = logging.getLogger(__name__)

COMPLAIN_AGAIN_S = 60.0
"""Problems of one topic's messages are logged at most this often."""
STATUS_AGAIN_S = 1.0
"""The same for status messages of the server."""

Callback = Callable[[Mapping[str, Any]], None]
JOINTS_KEPT: Final = 128
"""Joint states of the last moments, for recordings: a second of a fast robot."""
MAX_NAMED = 16
"""Unknown names that a server sends are remembered and logged up to this many."""


@dataclass(frozen=True)
class IncomingTopics:
    """The topics that the inbox reads; None: not subscribed."""

    camera: str | None
    joint_states: str | None
    instruction: str | None
    wrist_camera: str | None = None


class Inbox:
    """The newest value of every input, and the estimated clock of the robot."""

    def __init__(
        self,
        topics: IncomingTopics,
        max_bytes: int,
        *,
        adapts_throttle: bool,
        on_throttle: Callable[[int], None],
    ) -> None:
        self._topics = topics
        self._max_bytes = max_bytes
        self._adapts_throttle = adapts_throttle
        self._on_throttle = on_throttle
        self._changed = threading.Condition()
        self._frame: EncodedFrame | None = None
        self._wrist_frame: EncodedFrame | None = None
        self._joints: StampedJoints | None = None
        self._recent_joints: deque[StampedJoints] = deque(maxlen=JOINTS_KEPT)
        self._instruction: str | None = None
        self._clocks = RobotClocks(topics.camera, topics.joint_states)
        self._watch = JointWatch(topics.joint_states or "")
        self._staleness = Staleness()
        self._throttle = Throttle()
        self._callbacks: dict[str, Callback] = {}
        self._hear_result: Callback | None = None
        self._refused: Counter[str] = Counter()
        self._fragments = Fragments(max_bytes, self._lose_fragments)
        self._versions = VersionWatch()
        self._unknown_to_server: set[str] = set()
        self._named_operations: set[str] = set()
        self._refusals: dict[str, str] = {}
        """Topic → why its last message could not be used; no entry after a usable one."""
        self._unreadable: tuple[str, float] | None = None
        """Reason and time of the last unusable payload without a topic."""
        self.silence = SilenceWatch()
        """Detects subscriptions without messages."""
        self._complaints: dict[str, tuple[float, str]] = {}
        self._now_s = 0.0

    # --- from any thread -------------------------------------------------------------------------

    @property
    def frame(self) -> EncodedFrame | None:
        """The newest frame."""
        return self._frame

    @property
    def wrist_frame(self) -> EncodedFrame | None:
        """The newest frame of the wrist camera on this link."""
        return self._wrist_frame

    @property
    def joints(self) -> StampedJoints | None:
        """The newest valid joint state."""
        return self._joints

    @property
    def recent_joints(self) -> tuple[StampedJoints, ...]:
        """The last JOINTS_KEPT valid joint states, the newest last."""
        return tuple(self._recent_joints)  # one step of the interpreter: nothing is added meanwhile

    @property
    def refused(self) -> dict[str, int]:
        """Received messages that could not be used, by kind."""
        return dict(self._refused)

    @property
    def ros_version(self) -> RosVersion | None:
        """The server's ROS version; None while unknown."""
        return self._versions.version

    @property
    def ros_version_doubt(self) -> str | None:
        """Why the version is unknown."""
        return self._versions.doubt

    @property
    def unknown_to_server(self) -> tuple[str, ...]:
        """Operations that the server reported as unknown."""
        return tuple(sorted(self._unknown_to_server))

    def refusal(self, topic: str) -> str | None:
        """Return why the last message on `topic` could not be used; None if it could."""
        if topic in self._refusals or self._unreadable is None:
            return self._refusals.get(topic)
        good: EncodedFrame | StampedJoints | None = self._joints
        if topic == self._topics.camera:
            good = self._frame
        elif topic == self._topics.wrist_camera:
            good = self._wrist_frame
        text, at_s = self._unreadable
        return text if good is None or good.arrival_s < at_s else None

    @property
    def throttle_ms(self) -> int:
        """The throttle that suits the link."""
        return self._throttle.rate_ms

    def wait_frame(self, newer_than: EncodedFrame | None, timeout_s: float) -> EncodedFrame | None:
        """Wait for a frame other than `newer_than`; None after the timeout."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not newer_than, timeout_s)
            return None if self._frame is newer_than else self._frame

    def take_instruction(self) -> str | None:
        """Return the newest instruction if it has not been taken yet."""
        with self._changed:
            instruction, self._instruction = self._instruction, None
            return instruction

    def age_s(self, stamp_s: float, now_s: float) -> float:
        """Return the age of a frame with this stamp, by the camera's own clock."""
        return self._clocks.camera.age_s(stamp_s, now_s)

    def robot_time(self, now_s: float) -> float | None:
        """Return the joint states' clock at our `now_s`; None before the first stamped one."""
        return self._clocks.report(now_s).robot_s

    def clocks(self, now_s: float) -> ClockReport:
        """Return the state of the robot's clocks at our `now_s`."""
        return self._clocks.report(now_s)

    def joint_fault(self, now_s: float) -> JointFault | None:
        """Return why joint states are not trusted at our `now_s`, or None."""
        return self._watch.fault(now_s)

    def listen(self, topic: str, callback: Callback) -> None:
        """Pass each message of `topic` to `callback`, on the network thread."""
        self._callbacks[topic] = callback

    def hear_results(self, callback: Callback) -> None:
        """Pass each `action_result` to `callback`, on the network thread."""
        self._hear_result = callback

    # --- network thread --------------------------------------------------------------------------

    def link_came_up(self) -> None:
        """Reset: a new link may lead to another clock."""
        self._wrist_frame = None
        self._staleness.reset()
        self._throttle.reset_link()
        self._clocks.reset()
        self._watch.reset()
        self._fragments.clear()
        self._versions.reset()
        self._unknown_to_server.clear()
        self._refusals.clear()
        self._unreadable = None

    def expire(self, now_s: float) -> None:
        """Discard fragments whose rest has not arrived; called about once a second."""
        self._fragments.expire(now_s)

    def take(self, payload: str | bytes, arrival_s: float) -> bool:
        """Process one payload; True if the client should reconnect."""
        self._now_s = arrival_s
        try:
            operation = self._unwrap(protocol.decode(payload, self._max_bytes), arrival_s)
            if operation is None:
                return False
            topic = operation.get("topic")
            if operation["op"] == "publish" and isinstance(topic, str):
                self.silence.heard(topic, arrival_s, isinstance(payload, bytes))
            return self._dispatch(operation, arrival_s)
        except protocol.ProtocolError as error:
            self._unreadable = str(error), arrival_s
            self._refuse("payload", str(error))
        return False

    def _unwrap(self, operation: protocol.Operation, arrival_s: float) -> protocol.Operation | None:
        """Return the operation inside fragments, a png or a png in fragments, if it is complete."""
        for kind in ("fragment", "png"):
            if operation["op"] != kind:
                continue
            try:
                if kind == "png":
                    text: str | None = unpack_png(operation, self._max_bytes)
                else:
                    text = self._fragments.add(operation, arrival_s)
            except protocol.ProtocolError as error:
                self._refuse_wrapped(kind, str(error), arrival_s)
                return None
            if text is None:
                return None
            operation = protocol.decode(text, self._max_bytes)
        return operation

    def _lose_fragments(self, why: str, now_s: float) -> None:
        self._refuse_wrapped("fragment", f"dropped a fragmented message: {why}", now_s)

    def _refuse_wrapped(self, kind: str, text: str, now_s: float) -> None:
        self._unreadable = f"{kind}: {text}", now_s
        self._refuse(kind, text)

    def _refuse_operation(self, name: str, now_s: float) -> None:
        """Count an operation that no rosbridge server sends to a client; log the first few."""
        text = f"unknown operation {protocol.brief(name)}"
        self._unreadable = text, now_s
        self._refused["operation"] += 1
        if name not in self._named_operations and len(self._named_operations) < MAX_NAMED:
            self._named_operations.add(name[:200])
            logger.warning("from rosbridge: %s", text)

    def _dispatch(self, operation: protocol.Operation, arrival_s: float) -> bool:
        name = operation["op"]
        if name == "status":
            level, text = operation.get("level"), operation.get("msg")
            told = text if isinstance(text, str) else protocol.brief(text)
            if level == "info":
                self._complain("remark", told, STATUS_AGAIN_S, logging.INFO)
            else:
                self._complain(f"status {protocol.brief(level)}", told, STATUS_AGAIN_S)
            unknown = protocol.unknown_operation(text) if isinstance(text, str) else None
            if unknown is not None and len(self._unknown_to_server) < MAX_NAMED:
                self._unknown_to_server.add(unknown)
            return False
        if name != "publish":
            if name == "action_result" and self._hear_result is not None:
                self._hear_result(operation)
            elif name not in protocol.ANSWERS:
                self._refuse_operation(name, arrival_s)
            return False
        topic, message = operation.get("topic"), operation.get("msg")
        if not isinstance(topic, str) or not isinstance(message, Mapping):
            self._refuse("message", f"no message on topic {protocol.brief(topic)}")
        else:
            return self._take_message(topic, message, arrival_s)
        return False

    def _take_message(self, topic: str, message: Mapping[str, Any], arrival_s: float) -> bool:
        topics, reconnects = self._topics, False
        try:
            if topic == topics.camera:
                reconnects = self._take_frame(message, arrival_s)
            elif topic == topics.wrist_camera:
                self._take_wrist_frame(message, arrival_s)
            elif topic == topics.joint_states:
                self._take_joints(message, arrival_s)
            elif topic == topics.instruction:
                self._hear_instruction(message)
            elif topic in self._callbacks:
                self._callbacks[topic](message)
            else:
                self._refuse("message", f"topic {topic[:60]!r} was not subscribed")
        except messages.MessageError as error:
            self._refusals[topic] = str(error)
            self._refused["message"] += 1
            self._complain(f"message on {topic}", str(error))
        else:
            self._refusals.pop(topic, None)
        return reconnects

    def _take_frame(self, message: Mapping[str, Any], arrival_s: float) -> bool:
        frame = self._read_frame(self._topics.camera, message, self._frame, arrival_s)
        if frame is None:
            return False
        is_trusted, age_s = True, 0.0
        if frame.stamp_s != 0:
            is_trusted = self._clocks.take_frame(frame.stamp_s, arrival_s)
            age_s = self._clocks.camera.age_s(frame.stamp_s, arrival_s)
        with self._changed:
            self._frame = frame
            self._changed.notify_all()
        if not is_trusted:  # its stamp says nothing about the link
            return False
        if self._adapts_throttle and self._throttle.observe(age_s, arrival_s):
            rate_ms = self._throttle.rate_ms
            logger.info(
                "camera throttled to %d ms (frames arrive %.0f ms late)", rate_ms, age_s * 1e3
            )
            self._on_throttle(rate_ms)
        if self._clocks.rate is not None:  # ages grow on any link
            return False
        return self._staleness.observe(age_s, arrival_s)

    def _take_wrist_frame(self, message: Mapping[str, Any], arrival_s: float) -> None:
        """Keep a frame of the wrist camera. Clocks and throttle follow the base camera alone: the
        loop compares the stamps of both."""
        topic, last = self._topics.wrist_camera, self._wrist_frame
        frame = self._read_frame(topic, message, last, arrival_s)
        if frame is not None:
            self._wrist_frame = frame

    def _read_frame(
        self,
        topic: str | None,
        message: Mapping[str, Any],
        last: EncodedFrame | None,
        arrival_s: float,
    ) -> EncodedFrame | None:
        """Return the frame of a message; None for a repetition of the topic's last one."""
        assert topic is not None
        if frames.is_depth_topic(topic):
            raise messages.MessageError(f"{topic} has depth images: {frames.COLOUR_TOPIC}")
        frame = frames.from_message(message, arrival_s)
        self._versions.observe(messages.stamp_version(message), topic, arrival_s)
        if last is not None and frame.stamp_s != 0 and frame.stamp_s == last.stamp_s:
            self._refused["repeated frame"] += 1
            return None
        return frame

    def _take_joints(self, message: Mapping[str, Any], arrival_s: float) -> None:
        state = messages.joint_state(message)
        stamp_s = messages.read_stamp(message)
        topic = self._topics.joint_states
        assert topic is not None
        self._versions.observe(messages.stamp_version(message), topic, arrival_s)
        is_trusted = self._clocks.take_joints(stamp_s, arrival_s)
        stamped = is_trusted and stamp_s > 0
        measured_s = self._clocks.measured_s(stamp_s, arrival_s) if stamped else arrival_s
        self._watch.take(state, measured_s, arrival_s, self._layout(message), stamped)
        if is_trusted:
            self._joints = StampedJoints(state, stamp_s, arrival_s)
            self._recent_joints.append(self._joints)

    def _hear_instruction(self, message: Mapping[str, Any]) -> None:
        try:
            text = messages.instruction(message)
        except messages.MessageError as error:
            self._refuse("instruction", str(error))
            return
        with self._changed:
            self._instruction = text
        logger.info("instruction: %s", shown(text))

    def _refuse(self, kind: str, text: str) -> None:
        self._refused[kind] += 1
        self._complain(kind, text)

    def _complain(
        self, kind: str, text: str, again_s: float = COMPLAIN_AGAIN_S, level: int = logging.WARNING
    ) -> None:
        """Log the first of a kind, and further ones at most every `again_s`."""
        text = shown(text)
        logged_s, logged = self._complaints.get(kind, (float("-inf"), ""))
        if text != logged and self._now_s - logged_s >= again_s:
            self._complaints[kind] = (self._now_s, text)
            logger.log(level, "%s from rosbridge: %s", kind, text)

    @staticmethod
    def _layout(message: Mapping[str, Any]) -> Layout:
        """Return the layout that the joint states of one publisher share."""
        names = tuple(str(name) for name in message["name"])
        return names, bool(message.get("velocity")), bool(message.get("effort"))
