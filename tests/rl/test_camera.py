"""Camera geometry: projection and its inverse on a plane."""

from __future__ import annotations

import numpy as np
import pytest

from crane_x7_vla_rl.camera import BASE_CAMERA, VIEW_CAMERA, VIEW_SIZE, Camera
from crane_x7_vla_rl.kinematics import link_frames
from crane_x7_vla_rl.robot import HOME_RAD

WIDTH, HEIGHT = 640, 480


def test_target_lands_in_the_middle_of_the_image() -> None:
    pixel = BASE_CAMERA.project(BASE_CAMERA.target_m, WIDTH, HEIGHT)
    np.testing.assert_allclose(pixel, [WIDTH / 2, HEIGHT / 2], atol=1e-9)


def test_camera_axes_are_right_handed_and_orthonormal() -> None:
    rotation = BASE_CAMERA.rotation
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_robots_left_is_right_in_the_image_of_a_camera_that_faces_it() -> None:
    pixel = BASE_CAMERA.project((0.22, 0.1, 0.02), WIDTH, HEIGHT)
    assert pixel[0] > WIDTH / 2 + 10


def test_higher_points_appear_higher() -> None:
    low, high = BASE_CAMERA.project([(0.22, 0, 0.02), (0.22, 0, 0.12)], WIDTH, HEIGHT)
    assert high[1] < low[1] - 10


def test_edge_of_the_field_of_view_is_the_edge_of_the_image() -> None:
    camera = Camera((0, 0, 1), (1, 0, 1), np.deg2rad(90))
    pixel = camera.project((1, -1, 1), 100, 50)
    np.testing.assert_allclose(pixel, [100, 25], atol=1e-9)


@pytest.mark.parametrize("z_m", [0.0, 0.03, 0.2])
def test_intersect_plane_undoes_project(z_m: float) -> None:
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(0.1, 0.4, 50), rng.uniform(-0.2, 0.2, 50), [z_m] * 50])
    pixels = BASE_CAMERA.project(points, WIDTH, HEIGHT)
    back = BASE_CAMERA.intersect_plane(pixels, WIDTH, HEIGHT, z_m)
    np.testing.assert_allclose(back, points, atol=1e-9)


def test_points_behind_and_rays_above_the_horizon_are_nan() -> None:
    assert np.isnan(BASE_CAMERA.project((2.0, 0, 2.0), WIDTH, HEIGHT)).all()
    level = Camera((0, 0, 1), (1, 0, 1), 1.0)
    assert np.isnan(level.intersect_plane((50, 10), 100, 50, 0.0)).all()


def test_a_camera_that_looks_straight_down_is_refused() -> None:
    with pytest.raises(ValueError, match="horizon"):
        Camera((0, 0, 1), (0, 0, 0), 1.0)


def test_the_view_shows_the_whole_arm_wherever_a_task_takes_it() -> None:
    for pan_rad in np.linspace(-0.8, 0.8, 9):
        for lean_rad in (-0.5, 0.0, 0.4):
            position = HOME_RAD.copy()
            position[:2] += pan_rad, lean_rad
            pixels = VIEW_CAMERA.project(link_frames(position)[:, :3, 3], *VIEW_SIZE)
            assert (pixels > 20).all()
            assert (pixels < np.subtract(VIEW_SIZE, 20)).all()
