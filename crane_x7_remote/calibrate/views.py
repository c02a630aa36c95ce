"""One image → a `View`, the board's corners in it, or why the image is of no use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from crane_x7_remote.calibrate.board import Board
from crane_x7_vla_rl.types import Image

Array = npt.NDArray[np.float64]

FEWEST_CORNERS: Final = 12
"""Of 35; fewer say little about the board's tilt."""
WIDEST_EDGE_PX: Final = 4.5
"""An edge between black and white that takes more pixels is blurred: motion, or out of focus."""
PATCH_PX: Final = 6


class UnusableError(ValueError):
    """An image of no use; the message completes `NAME: `."""


@dataclass(frozen=True, eq=False)
class View:
    """The board as seen in one image."""

    name: str
    size_px: tuple[int, int]
    """Width, height of the image."""
    ids: npt.NDArray[np.int32]
    """(N,) number of each corner."""
    board_m: Array
    """(N, 3) corners in OpenCV's frame of the board."""
    pixels: Array
    """(N, 2) the same corners in the image; (0, 0) is the centre of the upper left pixel."""
    edge_px: float
    """How many pixels an edge between black and white takes."""


def look(board: Board, image: Image, name: str) -> View:
    """Return the board in the image (H, W, 3) RGB; raises UnusableError."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    corners, ids, _, marker_ids = board.detector.detectBoard(grey)
    if corners is None or len(corners) == 0:
        raise UnusableError(_nothing_found(marker_ids))
    if len(corners) < FEWEST_CORNERS:
        raise UnusableError(
            f"only {len(corners)} corners of the board are visible, expected {FEWEST_CORNERS} or"
            " more of 35: show more of it, closer, and hold it still"
        )
    board_m, pixels = board.charuco.matchImagePoints(corners, ids)
    pixels = pixels.reshape(-1, 2).astype(np.float64)
    edge_px = edge_width_px(grey, pixels)
    if edge_px > WIDEST_EDGE_PX:
        raise UnusableError(
            f"is blurred: an edge takes {edge_px:.1f} pixels, expected at most"
            f" {WIDEST_EDGE_PX:g}; hold the board still, in more light, and focus the camera"
        )
    height, width = grey.shape
    return View(
        name,
        (width, height),
        np.ravel(ids),
        board_m.reshape(-1, 3).astype(np.float64),
        pixels,
        edge_px,
    )


def _nothing_found(marker_ids: npt.NDArray[np.int32] | None) -> str:
    if marker_ids is None or len(marker_ids) == 0:
        return (
            "shows no marker of the board: not in view, too dark, blurred or too far away, or it is"
            " not the board that `calibrate board` prints"
        )
    return (
        f"shows {len(marker_ids)} markers but no corner of the board: too far away, or another"
        " board with the same markers; print `calibrate board`"
    )


def edge_width_px(grey: npt.NDArray[np.uint8], pixels: Array) -> float:
    """Return the median over the corners of contrast over steepest change, in pixels."""
    height, width = grey.shape
    across = cv2.Sobel(grey, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    down = cv2.Sobel(grey, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    steepness = np.hypot(across, down)
    widths = []
    for x, y in np.rint(pixels).astype(int):
        rows = slice(max(y - PATCH_PX, 0), min(y + PATCH_PX + 1, height))
        columns = slice(max(x - PATCH_PX, 0), min(x + PATCH_PX + 1, width))
        patch, steep = grey[rows, columns], steepness[rows, columns]
        contrast = float(np.percentile(patch, 95)) - float(np.percentile(patch, 5))
        widths.append(contrast / max(float(steep.max()), 1e-6))
    return float(np.median(widths))
