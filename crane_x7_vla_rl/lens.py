"""A real camera's lens: its image → the image of an ideal pinhole camera of the same size.

The model is OpenCV's and ROS's plumb_bob (k1, k2, p1, p2, k3), pixels as in a CameraInfo: (0, 0) is
the centre of the upper left pixel. `camera.Camera` is the pinhole camera of the result. OpenCV is
imported where it is used: every policy imports this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Lens:
    """What a calibration found; hashable, so that the map of each lens is computed once."""

    focal_px: tuple[float, float]
    """fx, fy."""
    centre_px: tuple[float, float]
    """cx, cy: where the optical axis meets the image."""
    distortion: tuple[float, float, float, float, float]
    """k1, k2, p1, p2, k3."""
    size_px: tuple[int, int]
    """Width, height of the images that it was measured with."""

    def matrix(self, width: int, height: int) -> Array:
        """Return the (3, 3) camera matrix for images scaled to this size."""
        across, down = width / self.size_px[0], height / self.size_px[1]
        (fx, fy), (cx, cy) = self.focal_px, self.centre_px
        # Scaling keeps the upper left corner of the upper left pixel, which is at (-0.5, -0.5).
        return np.array(
            [
                [fx * across, 0, (cx + 0.5) * across - 0.5],
                [0, fy * down, (cy + 0.5) * down - 0.5],
                [0, 0, 1],
            ]
        )

    def rectified(self, picture: Picture, horizontal_fov_rad: float) -> Picture:
        """Return the picture (H, W, 3) that a pinhole camera with this field of view would see.

        Places that the lens does not see are black.
        """
        import cv2

        height, width = picture.shape[:2]
        maps = _maps(self, horizontal_fov_rad, width, height)
        straight: Picture = cv2.remap(picture, *maps, interpolation=cv2.INTER_LINEAR)
        return straight

    def most_displaced_px(self, horizontal_fov_rad: float) -> float:
        """Return the largest distance between a pixel and its place in the pinhole image."""
        import cv2

        width, height = self.size_px
        edge = np.array(
            [(x, y) for x in np.linspace(0, width - 1, 9) for y in np.linspace(0, height - 1, 9)]
        )
        ideal = pinhole_matrix(horizontal_fov_rad, width, height)
        straight = cv2.undistortPoints(
            edge[:, None], self.matrix(width, height), np.array(self.distortion), P=ideal
        )
        return float(np.linalg.norm(straight[:, 0] - edge, axis=1).max())


def pinhole_matrix(horizontal_fov_rad: float, width: int, height: int) -> Array:
    """Return the (3, 3) matrix of `camera.Camera`: square pixels, the axis in the middle."""
    focal = width / 2 / np.tan(horizontal_fov_rad / 2)
    return np.array([[focal, 0, width / 2 - 0.5], [0, focal, height / 2 - 0.5], [0, 0, 1]])


@lru_cache(maxsize=4)
def _maps(
    lens: Lens, horizontal_fov_rad: float, width: int, height: int
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint16]]:
    import cv2

    across, fractions = cv2.initUndistortRectifyMap(
        lens.matrix(width, height),
        np.array(lens.distortion),
        None,
        pinhole_matrix(horizontal_fov_rad, width, height),
        (width, height),
        cv2.CV_16SC2,
    )
    return across, fractions
