"""Options of the robot and of the leader arm: LeRobot's `--robot.…` and `--teleop.…` flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lerobot.cameras import CameraConfig
from lerobot.robots import RobotConfig
from lerobot.teleoperators import TeleoperatorConfig

from crane_x7_remote.inference.targets import TargetError


@RobotConfig.register_subclass("crane_x7_rosbridge")
@dataclass
class CraneX7RosbridgeConfig(RobotConfig):
    """A CRANE-X7 behind rosbridge, or behind the guard in front of it."""

    host: str = "localhost"
    port: int = 9090
    token_file: Path | None = None
    """File with the guard's token, if it requires one; LeRobot prints all options."""
    camera: str = "base"
    """Name of rosbridge's camera in the data set: observation.images.<camera>."""
    width: int = 640
    height: int = 480
    """Size of its images; another size is an error."""
    cameras: dict[str, CameraConfig] = field(default_factory=dict)
    """Further cameras on this computer, as LeRobot configures them."""
    camera_topic: str = "/camera/color/image_raw/compressed"
    joint_states_topic: str = "/joint_states"
    arm_topic: str = "/crane_x7_arm_controller/joint_trajectory"
    gripper_action: str = "/crane_x7_gripper_controller/gripper_cmd"
    rate_hz: float = 30.0
    """Trajectories per second, at most one for each camera frame."""
    follow_s: float = 0.2
    """Time after its frame at which a target is due."""
    max_jump_rad: float = 1.0
    """A target further than this from the arm is refused."""
    speed: float = 1.0
    """Share of the arm's velocity and acceleration limits for paths, above 0 to 1; 0.3 for the
    first day with a real arm, which then lags its targets. Braking keeps the full limits."""
    max_age_s: float = 0.5
    """Frames and joint states older than this are refused."""
    hold_s: float = 3.0
    """A command ends after targets were refused for this long."""
    connect_s: float = 15.0
    """Longest wait for rosbridge, and then for camera and joints."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.speed <= 1:
            raise ValueError(f"robot.speed is {self.speed}, expected above 0 and at most 1")


@TeleoperatorConfig.register_subclass("crane_x7_leader")
@dataclass
class CraneX7LeaderConfig(TeleoperatorConfig):
    """A second CRANE-X7 that a person moves by hand; only its joint states are read."""

    host: str = "localhost"
    port: int = 9090
    token_file: Path | None = None
    joint_states_topic: str = "/leader/joint_states"
    max_age_s: float = 0.5
    """A joint state older than this ends the command."""
    connect_s: float = 15.0


def read_token(file: Path | None) -> str | None:
    """Return the token in `file`; raises TargetError that names it."""
    if file is None:
        return None
    try:
        token = file.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"token_file {file}: cannot be read ({error})") from error
    if not token:
        raise TargetError(f"token_file {file}: is empty, expected the guard's token")
    return token
