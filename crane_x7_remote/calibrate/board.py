"""The printed board: its size → OpenCV's ChArUco board, its picture, its place on the table.

Frame of the board: the origin is the corner marked ORIGIN, x runs along the edge with the arrow, z
out of the paper, y to the left of x: the squares lie at negative y. OpenCV's own frame has the same
origin and x; its other two axes point the other way. m unless noted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

COLUMNS: Final = 8
ROWS: Final = 6
MARKER_SHARE: Final = 0.72
"""Side of a marker over that of its square: a white rim on all sides, as the detector needs it."""
DEFAULT_SQUARE_MM: Final = 30.0
"""The board is then 240 × 180 mm, and fits on A4 and Letter with the printer's margins."""


@dataclass(frozen=True)
class Board:
    """A board with squares of one size."""

    square_m: float

    @cached_property
    def charuco(self) -> Any:
        """Return OpenCV's board; the dictionary is larger than needed, so few markers are alike."""
        dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_5X5_100)
        marker_m = self.square_m * MARKER_SHARE
        return cv2.aruco.CharucoBoard((COLUMNS, ROWS), self.square_m, marker_m, dictionary)

    @cached_property
    def detector(self) -> Any:
        """Return the detector of this board's corners."""
        return cv2.aruco.CharucoDetector(self.charuco)

    @property
    def size_m(self) -> tuple[float, float]:
        """The board's width and height."""
        return COLUMNS * self.square_m, ROWS * self.square_m

    def picture(self, px_per_square: int) -> npt.NDArray[np.uint8]:
        """Return the board without a margin, (rows, columns) grey; 0 is black."""
        size = (COLUMNS * px_per_square, ROWS * px_per_square)
        drawn: npt.NDArray[np.uint8] = self.charuco.generateImage(size, marginSize=0)
        return drawn


@dataclass(frozen=True)
class Placement:
    """Where the board lies, in the frame of the robot's base: x forward, y left, z up."""

    origin_m: tuple[float, float, float]
    """The corner marked ORIGIN; z is the thickness of what the paper is glued to."""
    yaw_rad: float = 0.0
    """Direction of the arrow X about z: 0 points away from the robot."""

    def base_from_charuco(self) -> Array:
        """Return the (4, 4) frame of OpenCV's board in the base."""
        cos, sin = np.cos(self.yaw_rad), np.sin(self.yaw_rad)
        frame = np.eye(4)
        frame[:3, 0] = (cos, sin, 0)
        frame[:3, 1] = (sin, -cos, 0)  # OpenCV's y points down the page: to the robot's right
        frame[:3, 2] = (0, 0, -1)
        frame[:3, 3] = self.origin_m
        return frame
