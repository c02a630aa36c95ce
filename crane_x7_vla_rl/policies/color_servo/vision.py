"""Positions of cubes and plate: an image (H, W, 3) uint8 RGB of a known `Camera` → m.

Nothing is learned: thresholds in HSV (OpenCV's: hue 0…179) with a margin for brighter and darker
light and for JPEG's smeared colours; the outline of a cube of known size is fitted to the contour.

Legend: h × w pixels of a cut-out, n points of an outline, R × C cells of the view from above.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from crane_x7_vla_rl.camera import Camera
from crane_x7_vla_rl.types import Array, Image

Mask = npt.NDArray[np.uint8]

HUES: Final = {
    "red": ((0, 9), (170, 179)),
    "yellow": ((20, 35),),
    "green": ((40, 88),),
    "blue": ((98, 132),),
}
MIN_SATURATION, MIN_VALUE = 110, 45
"""Out of 255. Table, plate and arm have a saturation under 60; a cube has over 180."""
MAX_WIDTH: Final = 640
"""Wider images are reduced to this: a cube still spans 25 pixels."""
MIN_BLOB_PX: Final = 40
"""At MAX_WIDTH; a cube has 500 to 900 visible pixels, behind the fingers about 150."""

MIN_CONTRAST: Final = 4.0
"""Out of 255, standard deviation of brightness: an image with any content has more (the scene of
the simulation about 40), one from a covered lens, with its noise, has less."""

CUBE_EDGE_M: Final = 0.03
YAWS_RAD: Final = tuple(np.deg2rad(7.5 * step) for step in range(12))
"""Angles tried within a quarter turn; the fingers straighten the rest."""

PLATE_RADIUS_M: Final = 0.06
PLATE_HEIGHT_M: Final = 0.006
_GRID_M: Final = 0.004
_GRID_X_M: Final = (0.06, 0.42)
_GRID_Y_M: Final = (-0.26, 0.26)
"""The part of the table that is searched for the plate, seen from above."""
MIN_PLATE_SCORE: Final = 0.75


@dataclass(frozen=True, eq=False)
class Blob:
    """The largest patch of one colour, in pixels of its image."""

    centre_px: Array
    """(2,) continuous pixels."""
    area_px: float
    mask: Mask
    """(h, w) cut-out, 255 for pixels of the colour."""
    corner_px: tuple[int, int]
    """Column and row of the cut-out's upper left pixel."""


@dataclass(frozen=True, eq=False)
class CubeSight:
    """A cube as seen in one image."""

    position_m: Array
    """(3,) centre, for a cube at the assumed height."""
    yaw_rad: float
    """In [0, π/2): a cube looks the same after a quarter turn."""
    fit: float
    """Overlap of outline and patch over their union: 0.85 and more in full view, less if hidden."""


@dataclass(frozen=True, eq=False)
class PlateSight:
    """The plate as seen in one image."""

    position_m: Array
    """(2,) x, y of its centre."""
    score: float
    """Share of a plate's area that is white, minus the white right around it: at most 1."""


class Picture:
    """One image, prepared once; each method computes its result when it is called."""

    def __init__(self, image: Image, camera: Camera) -> None:
        height, width = image.shape[:2]
        if width > MAX_WIDTH:
            height, width = round(height * MAX_WIDTH / width), MAX_WIDTH
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        self.camera, self.width, self.height = camera, width, height
        self._hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)  # (H, W, 3) uint8

    def project(self, points_m: npt.ArrayLike) -> Array:
        """Return (…, 2) pixels of this image for world points (…, 3)."""
        return self.camera.project(points_m, self.width, self.height)

    def is_blank(self) -> bool:
        """Whether the image shows nothing: a covered lens, a camera that lost its data."""
        return float(self._hsv[::8, ::8, 2].std()) < MIN_CONTRAST

    def blob(self, colour: str) -> Blob | None:
        """Return the largest patch of `colour` (one of HUES), None if no patch is found."""
        mask = np.zeros((self.height, self.width), dtype=np.uint8)  # (H, W)
        for low, high in HUES[colour]:
            mask |= cv2.inRange(self._hsv, (low, MIN_SATURATION, MIN_VALUE), (high, 255, 255))
        x, y, columns, rows = cv2.boundingRect(mask)  # labelling time grows with the area
        if columns == 0:
            return None
        window = mask[y : y + rows, x : x + columns]
        _, labels, stats, centres = cv2.connectedComponentsWithStats(window, connectivity=8)
        best = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
        left, top, width, height, area = (int(value) for value in stats[best])
        if area < max(4.0, MIN_BLOB_PX * (self.width / MAX_WIDTH) ** 2):
            return None
        cut = labels[top : top + height, left : left + width] == best  # (h, w) bool
        corner = (x + left, y + top)
        centre = centres[best] + (x + 0.5, y + 0.5)  # (2,)
        return Blob(centre, float(area), cut.astype(np.uint8) * 255, corner)

    def fit_cube(self, blob: Blob, support_m: float = 0.0) -> CubeSight:
        """Return the cube, at height `support_m`, whose outline fits `blob` best."""
        centre_z = support_m + CUBE_EDGE_M / 2
        guess = self.camera.intersect_plane(blob.centre_px, self.width, self.height, centre_z)
        fits = [
            _overlap(outline + (blob.centre_px - _centroid(outline)), blob)
            for outline in (self._outline(guess, yaw) for yaw in YAWS_RAD)
        ]
        best = int(np.argmax(fits))
        position = guess  # (3,)
        for _ in range(2):
            missing = blob.centre_px - _centroid(self._outline(position, YAWS_RAD[best]))
            position = self.camera.intersect_plane(
                self.project(position) + missing, self.width, self.height, centre_z
            )
        return CubeSight(position, YAWS_RAD[best], fits[best])

    def _outline(self, position: Array, yaw: float) -> Array:
        """Return (n, 2) pixels of the convex outline of a cube."""
        pixels = self.project(position + _corners(yaw))  # (8, 2)
        hull: Array = cv2.convexHull(pixels.astype(np.float32))[:, 0].astype(np.float64)
        return hull

    def plate(self) -> PlateSight | None:
        """Return the most plate-like place on the table, None if nothing is like it."""
        from_above = cv2.warpPerspective(
            self._hsv, _table_view(self.camera, self.width, self.height), _grid_size()
        )
        saturation, value = from_above[..., 1], from_above[..., 2]  # (R, C) each
        bright = value > 1.2 * float(np.median(value))  # the table fills most of this view
        white = ((saturation < 70) & bright).astype(np.float32)  # (R, C)
        scores = cv2.filter2D(white, cv2.CV_32F, _plate_kernel(), borderType=cv2.BORDER_CONSTANT)
        row, column = np.unravel_index(int(np.argmax(scores)), scores.shape)
        score = float(scores[row, column])
        if score < MIN_PLATE_SCORE:
            return None
        rows, columns = np.mgrid[: white.shape[0], : white.shape[1]]
        radius = PLATE_RADIUS_M / _GRID_M + 1.5
        inside = white * (np.hypot(rows - row, columns - column) <= radius)  # (R, C)
        x = _GRID_X_M[0] + _GRID_M * (float((inside * rows).sum() / inside.sum()) + 0.5)
        y = _GRID_Y_M[0] + _GRID_M * (float((inside * columns).sum() / inside.sum()) + 0.5)
        return PlateSight(np.array([x, y]), score)


