"""SPEED: a slower arm, not another path. Targets, braking, checks and validity stay the same."""

from __future__ import annotations

import numpy as np
import pytest
from safety_bench.world import Case, World
from tick_rig import Rig

from crane_x7_remote import settings
from crane_x7_remote.errors import SettingsError
from crane_x7_remote.inference.limits import Limits
from crane_x7_remote.inference.safety import SafeCommand
from crane_x7_remote.inference.tick_log import Sent
from crane_x7_remote.inference.trajectory import Timing, build
from crane_x7_vla_rl import robot
from crane_x7_vla_rl.types import ActionChunk, Array, JointState

FULL, SLOW = Limits(), Limits(speed=0.3)
STALLS = {"stall_s": (0.05, 1.0), "stalls_per_minute": 40.0, "stalled": ("link", "robot")}


def _accelerations(times: Array, velocities: Array) -> Array:
    return np.abs(np.diff(velocities, axis=0) / np.diff(times)[:, None])


def _path_to(targets: Array, limits: Limits, validity_s: float = 0.5) -> tuple[Array, Array]:
    command = SafeCommand(targets, 0.1 * np.arange(1, len(targets) + 1))
    timing = Timing(1e9, 1e9 + 0.01, 0.02, validity_s, 1e9 + 0.01)
    path = build(
        command, JointState(robot.HOME_RAD, np.zeros(8)), None, timing, limits, sequence=1,
        session="0a1b2c3d",
    )  # fmt: skip
    assert path.time_from_start_s[-1] <= path.valid_s == validity_s
    assert not path.velocity_rad_s[-1].any()
    return path.time_from_start_s, path.velocity_rad_s


@pytest.mark.parametrize("seed", range(20))
def test_any_path_keeps_the_smaller_limits_and_rests_when_it_expires(seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.uniform(robot.LOWER_RAD, robot.UPPER_RAD, (rng.integers(1, 12), 8))
    times, velocities = _path_to(targets, SLOW, validity_s=float(rng.choice([0.3, 0.5, 2.0])))
    assert (np.abs(velocities) <= 0.3 * FULL.velocity_rad_s + 1e-6).all()
    if len(times) > 1:
        most = 0.3 * FULL.acceleration_rad_s2 + 1e-3
        assert (_accelerations(times, velocities) <= most).all()


def test_without_the_setting_a_path_uses_the_whole_limits() -> None:
    far = robot.HOME_RAD[None] + 2.5 * np.eye(8)[0]
    peaks = [np.abs(_path_to(far, limits, 2.0)[1]).max() for limits in (FULL, SLOW)]
    assert peaks[1] == pytest.approx(0.3 * FULL.velocity_rad_s[0], rel=0.01)
    assert peaks[0] > 2.5 * peaks[1]


def test_a_slow_arm_brakes_with_the_whole_limits() -> None:
    moving = np.zeros(8)
    moving[0] = 1.2
    for command, seconds in ((None, 1.2 / FULL.acceleration_rad_s2[0]), ("hold", 0.62)):
        chunk = None if command is None else SafeCommand(robot.HOME_RAD[None], np.array([0.1]))
        timing = Timing(1e9, 1e9, 0.0, 0.5, 1e9)
        path = build(
            chunk,
            JointState(robot.HOME_RAD, moving),
            None,
            timing,
            SLOW,
            sequence=1,
            session="a" * 8,
        )
        spacing_s = 0.04
        assert path.time_from_start_s[-1] == pytest.approx(seconds, abs=1.5 * spacing_s)
        assert not path.velocity_rad_s[-1].any()


def test_a_slow_loop_lags_behind_a_target_and_reaches_it() -> None:
    target = robot.HOME_RAD + 0.8 * np.eye(8)[0]
    reached: dict[float, int] = {}
    for speed in (1.0, 0.3):
        rig = Rig(limits=Limits(speed=speed))
        rig.policy.answer = lambda _: ActionChunk(target[None], 0.1)
        for tick in range(1, 60):
            assert isinstance(rig.tick(), Sent)
            joints = rig.client.joints()
            assert joints is not None
            if abs(joints.state.position_rad[0] - target[0]) < 0.01:
                reached[speed] = tick
                break
    assert reached[1.0] < reached[0.3] < 60


def test_a_slow_loop_that_goes_silent_leaves_the_arm_at_rest() -> None:
    rig = Rig(limits=Limits(speed=0.1))
    target = robot.HOME_RAD + 0.9 * np.eye(8)[0]
    rig.policy.answer = lambda _: ActionChunk(target[None], 0.1)
    sent = rig.tick(6)
    assert isinstance(sent, Sent)
    assert np.abs(sent.trajectory.velocity_rad_s).max() > 0.1
    rig.clock.sleep(sent.trajectory.valid_s)
    joints = rig.client.joints()
    assert joints is not None
    assert not joints.state.velocity_rad_s.any()


def test_what_the_guard_retimes_does_not_hold_a_slow_loop() -> None:
    """The guard joins paths with the whole limits; the loop's own checks must know that."""
    results = {
        speed: World(
            Case("slow", seconds=20.0, guard=True, speed=speed, **STALLS),
            seed=3,  # type: ignore[arg-type]
        ).run()
        for speed in (1.0, 0.3)
    }
    slow, fast = results[0.3], results[1.0]
    assert slow.guard_report["retimed"] > 0
    assert slow.velocity_violations == slow.acceleration_violations == slow.steps == 0
    assert slow.holds.get("acceleration", 0) == slow.holds.get("velocity", 0) == 0
    assert slow.trajectories > 0.8 * fast.trajectories


def test_on_a_clean_link_a_slow_arm_keeps_the_smaller_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(Case("slow", seconds=15.0, speed=0.1), seed=4)
    monkeypatch.setattr(world.loop, "_come_to_rest", lambda _: None)  # brakes with the whole limits
    slow = world.run()
    assert 0 < slow.velocity_ratio <= 0.1
    assert slow.acceleration_rad_s2 <= 0.1 * float(FULL.acceleration_rad_s2.max()) * 1.05
    assert slow.trajectories > 140


@pytest.mark.parametrize("value", ["0", "-0.3", "1.1", "30", "nan", "slow", ""])
def test_a_share_outside_its_range_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=r"SPEED='?.*expected a number, above 0, at most 1"):
        settings.load(environ={"SPEED": value})


def test_the_flag_is_the_variables_name() -> None:
    assert settings.load(environ={}).speed == 1.0
    assert settings.load({"speed": "0.5"}, {"SPEED": "0.3"}).speed == 0.5
