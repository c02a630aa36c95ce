"""Views of the board → the camera's lens, or what the views lack.

Zhang's method, as OpenCV has it. Each check names what to do: a fit always gives numbers, also from
views that cannot determine them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from crane_x7_remote.calibrate.views import View
from crane_x7_remote.errors import CalibrationError
from crane_x7_vla_rl.lens import Lens

Array = npt.NDArray[np.float64]

logger = logging.getLogger(__name__)

FEWEST_VIEWS: Final = 10
GRID: Final = (4, 3)
"""The image in cells, across and down, for its coverage."""
LEAST_COVERED: Final = 0.75
TILT_DEG: Final = 15.0
"""A view counts as tilted from here: seen straight, a nearer board looks like a longer lens."""
FEWEST_TILTED: Final = 4
APART_DEG: Final = 60.0
"""Tilts must differ by this much in direction: one alone determines one focal length of two."""
MOST_ERROR_PX: Final = 1.0
"""Root mean square distance between a corner and its place in the model."""
MOST_FOCAL_ERROR: Final = 0.005
"""Standard deviation of the focal length, as a share of it."""
OUTLIER: Final = 3.0
"""A view with an error of more than this many medians is left out."""
MOST_LEFT_OUT: Final = 0.2
SQUARE_PIXELS: Final = 0.02


@dataclass(frozen=True)
class LensFit:
    """The lens and how well the views determine it."""

    lens: Lens
    error_px: float
    """Root mean square over all corners."""
    focal_error_px: float
    """Standard deviation of the larger of fx and fy."""
    views: int
    covered: float
    """Share of the image's cells with a corner in them."""


def fit(views: Sequence[View]) -> LensFit:
    """Return the lens; raises CalibrationError with what is missing."""
    _check_size(views)
    problems = [*_too_few(views), *_uncovered(views)]
    if len(views) < 3:
        raise _unusable(problems)
    solved = _solve(views)
    errors = solved.errors_px
    kept = [
        view
        for view, error in zip(views, errors, strict=True)
        if error <= max(OUTLIER * np.median(errors), MOST_ERROR_PX)
    ]
    left_out = len(views) - len(kept)
    if 0 < left_out <= MOST_LEFT_OUT * len(views):
        names = ", ".join(view.name for view in views if view not in kept)
        logger.warning("left out, as they do not agree with the others: %s", names)
        views, solved = kept, _solve(kept)
        problems = [*_too_few(views), *_uncovered(views)]
    problems += [*_not_tilted(solved.rotations), *_inaccurate(solved)]
    if problems:
        raise _unusable(problems)
    return LensFit(
        lens=solved.lens,
        error_px=solved.error_px,
        focal_error_px=float(solved.deviations[:2].max()),
        views=len(views),
        covered=float(np.mean(_cells(views))),
    )


@dataclass(frozen=True, eq=False)
class _Solved:
    lens: Lens
    error_px: float
    errors_px: Array
    """(V,) per view."""
    deviations: Array
    """Standard deviations of fx, fy, cx, cy, k1, k2, p1, p2, k3."""
    rotations: list[Array]
    """V times (3, 3), from the board to the camera."""


def _solve(views: Sequence[View]) -> _Solved:
    size = views[0].size_px
    try:
        error_px, matrix, distortion, found, _, deviations, _, errors = cv2.calibrateCameraExtended(
            [view.board_m.astype(np.float32) for view in views],
            [view.pixels.astype(np.float32) for view in views],
            size,
            None,
            None,
            # Views of a flat board rarely reach where k3 differs from k2.
            flags=cv2.CALIB_FIX_K3,
        )
    except cv2.error as error:
        raise CalibrationError(
            f"the views do not determine a lens ({error.err}); take them again, with the board"
            " tilted in several directions"
        ) from error
    k1, k2, p1, p2, k3 = np.ravel(distortion)[:5].tolist()
    focal = (float(matrix[0, 0]), float(matrix[1, 1]))
    centre = (float(matrix[0, 2]), float(matrix[1, 2]))
    return _Solved(
        Lens(focal, centre, (k1, k2, p1, p2, k3), size),
        float(error_px),
        np.ravel(errors).astype(np.float64),
        np.ravel(deviations)[:9].astype(np.float64),
        [np.asarray(cv2.Rodrigues(turn)[0]) for turn in found],
    )


