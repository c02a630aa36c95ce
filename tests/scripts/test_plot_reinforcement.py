"""`plot-reinforcement` and the `reinforce-` scripts: a table, means over seeds, a picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

PLOT = ROOT / "scripts/plot-reinforcement"


def evaluated(folder: Path, name: str, sampled: float, greedy: float) -> None:
    for way, rate in (("sampled", sampled), ("greedy", greedy)):
        path = folder / f"{name}-{way}" / "results.json"
        path.parent.mkdir(parents=True)
        success = {"rate": rate, "low": rate - 0.05, "high": rate + 0.05}
        path.write_text(json.dumps({"success": success}))


def ran(folder: Path, name: str, explained: float) -> Path:
    run = folder / name
    run.mkdir()
    lines = [
        {
            "update_s": 60.0, "env_steps": 100 * (step + 1), "explained_variance": explained,
            "recent_success": None if step == 0 else 0.1 * step,
        }
        for step in range(6)
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    evaluations = tmp_path / "evaluate"
    evaluated(evaluations, "start", 0.41, 0.05)
    evaluated(evaluations, "seed-1", 0.70, 0.60)
    evaluated(evaluations, "seed-2", 0.80, 0.60)
    evaluated(evaluations, "seed-3", 0.90, 0.60)
    evaluated(evaluations, "control", 0.41, 0.05)
    names = {"seed-1": 0.6, "seed-2": 0.7, "seed-3": 0.8, "control": 0.2}
    return [ran(tmp_path, name, explained) for name, explained in names.items()]


def plotted(tmp_path: Path, runs: list[Path]) -> str:
    done = subprocess.run(
        [sys.executable, PLOT, *runs, "--evaluations", tmp_path / "evaluate", "--output",
         tmp_path / "curve.png", "--table", tmp_path / "table.md"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    return done.stdout


def test_one_table_has_each_run_the_mean_of_seeds_and_the_control(
    tmp_path: Path, runs: list[Path]
) -> None:
    printed = plotted(tmp_path, runs)
    assert printed == (tmp_path / "table.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in printed.split("\n")]
    table = {row[0]: row[1:] for row in rows if len(row) > 1}
    assert table["start"][:2] == ["41.0 % (36.0 to 46.0)", "5.0 % (0.0 to 10.0)"]
    assert table["seed-2"] == [
        "80.0 % (75.0 to 85.0)", "60.0 % (55.0 to 65.0)", "0.70", "600", "6",
    ]  # fmt: skip
    # Three seeds, deviation 10 %: 4.303 × 10 / √3 on each side.
    assert table["**seed: mean of 3**"][0] == "**80.0 % (55.2 to 100.0)**"
    assert table["**seed: mean of 3**"][1] == "**60.0 % (60.0 to 60.0)**"
    assert table["control"][2] == "0.20"
    assert not any(name.startswith("**control") for name in table), "one run has no mean"


def test_the_picture_has_several_seeds(tmp_path: Path, runs: list[Path]) -> None:
    plotted(tmp_path, runs)
    assert (tmp_path / "curve.png").stat().st_size > 10_000


@pytest.mark.parametrize("command", [["reinforce-tiny", "pick-place"], ["reinforce-small"]])
def test_seeds_without_a_number_are_refused_before_anything_starts(
    tmp_path: Path, command: list[str]
) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / command[0], *command[1:], tmp_path / "out", "--seeds", "--grpo"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--seeds came without a number, expected such as --seeds 1 2 3" in done.stderr
    assert not (tmp_path / "out").exists()