@lru_cache(maxsize=64)
def _corners(yaw: float) -> Array:
    """Return (8, 3) corners of a turned cube around its centre."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    turn = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    signs = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])  # (8, 3)
    return np.asarray(signs * (CUBE_EDGE_M / 2) @ turn.T, dtype=np.float64)


def _centroid(outline: Array) -> Array:
    """Return (2,): the centre of the area inside a convex outline (n, 2)."""
    following = np.roll(outline, -1, axis=0)
    cross = outline[:, 0] * following[:, 1] - following[:, 0] * outline[:, 1]  # (n,)
    weighted = (outline + following) * cross[:, None]  # (n, 2)
    return np.asarray(weighted.sum(axis=0) / (3 * cross.sum()), dtype=np.float64)


def _overlap(outline: Array, blob: Blob) -> float:
    """Return intersection over union of the outline's inside and the blob."""
    low = np.minimum(np.floor(outline.min(axis=0)).astype(int), blob.corner_px)
    size = np.array(blob.mask.shape[::-1])
    high = np.maximum(np.ceil(outline.max(axis=0)).astype(int), blob.corner_px + size)
    width, height = (high - low + 1).tolist()
    drawn = np.zeros((height, width), dtype=np.uint8)
    # fillConvexPoly counts from pixel centres, in sixteenths here.
    points = np.round((outline - low - 0.5) * 16).astype(np.int32)  # (n, 2)
    cv2.fillConvexPoly(drawn, points, 255, lineType=cv2.LINE_8, shift=4)
    column, row = np.array(blob.corner_px) - low
    window = drawn[row : row + size[1], column : column + size[0]]
    common = cv2.countNonZero(cv2.bitwise_and(window, blob.mask))
    return common / max(1.0, cv2.countNonZero(drawn) + blob.area_px - common)


def _grid_size() -> tuple[int, int]:
    """Width (along y) and height (along x) of the view from above, in cells."""
    return (
        round((_GRID_Y_M[1] - _GRID_Y_M[0]) / _GRID_M),
        round((_GRID_X_M[1] - _GRID_X_M[0]) / _GRID_M),
    )


@lru_cache(maxsize=8)
def _table_view(camera: Camera, width: int, height: int) -> Any:
    """Return the (3, 3) homography from the image to the view from above, at the plate's top."""
    columns, rows = _grid_size()
    (x0, x1), (y0, y1) = _GRID_X_M, _GRID_Y_M
    corners = [(x0, y0, PLATE_HEIGHT_M), (x0, y1, PLATE_HEIGHT_M)]
    corners += [(x1, y1, PLATE_HEIGHT_M), (x1, y0, PLATE_HEIGHT_M)]
    seen = camera.project(corners, width, height).astype(np.float32) - 0.5  # (4, 2)
    cells = np.array([(0, 0), (columns, 0), (columns, rows), (0, rows)], dtype=np.float32) - 0.5
    return cv2.getPerspectiveTransform(seen, cells)


@lru_cache(maxsize=1)
def _plate_kernel() -> npt.NDArray[np.float32]:
    """A disc of mean weight 1 inside the plate's radius, a ring of negative weight around it."""
    radius = PLATE_RADIUS_M / _GRID_M
    reach = int(radius) + 4
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    distance = np.hypot(rows, columns)  # (k, k), k = 2 · reach + 1
    disc = distance <= radius
    ring = (distance > radius + 1) & (distance <= radius + 4)
    return np.asarray(disc / disc.sum() - 0.5 * ring / ring.sum(), dtype=np.float32)
