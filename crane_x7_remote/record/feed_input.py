"""A loop's feed as events: what a policy saw and did. Messages on a pipe → a queue of `Event`.

A tick in which the loop did not drive, because it was stopped or another loop drives, is marked as
an intervention: whoever moves the arm then shows what the policy should have done.

Both cameras' images of a tick get the stamp of the base camera's: they are the pair that the policy
saw, and stay one frame of the episode whatever the rates and clocks of the cameras.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, Final

import numpy as np

from crane_x7_remote.errors import RecordError
from crane_x7_remote.inference.feed import FeedError, read_messages
from crane_x7_remote.inference.hold import HoldReason
from crane_x7_remote.record.events import (
    BASE,
    Decided,
    Ended,
    Event,
    Measured,
    Ordered,
    Picture,
    Told,
)
from crane_x7_remote.rosbridge import record_status
from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_remote.rosbridge.messages import StampedJoints
from crane_x7_vla_rl.robot import DOF
from crane_x7_vla_rl.types import WRIST, JointState

logger = logging.getLogger(__name__)

INTERVENED: Final = frozenset({HoldReason.STOPPED, HoldReason.OTHER_LOOP, HoldReason.LISTENING})
"""Holds in which someone else may move the arm."""
APART_S: Final = 0.5
"""A wrist image stamped further from the base camera's shows another moment, or is stamped by
another clock."""


@dataclass(frozen=True)
class Hello:
    """How a loop introduces itself."""

    rate_hz: float
    instruction: str
    policy: str
    camera_topic: str
    wrist_camera_topic: str | None
    """None: the loop has no wrist camera."""
    joint_states_topic: str
    host: str
    port: int
    """Of the robot's rosbridge."""

    @property
    def cameras(self) -> dict[str, str]:
        """Name → topic of each camera that an episode has."""
        wrist = {} if self.wrist_camera_topic is None else {WRIST: self.wrist_camera_topic}
        return {BASE: self.camera_topic} | wrist


def open_feed(stream: IO[bytes]) -> tuple[Hello, Iterator[Mapping[str, Any]]]:
    """Return the first message and the rest; raises RecordError if it is no feed."""
    feed = read_messages(stream)
    try:
        first = next(feed, None)
        if first is None or first["kind"] != "hello":
            came = "nothing" if first is None else f"a message of kind {first['kind']}"
            raise RecordError(f"--from-feed: {came} came first, expected hello; infer starts this")
        topics, control = first["topics"], first["control"]
        hello = Hello(
            rate_hz=float(first["rate_hz"]),
            instruction=str(first["instruction"]),
            policy=str(first["policy"]),
            camera_topic=str(topics["camera"]),
            wrist_camera_topic=topics.get("wrist_camera"),
            joint_states_topic=str(topics["joint_states"]),
            host=str(control["rosbridge_host"]),
            port=int(control["rosbridge_port"]),
        )
    except (FeedError, KeyError, TypeError, ValueError) as error:
        raise RecordError(f"--from-feed: {error}") from error
    return hello, feed


def follow(feed: Iterator[Mapping[str, Any]], events: queue.SimpleQueue[Event]) -> threading.Thread:
    """Put the events of a feed until it ends, on a separate thread; returns the thread."""

    ticks = TickReader()

    def work() -> None:
        try:
            for message in feed:
                for event in ticks.read(message):
                    events.put(event)
                if message["kind"] == "bye":
                    events.put(Ended("the loop has ended"))
                    return
            events.put(Ended("the loop is gone", FeedError("the feed ended without bye")))
        except Exception as error:  # whatever came: the recorder must end and keep what it has
            events.put(Ended(f"the feed broke: {error}", error))

    thread = threading.Thread(target=work, name="feed", daemon=True)
    thread.start()
    return thread


class TickReader:
    """Reads the messages of one feed."""

    def __init__(self) -> None:
        self._is_apart = False
        """Whether the last wrist image was of another moment than the base camera's."""

    def read(self, message: Mapping[str, Any]) -> Iterator[Event]:
        """Yield the events of a message; none for other kinds than tick and record."""
        if message["kind"] == "record":
            word = record_status.word({"data": message["word"]})
            yield Ordered(word, "the loop's process", message.get("success"))
        if message["kind"] != "tick":
            return
        yield Told(str(message["instruction"]))
        yield from _joints(message)
        stamp_s = message["frame_stamp_s"]
        if stamp_s is None:
            return
        stamp_s, arrival_s = float(stamp_s), float(message["frame_arrival_s"])
        yield _decided(message, stamp_s, arrival_s)
        # The wrist camera's first: an episode begins with a base image that has one.
        wrist = message.get("wrist_jpeg")
        if wrist is not None and self._belongs(float(message["wrist_stamp_s"]), stamp_s):
            yield Picture(WRIST, EncodedFrame(bytes(wrist), "jpeg", stamp_s, arrival_s))
        content = message["jpeg"]
        if content is not None:
            yield Picture(BASE, EncodedFrame(bytes(content), "jpeg", stamp_s, arrival_s))

    def _belongs(self, wrist_s: float, base_s: float) -> bool:
        """Whether both images show one moment; say so if not, once until they do again."""
        was_apart, self._is_apart = self._is_apart, not abs(wrist_s - base_s) <= APART_S
        if self._is_apart and not was_apart:
            logger.warning(
                "the wrist camera's image is stamped %+.2f s from the base camera's, expected"
                " within %g s: it is not recorded; both cameras must be stamped by one clock",
                wrist_s - base_s,
                APART_S,
            )
        return not self._is_apart


def _joints(message: Mapping[str, Any]) -> Iterator[Measured]:
    """Yield every joint state since the tick before, the newest last."""
    for stamp_s, arrival_s, *position in message["joints_between"]:
        state = JointState(np.array(position, dtype=np.float64), np.zeros(DOF))
        yield Measured("robot", StampedJoints(state, float(stamp_s), float(arrival_s)))
    position = message["position_rad"]
    if position is not None:
        state = JointState(np.array(position), np.array(message["velocity_rad_s"]))
        stamp_s, arrival_s = message["joints_stamp_s"], message["joints_arrival_s"]
        yield Measured("robot", StampedJoints(state, float(stamp_s), float(arrival_s)))


def _decided(message: Mapping[str, Any], stamp_s: float, arrival_s: float) -> Decided:
    hold, target = message["hold"], message["target_rad"]
    reason = None if hold is None else hold["reason"]
    return Decided(
        stamp_s=stamp_s,
        arrival_s=arrival_s,
        target_rad=None if target is None else np.array(target, dtype=np.float64),
        intervention=message["intervention"] is True or reason in INTERVENED,
        is_pause=reason == HoldReason.PAUSED,
    )
