"""Memory of cubes and plate: images → positions, as last seen clearly.

The arm hides objects from the camera, so a position that was seen clearly is kept until the object
is seen elsewhere. Positions in m in the world frame of `camera`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from crane_x7_vla_rl.policies.color_servo import vision
from crane_x7_vla_rl.policies.color_servo.vision import CubeSight, Picture
from crane_x7_vla_rl.policies.words import CUBE_COLOURS
from crane_x7_vla_rl.types import Array

COLOURS: Final = CUBE_COLOURS
CLEAR_FIT, FAIR_FIT = 0.75, 0.45
"""Least fit of a detection: while the arm may hide a part of the cube, and while it does not."""
SURE_PLATE_SCORE: Final = 0.9
PLATE_EVERY: Final = 4
"""The plate is searched in one of this many frames."""
AT_TOOL_M: Final = 0.06
"""A held cube is seen within this distance of the tool point."""
FREE_M: Final = 0.065
"""Distance from a free spot to the nearest cube."""
FREE_OF_PLATE_M: Final = vision.PLATE_RADIUS_M + 0.04


@dataclass(frozen=True, eq=False)
class Remembered:
    """A cube that is not held."""

    sight: CubeSight
    seen_s: float


class SceneMemory:
    """Positions of the cubes and the plate, as last seen clearly."""

    def __init__(self) -> None:
        self.cubes: dict[str, Remembered] = {}
        self.plate_m: Array | None = None
        """(2,) x, y of the plate's centre."""
        self._frames = 0

    def see(
        self, picture: Picture, time_s: float, *, named: str | None, held: str | None, clear: bool
    ) -> None:
        """Update from an image: the `named` cube always, the others and the plate alternately.

        A `held` cube has no place. `clear`: the arm hides nothing.
        """
        if self._frames % PLATE_EVERY == 0:
            plate = picture.plate()
            if plate is not None and (self.plate_m is None or plate.score > SURE_PLATE_SCORE):
                self.plate_m = plate.position_m
        if held is not None:
            self.cubes.pop(held, None)
        least_fit = FAIR_FIT if clear else CLEAR_FIT
        for colour in {named, COLOURS[self._frames % len(COLOURS)]} - {None, held}:
            assert colour is not None
            sight = self._sight(picture, colour)
            if sight is not None and sight.fit >= least_fit:
                self.cubes[colour] = Remembered(sight, time_s)
        self._frames += 1

    def _sight(self, picture: Picture, colour: str) -> CubeSight | None:
        blob = picture.blob(colour)
        if blob is None:
            return None
        sight = picture.fit_cube(blob)
        if self.is_on_plate(sight.position_m):
            sight = picture.fit_cube(blob, vision.PLATE_HEIGHT_M)
        return sight

    def is_on_plate(self, position_m: Array) -> bool:
        """Whether a cube's centre at `position_m`, (2,) or (3,), is above the plate."""
        return self.plate_m is not None and bool(
            np.linalg.norm(position_m[:2] - self.plate_m) < vision.PLATE_RADIUS_M
        )

    def support_m(self, position_m: Array) -> float:
        """Return the height of the surface under a cube at `position_m`."""
        return vision.PLATE_HEIGHT_M if self.is_on_plate(position_m) else 0.0

    def clearance_m(self, position_m: Array, *, but: str | None) -> float:
        """Return the distance of the nearest cube, except that of colour `but`."""
        others = [kept.sight.position_m for colour, kept in self.cubes.items() if colour != but]
        away = [float(np.linalg.norm(other[:2] - position_m[:2])) for other in others]
        return min(away, default=np.inf)

    def free_spot(self, near_m: Array, *, held: str) -> Array | None:
        """Return (2,): the free spot on the table nearest to `near_m`, None if all are taken."""
        rows, columns = np.meshgrid(np.arange(0.17, 0.31, 0.01), np.arange(-0.14, 0.15, 0.01))
        spots = np.column_stack([rows.ravel(), columns.ravel()])
        free = [spot for spot in spots if self._is_free(spot, held)]
        return min(free, key=lambda spot: float(np.linalg.norm(spot - near_m[:2])), default=None)

    def _is_free(self, spot: Array, held: str) -> bool:
        if self.plate_m is not None and np.linalg.norm(spot - self.plate_m) < FREE_OF_PLATE_M:
            return False
        return self.clearance_m(spot, but=held) > FREE_M


def is_seen_at(picture: Picture, colour: str, tool_m: Array) -> bool | None:
    """Whether `colour` is seen near the tool point (3,); None if it is not seen at all."""
    blob = picture.blob(colour)
    if blob is None:
        return None
    expected, limit = picture.project([tool_m, tool_m + np.array([0.0, AT_TOOL_M, 0.0])])
    away = np.linalg.norm(blob.centre_px - expected)
    return bool(away < np.linalg.norm(limit - expected))
