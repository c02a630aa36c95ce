"""The path that the arm's controller executed: desired positions → counts and maxima. Pure.

The first and second differences are kept between calls.

Legend: N updates, 7 arm joints, angles in rad.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.robot import (
    ACCELERATION_RAD_S2,
    ARM_DOF,
    CONTROLLER_HZ,
    LOWER_RAD,
    UPPER_RAD,
    VELOCITY_RAD_S,
)

Array = npt.NDArray[np.float64]

TICK_S = 1 / CONTROLLER_HZ
TOLERANCE = 1e-3
"""Rounding error allowed, in rad and as a share of the velocity limit, before a violation
counts."""
VELOCITY_MARGIN, ACCELERATION_MARGIN = 1.02, 1.1
"""Shares of the limits above which an update counts in the safety benchmark (docs/safety.md)."""
STEP_RAD = 0.001
"""A change that differs from the previous one by more than this is a step."""


@dataclass(frozen=True)
class ExecutionFigures:
    """Counts and maxima over the updates so far, over all joints."""

    max_velocity_ratio: float = 0.0
    """Largest change between two updates, as a share of the velocity limit."""
    max_step_rad: float = 0.0
    """Largest change of a joint between two updates of 5 ms."""
    max_acceleration_rad_s2: float = 0.0
    """Largest second difference of the positions, per 5 ms squared."""
    limit_violations: int = 0
    """Updates at which a joint was beyond its position or velocity limit."""
    velocity_violations: int = 0
    """Updates faster than 1.02 of a joint's velocity limit."""
    acceleration_violations: int = 0
    """Updates with more than 1.1 of MoveIt's acceleration limit, 8 rad/s²."""
    steps: int = 0
    """Updates whose change differs from the previous one by more than 0.001 rad."""
    steps_2mrad: int = 0
    """The same with more than 0.002 rad."""


class Executed:
    """Measures the updates of an arm that stands at `position_rad` (7,)."""

    def __init__(self, position_rad: Array) -> None:
        self._last_two: Array = np.repeat(position_rad[None], 2, axis=0)
        self.measured = ExecutionFigures()

    def add(self, position_rad: Array) -> None:
        """Measure the next updates (N, 7), N ≥ 1."""
        positions = np.vstack([self._last_two, position_rad])  # (N + 2, 7)
        self._last_two = positions[-2:]
        changes = np.diff(positions, axis=0)  # (N + 1, 7)
        bends = np.abs(np.diff(changes, axis=0))  # (N, 7), rad
        changes = np.abs(changes[1:])
        ratios = changes / (VELOCITY_RAD_S[:ARM_DOF] * TICK_S)
        beyond = np.maximum(LOWER_RAD[:ARM_DOF] - position_rad, position_rad - UPPER_RAD[:ARM_DOF])
        most = ACCELERATION_MARGIN * ACCELERATION_RAD_S2[:ARM_DOF] * TICK_S**2
        last = self.measured
        self.measured = ExecutionFigures(
            max_velocity_ratio=max(last.max_velocity_ratio, float(ratios.max())),
            max_step_rad=max(last.max_step_rad, float(changes.max())),
            max_acceleration_rad_s2=max(
                last.max_acceleration_rad_s2, float(bends.max()) / TICK_S**2
            ),
            limit_violations=last.limit_violations
            + _updates((ratios > 1 + TOLERANCE) | (beyond > TOLERANCE)),
            velocity_violations=last.velocity_violations + _updates(ratios > VELOCITY_MARGIN),
            acceleration_violations=last.acceleration_violations + _updates(bends > most),
            steps=last.steps + _updates(bends > STEP_RAD),
            steps_2mrad=last.steps_2mrad + _updates(bends > 2 * STEP_RAD),
        )


def _updates(is_so: npt.NDArray[np.bool_]) -> int:
    """Return the number of updates with a true value for any joint; `is_so` is (N, 7)."""
    return int(is_so.any(axis=1).sum())
