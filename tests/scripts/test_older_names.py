"""docs/older-names.md: every command of ours in it parses, and every test that it names exists."""

from __future__ import annotations

import re
import shlex

import pytest
from places import ROOT

from crane_x7_remote import cli as remote
from crane_x7_vla_rl import command_line
from crane_x7_vla_rl.training import cli as learning

PAGE = (ROOT / "docs/older-names.md").read_text(encoding="utf-8")
PROGRAMS = {program.name: program for program in (remote.PROGRAM, learning.PROGRAM)}
COMMANDS = sorted({*re.findall(r"`(crane-x7-(?:remote|vla-rl) [^`]+)`", PAGE)})
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
