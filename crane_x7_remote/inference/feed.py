"""What the loop tells its child processes. `Tick` and snapshots of metrics → messages on a pipe.

A message is a msgpack map, after its length in 4 bytes, big-endian. `hello` comes first, then one
`tick` for each tick and one `second` for each second, and `bye` at the end. A gap in `number` shows
that ticks were dropped because this child reads too slowly. `TickEncoder.message` has all fields.

`feeds.py` starts the children and writes; a child reads its standard input with `read_messages`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import IO, Any, Final

import msgpack

from crane_x7_remote.inference.config import LoopConfig
from crane_x7_remote.inference.hold import Hold
from crane_x7_remote.inference.tick_log import Sent
from crane_x7_remote.policy_server import msgpack_bounds
from crane_x7_remote.rosbridge import protocol
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_remote.rosbridge.messages import StampedJoints
from crane_x7_vla_rl.types import Trajectory

LENGTH_BYTES: Final = 4
BOUNDS: Final = msgpack_bounds.Limits(max_bytes=protocol.MAX_MESSAGE_BYTES + 1_000_000)
"""No image is larger than a message of rosbridge."""
DETAIL_CHARACTERS: Final = 500
"""Of a hold's detail."""


class FeedError(ValueError):
    """The bytes of the feed are not messages; the text says what came."""


@dataclass(frozen=True, eq=False, slots=True)
class Tick:
    """What one tick saw and decided: references, so that the loop's thread copies nothing."""

    number: int
    """Counts ticks from 1."""
    at_s: float
    """When the outcome was known, on the loop's monotonic clock."""
    robot_s: float | None
    """The same moment on the robot's clock, if that is known."""
    instruction: str
    frame: EncodedFrame | None
    """The frame that was used, or else the newest one."""
    is_frame_used: bool
    joints: StampedJoints | None
    outcome: Sent | Hold
    intervention: bool = False
    """Whether a person drives, with a leader arm or by hand."""
    wrist_frame: EncodedFrame | None = None
    """The wrist camera's frame that the policy got with `frame`, or else the newest one; None
    without WRIST_CAMERA_TOPIC."""
    recent_joints: tuple[StampedJoints, ...] = ()
    """Joint states of the last moments, `joints` last: more than one comes between two ticks."""


class TickEncoder:
    """Makes the messages of one feed; an unused frame is contained once, not in every tick, and so
    is each joint state."""

    def __init__(self) -> None:
        self._passed: EncodedFrame | None = None
        self._passed_wrist: EncodedFrame | None = None
        self._passed_joints: StampedJoints | None = None

    def message(self, tick: Tick, wall_s: float) -> dict[str, Any]:
        """Return the message of `tick`; `wall_s` is the time of day when it was offered."""
        frame, joints = tick.frame, tick.joints
        is_new = frame is not None and (tick.is_frame_used or frame is not self._passed)
        self._passed = frame
        sent = tick.outcome if isinstance(tick.outcome, Sent) else None
        hold = tick.outcome if isinstance(tick.outcome, Hold) else None
        return {
            "kind": "tick",
            "number": tick.number,
            "at_s": tick.at_s,
            "wall_s": wall_s,
            "robot_s": tick.robot_s,
            "instruction": tick.instruction,
            "jpeg": frame.image_bytes if frame is not None and is_new else None,
            "frame_stamp_s": None if frame is None else frame.stamp_s,
            "frame_arrival_s": None if frame is None else frame.arrival_s,
            "frame_used": tick.is_frame_used,
            "position_rad": None if joints is None else joints.state.position_rad.tolist(),
            "velocity_rad_s": None if joints is None else joints.state.velocity_rad_s.tolist(),
            "joints_stamp_s": None if joints is None else joints.stamp_s,
            "joints_arrival_s": None if joints is None else joints.arrival_s,
            "joints_between": self._joints_between(tick),
            "target_rad": None if sent is None else sent.target_rad.tolist(),
            "path": None if sent is None else _path(sent.trajectory),
            "hold": None if hold is None else _hold(hold),
            "policy_s": None if sent is None else sent.policy_s,
            "sequence": None if sent is None else sent.trajectory.sequence,
            "intervention": tick.intervention,
            **self._wrist(tick.wrist_frame),
        }

    def _wrist(self, frame: EncodedFrame | None) -> dict[str, Any]:
        """Return the wrist camera's image, if it is new, and its stamp; nothing without one."""
        if frame is None:
            return {}
        is_new, self._passed_wrist = frame is not self._passed_wrist, frame
        return {"wrist_jpeg": frame.image_bytes if is_new else None, "wrist_stamp_s": frame.stamp_s}

    def _joints_between(self, tick: Tick) -> list[list[float]]:
        """Return stamp, arrival and positions of the joint states that no tick has told yet, the
        tick's own excepted."""
        newer: list[StampedJoints] = []
        for joints in reversed(tick.recent_joints):
            if joints is self._passed_joints:
                break
            if joints is not tick.joints:
                newer.append(joints)
        self._passed_joints = tick.joints
        return [
            [each.stamp_s, each.arrival_s, *each.state.position_rad.tolist()]
            for each in reversed(newer)
        ]


