"""One contract for every body of the simulated robot."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import sapien

from crane_x7_remote.errors import SimulationError
from crane_x7_remote.rosbridge import frames
from crane_x7_remote.sim_robot.arm import Arm, KinematicArm
from crane_x7_remote.sim_robot.arm_process import ProcessArm
from crane_x7_remote.sim_robot.maniskill_arm import ManiSkillArm, SceneConfig
from crane_x7_vla_rl.robot import HOME_RAD, LOWER_RAD, UPPER_RAD, VELOCITY_RAD_S
from crane_x7_vla_rl.sim.layout import SPOTS_M

SCENE = SceneConfig(image_size=(320, 240))
MAKERS = {
    "kinematic": KinematicArm,
    "kinematic in a process": partial(ProcessArm, KinematicArm),
    "maniskill in a process": partial(ProcessArm, partial(ManiSkillArm, SCENE)),
}


@pytest.fixture(scope="module", params=MAKERS.values(), ids=MAKERS.keys())
def arm(request: pytest.FixtureRequest) -> Iterator[Arm]:
    made = request.param()
    yield made
    made.close()


def move(arm: Arm, target: np.ndarray, duration_s: float) -> None:
    for _ in range(round(duration_s / arm.period_s)):
        arm.step(target)


def test_it_starts_near_home_at_rest(arm: Arm) -> None:
    state = arm.joints()
    np.testing.assert_allclose(state.position_rad, HOME_RAD, atol=0.1)
    np.testing.assert_allclose(state.velocity_rad_s, 0, atol=0.1)
    assert 0.001 < arm.period_s < 0.1


def test_it_follows_a_target_within_its_speed(arm: Arm) -> None:
    move(arm, HOME_RAD, 1.0)
    target = HOME_RAD + np.array([0.3, -0.2, 0.2, 0.2, -0.2, 0.2, 0.3, 0.6])
    arm.step(target)
    moving = arm.joints()
    assert (np.sign(moving.velocity_rad_s) == np.sign(target - HOME_RAD)).all()
    assert (np.abs(moving.velocity_rad_s) <= VELOCITY_RAD_S * 2).all()
    move(arm, target, 1.5)
    np.testing.assert_allclose(arm.joints().position_rad, target, atol=0.06)
    np.testing.assert_allclose(arm.joints().velocity_rad_s, 0, atol=0.1)


def test_a_target_beyond_the_limits_ends_at_the_limit(arm: Arm) -> None:
    target = HOME_RAD.copy()
    target[3] = 1.0  # rad; the limit is 0
    target[7] = -1.0
    move(arm, target, 2.0)
    position = arm.joints().position_rad
    assert (position >= LOWER_RAD - 0.05).all()
    assert (position <= UPPER_RAD + 0.05).all()
    move(arm, HOME_RAD, 2.0)
    np.testing.assert_allclose(arm.joints().position_rad, HOME_RAD, atol=0.06)


def test_its_cameras_give_whole_jpegs(arm: Arm) -> None:
    for jpeg in (arm.jpeg(), arm.view_jpeg()):
        image = frames.decode_image(frames.EncodedFrame(jpeg, "jpeg", 0.0, 0.0))
        assert image.ndim == 3
        assert image.std() > 5, "an empty picture"


def test_its_scene_tells_each_cubes_state(arm: Arm) -> None:
    for colour, cube in arm.scene().items():
        assert colour in {"red", "green", "blue"}
        assert {key: type(value) for key, value in cube.items() if key != "position_m"} == {
            "grasped": bool,
            "lifted": bool,
            "ever_lifted": bool,
            "placed": bool,
        }
        assert len(cube["position_m"]) == 3


def test_a_cube_named_red_is_seen_red() -> None:
    arm = ProcessArm(partial(ManiSkillArm, SCENE))
    try:
        assert set(arm.scene()) == {"red", "green", "blue"}
        image = frames.decode_image(frames.EncodedFrame(arm.jpeg(), "jpeg", 0.0, 0.0))
    finally:
        arm.close()
    red, green, blue = (image[:, :, channel].astype(int) for channel in range(3))
    assert ((red > 120) & (green < 90) & (blue < 90)).sum() > 30
    assert ((blue > 120) & (red < 90)).sum() > 30


def test_the_scene_is_the_one_asked_for_and_a_cube_can_be_put_back() -> None:
    scene = SceneConfig(
        task="Lift-CRANE-X7",
        seed=7,
        image_size=(64, 48),
        colours=("red", "blue"),
        spawn_range_m=0.0,
    )
    arm = ManiSkillArm(scene)
    try:
        before = arm.scene()
        assert set(before) == {"red", "blue"}
        spots = np.array(SPOTS_M)
        for cube in before.values():
            away = np.linalg.norm(spots - np.array(cube["position_m"][:2]), axis=1)
            assert away.min() < 0.002
        arm._env.cubes["red"].set_pose(sapien.Pose([0.3, 0.2, 0.3]))
        move(arm, HOME_RAD, 0.1)
        assert arm.scene()["red"]["position_m"][2] > 0.1
        arm.put_back("red")
        arm.put_back("green")
        move(arm, HOME_RAD, 0.5)
        for colour, cube in arm.scene().items():
            np.testing.assert_allclose(cube["position_m"], before[colour]["position_m"], atol=0.002)
    finally:
        arm.close()


def test_a_scene_that_is_arranged_is_the_one_that_a_robot_starts_with() -> None:
    """The arm stays where it is; what is put back from then on is the new scene."""
    small = SceneConfig(seed=7, image_size=(64, 48))
    fresh = ManiSkillArm(replace(small, seed=1_000_001))
    expected = {colour: cube["position_m"] for colour, cube in fresh.scene().items()}
    fresh.close()
    arm = ManiSkillArm(small)
    try:
        away = HOME_RAD.copy()
        away[0] += 0.3
        move(arm, away, 0.5)
        before = arm.joints().position_rad
        arm.arrange(1_000_001)
        np.testing.assert_array_equal(arm.joints().position_rad, before)
        arm._env.cubes["red"].set_pose(sapien.Pose([0.3, 0.2, 0.3]))
        arm.put_back("red")
        for colour, cube in arm.scene().items():
            np.testing.assert_allclose(cube["position_m"], expected[colour], atol=1e-4)
            assert not cube["ever_lifted"]
    finally:
        arm.close()


def test_a_simulation_that_dies_is_an_error_with_its_signal() -> None:
    arm = ProcessArm(KinematicArm)
    assert arm._child.pid is not None
    os.kill(arm._child.pid, signal.SIGSEGV)
    with pytest.raises(SimulationError, match="-11"):
        move(arm, HOME_RAD, 1.0)
    arm.close()


def _fails() -> Arm:
    raise RuntimeError("no Vulkan here")


def test_an_arm_that_cannot_be_made_says_why() -> None:
    with pytest.raises(SimulationError, match="no Vulkan here"):
        ProcessArm(_fails)


def test_closing_leaves_no_process() -> None:
    arm = ProcessArm(KinematicArm)
    arm.close()
    assert not arm._child.is_alive()
    assert arm._child.exitcode == 0
