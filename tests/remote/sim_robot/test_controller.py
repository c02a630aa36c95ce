"""The simulated robot's controllers against ros2_control's rules and a dense oracle."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.interpolate import BPoly, CubicHermiteSpline

from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.safety import SafeCommand
from crane_x7_remote.inference.trajectory import Timing, build, flown, state_at
from crane_x7_remote.rosbridge import messages
from crane_x7_remote.sim_robot.controller import (
    TICK_S,
    GripperController,
    Refusal,
    TrajectoryController,
    TrajectoryRefused,
)
from crane_x7_vla_rl.robot import (
    ARM_JOINT_NAMES,
    HOME_RAD,
    LOWER_RAD,
    UPPER_RAD,
    VELOCITY_RAD_S,
)
from crane_x7_vla_rl.types import JointState

HOME = HOME_RAD[:7]
NOW = 1_700_000_000.0


def message(
    offsets: list[float],
    positions: np.ndarray,
    velocities: np.ndarray | None = None,
    accelerations: np.ndarray | None = None,
    *,
    stamp: float = 0.0,
    names: tuple[str, ...] = ARM_JOINT_NAMES,
    frame_id: str = "",
) -> dict[str, Any]:
    """A JointTrajectory as it comes from the wire; positions and derivatives are (T, n)."""
    points = []
    for index, offset in enumerate(offsets):
        point = {
            "positions": positions[index].tolist(),
            "velocities": [] if velocities is None else velocities[index].tolist(),
            "accelerations": [] if accelerations is None else accelerations[index].tolist(),
            "effort": [],
            "time_from_start": messages.write_stamp(offset, 2),
        }
        points.append(point)
    header = {"stamp": messages.write_stamp(stamp, 2), "frame_id": frame_id}
    return {"header": header, "joint_names": list(names), "points": points}


def accept(controller: TrajectoryController, now: float = NOW, **fields: Any) -> None:
    controller.accept(messages.trajectory(message(**fields)), now)


def executed(controller: TrajectoryController, until: float, start: float = NOW) -> np.ndarray:
    """Positions (N, 7) at every update after `start`."""
    ticks = round((until - start) / TICK_S)
    return np.array([controller.update(start + k * TICK_S + 1e-4) for k in range(1, ticks + 1)])


def wave(count: int, scale: float = 0.2, seed: int = 0) -> np.ndarray:
    return HOME + np.random.default_rng(seed).uniform(-scale, scale, (count, 7))


def refusal(controller: TrajectoryController, now: float = NOW, **fields: Any) -> Refusal:
    with pytest.raises(TrajectoryRefused) as caught:
        accept(controller, now, **fields)
    return caught.value.reason


@pytest.fixture
def controller() -> TrajectoryController:
    return TrajectoryController(HOME, NOW)


def test_positions_alone_are_interpolated_linearly(controller: TrajectoryController) -> None:
    offsets, positions = [0.2, 0.5, 0.6, 1.0], wave(4)
    accept(controller, offsets=offsets, positions=positions)
    path = executed(controller, NOW + 1.2)
    times = np.arange(1, len(path) + 1) * TICK_S
    for joint in range(7):
        knots = [HOME[joint], *positions[:, joint]]
        oracle = np.interp(times, [0.0, *offsets], knots)
        np.testing.assert_allclose(path[:, joint], oracle, atol=1e-6)


def test_velocities_make_it_a_cubic(controller: TrajectoryController) -> None:
    offsets, positions = [0.2, 0.5, 0.6, 1.0], wave(4)
    velocities = np.vstack([wave(3, 0.3, seed=1) - HOME, np.zeros((1, 7))])
    accept(controller, offsets=offsets, positions=positions, velocities=velocities)
    path = executed(controller, NOW + 1.0)
    times = np.arange(1, len(path) + 1) * TICK_S
    oracle = CubicHermiteSpline(
        [0.0, *offsets], np.vstack([HOME, positions]), np.vstack([np.zeros(7), velocities])
    )
    np.testing.assert_allclose(path, oracle(times), atol=1e-6)


def test_accelerations_make_it_a_quintic(controller: TrajectoryController) -> None:
    offsets, positions = [0.2, 0.5, 0.6, 1.0], wave(4)
    velocities = np.vstack([wave(3, 0.3, seed=1) - HOME, np.zeros((1, 7))])
    accelerations = np.vstack([wave(3, 0.5, seed=2) - HOME, np.zeros((1, 7))])
    accept(
        controller,
        offsets=offsets,
        positions=positions,
        velocities=velocities,
        accelerations=accelerations,
    )
    path = executed(controller, NOW + 1.0)
    times = np.arange(1, len(path) + 1) * TICK_S
    knots = np.stack([positions, velocities, accelerations], axis=1)  # (T, 3, 7)
    rest = np.stack([HOME, np.zeros(7), np.zeros(7)])[None]
    oracle = BPoly.from_derivatives([0.0, *offsets], np.concatenate([rest, knots]))
    np.testing.assert_allclose(path, oracle(times), atol=1e-6)


def test_a_quintic_is_left_with_its_own_acceleration(controller: TrajectoryController) -> None:
    """Without the acceleration of the running path the new one would begin with a jerk."""
    targets, rest = wave(2), np.zeros((1, 7))
    fields = {"velocities": rest, "accelerations": rest}
    accept(controller, offsets=[0.4], positions=targets[:1], **fields)
    accept(controller, NOW + 0.1, offsets=[0.4], positions=targets[1:], **fields)
    path = np.vstack([controller.update(NOW + 0.1 + k * TICK_S + 1e-4) for k in range(4)])
    before = np.vstack([HOME, HOME])
    curve = BPoly.from_derivatives(
        [0.0, 0.4], [[before[0], 0 * HOME, 0 * HOME], [targets[0], 0 * HOME, 0 * HOME]]
    )
    start = np.stack([curve(0.1), curve.derivative()(0.1), curve.derivative(2)(0.1)])
    end = np.stack([targets[1], 0 * HOME, 0 * HOME])
    oracle = BPoly.from_derivatives([0.1, 0.5], [start, end])
    times = 0.1 + np.arange(1, 4) * TICK_S
    np.testing.assert_allclose(path[1:], oracle(times), atol=1e-6)


def test_the_end_is_held(controller: TrajectoryController) -> None:
    positions = wave(2)
    accept(controller, offsets=[0.1, 0.2], positions=positions)
    assert np.array_equal(controller.update(NOW + 1), positions[-1])
    assert np.array_equal(controller.update(NOW + 3600), positions[-1])


def test_points_already_past_are_skipped(controller: TrajectoryController) -> None:
    positions = np.linspace(HOME, HOME + 0.1, 11)
    offsets = [0.1 * step for step in range(11)]
    accept(controller, offsets=offsets, positions=positions, stamp=NOW - 0.45)
    reached = controller.update(NOW + TICK_S + 1e-6)
    np.testing.assert_allclose(reached, HOME + 0.1 * 0.455, atol=1e-4)


def test_stamp_in_the_future_is_waited_for(controller: TrajectoryController) -> None:
    target = HOME + 0.2
    accept(controller, offsets=[0.0], positions=target[None], stamp=NOW + 1)
    np.testing.assert_allclose(controller.update(NOW + 0.5), HOME + 0.1, atol=2e-3)
    np.testing.assert_allclose(controller.update(NOW + 1.01), target, atol=1e-9)


def test_joints_in_another_order_move_the_same(controller: TrajectoryController) -> None:
    target, order = wave(1), [3, 0, 6, 1, 5, 2, 4]
    names = tuple(ARM_JOINT_NAMES[index] for index in order)
    accept(controller, offsets=[0.1], positions=target[:, order], names=names)
    assert np.array_equal(controller.update(NOW + 1), target[0])


def test_replacement_goes_on_from_what_is_wanted_now(controller: TrajectoryController) -> None:
    zeros = np.zeros((1, 7))
    accept(controller, offsets=[1.0], positions=HOME[None] + 0.5, velocities=zeros)
    before = executed(controller, NOW + 0.5)
    accept(controller, NOW + 0.502, offsets=[0.6], positions=HOME[None] - 0.3, velocities=zeros)
    after = executed(controller, NOW + 1.2, start=NOW + 0.5)
    path = np.vstack([before, after])
    velocity = np.diff(path, axis=0) / TICK_S
    assert np.abs(np.diff(path, axis=0)).max() < 0.012
    assert np.abs(np.diff(velocity, axis=0)).max() < 0.15, "the velocity jumps"
    np.testing.assert_allclose(path[-1], HOME - 0.3, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"names": ARM_JOINT_NAMES[:6], "positions": np.zeros((1, 6))}, Refusal.JOINT_NAMES),
        ({"names": (*ARM_JOINT_NAMES[:6], "elbow")}, Refusal.JOINT_NAMES),
        ({"names": (*ARM_JOINT_NAMES[:6], ARM_JOINT_NAMES[0])}, Refusal.JOINT_NAMES),
        ({"names": (*ARM_JOINT_NAMES, "x"), "positions": np.zeros((1, 8))}, Refusal.JOINT_NAMES),
        ({"names": (), "positions": np.zeros((1, 0))}, Refusal.JOINT_NAMES),
        ({"positions": np.full((1, 7), np.nan)}, Refusal.NON_FINITE),
        ({"positions": np.full((1, 7), np.inf)}, Refusal.NON_FINITE),
        ({"velocities": np.full((1, 7), np.nan)}, Refusal.NON_FINITE),
        ({"offsets": [0.2, 0.2], "positions": wave(2)}, Refusal.TIMES),
        ({"offsets": [0.2, 0.1], "positions": wave(2)}, Refusal.TIMES),
        ({"stamp": NOW - 1}, Refusal.ENDED_IN_THE_PAST),
        ({"stamp": NOW - 0.6, "frame_id": "vla/0a1b2c3d/1/500"}, Refusal.EXPIRED),
    ],
)
def test_refused_trajectory_leaves_the_running_one_alone(
    controller: TrajectoryController, change: dict[str, Any], reason: Refusal
) -> None:
    running = wave(1, seed=3)
    accept(controller, offsets=[0.3], positions=running)
    fields = {"offsets": [0.2], "positions": wave(1)} | change
    assert refusal(controller, **fields) is reason
    assert controller.report.rejected == {str(reason): 1}
    assert controller.report.accepted == 1
    np.testing.assert_allclose(controller.update(NOW + 0.4), running[0])


def test_expired_trajectory_is_refused_although_it_has_points_left(
    controller: TrajectoryController,
) -> None:
    fields: dict[str, Any] = {"offsets": [5.0], "positions": wave(1), "stamp": NOW}
    late = NOW + 0.501
    assert refusal(controller, late, frame_id="vla/00000001/1/500", **fields) is Refusal.EXPIRED
    accept(controller, NOW + 0.499, frame_id="vla/00000001/2/500", **fields)
    assert controller.report.accepted == 1


def test_sequence_out_of_order_is_refused_within_a_session_only(
    controller: TrajectoryController,
) -> None:
    fields: dict[str, Any] = {"offsets": [0.3], "positions": wave(1), "stamp": NOW}
    accept(controller, frame_id="vla/00000001/7/500", **fields)
    for sequence in (6, 7):
        frame_id = f"vla/00000001/{sequence}/500"
        assert refusal(controller, frame_id=frame_id, **fields) is Refusal.OUT_OF_ORDER
    accept(controller, frame_id="vla/00000002/1/500", **fields)
    accept(controller, frame_id="vla/00000001/8/500", **fields)
    assert controller.report.accepted == 3


def test_within_limits_nothing_is_counted(controller: TrajectoryController) -> None:
    accept(controller, offsets=[0.1], positions=HOME[None] + 0.1 * VELOCITY_RAD_S[0] * 0.99)
    controller.update(NOW + 1)
    report = controller.report
    assert report.limit_violations == 0
    assert 0.97 < report.max_velocity_ratio < 1
    assert report.max_step_rad == pytest.approx(0.99 * VELOCITY_RAD_S[0] * TICK_S, rel=1e-3)


@pytest.mark.parametrize("offset", [0.0, 0.05])
def test_too_fast_is_counted(controller: TrajectoryController, offset: float) -> None:
    accept(controller, offsets=[offset], positions=HOME[None] + 0.5)
    controller.update(NOW + 1)
    assert controller.report.limit_violations > 0
    assert controller.report.velocity_violations > 0
    assert controller.report.max_velocity_ratio > 1


def test_beyond_a_position_limit_is_counted(controller: TrajectoryController) -> None:
    target = HOME.copy()
    target[3] = 0.1  # rad; this joint's upper limit is 0
    accept(controller, offsets=[5.0], positions=target[None])
    controller.update(NOW + 6)
    assert controller.report.max_velocity_ratio < 1
    assert controller.report.limit_violations > 0


def test_rare_updates_measure_the_same_as_frequent_ones() -> None:
    reports = []
    for period in (0.001, 0.033, 0.4):
        controller = TrajectoryController(HOME, NOW)
        accept(controller, offsets=[0.2, 0.5, 0.6, 1.0], positions=wave(4, 0.6))
        for step in range(int(2 / period)):
            controller.update(NOW + step * period)
        reports.append(controller.report)
    assert reports[0].limit_violations > 0
    assert reports[0].steps > 0
    assert reports[1:] == reports[:1] * 2


def rest_to_rest(controller: TrajectoryController, target: np.ndarray, **fields: Any) -> None:
    accept(controller, positions=target[None], velocities=np.zeros((1, 7)), **fields)


def test_driving_within_limits_is_no_violation_and_its_acceleration_is_that_of_the_path(
    controller: TrajectoryController,
) -> None:
    """A cubic from rest to rest begins and ends with 6 times way over time squared."""
    rest_to_rest(controller, HOME + 0.6, offsets=[0.8])
    for update in range(1000):
        controller.update(NOW + 0.001 * update)
    report = controller.report
    assert report.max_acceleration_rad_s2 == pytest.approx(6 * 0.6 / 0.8**2, rel=0.02)
    assert report.velocity_violations == report.acceleration_violations == report.steps == 0


def test_our_loops_trajectories_drive_without_a_step(controller: TrajectoryController) -> None:
    """Each is built from the one before and arrives within its lead, as on a clean link."""
    rng = np.random.default_rng(0)
    measured, running = JointState(HOME_RAD, np.zeros(8)), None
    for tick in range(100):
        now = NOW + 0.1 * tick
        target = np.clip(HOME_RAD + rng.normal(0, 0.5, 8), LOWER_RAD, UPPER_RAD)
        command = SafeCommand(target[None], np.array([0.1]))
        timing = Timing(now, now, 0.05, 0.6, now)
        sent = build(command, measured, running, timing, Limits(), sequence=tick, session="0" * 8)
        running = flown(running, sent)
        controller.accept(
            messages.trajectory(messages.to_ros(sent, ARM_JOINT_NAMES)), now + rng.uniform(0, 0.045)
        )
        controller.update(now + 0.0999)
        measured = JointState(*state_at(running, now + 0.1))
    report = controller.report
    assert report.accepted == 100
    assert report.max_velocity_ratio > 0.3
    assert 2 < report.max_acceleration_rad_s2 < 6.6
    assert report.limit_violations == report.velocity_violations == report.steps == 0
    assert report.acceleration_violations == 0


def test_a_late_trajectory_is_a_step_that_is_measured_across_accept(
    controller: TrajectoryController,
) -> None:
    """Its first two points are past; the arm is put onto its line, 3 mrad away, in one update."""
    points = np.vstack([HOME + 0.003, HOME + 0.003])
    accept(controller, offsets=[0.0, 1.0], positions=points, stamp=NOW - 0.5)
    controller.update(NOW + 0.5)
    report = controller.report
    assert (report.steps, report.steps_2mrad) == (2, 2), "onto the new path, and no further"
    assert report.max_acceleration_rad_s2 == pytest.approx(0.003 / TICK_S**2)
    assert report.acceleration_violations == 2
    assert report.velocity_violations == 0


def test_steps_are_counted_by_size(controller: TrajectoryController) -> None:
    for size, counts in ((0.0009, (0, 0)), (0.0015, (2, 0)), (0.0025, (2, 2))):
        before = controller.report
        held = controller.update(NOW + 10 * size)
        accept(controller, NOW + 1000 * size, offsets=[0.0], positions=held[None] + size)
        controller.update(NOW + 1000 * size + 0.1)
        after = controller.report
        new = (after.steps - before.steps, after.steps_2mrad - before.steps_2mrad)
        assert new == counts, size


def test_every_update_is_handed_to_a_recorder_once() -> None:
    times: list[float] = []
    path: list[np.ndarray] = []

    def record(at: np.ndarray, positions: np.ndarray) -> None:
        times.extend(at)
        path.extend(positions)

    controller = TrajectoryController(HOME, NOW, on_updates=record)
    rest_to_rest(controller, HOME + 0.2, offsets=[0.3])
    for now in (0.001, 0.033, 0.034, 0.4):
        controller.update(NOW + now)
    np.testing.assert_allclose(np.diff(times), TICK_S, atol=1e-6)
    assert len(times) == len(path) == 80
    assert times[0] == pytest.approx(NOW + TICK_S)
    np.testing.assert_allclose(path[-1], HOME + 0.2)


# --- the robot's clock is stepped ----------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-0.2, -3600.0])
def test_a_clock_set_back_leaves_the_controller_updating(
    controller: TrajectoryController, seconds: float
) -> None:
    controller.step_clock(seconds, NOW + 0.1)
    rest_to_rest(controller, HOME + 0.3, offsets=[0.5], now=NOW + 0.2)
    np.testing.assert_allclose(controller.update(NOW + 0.71), HOME + 0.3)
    assert controller.report.max_step_rad < 0.006


@pytest.fixture
def following() -> TrajectoryController:
    """A controller that samples its path at the robot's clock, as ros2_control's does."""
    return TrajectoryController(HOME, NOW, path_follows_clock=True)


@pytest.mark.parametrize("seconds", [-3600.0, -0.1, 0.1, 0.3, 20.0, 3600.0])
def test_a_stepped_clock_leaves_the_running_path_as_it_is(
    controller: TrajectoryController, seconds: float
) -> None:
    rest_to_rest(controller, HOME + 0.3, offsets=[0.5])
    controller.update(NOW + 0.2)
    controller.step_clock(seconds, NOW + 0.2)
    np.testing.assert_allclose(controller.update(NOW + 0.51), HOME + 0.3, atol=1e-9)
    assert controller.report.steps == 0


def test_a_clock_set_back_before_the_running_path_holds_until_there_is_a_new_one(
    following: TrajectoryController,
) -> None:
    controller = following
    rest_to_rest(controller, HOME + 0.3, offsets=[0.5])
    there = controller.update(NOW + 0.2)
    controller.step_clock(-3600, NOW + 0.2)
    held = executed(controller, NOW + 3, start=NOW + 0.2)
    np.testing.assert_array_equal(held, np.tile(there, (len(held), 1)))
    rest_to_rest(controller, HOME, offsets=[0.5], stamp=NOW - 3597, now=NOW + 3)
    back = executed(controller, NOW + 4, start=NOW + 3)
    assert np.abs(back[0] - there).max() < 1e-3, "the new path begins where the arm stood"
    np.testing.assert_allclose(back[-1], HOME, atol=1e-9)


def test_a_clock_set_back_within_the_running_path_goes_back_along_it(
    following: TrajectoryController,
) -> None:
    controller = following
    rest_to_rest(controller, HOME + 0.3, offsets=[0.5])
    earlier = controller.update(NOW + 0.2001)
    controller.update(NOW + 0.3001)
    controller.step_clock(-0.1, NOW + 0.3001)
    np.testing.assert_allclose(controller.update(NOW + 0.3051), earlier + TICK_S * 0.87, atol=2e-3)
    assert controller.report.steps > 0


@pytest.mark.parametrize("seconds", [0.3, 20.0])
def test_a_clock_set_forward_jumps_along_the_running_path(
    following: TrajectoryController, seconds: float
) -> None:
    controller = following
    rest_to_rest(controller, HOME + 0.3, offsets=[0.5])
    controller.update(NOW + 0.2001)
    controller.step_clock(seconds, NOW + 0.2001)
    np.testing.assert_allclose(controller.update(NOW + 0.2101), HOME + 0.3, atol=1e-9)
    report = controller.report
    assert report.max_step_rad == pytest.approx(0.3 - 0.1056, abs=0.003)
    assert report.velocity_violations == 1
    assert report.steps >= 2


def test_a_stamp_is_read_on_the_stepped_clock(controller: TrajectoryController) -> None:
    controller.step_clock(-3600, NOW)
    ours = {"frame_id": "vla/00000001/1/500"}
    assert (
        refusal(controller, offsets=[0.2], positions=wave(1), stamp=NOW - 3601, **ours)
        is Refusal.EXPIRED
    )
    rest_to_rest(controller, HOME + 0.1, offsets=[0.2], stamp=NOW - 3600, **ours)
    np.testing.assert_allclose(controller.update(NOW + 0.21), HOME + 0.1)


# --- numbers that nobody means -------------------------------------------------------------------

HUGE = [1.7e308, -1.7e308, 1e200, 1e17]


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("field", ["positions", "velocities", "accelerations"])
def test_huge_values_are_refused_and_leave_the_arm_drivable(
    controller: TrajectoryController, field: str, value: float
) -> None:
    fields: dict[str, Any] = {
        "positions": wave(2),
        "velocities": np.zeros((2, 7)),
        "accelerations": np.zeros((2, 7)),
    }
    fields[field] = np.array(fields[field])
    fields[field][1, 2] = value
    assert refusal(controller, offsets=[0.1, 0.2], **fields) is Refusal.OUT_OF_RANGE
    assert np.array_equal(controller.update(NOW + 0.1), HOME)
    rest_to_rest(controller, HOME + 0.1, offsets=[0.2], now=NOW + 0.2)
    np.testing.assert_allclose(controller.update(NOW + 0.5), HOME + 0.1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"time_from_start_s": np.array([0.1, 1.7e308])}, Refusal.OUT_OF_RANGE),
        ({"time_from_start_s": np.array([0.1, 2e6])}, Refusal.OUT_OF_RANGE),
        ({"time_from_start_s": np.array([1e-320, 2e-320])}, Refusal.TIMES),
        ({"time_from_start_s": np.array([0.1, 0.1 + 1e-12])}, Refusal.TIMES),
        ({"stamp_s": 1.7e308}, Refusal.OUT_OF_RANGE),
        ({"stamp_s": -1e300}, Refusal.OUT_OF_RANGE),
        ({"stamp_s": float("nan")}, Refusal.OUT_OF_RANGE),
    ],
)
def test_huge_and_tiny_times_are_refused(
    controller: TrajectoryController, change: dict[str, Any], reason: Refusal
) -> None:
    rest = np.zeros((2, 7))
    given = messages.trajectory(
        message([0.1, 0.2], wave(2), rest, rest, frame_id="vla/00000001/9/500")
    )
    with pytest.raises(TrajectoryRefused) as caught:
        controller.accept(replace(given, **change), NOW)
    assert caught.value.reason is reason
    controller.accept(given, NOW)
    np.testing.assert_allclose(controller.update(NOW + 0.5), wave(2)[1])


@pytest.mark.parametrize("seed", range(20))
def test_whatever_was_accepted_the_next_good_trajectory_is_followed(seed: int) -> None:
    """Extreme but finite: the state at which a path is left must not blow up the next ones."""
    rng = np.random.default_rng(seed)
    controller = TrajectoryController(HOME, NOW)
    now = NOW
    for _ in range(60):
        count = rng.integers(1, 4)
        sizes = 10.0 ** rng.uniform(-9, 6, 4)
        given = messages.trajectory(message([1.0] * count, wave(count)))
        given = replace(
            given,
            time_from_start_s=np.cumsum(10.0 ** rng.uniform(-9, 3, count)),
            position_rad=rng.normal(0, min(sizes[0], 300), (count, 7)),
            velocity_rad_s=rng.normal(0, sizes[1], (count, 7)),
            acceleration_rad_s2=rng.normal(0, sizes[2], (count, 7)),
            stamp_s=now + rng.choice([0.0, 1e-9, 1e3]),
        )
        with contextlib.suppress(TrajectoryRefused):
            controller.accept(given, now)
        now += 10.0 ** rng.uniform(-4, 1)
        assert np.isfinite(controller.update(now)).all()
    rest_to_rest(controller, HOME + 0.1, offsets=[1.0], now=now + 2e3)
    np.testing.assert_allclose(controller.update(now + 2e3 + 1.1), HOME + 0.1)
    assert np.isfinite(list(controller.report.__dict__.values())[0:3]).all()


# --- the gripper ---------------------------------------------------------------------------------


def test_gripper_goal_ends_when_reached() -> None:
    gripper = GripperController(0.0)
    assert gripper.accept(0.8, NOW) is None
    assert gripper.target_rad == 0.8
    assert gripper.update(0.4, 2.0, NOW + 0.1) is None
    result = gripper.update(0.795, 0.5, NOW + 0.2)
    assert result is not None
    assert (result.reached_goal, result.stalled, result.position_rad) == (True, False, 0.795)
    assert gripper.update(0.8, 0.0, NOW + 0.3) is None, "one result per goal"


def test_gripper_on_a_cube_stalls() -> None:
    gripper = GripperController(0.8)
    gripper.accept(0.0, NOW)
    assert gripper.update(0.3, 2.0, NOW + 0.5) is None
    assert gripper.update(0.3, 0.0, NOW + 1.4) is None
    result = gripper.update(0.3, 0.0, NOW + 1.6)
    assert result is not None
    assert (result.reached_goal, result.stalled) == (False, True)
    assert gripper.target_rad == 0.0, "it continues to squeeze"


def test_latest_gripper_goal_wins() -> None:
    gripper = GripperController(0.0)
    gripper.accept(0.8, NOW)
    replaced = gripper.accept(0.2, NOW + 0.1)
    assert replaced is not None
    assert replaced.preempted
    assert gripper.target_rad == 0.2


@pytest.mark.parametrize("position", [float("nan"), float("inf"), -0.2, 1.7])
def test_gripper_position_out_of_range_is_refused(position: float) -> None:
    gripper = GripperController(0.3)
    with pytest.raises(ValueError, match="expected"):
        gripper.accept(position, NOW)
    assert gripper.target_rad == 0.3