def _path(trajectory: Trajectory) -> dict[str, Any]:
    return {
        "time_from_start_s": trajectory.time_from_start_s.tolist(),
        "position_rad": trajectory.position_rad.tolist(),
        "stamp_s": trajectory.stamp_s,
    }


def _hold(hold: Hold) -> dict[str, str]:
    return {"reason": str(hold.reason), "detail": hold.detail[:DETAIL_CHARACTERS]}


def hello(client: ClientConfig, config: LoopConfig, policy: str) -> dict[str, Any]:
    """Return the first message; it contains no secret, the environment has those."""
    topics = asdict(config.topics) | {
        "camera": client.camera_topic,
        "joint_states": client.joint_states_topic,
        "instruction": client.instruction_topic,
    }
    if client.wrist_camera_topic:
        topics["wrist_camera"] = client.wrist_camera_topic
    return {
        "kind": "hello",
        "session": config.session,
        "rate_hz": config.rate_hz,
        "policy": policy,
        "dry_run": config.dry_run,
        "instruction": config.instruction,
        "topics": topics,
        "control": {"rosbridge_host": client.host, "rosbridge_port": client.port},
        "pid": os.getpid(),
    }


def pack(message: Mapping[str, Any]) -> bytes:
    """Return one message as bytes, with its length in front."""
    body: bytes = msgpack.packb(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def read_messages(stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    """Yield each message of a binary stream until it ends; raises FeedError.

    A claimed length is checked before any memory is taken for it. A stream that ends inside a
    message raises: the loop's process died.
    """
    while head := _read(stream, LENGTH_BYTES):
        length = int.from_bytes(head, "big")
        if len(head) < LENGTH_BYTES or length > BOUNDS.max_bytes:
            raise FeedError(
                f"feed: a message begins with {head.hex(' ')}, expected {LENGTH_BYTES} bytes that"
                f" are a length of at most {BOUNDS.max_bytes}; is the input a feed of infer?"
            )
        yield _unpack(_read(stream, length), length)


def _unpack(body: bytes, length: int) -> dict[str, Any]:
    if len(body) < length:
        raise FeedError(
            f"feed: {len(body)} of {length} bytes of a message came, then the end; the loop's"
            " process has died"
        )
    try:
        msgpack_bounds.check(body, BOUNDS)
        message = msgpack.unpackb(body)
    except (ValueError, msgpack.UnpackException) as error:
        raise FeedError(f"feed: a message is not msgpack: {error}") from error
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise FeedError(f"feed: {protocol.brief(message)} came, expected a map with a kind")
    return message


def _read(stream: IO[bytes], length: int) -> bytes:
    """Return `length` bytes, fewer only at the end of the stream."""
    parts: list[bytes] = []
    while length > 0 and (part := stream.read(length)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
