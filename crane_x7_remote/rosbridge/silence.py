"""Subscriptions that are silent although the link is up. Arrivals, checks → `Change`s. Pure.

A released ROS 1 rosbridge cannot encode every message as CBOR, and does not report the failure: a
silent subscription with compression cbor is replaced by one with `none`. If messages then arrive
immediately, cbor was the cause; if they arrive later, the topic was not published, and cbor, which
is cheaper, is tried once again. All of this restarts with each connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crane_x7_remote.rosbridge.messages import RosVersion
from crane_x7_remote.rosbridge.protocol import Compression

SILENT_S = 3.0
"""A subscription is silent without a message for this long while pings were answered."""
PROMPT_S = 1.0
"""Messages that arrive this soon after the change from cbor were published before, too."""
NAME_AGAIN_S = 60.0
"""A topic that falls silent repeatedly is logged at most this often."""

Kind = Literal["silent", "cbor_failed", "cbor_again"]


@dataclass(frozen=True)
class Change:
    """The result of a check of one topic."""

    topic: str
    kind: Kind
    compression: Compression | None
    """Subscribe again with this; None: no change."""
    is_news: bool
    """Whether to log it."""


@dataclass
class _Watched:
    wanted: Compression
    current: Compression
    last_s: float
    """Time of the last message, or of the start of the watch."""
    is_silent: bool = False
    asked_s: float | None = None
    """When it was subscribed without cbor."""
    first_s: float | None = None
    """When the first message without cbor arrived after that."""
    is_last_trial: bool = False
    """Cbor is tried one last time."""


class SilenceWatch:
    """Watches the subscriptions of one client."""

    def __init__(self) -> None:
        self._topics: dict[str, _Watched] = {}
        self._named_s: dict[str, float] = {}

    def expect(self, topic: str, wanted: Compression, now_s: float) -> None:
        """Watch a topic from now on; called after each subscription on a new connection."""
        self._topics[topic] = _Watched(wanted, wanted, now_s)

    def compression(self, topic: str, wanted: Compression) -> Compression:
        """Return the compression to request."""
        watched = self._topics.get(topic)
        return wanted if watched is None else watched.current

    def heard(self, topic: str, now_s: float, is_cbor: bool) -> None:
        """Note that a message arrived, valid or not."""
        watched = self._topics.get(topic)
        if watched is None:
            return
        watched.last_s, watched.is_silent = now_s, False
        if is_cbor:
            watched.is_last_trial = False
        elif watched.first_s is None:
            watched.first_s = now_s

    def is_silent(self, topic: str) -> bool:
        """Whether the last check found it silent, without a message since."""
        watched = self._topics.get(topic)
        return watched is not None and watched.is_silent

    def look(self, now_s: float) -> list[Change]:
        """Return the changes; called while the link is up."""
        changes = []
        for topic, watched in list(self._topics.items()):
            if now_s - watched.last_s > SILENT_S:
                change = self._fall_silent(topic, watched, now_s)
            else:
                change = _judge_cbor(topic, watched)
            if change is not None:
                changes.append(change)
        return changes

    def _fall_silent(self, topic: str, watched: _Watched, now_s: float) -> Change | None:
        if watched.is_silent:
            return None
        watched.is_silent = True
        compression: Compression | None = None
        if watched.current == "cbor":
            compression = watched.current = "none"
            watched.asked_s, watched.first_s = now_s, None
        is_news = now_s - self._named_s.get(topic, float("-inf")) >= NAME_AGAIN_S
        if is_news:
            self._named_s[topic] = now_s
        return Change(topic, "silent", compression, is_news)


def _judge_cbor(topic: str, watched: _Watched) -> Change | None:
    """Check whether the messages after the change from cbor show the cause."""
    if watched.asked_s is None or watched.first_s is None or watched.current == watched.wanted:
        return None
    came_at_once = watched.first_s - watched.asked_s <= PROMPT_S
    watched.asked_s = None
    if came_at_once or watched.is_last_trial:
        return Change(topic, "cbor_failed", None, is_news=True)
    watched.current, watched.is_last_trial = watched.wanted, True
    return Change(topic, "cbor_again", watched.wanted, is_news=False)


def describe(topic: str, type_name: str, version: RosVersion | None) -> str:
    """Describe a silent topic, with a command to check it; `version` is the robot's ROS."""
    commands = {1: f"`rostopic hz {topic}`", 2: f"`ros2 topic hz {topic}`"}
    both = f"{commands[2]} (ROS 1: {commands[1]})"
    text = (
        f"no message on {topic} ({type_name}) for {SILENT_S:g} s although the link is up; check on"
        " the robot whether it is published with this type:"
        f" {both if version is None else commands[version]}"
    )
    if type_name.endswith("/CompressedImage") and not topic.endswith("/compressed"):
        text += "; topics of this type usually end in /compressed"
    return text
