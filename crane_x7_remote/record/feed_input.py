"""A loop's feed as events: what a policy saw and did. Messages on a pipe → a queue of `Event`.

A tick in which the loop did not drive, because it was stopped or another loop drives, is marked as
an intervention: whoever moves the arm then shows what the policy should have done.
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
from crane_x7_vla_rl.types import JointState

logger = logging.getLogger(__name__)

INTERVENED: Final = frozenset({HoldReason.STOPPED, HoldReason.OTHER_LOOP, HoldReason.LISTENING})
"""Holds in which someone else may move the arm."""


@dataclass(frozen=True)
class Hello:
    """How a loop introduces itself."""

    rate_hz: float
    instruction: str
    policy: str
    camera_topic: str
    joint_states_topic: str
    host: str
    port: int
    """Of the robot's rosbridge."""


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
            joint_states_topic=str(topics["joint_states"]),
            host=str(control["rosbridge_host"]),
            port=int(control["rosbridge_port"]),
        )
    except (FeedError, KeyError, TypeError, ValueError) as error:
        raise RecordError(f"--from-feed: {error}") from error
    return hello, feed


def follow(feed: Iterator[Mapping[str, Any]], events: queue.SimpleQueue[Event]) -> threading.Thread:
    """Put the events of a feed until it ends, on a separate thread; returns the thread."""

    def work() -> None:
        try:
            for message in feed:
                for event in read_tick(message):
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


def read_tick(message: Mapping[str, Any]) -> Iterator[Event]:
    """Yield the events of a message; none for other kinds than tick and record."""
    if message["kind"] == "record":
        yield Ordered(record_status.word({"data": message["word"]}), "the loop's process")
    if message["kind"] != "tick":
        return
    at_s = float(message["at_s"])
    yield Told(str(message["instruction"]))
    position = message["position_rad"]
    if position is not None:
        velocity = message["velocity_rad_s"]
        state = JointState(np.array(position), np.array(velocity))
        yield Measured("robot", StampedJoints(state, float(message["joints_stamp_s"]), at_s))
    stamp_s = message["frame_stamp_s"]
    if stamp_s is None:
        return
    hold, target = message["hold"], message["target_rad"]
    yield Decided(
        stamp_s=float(stamp_s),
        arrival_s=at_s,
        target_rad=None if target is None else np.array(target, dtype=np.float64),
        intervention=message.get("intervention") is True
        or (hold is not None and hold["reason"] in INTERVENED),
    )
    content = message["jpeg"]
    if content is not None:
        yield Picture(BASE, EncodedFrame(bytes(content), "jpeg", float(stamp_s), at_s))
