"""Smooth motion: a goal and the measured joints → a chunk of targets that continues the last one.

All times are those of the observations. The planned path so far is kept. If the measured joints
agree with it, up to a servo's lag, the next chunk branches off it at the time of the image, so that
chunks join without a step even if some of them never reached the robot. If they disagree, the chunk
starts from the measured joints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from crane_x7_vla_rl.robot import ARM_DOF, DOF, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.types import ActionChunk, Array, JointState

PERIOD_S: Final = 0.05
STEPS: Final = 12
_FINE: Final = 2
"""Integration steps in a period."""

ARM_SPEED_RAD_S, ARM_ACCELERATION_RAD_S2 = 1.2, 3.0
GRIPPER_SPEED_RAD_S, GRIPPER_ACCELERATION_RAD_S2 = 2.5, 6.0
LAG_RAD: Final = 0.12
LAG_S: Final = 0.2
"""The arm may lag its path by this angle, and by this time at its present speed."""
SQUEEZE_RAD: Final = 0.12
"""The closing gripper's target is at most this far below its measured angle: enough to press hard,
and little enough that a tracking check does not report a lost path."""
LONGEST_GAP_S: Final = 2.0


@dataclass(frozen=True, eq=False)
class JointGoal:
    """Goal of the joints."""

    position_rad: Array
    """(8,)."""
    speed: float = 1.0
    """Share of the arm's full speed, 0…1."""


class Motion:
    """The planned path of one robot."""

    def __init__(self) -> None:
        self._start_s = 0.0
        self._positions: Array | None = None  # (n, 8), every PERIOD_S / _FINE from _start_s on
        self._velocities: Array | None = None

    def state(self, measured: JointState, time_s: float) -> tuple[Array, Array]:
        """Return planned position and velocity, each (8,), at `time_s`."""
        rest = np.zeros(DOF)
        at_measured = np.clip(measured.position_rad, LOWER_RAD, UPPER_RAD)
        if self._positions is None or self._velocities is None:
            return at_measured, rest
        index = (time_s - self._start_s) / PERIOD_S * _FINE
        last = len(self._positions) - 1
        if not 0 <= index <= last + LONGEST_GAP_S / PERIOD_S * _FINE:
            return at_measured, rest
        position = _between(self._positions, min(index, last))
        velocity = _between(self._velocities, index) if index < last else rest
        away = np.abs(position - measured.position_rad)
        if (away > LAG_RAD + LAG_S * np.abs(velocity))[:ARM_DOF].any():
            return at_measured, rest
        # An object in the gripper may keep it from its target.
        position[ARM_DOF] = max(position[ARM_DOF], at_measured[ARM_DOF] - SQUEEZE_RAD)
        return position, velocity

    def chunk(self, goal: JointGoal, measured: JointState, time_s: float) -> ActionChunk:
        """Return targets for the next STEPS periods after `time_s`, and keep them."""
        position, velocity = self.state(measured, time_s)
        wanted = np.clip(goal.position_rad, LOWER_RAD, UPPER_RAD)
        wanted[ARM_DOF] = max(wanted[ARM_DOF], measured.position_rad[ARM_DOF] - SQUEEZE_RAD)
        positions, velocities = [position], [velocity]
        for _ in range(STEPS * _FINE):
            position, velocity = position.copy(), velocity.copy()
            arm, gripper = slice(0, ARM_DOF), slice(ARM_DOF, DOF)
            speed = goal.speed * ARM_SPEED_RAD_S
            _advance(position[arm], velocity[arm], wanted[arm], speed, ARM_ACCELERATION_RAD_S2)
            _advance(
                position[gripper], velocity[gripper], wanted[gripper],
                GRIPPER_SPEED_RAD_S, GRIPPER_ACCELERATION_RAD_S2,
            )  # fmt: skip
            positions.append(position)
            velocities.append(velocity)
        self._start_s = time_s
        self._positions, self._velocities = np.array(positions), np.array(velocities)
        return ActionChunk(np.clip(self._positions[_FINE::_FINE], LOWER_RAD, UPPER_RAD), PERIOD_S)


def _between(rows: Array, index: float) -> Array:
    low = int(index)
    high = min(low + 1, len(rows) - 1)
    return np.asarray(rows[low] + (rows[high] - rows[low]) * (index - low))


def _advance(
    position: Array, velocity: Array, goal: Array, speed: float, acceleration: float
) -> None:
    """Move `position` and `velocity`, in place, one fine step towards `goal`.

    All joints share one factor, so that from rest they run on a line and arrive together.
    """
    step_s = PERIOD_S / _FINE
    away = goal - position
    distance = float(np.abs(away).max())
    brakes = np.sqrt(2 * 0.7 * acceleration * distance)  # leaves room for the slow last metres
    fastest = min(speed, brakes, distance / (3 * step_s))
    wanted = away * (fastest / distance) if distance > 1e-9 else np.zeros_like(away)
    change = wanted - velocity
    change *= min(1.0, acceleration * step_s / max(1e-9, float(np.abs(change).max())))
    position += (velocity + change / 2) * step_s
    velocity += change
