"""The operations of one tick. A checked trajectory → rosbridge operations. Pure.

Knows the topics and the gripper's last goal; the loop passes the bundle to the client.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from crane_x7_remote.rosbridge import messages, protocol
from crane_x7_remote.rosbridge.messages import RosVersion
from crane_x7_vla_rl.robot import ARM_JOINT_NAMES, JOINT_NAMES
from crane_x7_vla_rl.types import Array, Trajectory

GRIPPER_STEP_RAD = 0.02
"""A gripper goal is sent when its target changed by more than this."""
REFUSED_AGAIN_S = 1.0
"""A gripper goal that was refused is sent again after this, while it is wanted."""
GRIPPER_EFFORT = 1.0
"""max_effort of a gripper goal; the CRANE-X7's controller is position only and ignores it."""
GRIPPER_GOAL_TYPE = "control_msgs/GripperCommandActionGoal"
"""Type of the goals of a ROS 1 action server on `<action>/goal`."""


@dataclass(frozen=True)
class Dialect:
    """The variant of the protocol of this robot's rosbridge."""

    version: RosVersion = 2
    has_actions: bool = True
    """Whether it knows `send_action_goal`; ROS 1 does not, its actions are topics."""


@dataclass(frozen=True)
class OutgoingTopics:
    """The topics that the loop publishes, with ROS 2 names; an empty name: not published. See
    settings.Settings."""

    arm: str = "/crane_x7_arm_controller/joint_trajectory"
    trajectory: str = "/vla/predicted_trajectory"
    action: str = "/vla/predicted_action"
    gripper_action: str = "/crane_x7_gripper_controller/gripper_cmd"

    @property
    def echo(self) -> str:
        """The topic that carries the trajectories of all loops of this robot."""
        return self.trajectory or self.arm

    @property
    def published(self) -> dict[str, str]:
        """Topic → type of everything to advertise."""
        kinds = {
            self.arm: "trajectory_msgs/JointTrajectory",
            self.trajectory: "trajectory_msgs/JointTrajectory",
            self.action: "std_msgs/Float32MultiArray",
        }
        return {topic: kind for topic, kind in kinds.items() if topic}

    @property
    def gripper_goal(self) -> str:
        """Topic of the gripper's goals on a server without actions."""
        return f"{self.gripper_action}/goal" if self.gripper_action else ""


@dataclass(frozen=True, eq=False)
class Bundle:
    """The operations of one tick."""

    operations: list[dict[str, Any]]
    gripper_goal_rad: float | None
    """The gripper's goal, if the operations contain a new one."""
    goal_name: str = ""
    """The id of that goal."""
    goal_s: float = 0.0
    """Stamp of its trajectory."""


class Outgoing:
    """Makes the bundles of one loop."""

    def __init__(self, topics: OutgoingTopics, session: str) -> None:
        self._topics = topics
        self._session = session
        self._gripper_goal_rad: float | None = None
        """The gripper's current goal; None if unknown."""
        self._goal_name, self._goal_s = "", 0.0
        self._is_refused = False
        """Whether the newest goal was refused."""
        self._failed: deque[tuple[str, bool]] = deque(maxlen=64)
        """Goals of which the network thread heard that they failed; whether they were dropped."""
        self._dialect: Dialect | None = None

    def link_came_up(self) -> None:
        """Forget the gripper's goal: the robot may have been restarted before the link was new."""
        self.forget_goal()

    def forget_goal(self) -> None:
        """Send the gripper's next goal whatever it is."""
        self._gripper_goal_rad = None

    def sent(self, bundle: Bundle) -> None:
        """Note that `bundle` was sent."""
        if bundle.gripper_goal_rad is not None:
            self._gripper_goal_rad = bundle.gripper_goal_rad
            self._goal_name, self._goal_s = bundle.goal_name, bundle.goal_s
            self._is_refused = False

    def goal_dropped(self, bundle: Bundle) -> None:
        """Note that `bundle` was dropped; may be called from another thread."""
        if bundle.gripper_goal_rad is not None:
            self._failed.append((bundle.goal_name, True))

    def hear_result(self, operation: Mapping[str, Any]) -> None:
        """Note an `action_result` that tells of a refused goal; may be called from another
        thread."""
        name = operation.get("id")
        if operation.get("result") is False and isinstance(name, str):
            self._failed.append((name, False))

    def _note_failures(self, now_s: float) -> None:
        """Forget the gripper's goal if it was dropped, or refused for long; `now_s` is a stamp."""
        while self._failed:
            name, is_dropped = self._failed.popleft()
            if name != self._goal_name:
                continue  # a newer one has replaced it
            self._is_refused = True
            if is_dropped:
                self.forget_goal()
        if self._is_refused and abs(now_s - self._goal_s) >= REFUSED_AGAIN_S:
            self.forget_goal()

    def bundle(self, trajectory: Trajectory, target: Array, dialect: Dialect) -> Bundle:
        """Return the operations for `trajectory`, with a gripper goal if its target has changed.

        `target` (8,) is the step of the chunk that is due next.
        """
        if dialect != self._dialect:  # the server may not have understood the last goal
            self._dialect, self._gripper_goal_rad = dialect, None
        operations = self.brake(trajectory, dialect)
        topics = self._topics
        if topics.action:
            operations.append(protocol.publish(topics.action, messages.float32_array(target)))
        goal = self.gripper(float(target[-1]), trajectory, dialect)
        return replace(goal, operations=operations + goal.operations)

    def gripper(
        self, goal_rad: float, trajectory: Trajectory, dialect: Dialect, step: int = 0
    ) -> Bundle:
        """Return the operation for a gripper goal of `trajectory`, none if it is the current one.

        `step` counts the later goals of one trajectory, which share its sequence.
        """
        self._note_failures(trajectory.stamp_s)
        known = self._gripper_goal_rad
        if not self._topics.gripper_action or (
            known is not None and abs(goal_rad - known) <= GRIPPER_STEP_RAD
        ):
            return Bundle([], None)
        name = f"vla/{self._session}/{trajectory.sequence}"
        if step:
            name = f"{name}/{step}"
        operation = self._gripper_goal(goal_rad, trajectory, dialect, name)
        return Bundle([operation], goal_rad, name, trajectory.stamp_s)

    def _gripper_goal(
        self, goal_rad: float, trajectory: Trajectory, dialect: Dialect, name: str
    ) -> dict[str, Any]:
        topics = self._topics
        goal = {"command": {"position": goal_rad, "max_effort": GRIPPER_EFFORT}}
        if dialect.has_actions:
            return protocol.send_action_goal(
                topics.gripper_action, "control_msgs/action/GripperCommand", goal, id=name
            )
        message = messages.action_goal(goal, name, trajectory.stamp_s, dialect.version)
        return protocol.publish(topics.gripper_goal, message)

    def brake(self, trajectory: Trajectory, dialect: Dialect) -> list[dict[str, Any]]:
        """Return the operations for the trajectory alone."""
        topics = self._topics
        operations = []
        for topic, names in ((topics.arm, ARM_JOINT_NAMES), (topics.trajectory, JOINT_NAMES)):
            if topic:
                message = messages.to_ros(trajectory, names, dialect.version)
                operations.append(protocol.publish(topic, message))
        return operations
