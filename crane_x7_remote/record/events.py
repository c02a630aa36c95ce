"""What a recorder is told: images, joints, commands, instructions and orders. Plain types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crane_x7_remote.rosbridge.frames import EncodedFrame
from crane_x7_remote.rosbridge.messages import StampedJoints
from crane_x7_vla_rl.data.rosbags.align import Command
from crane_x7_vla_rl.types import Array

Word = Literal["start", "stop", "discard", "quit"]
BASE = "base"
"""The camera that sets the frames of an episode."""


@dataclass(frozen=True, eq=False, slots=True)
class Picture:
    """A camera's image."""

    camera: str
    frame: EncodedFrame


@dataclass(frozen=True, eq=False, slots=True)
class Measured:
    """Joints of the arm, or of the leader that an operator moves."""

    arm: Literal["robot", "leader"]
    joints: StampedJoints


@dataclass(frozen=True, eq=False, slots=True)
class Commanded:
    """A trajectory on one of the robot's topics."""

    command: Command
    """Its `time_s` is the stamp, 0 for "now"."""
    arrival_s: float
    session: str | None
    """The loop that sent it; None for any other program."""
    is_prediction: bool
    """Whether it came on the topic that carries all 8 joints."""


@dataclass(frozen=True, eq=False, slots=True)
class Decided:
    """What a loop did in one tick."""

    stamp_s: float
    """Stamp of the image that it is about."""
    arrival_s: float
    target_rad: Array | None
    """(8,); None: it did not drive."""
    intervention: bool
    """Whether someone else could act meanwhile: another loop, or an operator after a stop."""
    is_pause: bool = False
    """Whether a person paused the loop: nobody acts until it continues."""


@dataclass(frozen=True, slots=True)
class Told:
    """A new instruction."""

    instruction: str


@dataclass(frozen=True, slots=True)
class Ordered:
    """Start, stop, discard or quit."""

    word: Word
    by: str
    """For the log: "keyboard", "topic", …"""
    success: bool | None = None
    """With stop: how the episode was judged; None: it was not."""


@dataclass(frozen=True, slots=True)
class Ended:
    """There will be no more input."""

    why: str
    failure: BaseException | None = None


Event = Picture | Measured | Commanded | Decided | Told | Ordered | Ended
