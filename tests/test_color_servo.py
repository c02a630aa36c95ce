"""The colour servo in closed loop with the real simulation: it lifts, places, and stays safe."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from color_servo_rig import Rig, make_env

from crane_x7_vla_rl.policies.color_servo import ColorServo
from crane_x7_vla_rl.robot import HOME_RAD, LOWER_RAD, UPPER_RAD, VELOCITY_RAD_S
from crane_x7_vla_rl.types import JointState, Observation

LIFT_S, PLACE_S = 12.0, 25.0


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    env = make_env()
    yield Rig(env)
    env.close()


def lift(rig: Rig, seed: int, colour: str = "red") -> bool:
    rig.reset(seed)
    rig.instruction = f"pick up the {colour} cube"
    return rig.run_until(lambda: rig.lifted(colour), LIFT_S, hold_s=0.5)


def place(rig: Rig, colour: str) -> bool:
    rig.instruction = f"place the {colour} cube on the plate"
    return rig.run_until(lambda: rig.placed(colour), PLACE_S, hold_s=0.5)


@pytest.mark.parametrize("seed", [0, 7])
def test_it_lifts_one_cube_and_places_another_after_the_change(rig: Rig, seed: int) -> None:
    assert lift(rig, seed)
    assert place(rig, "blue")
    assert not rig.lifted("red")


def test_the_cube_means_the_one_in_the_hand(rig: Rig) -> None:
    assert lift(rig, 3, "green")
    rig.instruction = "place the cube on the plate"
    assert rig.run_until(lambda: rig.placed("green"), PLACE_S, hold_s=0.5)


def test_japanese_instructions_work(rig: Rig) -> None:
    rig.reset(5)
    rig.instruction = "緑のキューブを持ち上げて"
    assert rig.run_until(lambda: rig.lifted("green"), LIFT_S, hold_s=0.5)


def test_a_cube_that_is_moved_away_is_followed(rig: Rig) -> None:
    """Only a loop that is closed on the image can do this."""
    rig.reset(2)
    rig.instruction = "pick up the red cube"
    assert rig.run_until(lambda: rig.phase == "descend", LIFT_S)
    there = rig.position("red")
    rig.move_cube("red", (there[0] - 0.05, there[1] + (0.04 if there[1] < 0 else -0.04), 0.015))
    assert rig.run_until(lambda: rig.lifted("red"), 2 * LIFT_S, hold_s=0.5)


def test_lost_chunks_and_a_slow_link_do_not_stop_it() -> None:
    env = make_env()
    try:
        assert lift(Rig(env, delay_steps=4, loss=0.2), 1)
    finally:
        env.close()


@pytest.mark.parametrize(
    "instruction", ["wait", "pick up the purple cube", "don't touch the red cube"]
)
def test_without_a_clear_task_it_stays(rig: Rig, instruction: str) -> None:
    rig.reset(0)
    rig.instruction = instruction
    before = rig.joints().position_rad
    assert not rig.run_until(lambda: any(rig.lifted(c) for c in ("red", "blue")), 2.0)
    np.testing.assert_allclose(rig.joints().position_rad[:7], before[:7], atol=0.03)


def test_targets_keep_limits_and_speed(rig: Rig) -> None:
    assert lift(rig, 4)
    assert place(rig, "green")
    targets = np.array(rig.targets)
    assert np.isfinite(targets).all()
    assert (targets >= LOWER_RAD - 1e-6).all()
    assert (targets <= UPPER_RAD + 1e-6).all()
    speed = np.abs(np.diff(targets, axis=0)) * 20
    assert (speed[:, :7] <= 0.9 * VELOCITY_RAD_S[:7]).all()


def test_the_same_seed_gives_the_same_targets(rig: Rig) -> None:
    runs = []
    for _ in range(2):
        rig.reset(6)
        rig.instruction = "pick up the red cube"
        rig.run_until(lambda: False, 1.5)
        runs.append(np.array(rig.targets))
    np.testing.assert_array_equal(runs[0], runs[1])


# --- by hand-made observations: an image and joints are all it gets ------------------------------


def observation(image: np.ndarray, instruction: str, time_s: float = 0.0) -> Observation:
    return Observation(image, JointState(HOME_RAD, np.zeros(8)), instruction, time_s)


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_blank_picture_moves_nothing_but_out_of_the_way(grey: int) -> None:
    servo, image = ColorServo(), np.full((480, 640, 3), grey, np.uint8)
    for k in range(50):
        chunk = servo.predict([observation(image, "pick up the red cube", 0.1 * k)])[0]
        assert np.isfinite(chunk.position_rad).all()
        assert (chunk.position_rad >= LOWER_RAD).all()
        assert (chunk.position_rad <= UPPER_RAD).all()
    assert str(servo._slots[0][0].phase) in {"wait", "look"}


def test_each_robot_of_a_batch_has_a_memory_of_its_own(rig: Rig) -> None:
    rig.reset(1)
    rig.instruction = "pick up the red cube"
    first = rig.observe()
    blank = observation(np.full((480, 640, 3), 128, np.uint8), "pick up the red cube")
    alone = ColorServo().predict([first])[0]
    together = ColorServo().predict([first, blank])
    np.testing.assert_array_equal(alone.position_rad, together[0].position_rad)
    assert not np.array_equal(together[0].position_rad, together[1].position_rad)


def test_measured_joints_that_are_no_numbers_raise() -> None:
    bad = JointState(np.full(8, np.nan), np.zeros(8))
    picture = np.zeros((480, 640, 3), np.uint8)
    with pytest.raises(ValueError, match="finite"):
        ColorServo().predict([Observation(picture, bad, "pick up the red cube", 0.0)])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_over_twenty_seeds_at_least_18_lifts_and_15_placements(rig: Rig) -> None:
    lifted = placed = 0
    failures = []
    for seed in range(20):
        did_lift, did_place = lift(rig, seed), place(rig, "blue")
        lifted, placed = lifted + did_lift, placed + did_place
        if not (did_lift and did_place):
            failures.append((seed, did_lift, did_place))
    print(f"lifted {lifted}, placed {placed}, failures {failures}")
    assert lifted >= 18, failures
    assert placed >= 15, failures
