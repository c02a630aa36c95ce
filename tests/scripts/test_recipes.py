"""The recipes end when their training was stopped: the shell alone, with an empty Python."""

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
    for name in (*RECIPES, "prepare-tiny"):
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
