"""`Hold`: the loop's refusal to publish, and every reason for one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class HoldReason(StrEnum):
    """Every cause for which nothing is published."""

    LINK_DOWN = "link_down"
    LISTENING = "listening"
    """The link is new: another loop that drives would be heard within this moment."""
    OTHER_LOOP = "other_loop"
    NO_FRAME = "no_frame"
    NO_NEW_FRAME = "no_new_frame"
    FRAME_UNSTAMPED = "frame_unstamped"
    FRAME_STALE = "frame_stale"
    FRAME_UNREADABLE = "frame_unreadable"
    NO_JOINTS = "no_joints"
    ROS_VERSION_UNKNOWN = "ros_version_unknown"
    """The stamps that come in do not tell ROS 1 from ROS 2: times would be written with keys that
    the server drops."""
    JOINTS_STALE = "joints_stale"
    JOINTS_NOT_FINITE = "joints_not_finite"
    CAMERA_UNCONFIRMED = "camera_unconfirmed"
    """The policy measures in the picture, and nobody has said where the camera stands."""
    JOINTS_OUT_OF_LIMITS = "joints_out_of_limits"
    JOINTS_IMPOSSIBLE = "joints_impossible"
    """Measured positions change faster than the joints can."""
    JOINTS_CONFLICT = "joints_conflict"
    """Joint states contradict each other: several publishers, velocities against positions."""
    NOT_FOLLOWING = "not_following"
    """The arm did not go where it was sent for a second."""
    CLOCK_UNKNOWN = "clock_unknown"
    """Joint states carry no stamp, or too few have come: the controller's time is not known."""
    CLOCK_STEPPED = "clock_stepped"
    """One of the robot's clocks was set, or the newest stamps look like it."""
    CLOCKS_DIFFER = "clocks_differ"
    """Camera and joint states are stamped by clocks that are too far apart."""
    CLOCK_RATE = "clock_rate"
    """The robot's clock does not run in real time."""
    POLICY_RAISED = "policy_raised"
    POLICY_TIMEOUT = "policy_timeout"
    POLICY_BUSY = "policy_busy"
    POLICY_OUTPUT = "policy_output"
    ACTION_NOT_FINITE = "action_not_finite"
    JOINT_LIMIT = "joint_limit"
    GRIPPER_RANGE = "gripper_range"
    JUMP = "jump"
    STOPPED = "stopped"
    """The guard beside the robot was told to stop."""
    UNCONFIRMED = "unconfirmed"
    """A trajectory is on its way for so long that it may arrive late."""
    TOO_LATE = "too_late"
    """So much time has passed since the frame that its trajectory could not run any more."""
    POSITION = "position"
    VELOCITY = "velocity"
    ACCELERATION = "acceleration"
    NOT_AT_REST = "not_at_rest"
    SEND_DROPPED = "send_dropped"


@dataclass(frozen=True)
class Hold:
    """A refusal: nothing is published, the arm ends its present trajectory and stays."""

    reason: HoldReason
    detail: str
    """What came and what was expected, for the log."""
