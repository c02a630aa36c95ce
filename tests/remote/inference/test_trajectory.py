"""`trajectory.build` keeps every limit for any input, seen by a controller that runs its cubic."""

from __future__ import annotations

import numpy as np
import pytest

from crane_x7_remote.inference import trajectory as trajectory_module
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.safety import SafeCommand, check_motion
from crane_x7_remote.inference.trajectory import Timing, build, flown, is_followed, state_at
from crane_x7_vla_rl import robot
from crane_x7_vla_rl.types import Array, JointState, Trajectory

LIMITS = Limits()
STAMP = 1_700_000_000.0
REST = np.zeros(8)


def _state(position: Array, velocity: Array = REST) -> JointState:
    return JointState(position, velocity)


def _command(targets: Array, period_s: float = 0.1) -> SafeCommand:
    targets = np.atleast_2d(targets)
    return SafeCommand(targets, (np.arange(len(targets)) + 1.0) * period_s)


def _timing(stamp_s: float = STAMP, age_s: float = 0.01, **options: float) -> Timing:
    values = {"lead_s": 0.02, "validity_s": 0.5, "measured_s": stamp_s + age_s} | options
    return Timing(stamp_s=stamp_s, now_s=stamp_s + age_s, **values)


def _build(
    command: SafeCommand | None,
    measured: JointState,
    running: Trajectory | None = None,
    timing: Timing | None = None,
) -> Trajectory:
    return build(
        command, measured, running, timing or _timing(), LIMITS, sequence=1, session="0a1b2c3d"
    )


def _dense(trajectory: Trajectory, per_piece: int = 20) -> tuple[Array, Array, Array]:
    """Return position, velocity and acceleration of the cubic through each pair of points."""
    t, p, v = trajectory.time_from_start_s, trajectory.position_rad, trajectory.velocity_rad_s
    if len(t) == 1:
        return p, v, np.zeros_like(p)
    u = np.linspace(0, 1, per_piece)[:, None, None]
    h = np.diff(t)[None, :, None]
    rise, s0, s1 = np.diff(p, axis=0), v[:-1] * h, v[1:] * h
    c2, c3 = 3 * rise - 2 * s0 - s1, s0 + s1 - 2 * rise
    position = p[:-1] + u * (s0 + u * (c2 + u * c3))
    velocity = (s0 + u * (2 * c2 + 3 * u * c3)) / h
    acceleration = (2 * c2 + 6 * u * c3) / h**2
    return (
        position.reshape(-1, 8),
        velocity.reshape(-1, 8),
        acceleration.reshape(-1, 8),
    )


def _assert_within_limits(trajectory: Trajectory, measured: JointState | None = None) -> None:
    """Every limit is kept; a joint measured outside its limits goes no further out."""
    position, velocity, acceleration = _dense(trajectory)
    start = robot.HOME_RAD if measured is None else measured.position_rad
    assert (position >= np.minimum(robot.LOWER_RAD, start) - 1e-6).all()
    assert (position <= np.maximum(robot.UPPER_RAD, start) + 1e-6).all()
    assert (np.abs(velocity) <= LIMITS.velocity_rad_s + 1e-6).all()
    assert (np.abs(acceleration) <= LIMITS.acceleration_rad_s2 + 0.05).all()
    assert not trajectory.velocity_rad_s[-1].any()
    assert (np.diff(trajectory.time_from_start_s) > 0).all()
    assert trajectory.time_from_start_s[0] >= 0
    assert trajectory.time_from_start_s[-1] <= trajectory.valid_s


def _random_targets(rng: np.random.Generator) -> SafeCommand:
    steps, period_s = rng.integers(1, 20), rng.choice([0.02, 0.05, 0.1, 0.3])
    spread = rng.choice([0.01, 0.3, 3.0])
    base = rng.uniform(robot.LOWER_RAD, robot.UPPER_RAD)
    targets = base + rng.normal(0, spread, (steps, 8))
    return _command(np.clip(targets, robot.LOWER_RAD, robot.UPPER_RAD), period_s)


