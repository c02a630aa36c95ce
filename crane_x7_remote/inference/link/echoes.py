"""Messages from the robot's topics. Trajectories, guard states → delay, peers, following.

`hear_*` run on the client's thread, the rest on the loop's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from crane_x7_remote.inference.following import FollowWatch
from crane_x7_remote.inference.link.delay import LinkDelay
from crane_x7_remote.inference.link.guard_state import STATE_TOPIC, GuardState
from crane_x7_remote.inference.link.peers import Peers
from crane_x7_remote.inference.link.ports import RobotClient
from crane_x7_remote.rosbridge import messages


class Echoes:
    """Listens for the loop named `session`."""

    def __init__(
        self,
        client: RobotClient,
        session: str,
        peers: Peers,
        following: FollowWatch,
        clock: Callable[[], float],
    ) -> None:
        self.guard = GuardState()
        self.delay = LinkDelay()
        self._client = client
        self._session = session
        self.peers = peers
        self.following = following
        self._clock = clock
        self._rtt_s: float | None = None
        self._retimed: messages.ParsedTrajectory | None = None
        """The loop's newest trajectory as changed by the guard."""
        self._was_stopped = False
        """Whether a stop of the guard was heard since the last `take_stop`."""

    def listen(self, topic: str) -> None:
        """Listen to the topic of all loops, and to the guard."""
        self._client.subscribe(topic, "trajectory_msgs/JointTrajectory", self.hear_trajectory)
        self._client.subscribe(STATE_TOPIC, "std_msgs/String", self.hear_guard)

    def measure(self, now_s: float) -> None:
        """Update the delay from pings and from trajectories that were heard."""
        rtt_s = self._client.link.rtt_s
        if rtt_s is not None and rtt_s != self._rtt_s:
            self._rtt_s = rtt_s
            self.delay.observe(rtt_s, now_s)
        for echo_s in self.peers.take_echoes_s():
            self.delay.observe(echo_s, now_s)

    def take_retimed(self) -> messages.ParsedTrajectory | None:
        """Return the loop's trajectory as changed by the guard since the last call, if any."""
        retimed, self._retimed = self._retimed, None
        return retimed

    def take_stop(self) -> bool:
        """Return whether the guard is stopped, or was since the last call."""
        was_stopped, self._was_stopped = self._was_stopped, False
        return was_stopped or self.guard.stopped(self._clock()) is not None

    def hear_guard(self, message: Mapping[str, Any]) -> None:
        """Note the guard's state; called on the client's thread."""
        now_s, stops = self._clock(), self.guard.stops
        self.guard.hear(message, now_s)
        if self.guard.stopped(now_s) is not None or self.guard.stops != stops:
            self._was_stopped = True

    def hear_trajectory(self, message: Mapping[str, Any]) -> None:
        """Note whose trajectory was heard; called on the client's thread."""
        header = message.get("header")
        frame_id = header.get("frame_id") if isinstance(header, Mapping) else None
        match = messages.FRAME_ID.fullmatch(frame_id) if isinstance(frame_id, str) else None
        if match is None:
            return
        now_s, is_ours = self._clock(), match["session"] == self._session
        if match["retimed"] and is_ours:
            with contextlib.suppress(messages.MessageError):
                self._retimed = messages.trajectory(message)
        self.peers.heard(match["session"], int(match["sequence"]), now_s)
        robot_s = self._client.robot_time(now_s)
        if is_ours and robot_s is not None:
            self.following.heard(int(match["sequence"]), robot_s)
