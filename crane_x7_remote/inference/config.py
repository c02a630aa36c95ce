"""Options of the loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from crane_x7_remote.inference.link import peers
from crane_x7_remote.inference.outgoing import OutgoingTopics
from crane_x7_vla_rl.camera_pose import CameraPose


@dataclass(frozen=True)
class LoopConfig:
    """Options of one loop; the defaults are those of settings.Settings."""

    session: str
    """8 hex digits that identify this loop."""
    rate_hz: float = 10.0
    instruction: str = "pick up the object"
    max_frame_age_s: float = 0.5
    policy_timeout_s: float = 1.0
    validity_s: float = 0.5
    dry_run: bool = False
    camera_pose: CameraPose | None = None
    """The camera's pose from the operator; None: the pose that the robot publishes."""
    wrist_camera_topic: str = ""
    """For messages: the topic of the client's wrist camera; empty: there is none."""
    say_hint: str = 'Give a task: crane-x7-remote say "pick up the red cube"'
    """Ends the warning about a task that the policy refuses."""
    topics: OutgoingTopics = field(default_factory=OutgoingTopics)
    policy_failing_s: float = 60.0
    """After this many seconds without a usable prediction the loop raises PolicyFailingError."""
    listen_s: float = peers.LISTEN_S
    silence_s: float = peers.SILENCE_S
