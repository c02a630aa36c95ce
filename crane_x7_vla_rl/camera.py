"""Pinhole cameras: points in the world → pixels, and pixels → points on a level plane.

The simulation places its cameras from these objects, and the colour servo uses the same ones.
World frame: mounting surface under the robot, z up, x forward, robot base at the origin. Pixels
are continuous, (u right, v down); (0, 0) is the upper left corner of the upper left pixel, so that
the centre of pixel [row, column] is at (column + 0.5, row + 0.5). Square pixels, no
distortion: a real camera's image must be rectified first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Point = tuple[float, float, float]


@dataclass(frozen=True)
class Camera:
    """A camera that looks from one point at another, its horizon level unless `up_m` tilts it."""

    position_m: Point
    """Optical centre in the world."""
    target_m: Point
    """Point in the world on the optical axis."""
    horizontal_fov_rad: float
    up_m: Point = (0.0, 0.0, 1.0)
    """Direction in the world that points up in the image, as far as the optical axis allows."""

    def __post_init__(self) -> None:
        forward = np.subtract(self.target_m, self.position_m)
        sideways = np.cross(forward, self.up_m)
        if np.linalg.norm(sideways) < 1e-6 * (1 + np.linalg.norm(forward)):
            raise ValueError(
                f"a camera at {self.position_m} that looks at {self.target_m} looks straight down "
                "or nowhere, so its horizon is undefined; move one of them sideways"
            )
        if not 0 < self.horizontal_fov_rad < np.pi:
            raise ValueError(f"horizontal_fov_rad is {self.horizontal_fov_rad}, expected 0 … π")

    @cached_property
    def rotation(self) -> Array:
        """(3, 3): columns are the camera's axes right, down, forward in the world."""
        forward = np.subtract(self.target_m, self.position_m)  # (3,)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, self.up_m)
        right = right / np.linalg.norm(right)
        rotation = np.column_stack([right, np.cross(forward, right), forward])  # (3, 3)
        rotation.setflags(write=False)
        return rotation

    def focal_px(self, width: int) -> float:
        """Return the focal length in pixels of an image `width` pixels wide."""
        return float(width / 2 / np.tan(self.horizontal_fov_rad / 2))

    def project(self, points_m: npt.ArrayLike, width: int, height: int) -> Array:
        """Return (…, 2) pixels of the world points (…, 3); NaN for points behind the camera."""
        points = np.asarray(points_m, dtype=np.float64)  # (…, 3)
        in_camera = (points - self.position_m) @ self.rotation  # (…, 3) right, down, forward
        depth = np.where(in_camera[..., 2:] > 1e-9, in_camera[..., 2:], np.nan)  # (…, 1)
        centre: Array = np.array([width / 2, height / 2])
        return centre + self.focal_px(width) * in_camera[..., :2] / depth

    def intersect_plane(self, pixels: npt.ArrayLike, width: int, height: int, z_m: float) -> Array:
        """Return (…, 3): intersections of rays of `pixels` (…, 2) and the plane at height `z_m`.

        NaN for rays that never meet it.
        """
        offsets = np.asarray(pixels, dtype=np.float64) - (width / 2, height / 2)  # (…, 2)
        in_camera = np.concatenate(
            [offsets / self.focal_px(width), np.ones((*offsets.shape[:-1], 1))], axis=-1
        )  # (…, 3)
        rays = in_camera @ self.rotation.T  # (…, 3) in the world
        falls = np.where(np.abs(rays[..., 2:]) > 1e-9, rays[..., 2:], np.nan)  # (…, 1)
        distance = (z_m - self.position_m[2]) / falls
        distance = np.where(distance > 0, distance, np.nan)
        return np.asarray(self.position_m + distance * rays, dtype=np.float64)


def vertical_fov_rad(horizontal_fov_rad: float, width: int, height: int) -> float:
    """Return the vertical field of view, as simulators need it, of an image of this size."""
    return float(2 * np.arctan(np.tan(horizontal_fov_rad / 2) * height / width))


def horizontal_fov_rad(vertical_fov_rad: float, width: int, height: int) -> float:
    """Return the horizontal field of view of an image of this size."""
    return float(2 * np.arctan(np.tan(vertical_fov_rad / 2) * width / height))


BASE_CAMERA: Final = Camera((0.80, 0.25, 0.62), (0.17, 0.0, 0.10), float(np.deg2rad(58.0)))
"""Opposite the robot and to its left, so that the arm hides little of its targets; sees the whole
arm and its table."""

VIEW_CAMERA: Final = Camera((0.92, 0.34, 0.56), (0.13, 0.0, 0.17), float(np.deg2rad(58.0)))
"""A view of the whole arm from the side, only for videos. No policy uses it."""
VIEW_SIZE: Final = (640, 480)
"""(width, height) of its images."""
