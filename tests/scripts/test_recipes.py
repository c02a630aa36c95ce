"""What recipes run: the shell alone, with an empty Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from places import ROOT

PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$(dirname "$0")/../../said"
"""
RECIPES = {
    "teach-tiny": ["out"],
    "reinforce-tiny": ["lift", "out"],
    "reinforce-small": ["out"],
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The scripts beside a Python that ends well and leaves nothing, as a stopped training does."""
    (tmp_path / "scripts").mkdir()
    for name in (*RECIPES, "prepare-tiny", "teach-shipped"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts" / name)
    for path, text in (("scripts/setup", "#!/bin/sh\n"), (".venv/bin/python", PYTHON)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_follows_a_training_that_was_stopped(place: Path, name: str) -> None:
    done = subprocess.run(
        [place / "scripts" / name, *RECIPES[name]],
        capture_output=True, text=True, check=False, cwd=place,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the same command continues" in done.stderr
    said = [line.split() for line in (place / "said").read_text().splitlines()]
    trained = [words for words in said if {"sft", "train"} & set(words)]
    assert len(trained) == 1, "one training, which was stopped"
    assert said[-1] == trained[0]
    assert trained[0][trained[0].index("--resume") + 1] == "auto"


def commands(place: Path, *words: str) -> list[list[str]]:
    """Run a recipe to its end; return what it had Python do."""
    subprocess.run([place / "scripts" / words[0], *words[1:]], check=True, cwd=place)
    return [line.split() for line in (place / "said").read_text().splitlines()]


def test_the_first_policy_of_the_demo_alone_with_other_numbers(place: Path) -> None:
    said = commands(place, "teach-shipped", "half", "--only-looks", "--updates", "7")
    assert [words[2] for words in said if words[1].endswith("training.cli")] == ["demos", "point"]
    assert said[-1][2:5] == ["point", "half/model", "half/looks"]
    assert said[-1][-2:] == ["--updates", "7"]


def test_the_demo_policy_goes_through_every_stage(place: Path) -> None:
    said = commands(place, "teach-shipped")
    stages = [words[4] for words in said if words[2:3] == ["point"]]
    assert stages == [f"outputs/shipped/{name}" for name in ("looks", "more-1", "more-2", "varied")]
    assert [words[2] for words in said[-4:]] == ["evaluate"] * 4


def test_another_start_and_delay_are_practised_and_measured(place: Path) -> None:
    for name in ("seed-3", "control"):
        (place / "out" / name / "checkpoint_final").mkdir(parents=True)
    said = commands(
        place, "reinforce-small", "out", "--seeds", "3", "--start", "half", "--delay-s", "0"
    )
    measured = [words for words in said if "evaluate" in words]
    started = [words[words.index("--checkpoint") + 1] for words in measured]
    assert started[0] == "half"
    assert len(measured) == 5
    assert {words[words.index("--delay-s") + 1] for words in measured} == {"0"}
    shutil.rmtree(place / "out" / "seed-3")
    (place / "said").unlink()
    (trained,) = commands(
        place, "reinforce-small", "out", "--seeds", "3", "--start", "half", "--delay-s", "0"
    )
    assert trained[trained.index("--sft-checkpoint") + 1] == "half"
    assert trained[trained.index("--delay-s") + 1] == "0"


@pytest.mark.parametrize("flag", ["--start", "--delay-s"])
def test_a_flag_without_its_value_is_named(place: Path, flag: str) -> None:
    done = subprocess.run(
        [place / "scripts" / "reinforce-small", "out", flag],
        capture_output=True, text=True, check=False, cwd=place,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"{flag} came without a value" in done.stderr
    assert not (place / "said").exists()
