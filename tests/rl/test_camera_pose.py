"""Where a camera stands, from a file or a message: read whole, or refused with every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from crane_x7_vla_rl import camera_pose
from crane_x7_vla_rl.camera import BASE_CAMERA, vertical_fov_rad
from crane_x7_vla_rl.camera_pose import SIM_POSE, CameraPose, CameraPoseError

ROOT = Path(__file__).parents[2]
GOOD = {"position_m": [0.8, 0.25, 0.62], "target_m": [0.17, 0.0, 0.1], "fov_deg": 45.0}
POINTS = np.array([[0.2, 0.1, 0.0], [0.25, -0.1, 0.1], [0.1, 0.0, 0.02]])


def test_the_example_file_is_the_simulated_robots_camera() -> None:
    pose = camera_pose.read(str(ROOT / "configs/camera_pose.yaml"))
    assert pose.camera(640, 480) == SIM_POSE.camera(640, 480) == BASE_CAMERA
    assert camera_pose.read("sim") is SIM_POSE


def test_a_vertical_and_a_horizontal_field_of_view_say_the_same() -> None:
    vertical = np.degrees(vertical_fov_rad(BASE_CAMERA.horizontal_fov_rad, 640, 480))
    pose = camera_pose.parse(GOOD | {"fov_deg": float(vertical)}, "a.yaml")
    np.testing.assert_allclose(
        pose.camera(640, 480).project(POINTS, 640, 480), BASE_CAMERA.project(POINTS, 640, 480)
    )


@pytest.mark.parametrize("turn_deg", [0.0, 30.0, 180.0])
def test_a_quaternion_turns_the_picture(turn_deg: float) -> None:
    """The optical frame of the base camera, turned around its axis, against SciPy."""
    turned = Rotation.from_matrix(BASE_CAMERA.rotation) * Rotation.from_euler(
        "z", turn_deg, degrees=True
    )
    values = {
        "position_m": list(BASE_CAMERA.position_m),
        "orientation_xyzw": turned.as_quat().tolist(),
        "horizontal_fov_deg": 58,
    }
    pose = camera_pose.parse(values, "a.yaml")
    camera = pose.camera(640, 480)
    np.testing.assert_allclose(camera.rotation, turned.as_matrix(), atol=1e-9)
    again = camera_pose.parse_json(pose.to_json()).camera(640, 480)
    np.testing.assert_allclose(again.rotation, camera.rotation, atol=1e-9)


def test_a_camera_may_look_straight_down() -> None:
    values = {"position_m": [0.2, 0, 0.8], "orientation_xyzw": [1, 0, 0, 0], "fov_deg": 50}
    camera = camera_pose.parse(values, "a.yaml").camera(640, 480)
    np.testing.assert_allclose(camera.project([0.2, 0, 0], 640, 480), [320, 240], atol=1e-6)


def test_a_message_says_the_whole_pose() -> None:
    pose = CameraPose((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), vertical_fov_rad=0.8, size_px=(640, 480))
    again = camera_pose.parse_json(pose.to_json())
    assert again.size_px == pose.size_px
    np.testing.assert_allclose(
        again.camera(640, 480).project(POINTS, 640, 480),
        pose.camera(640, 480).project(POINTS, 640, 480),
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"position_m": [float("nan"), 0, 1]}, "position_m is [NaN, 0, 1], expected 3 finite"),
        ({"position_m": [800, 250, 620]}, "expected metres"),
        ({"position_m": "there"}, "position_m is"),
        ({"target_m": [0.8, 0.25, 0.62]}, "target_m is position_m"),
        ({"target_m": [0.8, 0.25, 0.1]}, "set orientation_xyzw instead"),
        ({"fov_deg": 0.8}, "fov_deg is 0.8, expected a field of view from 5 to 150 degrees"),
        ({"fov_deg": float("inf")}, "fov_deg is Infinity"),
        ({"fov_deg": True}, "fov_deg is true"),
        ({"horizontal_fov_deg": 58}, "both set"),
        ({"orientation_xyzw": [0, 0, 0, 1]}, "both set"),
        ({"width": 640}, "without height"),
        ({"width": 0, "height": 480}, "width is 0"),
        ({"positon_m": [0, 0, 0]}, "positon_m is unknown; did you mean position_m?"),
        ({7: 8}, "7 is unknown"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_is_named(change: dict[Any, Any], told: str) -> None:
    with pytest.raises(CameraPoseError) as caught:
        camera_pose.parse(GOOD | change, "a.yaml")
    assert "a.yaml holds a mistake" in str(caught.value)
    assert told in str(caught.value)


LENS = {"focal_px": [610, 612.5], "centre_px": [318, 244], "distortion": [-0.1, 0.05, 1e-3, 0, 0]}
SIZED = GOOD | {"width": 640, "height": 480}


@pytest.mark.parametrize(
    ("lens", "told"),
    [
        (None, "lens is null, expected the keys focal_px, centre_px, distortion"),
        ({"focal_px": [610, 610]}, "expected the keys"),
        (LENS | {"k1": 0}, "expected the keys"),
        (LENS | {"distortion": [0.1]}, "lens.distortion is [0.1], expected 5 finite numbers"),
        (LENS | {"focal_px": [0.61, 0.61]}, "lens.focal_px is [0.61, 0.61], expected pixels"),
        (LENS | {"centre_px": [900, 240]}, "lens.centre_px is [900.0, 240.0], expected a pixel"),
    ],
)
def test_a_wrong_lens_is_named(lens: object, told: str) -> None:
    with pytest.raises(CameraPoseError, match=r"a\.yaml holds a mistake") as caught:
        camera_pose.parse(SIZED | {"lens": lens}, "a.yaml")
    assert told in str(caught.value)


def test_a_lens_without_its_size_is_named() -> None:
    with pytest.raises(CameraPoseError, match="lens is set without width and height"):
        camera_pose.parse(GOOD | {"lens": LENS}, "a.yaml")


@pytest.mark.parametrize("scale", [1, 2])
def test_rectified_pictures_are_those_of_the_pinhole_camera(scale: int) -> None:
    """Dots are drawn where the lens shows points of the world; rectified, they are where the
    pinhole camera projects those points, also in a picture of another size."""
    pose = camera_pose.parse(SIZED | {"lens": LENS, "target_m": [0.3, 0, 0]}, "a.yaml")
    width, height = 640 * scale, 480 * scale
    camera = pose.camera(width, height)
    points = np.array([(x, y, 0.0) for x in (0.2, 0.3, 0.4) for y in (-0.1, 0.0, 0.1)])
    in_camera = (points - camera.position_m) @ camera.rotation
    assert pose.lens is not None
    pixels, _ = cv2.projectPoints(
        in_camera, np.zeros(3), np.zeros(3), pose.lens.matrix(width, height),
        np.array(pose.lens.distortion),
    )  # fmt: skip
    image = np.zeros((height, width, 3), np.uint8)
    rows, columns = np.mgrid[:height, :width]
    for x, y in pixels[:, 0]:
        spot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * (3.0 * scale) ** 2))
        image[:, :, 1] = np.maximum(image[:, :, 1], spot.astype(np.uint8))
    straight = pose.rectified(image)
    for u, v in camera.project(points, width, height) - 0.5:
        near = 12 * scale
        top, left = round(v) - near, round(u) - near
        patch = straight[top : top + 2 * near + 1, left : left + 2 * near + 1, 1].astype(float)
        at = np.array([(patch.sum(axis) * np.arange(2 * near + 1)).sum() for axis in (0, 1)])
        np.testing.assert_allclose(at / patch.sum() + (left, top), (u, v), atol=0.35 * scale)


def test_without_a_lens_the_picture_is_passed_on_as_it_is() -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    assert SIM_POSE.rectified(image) is image


def test_a_message_says_the_lens_too() -> None:
    pose = camera_pose.parse(SIZED | {"lens": LENS}, "a.yaml")
    again = camera_pose.parse_json(pose.to_json())
    assert again.lens == pose.lens is not None


def test_a_turn_that_is_no_unit_quaternion_is_named() -> None:
    values = {"position_m": [0, 0, 1], "orientation_xyzw": [1, 1, 0, 0], "fov_deg": 50}
    with pytest.raises(CameraPoseError, match=r"length 1\.414, expected 1"):
        camera_pose.parse(values, "a.yaml")


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(CameraPoseError) as caught:
        camera_pose.parse({"position_m": [1, 2], "fov_deg": 999, "colour": 1}, "a.yaml")
    told = str(caught.value)
    assert "4 mistakes" in told
    for key in ("position_m", "target_m is missing", "fov_deg", "colour"):
        assert key in told


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [", "position_m: 1\nposition_m: 2\n", "\x00"])
def test_a_file_without_a_pose_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text(text)
    with pytest.raises(CameraPoseError, match=r"camera\.yaml"):
        camera_pose.read(str(path))
    with pytest.raises(CameraPoseError, match="cannot be read"):
        camera_pose.read(str(tmp_path))


@pytest.mark.parametrize(
    "text", ["", "7", "[" * 5000, '"' + "a" * 20000 + '"', '{"fov_deg": 1e999}']
)
def test_a_message_without_a_pose_is_refused(text: str) -> None:
    with pytest.raises(CameraPoseError, match="pose"):
        camera_pose.parse_json(text)


def test_pictures_of_another_aspect_ratio_do_not_fit() -> None:
    pose = camera_pose.parse(GOOD | {"width": 640, "height": 480}, "a.yaml")
    assert pose.misfit(320, 240) is None
    assert "1280x720" in (pose.misfit(1280, 720) or "")
    assert camera_pose.parse(GOOD, "a.yaml").misfit(1280, 720) is None
