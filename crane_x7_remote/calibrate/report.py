"""What a calibration found → the text of CAMERA_POSE's file, and a picture to check it by eye."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import yaml

from crane_x7_remote.calibrate.board import Board, Placement
from crane_x7_remote.calibrate.lens_fit import LensFit
from crane_x7_remote.calibrate.pose_fit import PoseFit
from crane_x7_vla_rl import camera_pose
from crane_x7_vla_rl.camera import Point
from crane_x7_vla_rl.camera_pose import CameraPose
from crane_x7_vla_rl.types import Image

GRID_M = (np.arange(0.0, 0.41, 0.1), np.arange(-0.2, 0.21, 0.1))
"""Lines on the table, every 0.1 m: x from the base forward, y to both sides."""


@dataclass(frozen=True)
class Calibration:
    """Everything that a file of CAMERA_POSE is made of."""

    board: Board
    placement: Placement
    lens: LensFit | None
    """None: the lens is that of an earlier file."""
    pose: PoseFit

    def summary(self) -> list[str]:
        """Return the results, one per line."""
        pose, lines = self.pose.pose, []
        assert pose.lens is not None
        assert pose.horizontal_fov_rad is not None
        (fx, fy), size = pose.lens.focal_px, pose.lens.size_px
        if self.lens is not None:
            lines.append(
                f"lens from {self.lens.views} views, {self.lens.covered:.0%} of the image: corners"
                f" within {self.lens.error_px:.2f} px (root mean square), focal length"
                f" {fx:.1f}, {fy:.1f} px, known to {self.lens.focal_error_px:.1f} px"
            )
        displaced_px = pose.lens.most_displaced_px(pose.horizontal_fov_rad)
        lines += [
            f"the lens moves pixels by up to {displaced_px:.1f} px of {size[0]}x{size[1]}",
            "position ({:.3f}, {:.3f}, {:.3f}) m".format(*pose.position_m)
            + f", corners within {self.pose.error_px:.2f} px: known to"
            f" {1e3 * self.pose.position_error_m:.1f} mm and"
            f" {math.degrees(self.pose.direction_error_rad):.2f} degrees, plus the error of the"
            " board's place",
        ]
        return lines

    def as_yaml(self) -> str:
        """Return the file; it reads back as the same pose."""
        x, y, z = self.placement.origin_m
        head = [
            "The camera's pose and lens, by `crane-x7-remote calibrate`. CAMERA_POSE names this"
            " file.",
            f"Board of {1e3 * self.board.square_m:g} mm squares, its ORIGIN at ({x:g}, {y:g},"
            f" {z:g}) m, arrow X at {math.degrees(self.placement.yaw_rad):g} degrees.",
            *self.summary(),
        ]
        values = yaml.safe_load(self.pose.pose.to_json())
        text = "".join(f"# {line}\n" for line in head)
        return text + yaml.safe_dump(values, sort_keys=False, default_flow_style=None)


def read_back(text: str, where: str) -> CameraPose:
    """Return the pose in the text of a file; raises CameraPoseError for a bug in `as_yaml`."""
    return camera_pose.parse(yaml.safe_load(text), where)


def overlay(image: Image, pose: CameraPose) -> Image:
    """Return the rectified image with the base's axes and a grid of 0.1 m on the table.

    Red is x, away from the robot; green is y, to its left; blue is z, up.
    """
    drawn = np.ascontiguousarray(pose.rectified(image))
    height, width = drawn.shape[:2]
    camera = pose.camera(width, height)

    def line(start: Point, end: Point, colour: tuple[int, int, int], px: int) -> None:
        ends = camera.project([start, end], width, height)
        if not np.isfinite(ends).all() or np.abs(ends).max() > 10 * width:
            return
        first, last = ([round(float(value)) for value in point] for point in ends)
        cv2.line(drawn, first, last, colour, px, cv2.LINE_AA)

    xs, ys = GRID_M
    for x in xs.tolist():
        line((x, ys[0], 0.0), (x, ys[-1], 0.0), (255, 255, 255), 1)
    for y in ys.tolist():
        line((xs[0], y, 0.0), (xs[-1], y, 0.0), (255, 255, 255), 1)
    line((0, 0, 0), (0.2, 0, 0), (255, 0, 0), 3)
    line((0, 0, 0), (0, 0.2, 0), (0, 200, 0), 3)
    line((0, 0, 0), (0, 0, 0.2), (0, 0, 255), 3)
    return drawn
