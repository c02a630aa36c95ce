"""Options in `reader.yaml` for bags: topics, rate, and the source of actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crane_x7_vla_rl.fields import FinitePositive


@dataclass(frozen=True)
class BagOptions:
    """Options of a folder of bags. Topics default to those of this system."""

    fps: FinitePositive = 10.0
    """Frames per second of the episodes, at most the camera's; default: the rate of the loop that
    will drive the arm."""
    camera_topic: str = "/camera/color/image_raw/compressed"
    """sensor_msgs/CompressedImage or Image."""
    joint_states_topic: str = "/joint_states"
    """sensor_msgs/JointState with all 8 joints, in any order."""
    instruction_topic: str = "/vla/update_instruction"
    """std_msgs/String; may be missing."""
    leader_topic: str = "/teleop/leader/state"
    """sensor_msgs/JointState of the arm that the operator moves; may be missing."""
    trajectory_topic: str = "/vla/predicted_trajectory"
    """trajectory_msgs/JointTrajectory over all 8 joints; may be missing."""
    arm_topic: str = "/crane_x7_arm_controller/joint_trajectory"
    """trajectory_msgs/JointTrajectory without the gripper, whose next measured position is then
    used as its command; may be missing."""
    action_from: Literal["auto", "leader", "trajectory", "arm", "next_state"] = "auto"
    """Source of actions; auto: the first of these that the bag has. next_state: the joints
    measured one frame later, for an arm that was moved by hand."""
    max_gap_s: FinitePositive = 0.1
    """Largest distance in time from a frame to its image and joint state."""

    @property
    def action_topics(self) -> dict[str, str]:
        """Sources of actions and their topics, in the order of preference."""
        return {
            "leader": self.leader_topic,
            "trajectory": self.trajectory_topic,
            "arm": self.arm_topic,
        }
