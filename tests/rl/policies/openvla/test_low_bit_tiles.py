"""How 8-bit products are cut: enough programs, few bytes in excess, and the fastest when timed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from crane_x7_vla_rl.policies.openvla.run import low_bit_tiles
from crane_x7_vla_rl.policies.openvla.run.low_bit_tiles import PROGRAMS, Tiles, tile_rows, tiles_for
from crane_x7_vla_rl.policies.openvla.run.low_bit_tune import RELEASED, candidates, tune


@pytest.fixture(autouse=True)
def table() -> Iterator[dict[tuple[int, int, int], Tiles]]:
    kept = dict(low_bit_tiles.TABLE)
    yield low_bit_tiles.TABLE
    low_bit_tiles.TABLE.clear()
    low_bit_tiles.TABLE.update(kept)


@pytest.mark.parametrize(("outputs", "inputs"), RELEASED)
def test_the_released_models_products_fill_the_card(outputs: int, inputs: int) -> None:
    tiles = tiles_for(1, outputs, inputs)
    assert PROGRAMS <= -(-outputs // tiles.outputs) * tiles.split < 2 * PROGRAMS
    # Each part is written and read in float32, beside one byte per weight.
    partial = 8 * outputs * tiles.split if tiles.split > 1 else 0
    assert partial < 0.01 * outputs * inputs


def test_a_small_product_is_not_split_to_shreds() -> None:
    assert tiles_for(1, 96, 256).split == 1


def test_rows_take_one_tile_or_two() -> None:
    assert [tile_rows(rows) for rows in (1, 8, 9, 16)] == [8, 8, 16, 16]


def test_tuning_keeps_the_fastest_and_leaves_out_what_does_not_run(
    table: dict[tuple[int, int, int], Tiles],
) -> None:
    def clock(*product: int | Tiles) -> float:
        *sizes, tiles = product
        assert sizes == [4, 4096, 4096]
        assert isinstance(tiles, Tiles)
        if tiles.outputs == 16:
            raise RuntimeError("too much shared memory")
        return 1e-6 * (abs(tiles.outputs - 64) + abs(tiles.split - 4) + tiles.stages + 1)

    timings = tune(RELEASED[1:2], 4, clock)
    best = Tiles(outputs=64, inputs=128, stages=4, split=4)
    assert timings[0].tiles == best == tiles_for(4, 4096, 4096) == table[8, 4096, 4096]
    assert timings[0].default_s > timings[0].seconds
    assert timings[0].bytes_per_s == pytest.approx(4096 * 4096 * (1 + 1 / 32) / 5e-6)
    assert tiles_for(9, 4096, 4096) != best


def test_tuning_says_what_does_not_run_at_all() -> None:
    def clock(*_: object) -> float:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="4096 × 4096 for 1 rows does not run"):
        tune(RELEASED[1:2], 1, clock)


def test_candidates_are_few_and_each_fills_the_card() -> None:
    for outputs, inputs in RELEASED:
        found = candidates(outputs, inputs)
        assert 4 <= len(set(found)) == len(found) <= 20


@pytest.mark.gpu
def test_tuning_measures_on_the_gpu() -> None:
    from crane_x7_vla_rl.policies.openvla.run.low_bit_tune import cuda_clock

    (timing,) = tune(((4096, 1024),), 1, cuda_clock(torch.device("cuda", 0)))
    assert 0 < timing.seconds <= timing.default_s < 1e-3
