"""The board at its known place, seen through a known lens → the camera's pose in the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from crane_x7_remote.calibrate.board import Placement
from crane_x7_remote.calibrate.views import View
from crane_x7_remote.errors import CalibrationError
from crane_x7_vla_rl.camera_pose import FARTHEST_M, CameraPose
from crane_x7_vla_rl.lens import Lens

Array = npt.NDArray[np.float64]

MOST_ERROR_PX: Final = 1.5
MOST_DEVIATION_M: Final = 0.005
AMBIGUOUS_DEG: Final = 3.0
AMBIGUOUS_RATIO: Final = 1.5


@dataclass(frozen=True)
class PoseFit:
    """The pose, and what its corners say about its accuracy: the board's placement adds to it."""

    pose: CameraPose
    error_px: float
    position_error_m: float
    """Standard deviation of the position, from the corners alone."""
    direction_error_rad: float
    """The same of the direction."""


def fit(views: Sequence[View], lens: Lens, placement: Placement) -> PoseFit:
    """Return the camera's pose; raises CalibrationError.

    `views` show the board at its place, all from the same camera at rest.
    """
    if not views:
        raise CalibrationError(
            "no usable image shows the board at its place; lay it flat, in full view of the camera"
        )
    size = lens.size_px
    for view in views:
        if view.size_px != size:
            raise CalibrationError(
                f"{view.name} is {view.size_px[0]}x{view.size_px[1]}, but the lens was measured"
                f" with {size[0]}x{size[1]}; use images of one size"
            )
    board_m = np.concatenate([view.board_m for view in views])
    pixels = np.concatenate([view.pixels for view in views])
    matrix, distortion = lens.matrix(*size), np.array(lens.distortion)
    turn, shift = _solve(board_m, pixels, matrix, distortion)
    drawn, slopes = cv2.projectPoints(board_m, turn, shift, matrix, distortion)
    residuals = (drawn[:, 0] - pixels).astype(np.float64)  # (N, 2)
    error_px = float(np.sqrt((residuals**2).sum(axis=1).mean()))
    if error_px > MOST_ERROR_PX:
        raise CalibrationError(
            f"the placed board's corners are {error_px:.2f} px from where the lens would show them,"
            f" expected at most {MOST_ERROR_PX:g}: board, paper or camera moved between the images,"
            " or the lens is another one"
        )
    rotation, position = _in_base(turn, shift, placement)
    _check_position(position)
    # Refined corners of one image share their errors: at least 0.1 px is assumed.
    spread_px = max(float(residuals.std()), 0.1)
    covariance = np.linalg.inv(slopes[:, :6].T @ slopes[:, :6]) * spread_px**2
    position_error_m, direction_error_rad = _deviations(turn, shift, covariance)
    if position_error_m > MOST_DEVIATION_M:
        raise CalibrationError(
            f"the position is only known to {1e3 * position_error_m:.1f} mm, expected"
            f" {1e3 * MOST_DEVIATION_M:g}: bring the board closer to the camera, or print larger"
            " squares"
        )
    pose = _as_pose(rotation, position, lens)
    return PoseFit(pose, error_px, position_error_m, direction_error_rad)


def _solve(board_m: Array, pixels: Array, matrix: Array, distortion: Array) -> tuple[Array, Array]:
    """Return the board's turn (3,) and shift (3,) in the camera's frame, the better of the two that
    a flat board allows."""
    found, turns, shifts, errors = cv2.solvePnPGeneric(
        board_m, pixels, matrix, distortion, flags=cv2.SOLVEPNP_IPPE
    )
    if not found:
        raise CalibrationError("the placed board's corners give no pose; show it larger")
    if len(turns) > 1 and errors[0] <= MOST_ERROR_PX:
        _check_ambiguity(turns, np.ravel(errors))
    turn, shift = cv2.solvePnPRefineLM(board_m, pixels, matrix, distortion, turns[0], shifts[0])
    return np.ravel(turn).astype(np.float64), np.ravel(shift).astype(np.float64)


def _check_ambiguity(rotations: Sequence[Array], errors: Array) -> None:
    """A flat board that is small in the image looks the same when it leans the other way."""
    first, second = (np.asarray(cv2.Rodrigues(turn)[0]) for turn in rotations[:2])
    cosine = (np.trace(first.T @ second) - 1) / 2
    apart_deg = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    if apart_deg > AMBIGUOUS_DEG and errors[1] < AMBIGUOUS_RATIO * errors[0]:
        raise CalibrationError(
            f"the placed board fits two poses, {apart_deg:.0f} degrees apart, equally well: it is"
            " too small in the image; bring it closer to the camera, or print larger squares"
        )


def _in_base(turn: Array, shift: Array, placement: Placement) -> tuple[Array, Array]:
    """Return the camera's rotation (3, 3) and position (3,) in the base."""
    camera_from_board = np.eye(4)
    camera_from_board[:3, :3] = cv2.Rodrigues(turn)[0]
    camera_from_board[:3, 3] = shift
    base_from_camera = placement.base_from_charuco() @ np.linalg.inv(camera_from_board)
    return base_from_camera[:3, :3], base_from_camera[:3, 3]


def _check_position(position: Array) -> None:
    x, y, z = position.tolist()
    if z <= 0:
        raise CalibrationError(
            f"the camera would be at z = {z:.2f} m, below the board: the sheet lies face down, or"
            " the image is mirrored"
        )
    if max(abs(x), abs(y), z) > FARTHEST_M:
        raise CalibrationError(
            f"the camera would be at ({x:.1f}, {y:.1f}, {z:.1f}) m; check --square-mm and"
            " --origin-m, which is in metres"
        )


def _deviations(turn: Array, shift: Array, covariance: Array) -> tuple[float, float]:
    """Return the deviation of the camera's position in the board's frame, and of its direction.

    The position is -Rᵀt: its slope by turn and shift is taken by differences.
    """

    def position(values: Array) -> Array:
        rotation = np.asarray(cv2.Rodrigues(values[:3])[0])
        return np.asarray(-rotation.T @ values[3:])

    values, step = np.concatenate([turn, shift]), 1e-6
    slopes = np.column_stack(
        [(position(values + step * unit) - position(values - step * unit)) / (2 * step)
         for unit in np.eye(6)]
    )  # fmt: skip
    spread = slopes @ covariance @ slopes.T
    return float(np.sqrt(np.trace(spread))), float(np.sqrt(np.trace(covariance[:3, :3])))


def _as_pose(rotation: Array, position: Array, lens: Lens) -> CameraPose:
    forward, up = rotation[:, 2], -rotation[:, 1]
    width = lens.size_px[0]
    x, y, z = position.tolist()
    to_x, to_y, to_z = (position + forward).tolist()
    up_x, up_y, up_z = up.tolist()
    return CameraPose(
        (x, y, z),
        (to_x, to_y, to_z),
        (up_x, up_y, up_z),
        horizontal_fov_rad=float(2 * np.arctan(width / 2 / lens.focal_px[0])),
        size_px=lens.size_px,
        lens=lens,
    )
