"""`Limits` of every trajectory. The robot's limits → stricter ones. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from crane_x7_vla_rl import robot
from crane_x7_vla_rl.types import Array

MARGIN_RAD = 0.001
"""Margin to the joint limits. A path left between two points overshoots by up to a third of it."""


def _constant(limits: Array) -> Array:
    limits.setflags(write=False)
    return limits


@dataclass(frozen=True, eq=False)
class Limits:
    """Limits of a trajectory: the robot's own, made stricter by the options."""

    lower_rad: Array = field(default_factory=lambda: _constant(robot.LOWER_RAD + MARGIN_RAD))
    """(8,), a little inside the robot's."""
    upper_rad: Array = field(default_factory=lambda: _constant(robot.UPPER_RAD - MARGIN_RAD))
    """(8,), a little inside the robot's."""
    velocity_rad_s: Array = field(default_factory=lambda: _constant(robot.VELOCITY_RAD_S * 0.9))
    """(8,), a tenth under the robot's limit."""
    acceleration_rad_s2: Array = field(
        default_factory=lambda: _constant(robot.ACCELERATION_RAD_S2 * 0.8)
    )
    """(8,), a fifth under MoveIt's limit: room for the controller's own interpolation."""
    clamp_rad: float = 0.02
    """A target outside the joint limits by up to this is clamped; further out it is refused."""
    measured_slack_rad: float = 0.1
    """How far outside the limits a measured joint may be: zero error, play, a pressed finger."""
    max_jump_rad: float = 1.0
    """The first target of an arm joint may be this far from the joint's position."""
    tracking_rad: float = 0.15
    """The arm may be this far from the path that it follows; if it is further, the next trajectory
    starts from the measured state."""
    tracking_rad_s: float = 1.5
    """The same for its velocity."""
    max_steps: int = 1000
    """Longer chunks are refused."""
    speed: float = 1.0
    """Share of velocity and acceleration that a path towards targets may use, above 0 to 1. Checks
    and braking keep the full limits: a slow arm must stop as fast as any other."""

    @cached_property
    def path_rad_s(self) -> Array:
        """(8,), the velocity limit of a path towards targets."""
        return _constant(self.velocity_rad_s * self.speed)

    @cached_property
    def path_rad_s2(self) -> Array:
        """(8,), the acceleration limit of a path towards targets."""
        return _constant(self.acceleration_rad_s2 * self.speed)
