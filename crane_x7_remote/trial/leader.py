"""The leader arm of a takeover. Its joint states on rosbridge → the newest pose and its age."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from crane_x7_remote.errors import PeerUnreachableError
from crane_x7_remote.rosbridge.client import RosbridgeClient
from crane_x7_remote.rosbridge.config import ClientConfig
from crane_x7_vla_rl.types import Array

CONNECT_S: Final = 10.0
POLL_S: Final = 0.05


class LeaderArm:
    """Reads one arm; never moves it. A context manager."""

    def __init__(
        self, robot: ClientConfig, topic: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`robot` gives the address and the token; `topic` carries the leader's joint states."""
        self._topic, self._clock = topic, clock
        config = replace(
            robot,
            camera_topic=None,
            joint_states_topic=topic,
            instruction_topic=None,
            advertise={},
        )
        self._client = RosbridgeClient(config, clock)

    def __enter__(self) -> LeaderArm:
        """Connect and wait for the first joint state; raises PeerUnreachableError."""
        self._client.start()
        try:
            self._client.wait_connected(CONNECT_S)
            deadline_s = self._clock() + CONNECT_S
            while self._client.joints() is None:
                if self._clock() > deadline_s:
                    why = self._client.link.no_joints_because
                    raise PeerUnreachableError(
                        f"--leader-topic: no joint state on {self._topic} for {CONNECT_S:g} s"
                        f"{f' ({why})' if why else ''}; check the topic, and that the guard passes"
                        f" it: GUARD_TOPICS={self._topic}=sensor_msgs/JointState"
                    )
                time.sleep(POLL_S)
        except BaseException:
            self._client.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def pose(self) -> tuple[Array, float] | None:
        """Return (8,) joints in rad and their age in s; None before the first, or for joints that
        contradict each other. The age is the larger one of those by arrival and by stamp."""
        joints, now_s = self._client.joints(), self._clock()
        if joints is None or self._client.joint_fault(now_s) is not None:
            return None
        age_s, leader_s = now_s - joints.arrival_s, self._client.robot_time(now_s)
        if leader_s is not None and joints.stamp_s > 0:
            age_s = max(age_s, leader_s - joints.stamp_s)
        return joints.state.position_rad, age_s