@pytest.mark.parametrize("seed", range(100))
def test_any_chunk_from_any_measured_state_keeps_all_limits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    measured = _state(
        rng.uniform(robot.LOWER_RAD - 0.02, robot.UPPER_RAD + 0.02),
        rng.choice([0.0, 1.0, 6.0]) * rng.normal(size=8),
    )
    timing = _timing(
        age_s=rng.uniform(0, 0.6), lead_s=rng.uniform(0, 0.3), validity_s=rng.choice([0.3, 0.5, 3])
    )
    _assert_within_limits(_build(_random_targets(rng), measured, timing=timing), measured)
    _assert_within_limits(_build(None, measured, timing=timing), measured)


def test_a_joint_measured_outside_its_limits_comes_back_without_a_step() -> None:
    """It used to start from the limit itself: 0.06 rad within a lead of 0.1 s, 36 rad/s²."""
    outside = robot.HOME_RAD + (robot.UPPER_RAD[1] + 0.06 - robot.HOME_RAD[1]) * np.eye(8)[1]
    target = robot.HOME_RAD[None] + (robot.UPPER_RAD[1] - 0.1 - robot.HOME_RAD[1]) * np.eye(8)[1]
    path = _build(_command(target, 0.3), _state(outside, np.zeros(8)))
    assert path.position_rad[0, 1] == pytest.approx(outside[1])
    assert (np.diff(path.position_rad[:, 1]) <= 1e-9).all()
    assert path.position_rad[-1, 1] < robot.UPPER_RAD[1]
    _assert_within_limits(path, _state(outside, np.zeros(8)))


@pytest.mark.parametrize("seed", range(30))
def test_a_series_of_random_chunks_is_one_smooth_path_for_a_controller(seed: int) -> None:
    """Each trajectory reaches the controller after a random delay, shorter than the lead."""
    rng = np.random.default_rng(seed)
    running, active = None, None
    position = rng.uniform(robot.LOWER_RAD, robot.UPPER_RAD)
    times, path = [], []
    now, inbox = STAMP, []
    measured = _state(position)
    for tick in range(40):
        now += 0.1
        timing = _timing(now - rng.uniform(0, 0.2), 0, measured_s=now, lead_s=0.05)
        timing = Timing(timing.stamp_s, now, 0.05, 0.6, now)
        command = _random_targets(rng)
        sent = build(command, measured, running, timing, LIMITS, sequence=tick, session="0a1b2c3d")
        running = flown(running, sent)
        _assert_within_limits(sent)
        assert check_motion(sent, measured, now, LIMITS) is None
        inbox.append((now + rng.uniform(0, 0.045), sent))
        for instant in np.arange(now, now + 0.0999, 0.005):
            while inbox and inbox[0][0] <= instant:
                active = inbox.pop(0)[1]
            sample = (position, REST) if active is None else state_at(active, instant)
            times.append(instant)
            path.append(sample[0])
        measured = _state(*sample)
    steps = np.diff(np.array(path), axis=0) / 0.005
    assert np.abs(steps).max() <= LIMITS.velocity_rad_s.max() * 1.001
    accelerations = np.abs(np.diff(steps, axis=0)) / 0.005
    assert accelerations.max() <= LIMITS.acceleration_rad_s2.max() * 1.06  # rounding of the samples


def test_a_reachable_target_is_reached_exactly_and_not_passed() -> None:
    target = robot.HOME_RAD + np.array([0.1, -0.1, 0.05, 0.02, 0, 0.1, -0.1, 0.1])
    result = _build(_command(target), _state(robot.HOME_RAD))
    np.testing.assert_allclose(result.position_rad[-1], target, atol=1e-6)
    position, _, _ = _dense(result)
    span = np.sort([robot.HOME_RAD, target], axis=0)
    assert (position >= span[0] - 1e-6).all()
    assert (position <= span[1] + 1e-6).all()


