"""How a product with 8-bit weights is cut into programs. Rows, shape → `Tiles`.

`TABLE` holds what was measured, by `low_bit_tune.tune`; a shape that is not in it follows a rule
from counted bytes. Tiles change speed, and results by rounding alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ROWS: Final = 16
"""Rows of activations up to which a product with 8-bit weights is used."""
FEW: Final = 8
"""Rows of a tensor core's smallest tile; up to 16 take two of them."""
PROGRAMS: Final = 384
"""About three per multiprocessor of an H200 (132): with 12 kB in flight each, 36 kB where
4.3 TB/s at 0.7 µs of latency need 23."""


@dataclass(frozen=True)
class Tiles:
    """Sizes of one program, and how many share the inputs."""

    outputs: int
    """Rows of the weight; 16 for each of the program's warps."""
    inputs: int
    """Columns of the weight read at once; a group of scales holds a whole number of them."""
    stages: int
    """Buffers between memory and arithmetic: all but one are being filled."""
    split: int
    """Programs that share the columns of a row; their sums are added in a fixed order."""

    @property
    def warps(self) -> int:
        """Each multiplies 16 rows of the weight."""
        return self.outputs // 16


TABLE: dict[tuple[int, int, int], Tiles] = {}
"""Rows of the tile (8 or 16), outputs, inputs → tiles. Empty: none is measured yet."""


def tile_rows(rows: int) -> int:
    """Return the rows of activations that a program computes, 8 or 16."""
    return FEW if rows <= FEW else ROWS


def tiles_for(rows: int, outputs: int, inputs: int) -> Tiles:
    """Return the tiles of a product of `rows` × `inputs` with `outputs` × `inputs`."""
    measured = TABLE.get((tile_rows(rows), outputs, inputs))
    if measured is not None:
        return measured
    tiles = Tiles(outputs=32, inputs=128, stages=4, split=1)
    split = 1
    programs = -(-outputs // tiles.outputs)
    while programs * split < PROGRAMS and inputs // (2 * split) >= 4 * tiles.inputs:
        split *= 2
    return Tiles(tiles.outputs, tiles.inputs, tiles.stages, split)
