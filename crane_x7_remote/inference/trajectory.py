"""Safe targets, measured state, running path → a `Trajectory` for a position controller. Pure.

It respects velocity, acceleration and joint limits everywhere and ends at rest in time.

How. Acceleration is constant between two points of the trajectory, so the cubic that ros2_control
runs through both positions and velocities is exactly that parabola: limits that hold at the points
also hold between them. The new path leaves the running one at a point of it, a lead time from now,
and repeats the running one's points up to there: a controller that receives it early, late or skips
past points is on the same path and never steps. If the arm follows no running path, the new one
starts from the measured state.

Legend: T points; 8 joints in the order of `robot.JOINT_NAMES`; rad, s. Unless noted, times are
seconds after the stamp of the frame, on the robot's clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.safety import SafeCommand, first_step
from crane_x7_vla_rl.robot import ARM_DOF
from crane_x7_vla_rl.types import Array, JointState, Trajectory

SPACING_S = 0.04
"""Time between points; shorter means a longer message, longer means coarser braking."""
MAX_POINTS = 25
"""A longer horizon gets wider spacing."""
SHORTEST_PIECE_S = 0.002
"""With points closer than this, rounded times would become accelerations."""
DECIMALS = 7
"""Decimals of rad and rad/s; more would only make the message longer."""
LAG_S = 0.2
"""A measured arm may trail the path that it follows by this much."""
MEMORY_S = 1.5
"""How much of the past path is remembered; longer than the age of any joint state acted on."""
BLEND_S = 0.1
"""Time over which targets blend from the running trajectory to the new chunk."""


@dataclass(frozen=True)
class Timing:
    """The frame's stamp, the start and the expiry of a trajectory; all on the robot's clock."""

    stamp_s: float
    """Header stamp of its frame."""
    now_s: float
    """The robot's time now, as estimated."""
    lead_s: float
    """Time until the new path leaves the running one: covers the delay to the robot."""
    validity_s: float
    """Time after `stamp_s` by which the path must be at rest."""
    measured_s: float
    """When the joints were measured."""

    @property
    def takeover_s(self) -> float:
        """When the new path starts, seconds after the stamp."""
        return self.now_s + self.lead_s - self.stamp_s


@dataclass(frozen=True, eq=False)
class _Start:
    """The start of the new path, and the points that lead up to it."""

    time_s: float
    position: Array
    """(8,)."""
    velocity: Array
    """(8,)."""
    running: Trajectory | None
    """The path to blend from; None if the new path starts from the measured state or from rest."""
    shift_s: float
    """running's stamp minus the new one's."""


def state_at(trajectory: Trajectory, robot_time_s: float) -> tuple[Array, Array]:
    """Return position and velocity of the trajectory, each (8,), at this time."""
    positions, velocities = _sample(trajectory, np.array([robot_time_s - trajectory.stamp_s]))
    return positions[0], velocities[0]


def is_followed(
    running: Trajectory, measured: JointState, measured_s: float, limits: Limits
) -> bool:
    """Whether the measured arm is on the path in `running`, within a servo's lag.

    The gripper is not checked: it has its own goals, runs ahead of the path towards them, and
    stops at the object that it closes on.
    """
    since = measured_s - running.stamp_s
    positions, velocities = _sample(running, np.linspace(since - LAG_S, since, 9))
    positions, velocities = positions[:, :ARM_DOF], velocities[:, :ARM_DOF]
    p, v = measured.position_rad[:ARM_DOF], measured.velocity_rad_s[:ARM_DOF]
    near = (p >= positions.min(axis=0) - limits.tracking_rad) & (
        p <= positions.max(axis=0) + limits.tracking_rad
    )
    steady = (v >= velocities.min(axis=0) - limits.tracking_rad_s) & (
        v <= velocities.max(axis=0) + limits.tracking_rad_s
    )
    return bool(near.all() and (steady | np.isnan(v)).all())


