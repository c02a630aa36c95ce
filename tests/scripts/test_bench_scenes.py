"""scripts/bench_scenes drives new scenes with one loop and writes the figures that it promises."""

from __future__ import annotations

from pathlib import Path

from bench_rig import SCRIPTS, figures

from crane_x7_vla_rl.policies.load import SHIPPED


def test_one_loop_drives_one_scene_after_another(tmp_path: Path) -> None:
    log = tmp_path / "loop.log"
    command = (
        str(SCRIPTS / "bench_scenes"), str(SHIPPED), "--scenes", "2", "--timeout", "2",
        "--log", str(log),
    )  # fmt: skip
    rows = figures(tmp_path / "rows.json", *command)
    assert 0 <= rows["tiny: scenes done, of 2"]["value"] <= 1
    assert rows["tiny: steps outside the limits"]["target"] == 0
    assert rows["tiny: rate of the loop"]["target"] == 1.6
    assert rows["tiny: policy, median"]["value"] > 0
    assert log.read_text().count("driving (sequence 1)") == 1
    assert log.read_text().count("link to rosbridge is down") >= 1
