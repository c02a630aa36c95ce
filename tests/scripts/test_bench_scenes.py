"""scripts/bench_scenes drives new scenes with one loop and writes the figures that it promises."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from bench_rig import ROW, SCRIPTS, figures, loaded

from crane_x7_remote.demo import plan as plans
from crane_x7_vla_rl.policies.load import TINY


@pytest.mark.slow  # three processes that simulate or predict, twice
def test_one_loop_drives_one_scene_after_another(tmp_path: Path) -> None:
    log = tmp_path / "loop.log"
    command = (
        str(SCRIPTS / "bench_scenes"), str(TINY), "--scenes", "2", "--timeout", "2",
        "--log", str(log),
    )  # fmt: skip
    rows = figures(tmp_path / "rows.json", *command)
    assert 0 <= rows["tiny: scenes done, of 2"]["value"] <= 1
    assert rows["tiny: steps outside the limits"]["target"] == 0
    assert rows["tiny: rate of the loop"]["target"] == 1.6
    assert rows["tiny: policy, median"]["value"] > 0
    assert log.read_text().count("driving (sequence 1)") == 1
    assert log.read_text().count("link to rosbridge is down") >= 1


@pytest.fixture
def bench() -> Any:
    return loaded("bench_scenes")


def test_each_scene_has_another_seed_and_one_task(bench: Any) -> None:
    made = [bench.plan_of(Namespace(checkpoint=str(TINY), rate=1.5), seed) for seed in (3, 4)]
    assert [plan.seed for plan in made] == [3, 4]
    assert {len(plan.instructions) for plan in made} == {1}
    assert {plan.skills.rate_hz for plan in made} == {1.5}
    assert {"--port", "--guard"} <= set(plans.robot_command(made[0]))


def test_a_scene_counts_if_it_was_done_and_each_step_outside_the_limits_does(bench: Any) -> None:
    runs = [bench.Run(0, 4.0, 0), bench.Run(1, None, 2), bench.Run(2, 6.0, 0)]
    told = {"rate_hz": 1.6, "asked_rate_hz": 1.6, "policy_ms": {"p50": 80.0}}
    rows = {row["name"]: row for row in bench.figures("/a/tiny", runs, told)}
    assert all(set(row) == ROW for row in rows.values())
    assert rows["tiny: scenes done, of 3"]["value"] == pytest.approx(2 / 3)
    assert rows["tiny: scenes done, of 3"]["met"] is False
    assert rows["tiny: steps outside the limits"]["value"] == 2
    assert rows["tiny: steps outside the limits"]["met"] is False
    assert rows["tiny: rate of the loop"]["met"] is True
    assert rows["tiny: median time to done"]["value"] == 5.0
