"""The dashboard's own connection to the robot's rosbridge, or to the guard before it.

Statuses of loops, guard and recorder → `Board`; instructions and the recorder's words → topics.
Without a loop in this machine's feed it also shows camera, joints and path.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from crane_x7_remote.dashboard import gripper_path, pictures, sections
from crane_x7_remote.dashboard.board import Board
from crane_x7_remote.guard.rules import STATE_TOPIC
from crane_x7_remote.inference.link.guard_state import GuardState
from crane_x7_remote.rosbridge import (
    camera_pose,
    frames,
    loop_status,
    messages,
    protocol,
    record_status,
)
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.loop_status import LoopStatus
from crane_x7_remote.rosbridge.topics import (
    CAMERA_POSE_TOPIC,
    RECORD_STATUS_TOPIC,
    RECORD_TOPIC,
    STATUS_TOPIC,
    STRING,
)
from crane_x7_vla_rl.camera_pose import CameraPose, CameraPoseError

FORGET_S: Final = 3.0
"""Who was silent for this long, a loop or a recorder, counts as gone."""
CAMERA_MS: Final = 100
WRIST_MS: Final = 250
"""The small image in a corner needs no higher rate."""
JOINTS_MS: Final = 100
SEND_S: Final = 1.0
ANSWER_S: Final = 3.0
POLL_S: Final = 0.02


@dataclass(frozen=True)
class RobotTopics:
    """The topics of one robot, see settings.Settings."""

    camera: str
    joint_states: str
    instruction: str
    trajectory: str
    wrist_camera: str = ""
    """Empty: there is none."""


class Robot:
    """A context manager that stays connected."""

    def __init__(
        self,
        board: Board,
        link: ClientConfig,
        topics: RobotTopics,
        pose: CameraPose | None,
        with_arm: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`link` has host, port, proxy and token; `pose` is the operator's. `with_arm`: show
        camera, joints and path, which a loop's feed has otherwise."""
        self._board = board
        self._topics = topics
        self._own_pose = pose
        self._heard_pose: CameraPose | None = None
        self._with_arm = with_arm
        self._clock = clock
        self._guard = GuardState()
        self._changed = threading.Condition()
        self._statuses: dict[str, tuple[float, LoopStatus]] = {}
        self._recorder_s: float | None = None
        self._connections = -1
        self._size: tuple[int, int] | None = None
        self._path: messages.ParsedTrajectory | None = None
        self._address = f"{link.host}:{link.port}"
        self.client = RosbridgeClient(link, clock)
        self._subscribe()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="robot", daemon=True)

    def _subscribe(self) -> None:
        subscribe, topics = self.client.subscribe_throttled, self._topics
        subscribe(STATUS_TOPIC, STRING, self._on_status)
        subscribe(STATE_TOPIC, STRING, self._on_guard)
        subscribe(RECORD_STATUS_TOPIC, STRING, self._on_recorder)
        subscribe(CAMERA_POSE_TOPIC, STRING, self._on_pose)
        if self._with_arm:
            image = "sensor_msgs/CompressedImage"
            subscribe(topics.camera, image, self._on_frame, CAMERA_MS, "cbor")
            if topics.wrist_camera:
                subscribe(topics.wrist_camera, image, self._on_wrist_frame, WRIST_MS, "cbor")
            subscribe(topics.joint_states, "sensor_msgs/JointState", self._on_joints, JOINTS_MS)
            if topics.trajectory:
                kind = "trajectory_msgs/JointTrajectory"
                subscribe(topics.trajectory, kind, self._on_trajectory)

    def __enter__(self) -> Robot:
        self.client.start()
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.client.close()
        self._watcher.join(timeout=2)

    def pose(self) -> CameraPose | None:
        """Return the camera's pose: the operator's, else the one that the robot publishes."""
        return self._own_pose or self._heard_pose

    def has_guard(self) -> bool:
        """Whether a guard has told its state within the last seconds, on this connection."""
        return self._guard.is_there(self._clock())

    def has_recorder(self) -> bool:
        """Whether a recorder has told its state within the last seconds."""
        return self._recorder_s is not None and self._clock() - self._recorder_s < FORGET_S

    def say(self, instruction: str) -> dict[str, tuple[float, LoopStatus]]:
        """Publish a task and return the statuses of the loops that answered in time.

        `instruction` is one line as `messages.instruction` returns it. Raises ConnectionError.
        """
        asked_s = self._clock()
        self._publish(self._topics.instruction, instruction)

        def answers() -> dict[str, tuple[float, LoopStatus]]:
            return {
                session: heard
                for session, heard in self._statuses.items()
                if heard[0] >= asked_s and heard[1].task == instruction
            }

        with self._changed:
            self._changed.wait_for(answers, ANSWER_S)
            return answers()

    def tell_recorder(self, word: record_status.Word) -> None:
        """Publish a word for the recorder; raises ConnectionError."""
        self._publish(RECORD_TOPIC, word)

    def _publish(self, topic: str, text: str) -> None:
        operation = protocol.publish(topic, messages.string(text))
        deadline_s = self._clock() + SEND_S
        while not self.client.tell(operation):
            if self._clock() >= deadline_s:
                raise ConnectionError(f"not connected to the robot at {self._address}")
            time.sleep(POLL_S)

    # --- network thread --------------------------------------------------------------------------

    def _on_status(self, message: Mapping[str, Any]) -> None:
        status, now_s = loop_status.read(message), self._clock()
        with self._changed:
            heard = {**self._statuses, status.session: (now_s, status)}
            self._statuses = {
                session: each for session, each in heard.items() if now_s - each[0] < FORGET_S
            }
            self._changed.notify_all()
        self._board.put(task={"state": status.task_state, "reason": status.reason})
        if self._with_arm:
            self._board.put(loop=sections.status(self._newest()[1]))
            self._board.put(stages=_stages(status))

    def _newest(self) -> tuple[float, LoopStatus]:
        """Return the status of the loop that drives, else the newest one."""
        return max(self._statuses.values(), key=lambda each: (each[1].hold is None, each[0]))

    def _on_guard(self, message: Mapping[str, Any]) -> None:
        self._guard.hear(message, self._clock())
        try:
            state = json.loads(message["data"])
        except (KeyError, TypeError, ValueError, RecursionError):
            return
        if isinstance(state, dict) and self.has_guard():
            self._board.put(guard=sections.guard(state))

    def _on_recorder(self, message: Mapping[str, Any]) -> None:
        status = record_status.read(message)
        self._recorder_s = self._clock()
        self._board.put(recording=asdict(status))

    def _on_pose(self, message: Mapping[str, Any]) -> None:
        self._heard_pose = camera_pose.read(message)

    def _on_frame(self, message: Mapping[str, Any]) -> None:
        frame = frames.from_message(message, self._clock())
        self._size = pictures.size(frame.image_bytes)
        self._board.put_picture(frame.image_bytes)

    def _on_wrist_frame(self, message: Mapping[str, Any]) -> None:
        frame = frames.from_message(message, self._clock())
        self._board.put_wrist_picture(frame.image_bytes)

    def _on_trajectory(self, message: Mapping[str, Any]) -> None:
        self._path = messages.trajectory(message)

    def _on_joints(self, message: Mapping[str, Any]) -> None:
        state = messages.joint_state(message)
        stamp_s, path = messages.read_stamp(message), self._path
        target = None
        left_rad = None
        if path is not None and path.position_rad.shape[1] == len(state.position_rad):
            since_s = stamp_s - path.stamp_s
            left_rad = gripper_path.ahead(path.time_from_start_s, path.position_rad, since_s)
            target = None if left_rad is None else left_rad[0].tolist()
        rows = sections.joints(state.position_rad.tolist(), target)
        self._board.put(joints=rows, path=self._drawn(state.position_rad, left_rad))

    def _drawn(self, measured_rad: Any, left_rad: Any) -> dict[str, Any]:
        pose, size = self.pose(), self._size
        if pose is None or size is None:
            note = gripper_path.UNKNOWN if pose is None else None
            return {"points": [], "gripper": None, "note": note}
        try:
            gripper = gripper_path.in_image([measured_rad], pose, size)
            points = [] if left_rad is None else gripper_path.in_image(left_rad, pose, size)
        except CameraPoseError as error:
            return {"points": [], "gripper": None, "note": f"path not drawn: {error}"}
        return {"points": points, "gripper": gripper[0] if gripper else None, "note": None}

    # --- own thread ------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Forget what is silent, about once a second."""
        while not self._ended.wait(0.5):
            link = self.client.link
            if link.reconnects != self._connections:  # another robot may answer there now
                self._connections = link.reconnects
                self._guard.link_came_up()
            if not self.has_guard() and self._board.get("guard") is not None:
                self._board.put(guard=None)
            if not self.has_recorder() and self._board.get("recording") is not None:
                self._board.put(recording=None)
            if self._with_arm:
                self._board.put(link=sections.link(asdict(link), self._address))
                self._forget_loops()

    def _forget_loops(self) -> None:
        now_s = self._clock()
        if all(now_s - at_s > FORGET_S for at_s, _ in self._statuses.values()):
            self._board.put(loop=None, task=None)


def _stages(status: LoopStatus) -> list[dict[str, Any]]:
    if status.latency_ms is None:
        return []
    name = sections.STAGES["latency_ms"]
    return [{"name": name, "p50": status.latency_ms, "p99": None}]