def flown(before: Trajectory | None, sent: Trajectory) -> Trajectory:
    """Return the path of the last `MEMORY_S` and that of `sent` as one.

    A trajectory starts when it is sent; a joint state may have been measured before that.
    """
    if before is None:
        return sent
    times = before.time_from_start_s + (before.stamp_s - sent.stamp_s)
    first_s = sent.time_from_start_s[0]
    kept = (times > first_s - MEMORY_S) & (times < first_s - SHORTEST_PIECE_S)
    return replace(
        sent,
        time_from_start_s=np.concatenate([times[kept], sent.time_from_start_s]),
        position_rad=np.vstack([before.position_rad[kept], sent.position_rad]),
        velocity_rad_s=np.vstack([before.velocity_rad_s[kept], sent.velocity_rad_s]),
    )


def build(
    command: SafeCommand | None,
    measured: JointState,
    running: Trajectory | None,
    timing: Timing,
    limits: Limits,
    *,
    sequence: int,
    session: str,
) -> Trajectory:
    """Return the trajectory that follows `command` as closely as the limits allow.

    `command` None brakes at once. `running` is the path that the arm follows (see `flown` and
    `is_followed`), None to start from the measured state.
    The last point has zero velocity, at `timing.validity_s` at the latest, or as soon as braking
    allows.
    """
    spacing_s = max(SPACING_S, timing.validity_s / MAX_POINTS)
    start = _start(measured, running, timing, limits, spacing_s)
    braking = limits.acceleration_rad_s2 if command is None else limits.path_rad_s2
    stop_s = float((np.abs(start.velocity) / braking).max())
    in_time = int((timing.validity_s - start.time_s) / spacing_s + 1e-6)
    steps = max(in_time, int(np.ceil(stop_s / spacing_s - 1e-6)), 1)
    times: Array = start.time_s + spacing_s * np.arange(steps + 1, dtype=np.float64)
    if command is None:
        positions, velocities = _brake(start, spacing_s, steps, limits)
    else:
        reference = _reference(command, start, times)
        positions, velocities = _follow(reference, start, spacing_s, limits)
    return _assemble(times, positions, velocities, start, timing, sequence, session)


def _start(
    measured: JointState,
    running: Trajectory | None,
    timing: Timing,
    limits: Limits,
    spacing_s: float,
) -> _Start:
    takeover_s = timing.takeover_s
    if running is None:
        return _start_measured(measured, timing, limits, spacing_s)
    shift_s = running.stamp_s - timing.stamp_s
    knots = running.time_from_start_s + shift_s
    if takeover_s >= knots[-1]:  # at rest where the running trajectory ends
        rest = np.zeros_like(running.position_rad[-1])
        has_ended = timing.now_s - timing.stamp_s >= knots[-1]
        before = None if has_ended else running
        return _Start(takeover_s, running.position_rad[-1], rest, before, shift_s)
    index = int(np.searchsorted(knots, takeover_s - SHORTEST_PIECE_S, side="right"))
    if knots[index] < takeover_s + SHORTEST_PIECE_S:
        takeover_s = float(knots[index])
    positions, velocities = _sample(running, np.array([takeover_s - shift_s]))
    return _Start(takeover_s, positions[0], velocities[0], running, shift_s)


def _start_measured(
    measured: JointState, timing: Timing, limits: Limits, spacing_s: float
) -> _Start:
    """Start from the extrapolated measured state, adjusted so that it can stop inside the limits.

    A joint that was measured outside starts outside: a start inside would be a step.
    """
    ahead_s = min(max(timing.now_s + timing.lead_s - timing.measured_s, 0.0), LAG_S)
    velocity = np.nan_to_num(measured.velocity_rad_s, nan=0.0)
    velocity = np.clip(velocity, -limits.velocity_rad_s, limits.velocity_rad_s)
    position = measured.position_rad + velocity * ahead_s
    lowest = np.minimum(limits.lower_rad, measured.position_rad)
    highest = np.maximum(limits.upper_rad, measured.position_rad)
    position = np.clip(position, lowest, highest)
    upwards = _stoppable_speed(limits.upper_rad - position, limits, spacing_s)
    downwards = _stoppable_speed(position - limits.lower_rad, limits, spacing_s)
    return _Start(timing.takeover_s, position, np.clip(velocity, -downwards, upwards), None, 0.0)