def test_a_slow_chunk_is_followed_in_time() -> None:
    steps = robot.HOME_RAD + np.linspace(0.02, 0.08, 4)[:, None] * np.eye(8)[0]
    result = _build(_command(steps), _state(robot.HOME_RAD), timing=_timing(validity_s=0.6))
    for k, due_s in enumerate([0.2, 0.3, 0.4]):
        position, _ = state_at(result, STAMP + due_s)
        assert abs(position[0] - steps[k + 1, 0]) < 0.01


def test_steps_already_due_are_skipped() -> None:
    up = robot.HOME_RAD + 0.2 * np.eye(8)[0]
    down = robot.HOME_RAD - 0.05 * np.eye(8)[0]
    late = _timing(age_s=0.15)
    result = _build(_command(np.stack([up, down])), _state(robot.HOME_RAD), timing=late)
    assert result.position_rad[:, 0].max() <= 1e-6
    np.testing.assert_allclose(result.position_rad[-1], down, atol=1e-6)


def test_an_overdue_chunk_still_leads_to_its_last_target() -> None:
    target = robot.HOME_RAD + 0.01
    result = _build(
        _command(target, 0.05), _state(robot.HOME_RAD), timing=_timing(age_s=0.1, validity_s=0.6)
    )
    np.testing.assert_allclose(result.position_rad[-1], target, atol=1e-6)


def test_the_path_up_to_the_takeover_is_the_running_one() -> None:
    running = _build(_command(robot.HOME_RAD + 0.3), _state(robot.HOME_RAD))
    now = STAMP + 0.15
    measured = _state(*state_at(running, now))
    result = _build(_command(robot.HOME_RAD - 0.3), measured, running, _timing(STAMP + 0.1, 0.05))
    for instant in np.arange(now, now + 0.02, 0.001):
        for old, new in zip(state_at(running, instant), state_at(result, instant), strict=True):
            np.testing.assert_allclose(new, old, atol=1e-5)
    assert state_at(result, now + 0.3)[0][0] < state_at(running, now + 0.3)[0][0]


def test_targets_are_blended_from_the_running_trajectory() -> None:
    running = _build(_command(robot.HOME_RAD + 0.3, 0.4), _state(robot.HOME_RAD))
    now = STAMP + 0.1
    measured = _state(*state_at(running, now))
    jump = _command(robot.HOME_RAD + 0.35, 0.001)
    timing = _timing(STAMP + 0.09, 0.01)
    blended = _build(jump, measured, running, timing)
    elsewhere = _state(measured.position_rad + 1e-9, measured.velocity_rad_s)
    abrupt = _build(jump, elsewhere, None, timing)
    soon = now + 0.06
    ahead = [
        abs(state_at(t, soon)[0][0] - state_at(running, soon)[0][0]) for t in (blended, abrupt)
    ]
    assert ahead[0] < 0.8 * ahead[1]


def test_a_path_without_a_running_one_starts_from_where_the_arm_was_measured() -> None:
    pushed = _state(robot.HOME_RAD - 0.4 * np.eye(8)[0])
    result = _build(_command(robot.HOME_RAD), pushed, None, _timing(STAMP + 0.2, 0.01))
    np.testing.assert_allclose(result.position_rad[0], pushed.position_rad, atol=1e-6)


def test_an_arm_on_its_path_is_followed_even_when_its_servos_lag() -> None:
    running = _build(_command(robot.HOME_RAD + 0.4), _state(robot.HOME_RAD))
    for lag_s in (0.0, 0.05, 0.15):
        measured = _state(*state_at(running, STAMP + 0.3 - lag_s))
        assert is_followed(running, measured, STAMP + 0.3, LIMITS)


def test_joints_measured_before_the_newest_trajectory_are_compared_with_the_one_before() -> None:
    first = _build(_command(robot.HOME_RAD + 0.6, 0.3), _state(robot.HOME_RAD))
    now = STAMP + 0.3
    second = _build(
        _command(robot.HOME_RAD + 0.6, 0.01),
        _state(*state_at(first, now)),
        first,
        _timing(now, 0.001),
    )
    old = _state(*state_at(first, STAMP + 0.15))
    assert is_followed(flown(first, second), old, STAMP + 0.15, LIMITS)
    assert not is_followed(second, old, STAMP + 0.15, LIMITS)


