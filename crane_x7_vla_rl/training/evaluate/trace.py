"""How far an episode came: the true state after each step → its furthest phase and distances.

Reads state that no policy sees, so that a page of failures can say where an episode failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from crane_x7_vla_rl.scenes import PICK_PLACE_ID
from crane_x7_vla_rl.sim.layout import PLATE_RADIUS_M
from crane_x7_vla_rl.sim.scene import CUBE_HALF_M, LIFT_M
from crane_x7_vla_rl.sim.world import World

REACHED_M: Final = 0.03
"""From the fingertips to the cube's centre: the cube is between the fingers."""
RAISED_M: Final = 0.02
"""Above a cube that rests on the table: more than one that tips over, or lies on the plate."""


class Phase(StrEnum):
    """Where an episode ended that did not succeed."""

    REACH = "reach"
    """The fingertips never came to the named cube."""
    GRASP = "grasp"
    """They did, and never held it."""
    LIFT = "lift"
    """It was held, and never 10 cm up."""
    HOLD = "hold"
    """It was up, and not for long enough."""
    CARRY = "carry"
    """It was up, and never over the plate."""
    RELEASE = "release"
    """It was over the plate, and not at rest there with the hand away."""
    DONE = "done"


WORDS: Final = {
    Phase.REACH: "the hand did not reach the named cube",
    Phase.GRASP: "the hand reached the cube and did not hold it",
    Phase.LIFT: "the cube was held and not lifted by 10 cm",
    Phase.HOLD: "the cube was lifted and not held for half a second",
    Phase.CARRY: "the cube was lifted and not brought over the plate",
    Phase.RELEASE: "the cube was over the plate and not left at rest there",
    Phase.DONE: "done",
}


@dataclass
class Trace:
    """What has happened in one episode so far."""

    nearest_m: float = float("inf")
    """Smallest distance from the fingertips to the named cube."""
    grasped: bool = False
    highest_m: float = 0.0
    """Of the named cube while it was held, above its start."""
    over_plate: bool = False
    """It was lifted, and then over the plate."""
    first: str | None = None
    """Colour of the cube that was raised first."""

    def note(self, world: World) -> None:
        """Look at the scene after a step."""
        scene = world.scene
        places = {colour: _point(cube.pose.p[0]) for colour, cube in scene.cubes.items()}
        if self.first is None:
            raised = [name for name, at in places.items() if at[2] > CUBE_HALF_M + RAISED_M]
            self.first = next(iter(raised), None)
        cube = places[world.named_colour]
        self.nearest_m = min(self.nearest_m, _distance(_point(scene.tool_position()[0]) - cube))
        if world.is_grasped:
            self.grasped = True
            self.highest_m = max(self.highest_m, world.height_m)
        plate = _point(scene.plate.pose.p[0])
        if self.highest_m > LIFT_M / 2 and _distance((plate - cube)[:2]) < PLATE_RADIUS_M:
            self.over_plate = True

    def phase(self, task: str, success: bool) -> Phase:
        """Return where it failed."""
        if success:
            return Phase.DONE
        if not self.grasped:
            return Phase.REACH if self.nearest_m > REACHED_M else Phase.GRASP
        if task == PICK_PLACE_ID and self.over_plate:
            return Phase.RELEASE
        if self.highest_m < LIFT_M:
            return Phase.LIFT
        return Phase.CARRY if task == PICK_PLACE_ID else Phase.HOLD


def _point(values: object) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.asarray(values, dtype=np.float64)


def _distance(vector: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    return float(np.linalg.norm(vector))