def _stoppable_speed(distance: Array, limits: Limits, spacing_s: float) -> Array:
    """Return the speed from which braking in steps of `spacing_s` still stops in `distance`."""
    acceleration = limits.path_rad_s2
    lost = acceleration * spacing_s
    room = np.maximum(distance, 0.0)
    return np.asarray(np.sqrt(lost**2 / 4 + 2 * acceleration * room) - lost / 2)


def _reference(command: SafeCommand, start: _Start, times: Array) -> Array:
    """Return where the path should be at `times`, (T, 8): lines between the targets still due."""
    first = first_step(command, start.time_s)
    due = np.concatenate([[start.time_s], command.due_s[first:]])
    due = np.maximum.accumulate(due)
    targets = np.vstack([start.position, command.position_rad[first:]])
    reference = _interpolate(times, due, targets)
    if start.running is None:
        return reference
    old, _ = _sample(start.running, times - start.shift_s)
    weight = np.clip((times - start.time_s) / BLEND_S, 0.0, 1.0)[:, None]
    return np.asarray(old + (reference - old) * weight)


def _interpolate(times: Array, knots: Array, values: Array) -> Array:
    """Return lines through (knots, values) at `times`, (T, 8); constant outside."""
    index = np.clip(np.searchsorted(knots, times, side="right") - 1, 0, len(knots) - 2)
    span = knots[index + 1] - knots[index]
    safe_span = np.where(span > 0, span, 1.0)
    fraction = np.where(span > 0, (times - knots[index]) / safe_span, 1.0)
    weight = np.clip(fraction, 0.0, 1.0)[:, None]
    return np.asarray(values[index] + (values[index + 1] - values[index]) * weight)


def _follow(
    reference: Array, start: _Start, spacing_s: float, limits: Limits
) -> tuple[Array, Array]:
    """Return positions and velocities, each (T, 8), that chase `reference` within the limits.

    Each step chooses the velocity at its end: the fastest from which the path can still come to
    rest relative to the moving reference without passing it, and from which it can stop before the
    furthest reference still ahead, before the joint's limit and before the time ends.
    """
    h = spacing_s
    pace = np.clip(np.diff(reference, axis=0) / h, -limits.path_rad_s, limits.path_rad_s)
    ceiling = np.maximum.accumulate(reference[::-1], axis=0)[::-1]  # highest still ahead
    floor = np.minimum.accumulate(reference[::-1], axis=0)[::-1]
    time_left = h * np.arange(len(pace) - 1, -1, -1)[:, None]
    tables = (
        reference[:-1],
        pace,
        np.maximum(floor, limits.lower_rad)[1:],
        np.minimum(ceiling, limits.upper_rad)[1:],
        np.minimum(limits.path_rad_s, limits.path_rad_s2 * time_left),
    )
    steps = np.stack(tables, axis=-1).transpose(1, 0, 2).tolist()  # (8, T - 1, 5)
    states = zip(start.position.tolist(), start.velocity.tolist(), strict=True)
    accelerations = limits.path_rad_s2.tolist()
    paths = [
        _follow_joint(joint, state, a, h)
        for joint, state, a in zip(steps, states, accelerations, strict=True)
    ]
    positions, velocities = np.array(paths).transpose(1, 2, 0)
    return positions, velocities


def _follow_joint(
    steps: list[list[float]], state: tuple[float, float], a: float, h: float
) -> tuple[list[float], list[float]]:
    """Return one joint's positions and velocities; `steps` contain the reference, its velocity,
    floor, ceiling and highest speed. Plain floats: on eight joints, the overhead of numpy's calls
    exceeds the arithmetic."""
    p, v = state
    change = a * h
    positions, velocities = [p], [v]
    for reference, pace, floor, ceiling, most in steps:
        gap = reference - p
        side = 1.0 if gap >= 0 else -1.0
        wanted = pace + side * _brake_bound(side * gap, side * (v - pace), a, change)
        # If these contradict each other, the later one wins: nothing accelerates beyond `a`.
        wanted = max(wanted, -_brake_bound(p - floor, -v, a, change))
        wanted = min(wanted, _brake_bound(ceiling - p, v, a, change))
        wanted = min(max(wanted, -most), most)
        following = min(max(wanted, v - change), v + change)
        p += (v + following) * (h / 2)
        v = following
        positions.append(p)
        velocities.append(v)
    return positions, velocities


