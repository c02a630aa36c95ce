"""Chunks by kinematics, against the scripted expert with physics."""

from __future__ import annotations

import numpy as np
import pytest

from crane_x7_vla_rl.robot import ARM_DOF, DOF, HOME_RAD, LOWER_RAD, UPPER_RAD
from crane_x7_vla_rl.scenes import PICK_PLACE_ID, WorldConfig
from crane_x7_vla_rl.training.pointing import paths, views
from crane_x7_vla_rl.types import Array

STEPS, PERIOD_S = 8, 0.1
CUBE = np.array([0.24, 0.05])


def start(x: float, y: float, z: float, fingers: float = 0.0) -> Array:
    return np.append(views.above(np.array([x, y]), z), fingers)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_it_is_what_the_expert_does(seed: int) -> None:
    from crane_x7_vla_rl.sim.expert import Expert, Manner
    from crane_x7_vla_rl.sim.world import World

    world = World(WorldConfig(task=PICK_PLACE_ID, control_hz=10, home_noise_rad=0.0))
    world.reset(seed)
    joints = start(0.2, -0.12, 0.15, 0.3)
    world.put_arm(joints)
    assert np.allclose(world.position_rad(), joints, atol=1e-5)
    expert = Expert(world, Manner(arm_rad_s=1.0, turns_wrist=False))
    expert.reset()
    cube = world.scene.cubes[world.named_colour].pose.p[0].numpy()[:2]
    found = paths.to_cube(joints, cube, STEPS, PERIOD_S)
    assert found is not None
    for step, target in enumerate(found[:5]):
        expected = expert.act()
        # A step is 0.16 rad; the servo follows the first one less.
        assert np.abs(target - expected)[:ARM_DOF].max() < 0.06, step
        world.step(expected)


def test_it_hovers_then_descends_with_open_fingers() -> None:
    found = paths.to_cube(start(0.18, -0.1, 0.15), CUBE, 16, PERIOD_S)
    assert found is not None
    heights = [paths.kinematics.tool_frame(target[:ARM_DOF])[2, 3] for target in found]
    assert min(heights) == pytest.approx(paths.GRASP_M, abs=0.005)
    last = paths.kinematics.tool_frame(found[-1][:ARM_DOF])[:2, 3]
    assert np.allclose(last, CUBE, atol=0.005)
    assert (found[:, -1] == paths.OPEN_RAD).all()
    assert np.abs(np.diff(found[:, :ARM_DOF], axis=0)).max() < 0.2


def test_a_held_cube_is_carried_high_with_shut_fingers() -> None:
    joints = start(0.18, -0.1, 0.15, views.AROUND_CUBE_RAD)
    found = paths.to_plate(joints, CUBE, STEPS, PERIOD_S)
    assert found is not None
    assert found.shape == (STEPS, DOF)
    assert np.allclose(found[:, -1], paths.SHUT_RAD)
    heights = [paths.kinematics.tool_frame(target[:ARM_DOF])[2, 3] for target in found[:3]]
    assert min(heights) > 0.12


def test_a_held_cube_is_lifted_before_it_is_carried() -> None:
    joints = start(0.18, -0.1, 0.06, views.AROUND_CUBE_RAD)
    found = paths.to_plate(joints, CUBE, 12, PERIOD_S)
    assert found is not None
    tools = np.stack([paths.kinematics.tool_frame(each[:ARM_DOF])[:3, 3] for each in found])
    lifted = int(np.argmax(tools[:, 2] > paths.LIFTED_M))
    assert lifted > 0
    gone = np.linalg.norm(tools[:, :2] - (0.18, -0.1), axis=1)
    assert gone[:lifted].max() < 0.02
    assert gone.max() > 0.1


def test_a_hand_over_the_thing_has_no_chunk() -> None:
    assert paths.to_cube(start(*CUBE, 0.1), CUBE, STEPS, PERIOD_S) is None
    beside = start(CUBE[0] - 0.045, CUBE[1], 0.1)
    assert paths.to_cube(beside, CUBE, STEPS, PERIOD_S) is not None
    assert paths.to_plate(beside, CUBE, STEPS, PERIOD_S) is None, "a plate is larger"


def test_targets_stay_within_the_limits() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        joints = views.random_joints(generator, CUBE[None])
        found = paths.to_cube(joints, CUBE + 0.08, STEPS, PERIOD_S)
        assert found is None or ((found >= LOWER_RAD) & (found <= UPPER_RAD)).all()


def test_arms_are_anywhere_and_sometimes_at_rest() -> None:
    generator = np.random.default_rng(1)
    found = np.stack([views.random_joints(generator, CUBE[None]) for _ in range(200)])
    at_home = np.abs(found[:, :ARM_DOF] - HOME_RAD[:ARM_DOF]).max(1) < 0.15
    assert 10 < at_home.sum() < 80
    assert np.ptp(found[:, 0]) > 1.0
    assert np.ptp(found[:, -1]) > 0.5
