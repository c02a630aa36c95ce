"""Pictures of the calibration board: pose and lens → image, by tracing rays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from crane_x7_remote.calibrate.board import Board, Placement
from crane_x7_vla_rl.lens import Lens
from crane_x7_vla_rl.types import Image

Array = npt.NDArray[np.float64]

BOARD = Board(0.03)
LENS = Lens((612.0, 610.0), (331.5, 233.2), (-0.11, 0.06, 0.0007, -0.0005, 0.0), (640, 480))
"""A usual webcam."""
PX_PER_SQUARE = 100
OVERSAMPLING = 2


@dataclass(frozen=True, eq=False)
class Scene:
    """One board and one lens."""

    board: Board = BOARD
    lens: Lens = LENS
    noise: float = 2.0
    """Standard deviation of a pixel, of 255."""
    blur_px: float = 0.6

    def picture(self, camera_from_board: Array, seed: int = 0) -> Image:
        """Return (H, W, 3) RGB: the board on a grey table; `camera_from_board` (4, 4), OpenCV's
        frames."""
        width, height = self.lens.size_px
        n = OVERSAMPLING
        rays = _rays(self.lens)
        rotation, shift = camera_from_board[:3, :3], camera_from_board[:3, 3]
        eye, directions = -rotation.T @ shift, rays @ rotation  # in the board's frame
        distances = -eye[2] / directions[:, 2]
        hits = eye[:2] + distances[:, None] * directions[:, :2]  # (P, 2) m
        scale = PX_PER_SQUARE / self.board.square_m
        texture = cv2.copyMakeBorder(
            self.board.picture(PX_PER_SQUARE), 60, 60, 60, 60, cv2.BORDER_CONSTANT, value=255
        )
        places = (hits * scale - 0.5 + 60).astype(np.float32).reshape(height * n, width * n, 2)
        drawn = cv2.remap(
            texture, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=120
        )
        drawn[(distances <= 0).reshape(drawn.shape)] = 120
        grey = cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
        grey = cv2.GaussianBlur(grey, (0, 0), self.blur_px)
        grey = 25 + 0.8 * grey + np.random.default_rng(seed).normal(0, self.noise, grey.shape)
        return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


@lru_cache(maxsize=4)
def _rays(lens: Lens) -> Array:
    """Return (P, 3), the direction of every sample of the image in the camera's frame."""
    width, height = lens.size_px
    n = OVERSAMPLING
    u, v = np.meshgrid(
        (np.arange(width * n) + 0.5) / n - 0.5, (np.arange(height * n) + 0.5) / n - 0.5
    )
    pixels = np.stack([u.ravel(), v.ravel()], axis=1)[:, None]
    rays = cv2.undistortPoints(pixels, lens.matrix(width, height), np.array(lens.distortion))
    return np.column_stack([rays[:, 0], np.ones(len(pixels))])


def facing(board: Board, at_m: tuple[float, float, float], tilt_rad: tuple[float, float]) -> Array:
    """Return a board (4, 4) in the camera's frame: its middle at `at_m`, tilted about its axes."""
    turn = np.asarray(cv2.Rodrigues(np.array([tilt_rad[0], tilt_rad[1], 0.0]))[0])
    frame = np.eye(4)
    frame[:3, :3] = turn
    width, height = board.size_m
    frame[:3, 3] = np.array(at_m) - turn @ np.array([width / 2, height / 2, 0])
    return frame


def views_around(board: Board, count: int = 18, seed: int = 0) -> list[Array]:
    """Return boards all over the image, tilted to all sides."""
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(count):
        distance_m = rng.uniform(0.32, 0.5)
        column, row = index % 3 - 1, index // 3 % 3 - 1
        at_m = (0.16 * column * distance_m / 0.4, 0.11 * row * distance_m / 0.4, distance_m)
        tilt_rad = rng.uniform(-0.6, 0.6, 2)
        frames.append(facing(board, at_m, (float(tilt_rad[0]), float(tilt_rad[1]))))
    return frames


def camera_at(position_m: Array, target_m: Array) -> Array:
    """Return (4, 4), a level camera in the base's frame, OpenCV's axes."""
    forward = (target_m - position_m) / np.linalg.norm(target_m - position_m)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    frame = np.eye(4)
    frame[:3, :3] = np.column_stack([right, np.cross(forward, right), forward])
    frame[:3, 3] = position_m
    return frame


def placed(placement: Placement, base_from_camera: Array) -> Array:
    """Return the placed board (4, 4) in the camera's frame."""
    return np.asarray(np.linalg.inv(base_from_camera) @ placement.base_from_charuco())
