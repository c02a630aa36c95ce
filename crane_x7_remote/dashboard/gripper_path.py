"""Where the gripper will go, in the camera's image. Joint path, camera pose → points of the image.

Legend: T points of a path; u right, v down, as shares of the image's width and height. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from crane_x7_vla_rl import kinematics
from crane_x7_vla_rl.camera_pose import CameraPose
from crane_x7_vla_rl.types import Array

POINTS: Final = 10
"""Points of the drawn path; the browser draws a smooth line through them."""
UNKNOWN: Final = "path not drawn: the camera's pose is unknown (CAMERA_POSE)"


def ahead(time_from_start_s: Array, position_rad: Array, since_start_s: float) -> Array | None:
    """Return (POINTS, 8) positions of the path (T, 8) from now on; None if it has ended."""
    ends_s = float(time_from_start_s[-1])
    if since_start_s >= ends_s:
        return None
    times_s = np.linspace(max(since_start_s, float(time_from_start_s[0])), ends_s, POINTS)
    columns = [
        np.interp(times_s, time_from_start_s, position_rad[:, joint])
        for joint in range(position_rad.shape[1])
    ]
    return np.column_stack(columns)


def in_image(
    position_rad: Sequence[Sequence[float]] | Array, pose: CameraPose, size: tuple[int, int]
) -> list[list[float]]:
    """Return [u, v] of the gripper at each position (T, 8); those outside the image are left out.

    Raises CameraPoseError if the pose is for images of another aspect ratio.
    """
    width, height = size
    camera = pose.camera(width, height)
    tools_m = np.array([kinematics.tool_frame(each)[:3, 3] for each in position_rad])  # (T, 3)
    shares = camera.project(tools_m, width, height) / (width, height)  # (T, 2)
    seen = np.isfinite(shares).all(axis=1) & (np.abs(shares - 0.5) < 1.0).all(axis=1)
    return [[round(float(u), 4), round(float(v), 4)] for u, v in shares[seen]]
