"""Measure how products with 8-bit weights are best cut. Shapes, a GPU → entries of `Tiles`' table.

`tune` compiles some candidates for each shape, runs them one after another and writes the fastest
into `low_bit_tiles.TABLE`, for this process; what it returns is for a person to keep in the source.
It is never called while a policy runs. Each candidate multiplies by copies of the weight that are
together larger than the card's cache, as a whole model is.

Unverified on a device: only its choice is tested.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Final

import torch

from crane_x7_vla_rl.policies.openvla.run.low_bit import GROUP, Kind, LowBit
from crane_x7_vla_rl.policies.openvla.run.low_bit_tiles import (
    PROGRAMS,
    TABLE,
    Tiles,
    tile_rows,
    tiles_for,
)

logger = logging.getLogger(__name__)

RELEASED: Final = ((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008))
"""Outputs and inputs of a layer's four products in the released model."""
LEAST_BYTES: Final = 400_000_000
"""Copies of a weight take as much; the cache of an H200 holds 50 MB."""
ROUNDS: Final = 20
LEAST: Final = 250
MOST: Final = 2500
"""Programs of a candidate: two to twenty per multiprocessor."""


@dataclass(frozen=True)
class Timing:
    """The fastest tiles of one product."""

    rows: int
    outputs: int
    inputs: int
    tiles: Tiles
    seconds: float
    """Of one product."""
    default_s: float
    """Of the same with the tiles that were in use before."""

    @property
    def bytes_per_s(self) -> float:
        """Weights and scales read per second."""
        return self.outputs * self.inputs * (1 + 4 / GROUP) / self.seconds


Clock = Callable[[int, int, int, Tiles], float]
"""Rows, outputs, inputs, tiles → seconds of one product; raises where they do not run."""


def candidates(outputs: int, inputs: int) -> list[Tiles]:
    """Return tiles worth a measurement.

    Products with many outputs are never split: nothing that follows them adds parts.
    """
    splits = (1,) if outputs >= 32 * PROGRAMS else (1, 2, 4, 8)
    found = []
    for height, stages, split in product((64, 32, 16), (4, 6), splits):
        programs = -(-outputs // height) * split
        if LEAST <= programs <= MOST and inputs >= 4 * GROUP * split:
            found.append(Tiles(height, GROUP, stages, split))
    return found


def tune(shapes: Iterable[tuple[int, int]], rows: int, clock: Clock) -> list[Timing]:
    """Return the fastest tiles of each shape (outputs, inputs), and put them into the table."""
    timings = []
    for outputs, inputs in shapes:
        default = tiles_for(rows, outputs, inputs)
        seconds: dict[Tiles, float] = {}
        for tiles in dict.fromkeys((default, *candidates(outputs, inputs))):
            try:
                seconds[tiles] = clock(rows, outputs, inputs, tiles)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a compiler or driver raises, others may run
                logger.info("%s × %s with %s: %s", outputs, inputs, tiles, error)
        if default not in seconds:
            raise RuntimeError(
                f"8-bit product of {outputs} × {inputs} for {rows} rows does not run with {default}"
            )
        best = min(seconds, key=lambda tiles: seconds[tiles])
        TABLE[tile_rows(rows), outputs, inputs] = best
        timings.append(Timing(rows, outputs, inputs, best, seconds[best], seconds[default]))
    return timings


def cuda_clock(device: torch.device, kind: Kind = "int8") -> Clock:
    """Return a clock for a CUDA device, with activations in bfloat16."""
    from crane_x7_vla_rl.policies.openvla.run import low_bit_kernel

    held: dict[tuple[int, int], list[LowBit]] = {}

    def clock(rows: int, outputs: int, inputs: int, tiles: Tiles) -> float:
        if (outputs, inputs) not in held:
            held.clear()  # the shapes come one after another
            held[outputs, inputs] = _copies(outputs, inputs, device, kind)
        weights = held[outputs, inputs]
        x = torch.randn(rows, inputs, device=device, dtype=torch.bfloat16)

        def run() -> None:
            for one in weights:
                low_bit_kernel.parts(x, one.weight, one.scale, one.group, tiles)

        return _replayed_s(run, device) / len(weights)

    return clock


def _copies(outputs: int, inputs: int, device: torch.device, kind: Kind) -> list[LowBit]:
    from crane_x7_vla_rl.policies.openvla.model.matrices import Dense

    count = -(-LEAST_BYTES // (outputs * inputs))
    dense = Dense(torch.randn(outputs, inputs, device=device, dtype=torch.bfloat16))
    return [LowBit(dense, kind) for _ in range(count)]


def _replayed_s(run: Callable[[], None], device: torch.device) -> float:
    """Return the median seconds of `run` as a captured graph, as a policy runs it."""
    with torch.cuda.device(device):
        run()
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        times: list[float] = []
        begin, end = torch.cuda.Event(True), torch.cuda.Event(True)  # type: ignore[no-untyped-call]
        for _ in range(ROUNDS):
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize(device)
            times.append(begin.elapsed_time(end) / 1e3)
    return median(times[2:])
