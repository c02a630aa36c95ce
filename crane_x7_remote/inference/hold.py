"""`Hold`: the loop's refusal to publish, and every reason for one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class HoldReason(StrEnum):
    """Every reason to publish nothing."""

    LINK_DOWN = "link_down"
    LISTENING = "listening"
    """The link is new: the loop first listens for another loop that drives."""
    OTHER_LOOP = "other_loop"
    NO_FRAME = "no_frame"
    NO_NEW_FRAME = "no_new_frame"
    FRAME_UNSTAMPED = "frame_unstamped"
    FRAME_STALE = "frame_stale"
    FRAME_UNREADABLE = "frame_unreadable"
    NO_JOINTS = "no_joints"
    ROS_VERSION_UNKNOWN = "ros_version_unknown"
    """The received stamps do not tell ROS 1 from ROS 2: the server would drop the keys of times in
    the other format."""
    JOINTS_STALE = "joints_stale"
    JOINTS_NOT_FINITE = "joints_not_finite"
    CAMERA_UNCONFIRMED = "camera_unconfirmed"
    """The policy needs the camera's pose, and it is not configured."""
    JOINTS_OUT_OF_LIMITS = "joints_out_of_limits"
    JOINTS_IMPOSSIBLE = "joints_impossible"
    """Measured positions change faster than the joints can."""
    JOINTS_CONFLICT = "joints_conflict"
    """Joint states contradict each other: several publishers, or velocities against positions."""
    NOT_FOLLOWING = "not_following"
    """The arm departed from its path for a second."""
    CLOCK_UNKNOWN = "clock_unknown"
    """Joint states have no stamp, or too few were received: the controller's time is unknown."""
    CLOCK_STEPPED = "clock_stepped"
    """One of the robot's clocks was stepped, or the newest stamps suggest it."""
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
    """The guard next to the robot was stopped."""
    PAUSED = "paused"
    """A person paused the loop, or took over."""
    UNCONFIRMED = "unconfirmed"
    """A trajectory has been under way for so long that it may arrive late."""
    TOO_LATE = "too_late"
    """The frame is so old that its trajectory would have expired."""
    POSITION = "position"
    VELOCITY = "velocity"
    ACCELERATION = "acceleration"
    NOT_AT_REST = "not_at_rest"
    SEND_DROPPED = "send_dropped"


@dataclass(frozen=True)
class Hold:
    """A refusal: nothing is published, the arm finishes its current trajectory and stays there."""

    reason: HoldReason
    detail: str
    """The value and the expected value, for the log."""
