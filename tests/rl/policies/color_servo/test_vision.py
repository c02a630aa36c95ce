"""Where cubes and plate are seen, against where the real simulation has put them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from color_servo_rig import Rig, make_env

from crane_x7_vla_rl.camera import BASE_CAMERA
from crane_x7_vla_rl.policies.color_servo.memory import SceneMemory
from crane_x7_vla_rl.policies.color_servo.vision import (
    CUBE_EDGE_M,
    HUES,
    CubeSight,
    Picture,
    _corners,
)

SEEDS = range(12)


@pytest.fixture(scope="module")
def env() -> Iterator[Any]:
    made = make_env(obs_mode="rgb")
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


def sighted(image: np.ndarray, colour: str) -> CubeSight:
    picture = Picture(image, BASE_CAMERA)
    blob = picture.blob(colour)
    assert blob is not None, f"the {colour} cube was not seen"
    return picture.fit_cube(blob)


def half_hidden(image: np.ndarray, colour: str) -> np.ndarray:
    """The same picture, the right half of the cube behind something grey."""
    blob = Picture(image, BASE_CAMERA).blob(colour)
    assert blob is not None
    hidden = image.copy()
    hidden[:, int(blob.centre_px[0]) :] = 120
    return hidden


def test_cubes_are_found_within_5_mm_in_full_view(env: Any) -> None:
    errors = []
    for seed in SEEDS:
        image, cubes, _ = look(env, seed)
        errors += [
            np.linalg.norm(sighted(image, colour).position_m - true)
            for colour, true in cubes.items()
        ]
    assert np.median(errors) < 0.0025
    assert np.quantile(errors, 0.95) < 0.005


def test_a_colour_that_is_not_there_is_not_found(env: Any) -> None:
    """Neither the arm nor the rest of the scene is a yellow cube, nor a red one once that left."""
    for seed in SEEDS:
        image, _, _ = look(env, seed)
        assert Picture(image, BASE_CAMERA).blob("yellow") is None
    rig = Rig(env)
    rig.reset(0)
    rig.move_cube("red", (-1.5, 0.0, 0.015))
    rig.step()
    picture = Picture(rig.observe().image, BASE_CAMERA)
    assert picture.blob("red") is None
    assert picture.blob("blue") is not None


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
    for colour, true in cubes.items():
        assert np.linalg.norm(sighted(lit, colour).position_m - true) < 0.006


@pytest.mark.parametrize("size", [(320, 240), (1280, 960)])
def test_other_resolutions_of_the_same_camera_work(env: Any, size: tuple[int, int]) -> None:
    image, cubes, _ = look(env, 4)
    scaled = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    for colour, true in cubes.items():
        assert np.linalg.norm(sighted(scaled, colour).position_m - true) < 0.01


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
    sight = sighted(drawn((20, 30, 200), position, yaw=0.5), "blue")
    assert np.linalg.norm(sight.position_m - position) < 0.002
    assert abs(np.sin(2 * (sight.yaw_rad - 0.5))) < 0.3
    assert sight.fit > 0.85


def test_a_half_hidden_cube_fits_worse_than_one_in_full_view() -> None:
    image = drawn((200, 20, 20), [0.2, 0.0, CUBE_EDGE_M / 2])
    whole = sighted(image, "red")
    hidden = half_hidden(image, "red")
    assert sighted(hidden, "red").fit < 0.7 < whole.fit


def test_memory_keeps_where_a_cube_was_seen_in_full_while_the_arm_hides_half_of_it() -> None:
    true = [0.2, 0.0, CUBE_EDGE_M / 2]
    image = drawn((200, 20, 20), true)
    memory = SceneMemory()
    for time_s, picture in enumerate([image, *[half_hidden(image, "red")] * 5]):
        seen = Picture(picture, BASE_CAMERA)
        memory.see(seen, float(time_s), named="red", held=None, clear=False)
    kept = memory.cubes["red"]
    assert kept.seen_s == 0.0
    assert np.linalg.norm(kept.sight.position_m - true) < 0.004
    moved = drawn((200, 20, 20), [0.25, 0.08, CUBE_EDGE_M / 2])
    memory.see(Picture(moved, BASE_CAMERA), 9.0, named="red", held=None, clear=False)
    assert np.linalg.norm(memory.cubes["red"].sight.position_m[:2] - (0.25, 0.08)) < 0.004


def test_a_covered_lens_is_blank_and_any_scene_is_not(env: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 6, (480, 640, 3), dtype=np.uint8)
    assert Picture(noise, BASE_CAMERA).is_blank()
    image, _, _ = look(env, 0)
    for brightness in (1.0, 0.3):
        assert not Picture((image * brightness).astype(np.uint8), BASE_CAMERA).is_blank()
