"""Layouts: a random generator → (C + 1, 3) x, y, yaw of C cubes, then the plate.

In m and rad, in the world's frame. No two objects touch, and the open fingers fit between any two.
Needs only numpy.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

import numpy as np

from crane_x7_vla_rl.types import Array

PLATE_RADIUS_M: Final = 0.06
SPOTS_M: Final = ((0.19, -0.10), (0.19, 0.10), (0.29, -0.07), (0.29, 0.07))
"""(x, y) around which objects are placed: in reach from above and in view of the base camera."""
ASIDE_M: Final = ((0.65, -0.40, 0.0), (0.60, -0.40, 0.0))
"""(x, y, yaw) at the edge of the table, out of reach."""
CUBE_GAP_M: Final = 0.06
"""Least distance of two cubes' centres: the open fingers fit between them."""
PLATE_GAP_M: Final = PLATE_RADIUS_M + 0.035


class Arrangement(Enum):
    """Ways to rearrange cubes."""

    ANY = auto()
    """As at the start of an episode."""
    ALONE = auto()
    """The named cube so, the others aside."""
    SORTED = auto()
    """Sorted from right to left by colour."""
    EXCHANGED = auto()
    """Each at the present place of the next one: the same image except for the colours."""


def draw(generator: np.random.RandomState, cubes: int, spread_m: float) -> Array:
    """Return a layout; each object is off its spot by at most `spread_m` along x and y."""
    while True:
        spots = np.array(SPOTS_M)[generator.permutation(len(SPOTS_M))[: cubes + 1]]
        spots = spots + generator.uniform(-spread_m, spread_m, spots.shape)
        apart = np.linalg.norm(spots[:, None] - spots[None], axis=-1)
        apart[np.diag_indices(cubes + 1)] = np.inf
        if apart.min() >= CUBE_GAP_M and apart[-1].min() >= PLATE_GAP_M:
            yaw = generator.uniform(-np.pi / 4, np.pi / 4, cubes + 1)
            return np.column_stack([spots, yaw])


def arrange(layout: Array, how: Arrangement, named: int) -> Array:
    """Return a random layout of the kind `how`; `named` is the cube in the instruction."""
    arranged = layout.copy()
    cubes = arranged[:-1]
    if how is Arrangement.SORTED:
        cubes[:] = cubes[np.argsort(cubes[:, 1])]
    elif how is Arrangement.ALONE:
        others = np.arange(len(cubes)) != named
        cubes[others] = np.array(ASIDE_M)[: others.sum()]
    return arranged
