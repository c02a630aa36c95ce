"""The bench of a policy's sheet measures, keeps what is there, and refuses what is another's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from bench_rig import SCRIPTS, figures, loaded

from crane_x7_vla_rl.policies.load import SMALL

SCRIPT = SCRIPTS / "bench_policy"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return loaded("bench_policy")


def refused(*flags: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *flags],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode != 0
    return done.stderr


def test_a_part_is_measured_once_and_others_weights_or_flags_are_refused(tmp_path: Path) -> None:
    lift = (str(SCRIPT), "--output", str(tmp_path), "--only", "lift", "--episodes")
    rows = figures(tmp_path / "rows.json", *lift, "1")
    assert rows["lift"]["value"] in (0, 1)
    assert rows["lift"]["met"] == (rows["lift"]["value"] == 1)
    assert rows["lift"]["unit"].startswith("share of 1 (")
    result = tmp_path / "lift" / "results.json"
    before = result.stat().st_mtime_ns
    assert figures(tmp_path / "again.json", *lift, "1") == rows
    assert result.stat().st_mtime_ns == before
    assert "| lift |" in (tmp_path / "sheet.md").read_text()
    assert "measures other weights or flags" in refused(*lift[1:], "2")
    assert result.stat().st_mtime_ns == before
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "results.json").write_text("{}")
    assert "no measurement of it" in refused("--output", str(tmp_path), "--only", "place")


def test_each_kind_of_result_becomes_rows(bench: ModuleType) -> None:
    def rate(count: int, of: int) -> dict[str, Any]:
        return {"rate": count / of, "low": 0.1, "high": 0.9, "episodes": of}

    def condition(about: str, value: float | None, share: float, target: float | None) -> Any:
        return {"about": about, "value": value, "unit": "s", "rate": share, "low": 0, "high": 1,
                "episodes": 60, "baseline": 0.8, "target": target}  # fmt: skip

    words = {"right_first": rate(96, 100), "success": rate(90, 100),
             "followed": {"count": 9, "of": 10}, "refused": {"count": 5, "of": 5}}  # fmt: skip
    rows = {
        each["name"]: each
        for each in bench.figures(
            {
                "place": {"success": rate(180, 200)},
                "vary": {"success": rate(60, 100)},
                "link": {"conditions": [
                    condition("nothing changed", None, 0.8, None),
                    condition("delay", 0.15, 0.7, 0.9),
                ]},
                "words": {"summary": {"unseen": words}},
                "swapped-words": {"summary": {"unseen": words | {"success": rate(0, 10)}}},
                "demo": {"rows": [{"name": "demo, small: median jerk", "value": 28.0,
                                   "unit": "rad/s³", "baseline": 16.0, "ratio": 1.75,
                                   "target": None, "met": None}]},
            }
        )
    }  # fmt: skip
    assert (rows["pick and place"]["value"], rows["pick and place"]["met"]) == (0.9, True)
    varied = rows["pick and place, scenes that differ"]
    assert (varied["baseline"], varied["ratio"]) == (0.9, pytest.approx(2 / 3))
    late = rows["delay, 0.15 s"]
    assert (late["target"], late["met"]) == (pytest.approx(0.72), False)
    assert rows["wordings never seen: right first"]["met"] is True
    assert rows["wordings never seen: followed rightly"]["value"] == 0.9
    control = "wordings never seen, another cube counted"
    assert rows[f"{control}: right first"]["baseline"] == 0.96
    assert (rows[f"{control}: success"]["value"], rows[f"{control}: success"]["baseline"]) == (
        0,
        0.9,
    )
    lines = list(bench.table(list(rows.values())))
    assert "| delay, 0.15 s | 70.0% | 60 (0.0% to 100.0%) | 80.0% | 72.0%: NOT met |" in lines
    assert "| demo, small: median jerk | 28 | rad/s³ | 16 |  |" in lines


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    assert "does not exist, expected a complete" in refused("--checkpoint", str(tmp_path))
    assert "--episodes is 0, expected 1" in refused("--episodes", "0")


def test_its_parts_reach_the_flags_of_evaluate(bench: ModuleType) -> None:
    command = bench.PARTS["others"].command(SMALL, None)
    assert command[:2] == ["--checkpoint", str(SMALL)]
    assert command[-4:] == ["--first-seed", "1001000", "--num-episodes", "200"]


def test_a_copy_draws_around_its_answers_and_the_policy_stays_as_it_is(
    bench: ModuleType, tmp_path: Path
) -> None:
    before = (SMALL / "policy.json").read_bytes()
    copy = bench.drawn(SMALL, tmp_path / "copy")
    assert json.loads((copy / "policy.json").read_text()) == json.loads(before) | bench.DRAWN
    assert (SMALL / "policy.json").read_bytes() == before
    assert (copy / "model.safetensors").stat().st_size > 1_000_000