def _brake_bound(distance: float, velocity: float, a: float, change: float) -> float:
    """Return the highest velocity after one step of h = change / a that still allows stopping in
    `distance`.

    Solves (velocity + x)·h/2 + x²/2a + x·h/2 = distance: this step, then braking at `a` in steps
    of h. A state within the bound can stay within it in the next step by braking.
    """
    inside = change * change + 2 * a * max(distance, 0.0) - change * velocity
    return math.sqrt(max(inside, 0.0)) - change


def _brake(start: _Start, spacing_s: float, steps: int, limits: Limits) -> tuple[Array, Array]:
    """Return the shortest path to rest."""
    left = np.arange(steps + 1)[:, None] * spacing_s * limits.acceleration_rad_s2
    speed = np.maximum(np.abs(start.velocity) - left, 0.0)
    velocities = np.sign(start.velocity) * speed
    moved = np.cumsum((velocities[1:] + velocities[:-1]) * (spacing_s / 2), axis=0)
    return np.vstack([start.position, start.position + moved]), velocities


def _assemble(
    times: Array,
    positions: Array,
    velocities: Array,
    start: _Start,
    timing: Timing,
    sequence: int,
    session: str,
) -> Trajectory:
    velocities = velocities.copy()
    velocities[-1] = np.where(np.abs(velocities[-1]) < 1e-9, 0.0, velocities[-1])
    moving = np.flatnonzero(np.abs(velocities).max(axis=1) > 1e-6)
    end = min(int(moving[-1]) + 2, len(times)) if len(moving) else 1
    times, positions, velocities = times[:end], positions[:end], velocities[:end]
    velocities[-1] = np.where(np.abs(velocities[-1]) <= 1e-6, 0.0, velocities[-1])
    if start.running is not None:
        before = _repeated(start.running, start, timing)
        times = np.concatenate([before, times])
        old_positions, old_velocities = _sample(start.running, before - start.shift_s)
        positions = np.vstack([old_positions, positions])
        velocities = np.vstack([old_velocities, velocities])
    return Trajectory(
        position_rad=np.round(positions, DECIMALS),
        velocity_rad_s=np.round(velocities, DECIMALS),
        time_from_start_s=times,
        stamp_s=timing.stamp_s,
        sequence=sequence,
        session=session,
        valid_s=_whole_ms(max(timing.validity_s, float(times[-1]))),
    )


def _whole_ms(seconds: float) -> float:
    """Round up, because the message carries whole milliseconds."""
    return float(np.ceil(seconds * 1e3 - 1e-6)) / 1e3


def _repeated(running: Trajectory, start: _Start, timing: Timing) -> Array:
    """Return the times of the running trajectory's points from now to the start of the new path.

    The first one is before now, but never before the stamp, from which times count.
    """
    knots = running.time_from_start_s + start.shift_s
    since = max(int(np.searchsorted(knots, timing.now_s - timing.stamp_s, "right")) - 1, 0)
    until = int(np.searchsorted(knots, start.time_s - SHORTEST_PIECE_S / 2, "left"))
    before = knots[since:until]
    if len(before) == 0 or before[0] >= 0:
        return before
    following = before[before >= SHORTEST_PIECE_S]
    return np.concatenate([[0.0], following])


def _sample(trajectory: Trajectory, times: Array) -> tuple[Array, Array]:
    """Return positions and velocities, each (T, 8), at `times`; at rest outside its span."""
    knots = trajectory.time_from_start_s
    p, v = trajectory.position_rad, trajectory.velocity_rad_s
    if len(knots) == 1:
        return np.repeat(p, len(times), axis=0), np.zeros((len(times), p.shape[1]))
    index = np.clip(np.searchsorted(knots, times, side="right") - 1, 0, len(knots) - 2)
    h = (knots[index + 1] - knots[index])[:, None]
    t = np.clip(times[:, None] - knots[index][:, None], 0.0, h)
    acceleration = (v[index + 1] - v[index]) / h
    inside = ((times >= knots[0]) & (times <= knots[-1]))[:, None]
    positions = p[index] + v[index] * t + acceleration * t**2 / 2
    velocities = np.where(inside, v[index] + acceleration * t, 0.0)
    return positions, velocities
