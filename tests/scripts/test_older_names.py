"""docs/older-names.md: our commands parse, the tests named exist, and no row is without either."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from crane_x7_remote import cli as remote
from crane_x7_vla_rl import command_line
from crane_x7_vla_rl.training import cli as learning

PAGE = (ROOT / "docs/older-names.md").read_text(encoding="utf-8")
PROGRAMS = {program.name: program for program in (remote.PROGRAM, learning.PROGRAM)}
COMMANDS = sorted({*re.findall(r"`(crane-x7-(?:remote|vla-rl) [^`]+)`", PAGE)})
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("|") and not line.startswith(("| older |", "|---"))
]
REASONS = (
    "a GPU", "an account", "Docker", "ROS 2", "a tailnet", "root", "a cloud machine", "not yet",
    "there is none",
)  # fmt: skip
TESTS = sorted({*re.findall(r"`(tests/[\w/]+\.py::\w+)`", PAGE)})


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_ours_is_understood(line: str) -> None:
    name, *words = shlex.split(line)
    parser, module = command_line._parser(PROGRAMS[name], words[0])
    assert module is not None
    _, unknown = parser.parse_known_args(words)
    assert not unknown


@pytest.mark.parametrize("named", TESTS)
def test_every_test_that_the_page_names_exists(named: str) -> None:
    path, _, name = named.partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.M)


def test_every_row_is_typed_by_a_test_or_says_why_not() -> None:
    for row in ROWS:
        assert len(row) == 3, row
        now, test = row[1:]
        if test == "`parsed`":
            assert re.search(r"`crane-x7-(remote|vla-rl) ", now), f"nothing to parse: {row}"
        elif test.startswith("not typed: "):
            assert test.removeprefix("not typed: ") in REASONS, row
        else:
            assert test.strip("`") in TESTS, row


def test_hf_logs_in_where_the_older_program_is_gone() -> None:
    pytest.importorskip("huggingface_hub", reason="needs the train extra")
    folder = Path(sys.executable).parent
    assert not (folder / "huggingface-cli").exists()
    done = subprocess.run(
        [folder / "hf", "auth", "login", "--help"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "login" in done.stdout
