"""Where cubes and plate are seen, against where the real simulation has put them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from color_servo_rig import make_env

from crane_x7_vla_rl.camera import BASE_CAMERA
from crane_x7_vla_rl.policies.vision import CUBE_EDGE_M, HUES, Picture, _corners

SEEDS = range(12)


@pytest.fixture(scope="module")
def env() -> Iterator[Any]:
    made = make_env()
    yield made
    made.close()


def look(env: Any, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Return the JPEG-worn picture, where the cubes are, and where the plate is."""
    observation, _ = env.reset(seed=seed)
    rgb = observation["sensor_data"]["base_camera"]["rgb"][0].numpy()
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality=80)
    scene = env.unwrapped
    cubes = {colour: np.array(status.position_m) for colour, status in scene.cube_status().items()}
    return simplejpeg.decode_jpeg(jpeg), cubes, scene.plate.pose.p[0].numpy()


def drawn(colour: tuple[int, int, int], position: list[float], yaw: float = 0.3) -> np.ndarray:
    """A cube drawn by the camera's geometry alone, on a grey table."""
    image = np.full((480, 640, 3), 120, np.uint8)
    points = BASE_CAMERA.project(np.array(position) + _corners(yaw), 640, 480)
    hull = cv2.convexHull(np.round(points).astype(np.int32))
    cv2.fillConvexPoly(image, hull, colour)
    return image


def test_cubes_are_found_within_5_mm_in_full_view(env: Any) -> None:
    errors = []
    for seed in SEEDS:
        image, cubes, _ = look(env, seed)
        picture = Picture(image, BASE_CAMERA)
        for colour, true in cubes.items():
            blob = picture.blob(colour)
            assert blob is not None, f"{colour} cube of seed {seed} was not seen"
            errors.append(np.linalg.norm(picture.fit_cube(blob).position_m - true))
    assert np.median(errors) < 0.0025
    assert np.quantile(errors, 0.95) < 0.005


def test_the_plate_is_found_within_a_centimetre(env: Any) -> None:
    for seed in SEEDS:
        image, _, true = look(env, seed)
        plate = Picture(image, BASE_CAMERA).plate()
        assert plate is not None, f"plate of seed {seed} was not seen"
        assert np.linalg.norm(plate.position_m - true[:2]) < 0.01


@pytest.mark.parametrize("brightness", [0.6, 1.25])
def test_darker_and_brighter_light_change_little(env: Any, brightness: float) -> None:
    image, cubes, _ = look(env, 3)
    lit = np.clip(image.astype(float) * brightness, 0, 255).astype(np.uint8)
    picture = Picture(lit, BASE_CAMERA)
    for colour, true in cubes.items():
        blob = picture.blob(colour)
        assert blob is not None
        assert np.linalg.norm(picture.fit_cube(blob).position_m - true) < 0.006


@pytest.mark.parametrize("size", [(320, 240), (1280, 960)])
def test_other_resolutions_of_the_same_camera_work(env: Any, size: tuple[int, int]) -> None:
    image, cubes, _ = look(env, 4)
    picture = Picture(cv2.resize(image, size, interpolation=cv2.INTER_AREA), BASE_CAMERA)
    for colour, true in cubes.items():
        blob = picture.blob(colour)
        assert blob is not None
        assert np.linalg.norm(picture.fit_cube(blob).position_m - true) < 0.01


@pytest.mark.parametrize("image", [0, 120, 255])
def test_an_empty_picture_shows_no_cube_and_no_plate(image: int) -> None:
    picture = Picture(np.full((480, 640, 3), image, np.uint8), BASE_CAMERA)
    assert all(picture.blob(colour) is None for colour in HUES)
    assert picture.plate() is None


def test_a_few_stray_pixels_are_no_cube() -> None:
    image = np.full((480, 640, 3), 120, np.uint8)
    image[100:105, 100:105] = (200, 20, 20)
    assert Picture(image, BASE_CAMERA).blob("red") is None


def test_position_and_yaw_of_a_drawn_cube_are_recovered() -> None:
    position = [0.2, -0.05, CUBE_EDGE_M / 2]
    picture = Picture(drawn((20, 30, 200), position, yaw=0.5), BASE_CAMERA)
    blob = picture.blob("blue")
    assert blob is not None
    sight = picture.fit_cube(blob)
    assert np.linalg.norm(sight.position_m - position) < 0.002
    assert abs(np.sin(2 * (sight.yaw_rad - 0.5))) < 0.3
    assert sight.fit > 0.85


def test_a_half_hidden_cube_fits_worse_than_one_in_full_view() -> None:
    image = drawn((200, 20, 20), [0.2, 0.0, CUBE_EDGE_M / 2])
    whole = Picture(image, BASE_CAMERA).blob("red")
    assert whole is not None
    x = int(whole.centre_px[0])
    image[:, x:] = 120
    picture = Picture(image, BASE_CAMERA)
    half = picture.blob("red")
    assert half is not None
    assert (
        picture.fit_cube(half).fit
        < 0.7
        < Picture(drawn((200, 20, 20), [0.2, 0.0, CUBE_EDGE_M / 2]), BASE_CAMERA)
        .fit_cube(whole)
        .fit
    )
