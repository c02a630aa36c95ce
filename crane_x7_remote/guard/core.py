"""The guard's decisions. Messages and times → what to send on, what to tell whom. Pure: no I/O, no clock.

INTERFACE ONLY: the implementation is written elsewhere at the same time and replaces this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, Any]


@dataclass(frozen=True)
class CoreConfig:
    """What the guard watches and how strictly."""

    arm_topic: str = "/crane_x7_arm_controller/joint_trajectory"
    trajectory_topic: str = "/vla/predicted_trajectory"
    link_timeout_s: float = 1.0
    """Once a loop drives, the path is braked when nothing was heard from it for so long."""


@dataclass(frozen=True)
class Send:
    """Publish `message` on `topic`, upstream, now."""

    topic: str
    message: Message


@dataclass(frozen=True)
class Tell:
    """Tell client `driver` by a rosbridge status operation."""

    driver: int
    level: str
    text: str


Output = Send | Tell


class GuardCore:
    """One arm's guard. Every method takes `now_s`, our monotonic clock; the gate carries out what is
    returned, in order, at once. Not thread-safe: call it from the gate's event loop alone."""

    def __init__(self, config: CoreConfig) -> None: ...

    # from the robot
    def hear_joints(self, message: Message, now_s: float) -> list[Output]:
        """A sensor_msgs/JointState from JOINT_STATES_TOPIC; raises MessageError if unreadable."""
        raise NotImplementedError

    def hear_echo(self, message: Message, now_s: float) -> list[Output]:
        """A JointTrajectory seen on the arm's topic, upstream: ours coming back, or a stranger's."""
        raise NotImplementedError

    def upstream_changed(self, is_up: bool, now_s: float) -> list[Output]:
        """The link to rosbridge came up or went down."""
        raise NotImplementedError

    # from clients; `driver` is the gate's number of the connection
    def take_trajectory(self, driver: int, message: Message, now_s: float) -> list[Output]:
        """A JointTrajectory published on the arm's topic."""
        raise NotImplementedError

    def take_prediction(self, driver: int, message: Message, now_s: float) -> list[Output]:
        """The same over 8 joints, published on the trajectory topic, which loops listen to."""
        raise NotImplementedError

    def take_goal(self, driver: int, position_rad: object, now_s: float) -> str | None:
        """A gripper goal: None if it may pass, else why it is refused."""
        raise NotImplementedError

    def client_left(self, driver: int, now_s: float) -> list[Output]:
        """A client's connection ended."""
        raise NotImplementedError

    # stop
    @property
    def stopped(self) -> str | None:
        """Why everything is stopped, or None."""
        raise NotImplementedError

    def stop(self, why: str, now_s: float) -> list[Output]:
        """Brake the running path within limits and pass nothing until `resume`; idempotent."""
        raise NotImplementedError

    def resume(self, now_s: float) -> list[Output]:
        raise NotImplementedError

    # time
    @property
    def wake_s(self) -> float | None:
        """When `wake` must be called next, on our monotonic clock; None: not needed."""
        raise NotImplementedError

    def wake(self, now_s: float) -> list[Output]:
        raise NotImplementedError

    def report(self, now_s: float) -> dict[str, Any]:
        """Counters and state, ready for JSON."""
        raise NotImplementedError