def test_an_arm_that_was_pushed_or_stopped_is_not_followed() -> None:
    running = _build(_command(robot.HOME_RAD + 0.6), _state(robot.HOME_RAD))
    stopped, pushed = _state(robot.HOME_RAD), _state(robot.HOME_RAD - 0.4 * np.eye(8)[0])
    assert not is_followed(running, pushed, STAMP + 0.05, LIMITS)
    assert not is_followed(running, stopped, STAMP + 1.0, LIMITS)


def test_fingers_that_stop_at_a_cube_leave_the_arm_on_its_path() -> None:
    shut = robot.HOME_RAD + 0.6 * np.eye(8)[0] - 0.05 * np.eye(8)[7]
    running = _build(_command(shut), _state(robot.HOME_RAD + 0.6 * np.eye(8)[7]))
    position, velocity = state_at(running, STAMP + 0.3)
    held = _state(np.append(position[:7], 0.55), np.append(velocity[:7], 0.0))
    assert position[7] < 0.55 - LIMITS.tracking_rad
    assert is_followed(running, held, STAMP + 0.3, LIMITS)
    timing = _timing(STAMP + 0.29, measured_s=STAMP + 0.3)
    result = _build(_command(shut), held, running, timing)
    assert check_motion(result, held, STAMP + 0.3, LIMITS) is None


def test_a_sagging_arm_does_not_pull_the_path_down() -> None:
    running = _build(_command(robot.HOME_RAD), _state(robot.HOME_RAD))
    sagging = _state(robot.HOME_RAD - 0.05 * np.eye(8)[1])
    timing = _timing(STAMP + 2, 0.01)
    assert is_followed(running, sagging, timing.measured_s, LIMITS)
    result = _build(_command(robot.HOME_RAD), sagging, running, timing)
    np.testing.assert_allclose(result.position_rad, robot.HOME_RAD[None], atol=1e-6)


def test_a_measured_velocity_is_taken_over() -> None:
    moving = _state(robot.HOME_RAD, 1.0 * np.eye(8)[0])
    result = _build(_command(robot.HOME_RAD), moving)
    assert result.velocity_rad_s[0, 0] == pytest.approx(1.0)


def test_an_unreported_velocity_counts_as_rest() -> None:
    result = _build(_command(robot.HOME_RAD), _state(robot.HOME_RAD, np.full(8, np.nan)))
    assert not result.velocity_rad_s[0].any()


def test_braking_ends_at_rest_as_fast_as_allowed() -> None:
    moving = _state(robot.HOME_RAD, 2.0 * np.eye(8)[0])
    result = _build(None, moving)
    assert result.time_from_start_s[-1] - result.time_from_start_s[0] <= 2.0 / 6.4 + 0.021
    _assert_within_limits(result)


def test_validity_covers_a_braking_that_takes_longer() -> None:
    moving = _state(robot.HOME_RAD, 4.0 * np.eye(8)[0])
    result = _build(_command(robot.HOME_RAD), moving, timing=_timing(validity_s=0.3))
    assert result.time_from_start_s[-1] > 0.3
    assert result.valid_s >= result.time_from_start_s[-1]


def test_a_long_validity_does_not_make_long_messages() -> None:
    result = _build(
        _command(robot.HOME_RAD + 0.5, 2.0), _state(robot.HOME_RAD), timing=_timing(validity_s=5)
    )
    assert len(result.time_from_start_s) <= trajectory_module.MAX_POINTS + 2


def test_the_robots_clock_may_be_anywhere() -> None:
    far = build(
        _command(robot.HOME_RAD + 0.1),
        _state(robot.HOME_RAD),
        None,
        _timing(STAMP + 3600),
        LIMITS,
        sequence=1,
        session="0a1b2c3d",
    )
    near = _build(_command(robot.HOME_RAD + 0.1), _state(robot.HOME_RAD))
    np.testing.assert_allclose(far.position_rad, near.position_rad, atol=1e-5)
