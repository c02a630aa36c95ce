"""What is published in a tick. A checked trajectory → rosbridge operations. Pure.

Knows the topics and the gripper's last goal; the loop hands the bundle to the client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crane_x7_remote.rosbridge import messages, protocol
from crane_x7_remote.rosbridge.messages import RosVersion
from crane_x7_vla_rl.robot import ARM_JOINT_NAMES, JOINT_NAMES
from crane_x7_vla_rl.types import Array, Trajectory

GRIPPER_STEP_RAD = 0.02
"""A gripper goal is sent when its target changed by more than this."""
GRIPPER_EFFORT = 1.0
"""max_effort of a gripper goal; the CRANE-X7's controller is position only and ignores it."""
GRIPPER_GOAL_TYPE = "control_msgs/GripperCommandActionGoal"
"""What a ROS 1 action server takes on `<action>/goal`."""


@dataclass(frozen=True)
class Dialect:
    """The variant of the protocol that this robot's rosbridge understands."""

    version: RosVersion = 2
    has_actions: bool = True
    """Whether it knows `send_action_goal`; ROS 1 does not, its actions are topics."""


@dataclass(frozen=True)
class OutgoingTopics:
    """Where the loop publishes, as ROS 2 names it; an empty name means: not published. See
    settings.Settings."""

    arm: str = "/crane_x7_arm_controller/joint_trajectory"
    trajectory: str = "/vla/predicted_trajectory"
    action: str = "/vla/predicted_action"
    gripper_action: str = "/crane_x7_gripper_controller/gripper_cmd"

    @property
    def echo(self) -> str:
        """The topic on which all loops of this robot can be heard."""
        return self.trajectory or self.arm

    @property
    def published(self) -> dict[str, str]:
        """Topic → type, for what is to be advertised."""
        kinds = {
            self.arm: "trajectory_msgs/JointTrajectory",
            self.trajectory: "trajectory_msgs/JointTrajectory",
            self.action: "std_msgs/Float32MultiArray",
        }
        return {topic: kind for topic, kind in kinds.items() if topic}

    @property
    def gripper_goal(self) -> str:
        """Where the gripper's goals go when the server knows no actions."""
        return f"{self.gripper_action}/goal" if self.gripper_action else ""


@dataclass(frozen=True, eq=False)
class Bundle:
    """What is published in one tick."""

    operations: list[dict[str, Any]]
    gripper_goal_rad: float | None
    """The gripper's goal, if the operations hold a new one."""


class Outgoing:
    """Makes the bundles of one loop."""

    def __init__(self, topics: OutgoingTopics, session: str) -> None:
        self._topics = topics
        self._session = session
        self._gripper_goal_rad: float | None = None
        """The goal that the gripper has; None when it is not known."""
        self._dialect: Dialect | None = None

    def link_came_up(self) -> None:
        """Forget the gripper's goal: behind a new link the robot may have been restarted."""
        self._gripper_goal_rad = None

    def sent(self, bundle: Bundle) -> None:
        """Note that `bundle` left."""
        if bundle.gripper_goal_rad is not None:
            self._gripper_goal_rad = bundle.gripper_goal_rad

    def bundle(self, trajectory: Trajectory, target: Array, dialect: Dialect) -> Bundle:
        """Return what carries `trajectory`, with a gripper goal if its target has changed.

        `target` (8,) is the step of the chunk that is due next.
        """
        if dialect != self._dialect:  # a goal sent otherwise may not have been understood
            self._dialect, self._gripper_goal_rad = dialect, None
        operations = self.brake(trajectory, dialect)
        topics = self._topics
        if topics.action:
            operations.append(protocol.publish(topics.action, messages.float32_array(target)))
        goal_rad = float(target[-1])
        known = self._gripper_goal_rad
        if not topics.gripper_action or (
            known is not None and abs(goal_rad - known) <= GRIPPER_STEP_RAD
        ):
            return Bundle(operations, None)
        operations.append(self._gripper_goal(goal_rad, trajectory, dialect))
        return Bundle(operations, goal_rad)

    def _gripper_goal(
        self, goal_rad: float, trajectory: Trajectory, dialect: Dialect
    ) -> dict[str, Any]:
        topics, name = self._topics, f"vla/{self._session}/{trajectory.sequence}"
        goal = {"command": {"position": goal_rad, "max_effort": GRIPPER_EFFORT}}
        if dialect.has_actions:
            return protocol.send_action_goal(
                topics.gripper_action, "control_msgs/action/GripperCommand", goal, id=name
            )
        message = messages.action_goal(goal, name, trajectory.stamp_s, dialect.version)
        return protocol.publish(topics.gripper_goal, message)

    def brake(self, trajectory: Trajectory, dialect: Dialect) -> list[dict[str, Any]]:
        """Return the operations that carry the trajectory alone."""
        topics = self._topics
        operations = []
        for topic, names in ((topics.arm, ARM_JOINT_NAMES), (topics.trajectory, JOINT_NAMES)):
            if topic:
                message = messages.to_ros(trajectory, names, dialect.version)
                operations.append(protocol.publish(topic, message))
        return operations
