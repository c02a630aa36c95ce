"""scripts/bench_guard runs and writes the figures that it promises."""

from __future__ import annotations

import math
from pathlib import Path

from bench_rig import SCRIPTS, figures


def test_the_bench_measures_pictures_trajectories_and_memory(tmp_path: Path) -> None:
    rows = figures(tmp_path / "rows.json", str(SCRIPTS / "bench_guard"), "--minutes", "0.1")
    for name in ("picture of 80 KB", "trajectory"):
        for percent in (50, 99):
            assert math.isfinite(rows[f"{name}: added, p{percent}"]["value"])
    assert rows["picture of 80 KB: added, p50"]["target"] == "<= 0.5"
    assert any(name.startswith("memory of the guard") for name in rows)
