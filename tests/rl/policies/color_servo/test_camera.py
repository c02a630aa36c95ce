"""The colour servo behind another camera than the simulation's own, told where that stands."""

from __future__ import annotations

from typing import Any, Final

import cv2
import numpy as np
import pytest
from color_servo_rig import Rig, make_env
from scipy.spatial.transform import Rotation

from crane_x7_vla_rl import camera_pose
from crane_x7_vla_rl.camera_pose import SIM_POSE, CameraPose
from crane_x7_vla_rl.policies.color_servo.policy import ColorServo
from crane_x7_vla_rl.policies.color_servo.vision import Picture, _corners

CUBE_M: Final = np.array([0.24, 0.06, 0.015])
POSES: Final = {
    "to the right, wider": {
        "position_m": [0.85, -0.20, 0.70],
        "target_m": [0.20, 0.0, 0.05],
        "fov_deg": 52,
    },
    "from above": {
        "position_m": [0.25, 0.02, 0.9],
        "orientation_xyzw": Rotation.from_euler("xyz", [176, 3, 120], degrees=True)
        .as_quat()
        .tolist(),
        "horizontal_fov_deg": 50,
    },
    "tilted": {
        "position_m": [0.80, 0.25, 0.62],
        "orientation_xyzw": (
            Rotation.from_matrix(SIM_POSE.camera(640, 480).rotation)
            * Rotation.from_euler("z", 12, degrees=True)
        )
        .as_quat()
        .tolist(),
        "fov_deg": 45,
    },
}


def pose(name: str) -> CameraPose:
    return camera_pose.parse(POSES[name], name)


def found(picture: Picture) -> Any:
    blob = picture.blob("red")
    assert blob is not None
    return picture.fit_cube(blob).position_m


@pytest.mark.parametrize("size", [(640, 480), (1280, 720)], ids=str)
@pytest.mark.parametrize("name", POSES)
def test_a_cube_is_where_it_is_through_any_camera_that_is_known(
    name: str, size: tuple[int, int]
) -> None:
    width, height = size
    camera = pose(name).camera(width, height)
    image = np.full((height, width, 3), 120, np.uint8)
    pixels = camera.project(CUBE_M + _corners(0.3), width, height)
    cv2.fillConvexPoly(image, cv2.convexHull(np.round(pixels).astype(np.int32)), (200, 30, 30))
    right = found(Picture(image, camera)) - CUBE_M
    wrong = found(Picture(image, SIM_POSE.camera(width, height))) - CUBE_M
    assert np.linalg.norm(right) < 0.003
    assert np.linalg.norm(wrong) > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", ["to the right, wider", "tilted"])
def test_it_lifts_a_cube_behind_a_shifted_camera_when_told(name: str) -> None:
    shifted = pose(name)
    env = make_env(base_camera=shifted.camera(640, 480))
    try:
        rig = Rig(env, policy=ColorServo())
        rig.policy.look_through(shifted)
        rig.reset(0)
        rig.instruction = "pick up the red cube"
        assert rig.run_until(lambda: rig.lifted("red"), 12.0, hold_s=0.5)
    finally:
        env.close()
