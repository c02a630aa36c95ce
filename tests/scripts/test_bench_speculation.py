"""scripts/bench_speculation: the actions are those of one by one, in fewer passes."""

from __future__ import annotations

from pathlib import Path

import pytest

for package in ("torch", "mani_skill"):
    pytest.importorskip(package, reason="needs the train and sim extras")

from bench_rig import SCRIPTS, figures


@pytest.mark.slow
def test_the_shipped_policy_needs_fewer_passes_for_the_same_actions(tmp_path: Path) -> None:
    command = [str(SCRIPTS / "bench_speculation"), "--episodes", "1"]
    rows = figures(tmp_path / "rows.json", *command, patience_s=600)
    for how in ("greedy", "sampled at temperature 1"):
        name = f"{how}, last action as draft"
        assert rows[f"{name}: actions equal to one by one"]["value"] == 1
        passes = rows[f"{name}: passes per action"]
        assert passes["value"] < passes["baseline"] == 7
        computed = rows[f"{name}: 7B on an H200, computed"]
        assert computed["value"] == pytest.approx(11.2 + 4.43 * passes["value"])
