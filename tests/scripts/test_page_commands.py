"""This project's commands on the pages exist with their flags, also those that no test types."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pages
import pytest

from crane_x7_remote import cli as remote
from crane_x7_vla_rl import command_line
from crane_x7_vla_rl.training import cli as learning

OLD = {"older-names.md", "log.md"}
"""Pages about what no longer exists; tests/scripts/test_older_names.py reads the first one."""
PAGES = [page for page in pages.english() if page.name not in OLD]
NAMES = [page.relative_to(pages.ROOT).as_posix() for page in PAGES]
OURS = re.compile(
    r"(?<![\w/@-])(?:(?P<remote>crane-x7-remote)|crane-x7-vla-rl|-m crane_x7_vla_rl\.training\.cli)"
    r" (?P<command>[a-z][a-z-]*)(?P<rest>[^\n`|;&)]*)"
)


PROGRAMS = {program.name: program for program in (remote.PROGRAM, learning.PROGRAM)}


@cache
def flags(program: str, command: str) -> frozenset[str]:
    """Return the flags of a command and of those below it."""
    return frozenset(every_flag(command_line._parser(PROGRAMS[program], command)[0]))


def every_flag(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from every_flag(below)


def unknown(text: str) -> list[str]:
    """Return a line for each of this project's commands or flags in `text` that does not exist."""
    found = []
    for line in OURS.finditer(text.replace("\\\n", " ")):
        program, command = line["remote"] or learning.PROGRAM.name, line["command"]
        if command not in {*PROGRAMS[program].commands, "completion"}:
            found.append(f"{program} {command}: no such command")
            continue
        words = re.findall(r"(?<!\S)--?[a-zA-Z][\w-]*", line["rest"].partition(" #")[0])
        known = flags(program, command)
        found += [f"{command} {word}: no such flag" for word in words if word not in known]
    return found


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_of_ours_on_a_page_exists_with_its_flags(page: Path) -> None:
    assert unknown(page.read_text(encoding="utf-8")) == []


def test_a_command_or_flag_that_does_not_exist_is_found() -> None:
    text = "crane-x7-remote drive --dry-run\ncrane-x7-vla-rl sft \\\n  --data-rot x  # --no\n"
    assert unknown(text) == [
        "crane-x7-remote drive: no such command",
        "sft --data-rot: no such flag",
    ]
    assert unknown("crane-x7-remote tunnel remote vla@host -p 22 --rosbridge-port 9091") == []
