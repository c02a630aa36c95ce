"""The simulated arm and its tasks, in the real simulation on a CPU.

One environment per task is shared by all tests, since making one takes seconds; each resets it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from crane_x7_vla_rl import kinematics, robot, sim
from crane_x7_vla_rl.camera import BASE_CAMERA
from crane_x7_vla_rl.sim.layout import CUBE_GAP_M, PLATE_RADIUS_M
from crane_x7_vla_rl.sim.scene import CAMERAS, CUBE_HALF_M

HZ = 20
OPEN, SHUT = 0.6, -0.05


@pytest.fixture(scope="module")
def lift() -> Iterator[gymnasium.Env[Any, Any]]:
    env = sim.make(sim.LIFT_ID, cameras=("base_camera", "hand_camera"), image_size=(160, 120))
    yield env
    env.close()


@pytest.fixture(scope="module")
def pick_place() -> Iterator[gymnasium.Env[Any, Any]]:
    env = sim.make(sim.PICK_PLACE_ID, image_size=(160, 120))
    yield env
    env.close()


def joints(env: gymnasium.Env[Any, Any]) -> np.ndarray:
    """(9,) measured, finger B last."""
    return np.asarray(env.unwrapped.agent.robot.get_qpos()[0].numpy(), dtype=np.float64)


def run(env: gymnasium.Env[Any, Any], target: np.ndarray, seconds: float) -> dict[str, Any]:
    """Move at an even pace to `target` (8,), then report the last step."""
    steps = round(seconds * HZ)
    start = joints(env)[:8]
    last: dict[str, Any] = {}
    for step in range(1, steps + 1):
        action = start + (target - start) * min(1.0, 1.25 * step / steps)
        obs, reward, terminated, truncated, info = env.step(action.astype(np.float32))
        last = {
            "obs": obs,
            "reward": float(reward),
            "terminated": bool(terminated),
            "truncated": bool(truncated),
            "info": info,
        }
        if last["terminated"]:
            break
    return last


def from_above(x: float, y: float, z: float, yaw: float, gripper: float) -> np.ndarray:
    """(8,) joints that hold the fingertips at a point, pointing down."""
    arm = kinematics.reach((x, y, z), yaw)
    return np.append(arm, gripper)


def grasp(env: gymnasium.Env[Any, Any], colour: str) -> tuple[float, float, float]:
    """Close the fingers around a cube, with privileged knowledge; return (x, y, yaw)."""
    pose = env.unwrapped.cubes[colour].pose
    x, y = pose.p[0, :2].tolist()
    yaw = float(2 * np.arctan2(pose.q[0, 3].item(), pose.q[0, 0].item()))
    low = CUBE_HALF_M - 0.004
    run(env, from_above(x, y, 0.10, yaw, OPEN), 1.5)
    run(env, from_above(x, y, low, yaw, OPEN), 0.8)
    run(env, from_above(x, y, low, yaw, SHUT), 0.6)
    return x, y, yaw


def test_same_seed_gives_the_same_scene(lift: gymnasium.Env[Any, Any]) -> None:
    first, _ = lift.reset(seed=7)
    words = lift.unwrapped.instruction
    lift.reset(seed=8)
    other = lift.unwrapped.cube_status()
    again, _ = lift.reset(seed=7)
    image = first["sensor_data"]["base_camera"]["rgb"]
    assert lift.unwrapped.instruction == words
    assert other != lift.unwrapped.cube_status()
    assert np.array_equal(image.numpy(), again["sensor_data"]["base_camera"]["rgb"].numpy())


def test_both_cameras_render_at_the_asked_size(lift: gymnasium.Env[Any, Any]) -> None:
    obs, _ = lift.reset(seed=0)
    for camera in CAMERAS:
        picture = obs["sensor_data"][camera]["rgb"]
        assert picture.shape == (1, 120, 160, 3)
        assert picture.float().std() > 5


def test_pictures_carry_no_privileged_state(lift: gymnasium.Env[Any, Any]) -> None:
    obs, _ = lift.reset(seed=0)
    assert obs["extra"] == {}


@pytest.mark.parametrize("spawn_range_m", [0.0, 0.05])
def test_things_lie_apart_in_reach_and_in_view(spawn_range_m: float) -> None:
    env = sim.make(sim.PICK_PLACE_ID, obs_mode="state", spawn_range_m=spawn_range_m)
    for seed in range(40):
        env.reset(seed=seed)
        cubes = np.array([cube.pose.p[0].numpy() for cube in env.unwrapped.cubes.values()])
        plate = env.unwrapped.plate.pose.p[0].numpy()
        for index, cube in enumerate(cubes):
            others = np.delete(cubes, index, axis=0)
            apart = np.linalg.norm(others[:, :2] - cube[:2], axis=1)
            assert apart.min() >= CUBE_GAP_M - 1e-6
            assert np.linalg.norm(plate[:2] - cube[:2]) >= PLATE_RADIUS_M + CUBE_HALF_M
            pixel = BASE_CAMERA.project(cube, 640, 480)
            assert np.all(pixel > 20)
            assert np.all(pixel < (620, 460))
            for height in (CUBE_HALF_M, 0.15):
                from_above(cube[0], cube[1], height, 0.0, OPEN)
        from_above(plate[0], plate[1], 0.05, 0.0, OPEN)
    env.close()


def test_fingers_stay_coupled_open_and_shut(lift: gymnasium.Env[Any, Any]) -> None:
    lift.reset(seed=0)
    for target in (1.2, 0.3, 0.0):
        run(lift, np.append(robot.HOME_RAD[:7], target), 1.5)
        finger_a, finger_b = joints(lift)[7:]
        assert finger_a == pytest.approx(target, abs=0.02)
        assert finger_b == pytest.approx(finger_a, abs=0.01)


def test_arm_stays_where_it_is_told(lift: gymnasium.Env[Any, Any]) -> None:
    """Overlapping boxes once pushed joints off by 0.2 rad, a mimic constraint by 1.6."""
    lift.reset(seed=0)
    target = robot.HOME_RAD.copy()
    run(lift, target, 2.0)
    assert joints(lift)[:8] == pytest.approx(target, abs=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_lifting_the_named_cube_terminates_with_success(
    lift: gymnasium.Env[Any, Any], seed: int
) -> None:
    lift.reset(seed=seed)
    x, y, yaw = grasp(lift, lift.unwrapped.named_colours[0])
    last = run(lift, from_above(x, y, 0.16, yaw, SHUT), 3.0)
    assert last["terminated"]
    assert not last["truncated"]
    assert bool(last["info"]["success"])


def test_lifting_another_cube_is_no_success(lift: gymnasium.Env[Any, Any]) -> None:
    lift.reset(seed=3, options={"colour": "red"})
    assert lift.unwrapped.instruction == ["pick up the red cube"]
    x, y, yaw = grasp(lift, "blue")
    last = run(lift, from_above(x, y, 0.16, yaw, SHUT), 2.0)
    status = lift.unwrapped.cube_status()
    assert status["blue"].lifted
    assert not status["red"].grasped
    assert not last["terminated"]


@pytest.mark.parametrize("seed", range(5))
def test_cube_set_down_on_the_plate_is_placed(
    pick_place: gymnasium.Env[Any, Any], seed: int
) -> None:
    pick_place.reset(seed=seed)
    colour = pick_place.unwrapped.named_colours[0]
    x, y, yaw = grasp(pick_place, colour)
    run(pick_place, from_above(x, y, 0.12, yaw, SHUT), 0.8)
    plate_x, plate_y = pick_place.unwrapped.plate.pose.p[0, :2].tolist()
    run(pick_place, from_above(plate_x, plate_y, 0.12, yaw, SHUT), 1.2)
    last = run(pick_place, from_above(plate_x, plate_y, 0.025, yaw, SHUT), 0.8)
    assert not last["terminated"], "a cube that is still held is not placed"
    run(pick_place, from_above(plate_x, plate_y, 0.025, yaw, 0.5), 0.5)
    last = run(pick_place, from_above(plate_x, plate_y, 0.14, yaw, 0.5), 2.0)
    assert last["terminated"]
    assert pick_place.unwrapped.cube_status()[colour].placed


def test_running_out_of_steps_truncates(lift: gymnasium.Env[Any, Any]) -> None:
    lift.reset(seed=0)
    action = robot.HOME_RAD.astype(np.float32)
    for _ in range(199):
        *_, terminated, truncated, _ = lift.step(action)
        assert not bool(terminated)
        assert not bool(truncated)
    *_, terminated, truncated, _ = lift.step(action)
    assert not bool(terminated)
    assert bool(truncated)


def test_small_deltas_add_up() -> None:
    """Deltas count from the last target: measured from the lagging joint they would shrink."""
    env = sim.make(sim.LIFT_ID, obs_mode="state", control_mode="pd_joint_delta_pos")
    env.reset(seed=0)
    before = joints(env)
    action = np.zeros(8, dtype=np.float32)
    action[0], action[7] = 0.2, 0.5
    for _ in range(10):
        env.step(action)
    for _ in range(10):
        env.step(np.zeros(8, dtype=np.float32))
    moved = joints(env) - before
    assert moved[0] == pytest.approx(10 * 0.2 * 0.1, abs=0.01)
    assert moved[7] == pytest.approx(10 * 0.5 * 0.2, abs=0.03)
    assert abs(moved[1:7]).max() < 0.01
    env.close()


@pytest.mark.parametrize("reward_mode", ["sparse", "dense", "normalized_dense", "none"])
def test_every_reward_mode_gives_a_finite_reward(reward_mode: str) -> None:
    for task in sim.TASKS:
        env = sim.make(task, obs_mode="state", reward_mode=reward_mode)
        env.reset(seed=0)
        _, reward, *_ = env.step(robot.HOME_RAD.astype(np.float32))
        assert reward.shape == (1,)
        assert 0 <= float(reward) <= 5
        env.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "Lift-CRANE-X8"}, "Lift-CRANE-X7"),
        ({"colours": ("red", "pink")}, "pink"),
        ({"cameras": ()}, "base_camera"),
        ({"spawn_range_m": 0.5}, "spawn_range_m is 0.5"),
        ({"num_envs": 4}, "one scene per environment"),
    ],
)
def test_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(sim.SimError, match=message):
        sim.make(**({"task": sim.LIFT_ID} | options))


def test_unknown_colour_is_named(lift: gymnasium.Env[Any, Any]) -> None:
    with pytest.raises(sim.SimError, match="pink"):
        lift.reset(seed=0, options={"colour": "pink"})


def test_gpu_backend_without_a_gpu_says_what_it_needs() -> None:
    with pytest.raises(sim.SimError, match="GPU PhysX library"):
        sim.make(sim.LIFT_ID, backend="gpu")


def test_machine_without_vulkan_is_told_the_cure() -> None:
    code = (
        "from crane_x7_vla_rl import sim\n"
        "sim.render.DRIVER_FOLDERS = ()\n"  # Mesa would be found there
        "try: sim.make(sim.LIFT_ID).reset()\n"
        "except sim.SimError as error: print(error)"
    )
    hidden = os.environ | {"VK_DRIVER_FILES": "/nonexistent", "VK_ICD_FILENAMES": "/nonexistent"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=hidden,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "install mesa-vulkan-drivers 24.3 or newer" in result.stdout, result.stderr