def _check_size(views: Sequence[View]) -> None:
    sizes = {view.size_px for view in views}
    if len(sizes) > 1:
        listed = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise CalibrationError(f"the images have different sizes, {listed}; expected one size")


def _too_few(views: Sequence[View]) -> list[str]:
    if len(views) >= FEWEST_VIEWS:
        return []
    return [
        f"{len(views)} usable views of the board, expected {FEWEST_VIEWS} or more, better 20: take"
        " more images"
    ]


def _cells(views: Sequence[View]) -> npt.NDArray[np.bool_]:
    """Return (down, across), whether a corner was seen in the cell."""
    across, down = GRID
    seen = np.zeros((down, across), bool)
    for view in views:
        column = (view.pixels[:, 0] / view.size_px[0] * across).astype(int).clip(0, across - 1)
        row = (view.pixels[:, 1] / view.size_px[1] * down).astype(int).clip(0, down - 1)
        seen[row, column] = True
    return seen


def _uncovered(views: Sequence[View]) -> list[str]:
    if not views:
        return []
    seen = _cells(views)
    if seen.mean() >= LEAST_COVERED:
        return []
    down, across = ("top", "middle", "bottom"), ("far left", "left", "right", "far right")
    missing = [f"{down[row]} {across[column]}" for row, column in np.argwhere(~seen)]
    return [
        f"the board was seen in {seen.mean():.0%} of the image, expected {LEAST_COVERED:.0%}: show"
        f" it at {', '.join(missing)}"
    ]


def _not_tilted(rotations: Sequence[Array]) -> list[str]:
    """Return a problem if the views are from one angle; the third column is the board's normal."""
    normals = np.array([rotation[:, 2] for rotation in rotations])
    tilts_deg = np.degrees(np.arccos(np.clip(np.abs(normals[:, 2]), 0, 1)))
    directions = np.arctan2(normals[:, 1], normals[:, 0])[tilts_deg >= TILT_DEG]
    # Modulo half a turn: leaning to the left and to the right determine the same focal length.
    doubled = np.exp(2j * directions)
    spread_deg = np.degrees(np.abs(np.angle(doubled[:, None] / doubled[None]))).max(initial=0) / 2
    if len(directions) >= FEWEST_TILTED and spread_deg >= APART_DEG:
        return []
    return [
        f"{len(directions)} views are tilted by {TILT_DEG:g} degrees or more, in directions up to"
        f" {spread_deg:.0f} degrees apart; expected {FEWEST_TILTED} views and {APART_DEG:g}"
        " degrees: tilt the board about its long and its short edge"
    ]


def _inaccurate(solved: _Solved) -> list[str]:
    problems = []
    if solved.error_px > MOST_ERROR_PX:
        problems.append(
            f"the corners are {solved.error_px:.2f} px from the model's, expected at most"
            f" {MOST_ERROR_PX:g}: the paper is not flat, the images are blurred, or it is another"
            " board"
        )
    (fx, fy), (width, height) = solved.lens.focal_px, solved.lens.size_px
    share = float(max(solved.deviations[0] / fx, solved.deviations[1] / fy))
    if not share <= MOST_FOCAL_ERROR:
        problems.append(
            f"the focal length is only known to {share:.1%}, expected {MOST_FOCAL_ERROR:.1%}: take"
            " more views, closer and more tilted"
        )
    if abs(fx / fy - 1) > SQUARE_PIXELS:
        problems.append(
            f"fx is {fx:.0f} and fy {fy:.0f} px, but pixels are square: the images are stretched,"
            " or the views too few"
        )
    cx, cy = solved.lens.centre_px
    if not (0.25 * width < cx < 0.75 * width and 0.25 * height < cy < 0.75 * height):
        problems.append(
            f"the optical axis is at ({cx:.0f}, {cy:.0f}) px of {width}x{height}: the image is a"
            " part of the camera's, or the views are too few"
        )
    return problems


def _unusable(problems: Sequence[str]) -> CalibrationError:
    lines: Any = "".join(f"\n  {problem}" for problem in problems)
    return CalibrationError(f"the views do not determine the lens:{lines}")
