"""The path between trajectory points, as in ros2_control's joint_trajectory_controller. Pure.

Knots → sampled positions and derivatives: lines if knots have only positions, cubics if they have
velocities, quintics if they also have accelerations.

Legend: K knots, N samples, n joints; times in s, angles in rad.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SplineSample:
    """State of the path, (N, n) each."""

    position_rad: Array
    velocity_rad_s: Array
    acceleration_rad_s2: Array


@dataclass(frozen=True, eq=False)
class Spline:
    """Positions over time; constant before the first and after the last knot."""

    time_s: Array
    """(K,), increasing."""
    position_rad: Array
    """(K, n)."""
    velocity_rad_s: Array | None = None
    """(K, n); without it the interpolation is linear."""
    acceleration_rad_s2: Array | None = None
    """(K, n); with it, and velocities, the interpolation is quintic."""

    def sample(self, times_s: Array) -> SplineSample:
        """Return position, velocity and acceleration at `times_s` (N,)."""
        last = len(self.time_s) - 1
        if last == 0:
            positions = np.repeat(self.position_rad, len(times_s), axis=0)
            return SplineSample(positions, np.zeros_like(positions), np.zeros_like(positions))
        left = np.clip(np.searchsorted(self.time_s, times_s, side="right") - 1, 0, last - 1)
        span = (self.time_s[left + 1] - self.time_s[left])[:, None]  # (N, 1)
        share = np.clip((times_s[:, None] - self.time_s[left][:, None]) / span, 0, 1)
        value, slope, bend = _polynomial(self._coefficients(left, span), share)
        stands = ((times_s < self.time_s[0]) | (times_s >= self.time_s[-1]))[:, None]
        return SplineSample(
            value, np.where(stands, 0.0, slope / span), np.where(stands, 0.0, bend / span**2)
        )

    def reach_rad(self) -> float:
        """Return a bound of every joint's distance from 0 anywhere on the path."""
        last = len(self.time_s) - 1
        if last == 0:
            return float(np.abs(self.position_rad).max())
        span = np.diff(self.time_s)[:, None]
        coefficients = np.stack(self._coefficients(np.arange(last), span))
        return float(np.abs(coefficients).sum(axis=0).max())

    def prepended(self, time_s: float, start: SplineSample) -> Spline:
        """Return this path with one more knot in front, from `start` (1, n)."""
        velocity, acceleration = self.velocity_rad_s, self.acceleration_rad_s2
        return Spline(
            np.insert(self.time_s, 0, time_s),
            np.vstack([start.position_rad, self.position_rad]),
            None if velocity is None else np.vstack([start.velocity_rad_s, velocity]),
            None if acceleration is None else np.vstack([start.acceleration_rad_s2, acceleration]),
        )

    def _coefficients(self, left: npt.NDArray[np.intp], span: Array) -> list[Array]:
        """Return each sample's polynomial over 0…1, lowest power first, (N, n) each."""
        start, rise = self.position_rad[left], self.position_rad[left + 1] - self.position_rad[left]
        if self.velocity_rad_s is None:
            return [start, rise]
        slope, end_slope = self.velocity_rad_s[left] * span, self.velocity_rad_s[left + 1] * span
        if self.acceleration_rad_s2 is None:
            return [start, slope, 3 * rise - 2 * slope - end_slope, slope + end_slope - 2 * rise]
        bend = self.acceleration_rad_s2[left] * span**2
        end_bend = self.acceleration_rad_s2[left + 1] * span**2
        # Remainders of rise, slope and bend at the end after the first three powers.
        d = rise - slope - bend / 2
        e = end_slope - slope - bend
        f = end_bend - bend
        return [
            start,
            slope,
            bend / 2,
            10 * d - 4 * e + f / 2,
            -15 * d + 7 * e - f,
            6 * d - 3 * e + f / 2,
        ]


def _polynomial(coefficients: list[Array], x: Array) -> tuple[Array, Array, Array]:
    """Return value and first two derivatives at `x` by Horner's rule."""
    value = slope = bend = np.zeros_like(coefficients[0])
    for coefficient in reversed(coefficients):
        bend = bend * x + 2 * slope
        slope = slope * x + value
        value = value * x + coefficient
    return value, slope, bend
