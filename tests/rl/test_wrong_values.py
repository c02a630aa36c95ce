"""Every flag of every command names itself, the wrong value and what it takes instead."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from crane_x7_remote import cli as remote
from crane_x7_remote import settings, settings_help
from crane_x7_vla_rl import command_line
from crane_x7_vla_rl.fields import Kind, leaves
from crane_x7_vla_rl.policies.load import TINY
from crane_x7_vla_rl.training import cli as learning
from crane_x7_vla_rl.training.rl.config import RlConfig
from crane_x7_vla_rl.training.sft.config import SftConfig

WRONG = "wr0ng"
NEEDED = {
    "boot": [], "completion": ["bash"], "convert": ["a", "b"], "demos": ["a"],
    "evaluate": ["--checkpoint", "a"], "merge": ["a", "b"],
    "point": ["a", "b"], "record": ["a"], "replay": ["a"],
    "say": ["a"],
    "sft": ["--backend", "openvla"], "tunnel local": ["a@b"], "tunnel remote": ["a@b"],
    "validate": ["a"],
}  # fmt: skip
"""What a command does not start without."""
TEXTS = (str, Path, None)
DEVICES = {
    "infer": ["--vla-model-path", str(TINY), "--vla-device", WRONG],
    "infer color-servo": ["--policy", "color-servo", "--vla-device", WRONG],
    "train": ["--device", WRONG],
    "sft": ["--backend", "openvla", "--device", WRONG],
    "evaluate": ["--checkpoint", str(TINY), "--device", WRONG],
}


def commands() -> Iterator[tuple[str, str]]:
    for program in (remote.PROGRAM, learning.PROGRAM):
        for command in (*program.commands, "completion"):
            ways = ("tailnet", "local", "remote") if command == "tunnel" else ("",)
            yield from ((program.name, f"{command} {way}".rstrip()) for way in ways)


def takes_any_text(action: argparse.Action) -> bool:
    """Whether no text is wrong for it, as for a topic's name."""
    for config in (RlConfig, SftConfig):
        for leaf in leaves(config):
            if leaf.key == action.dest and "." in leaf.key:
                return leaf.kind.base in (str, tuple[str, ...]) and leaf.kind.bound is None
    if action.dest in settings.Settings.model_fields:
        return settings_help.expected(settings.Settings.model_fields[action.dest]) == "text"
    kind = getattr(action.type, "__self__", None)
    if isinstance(kind, Kind):
        return kind.base is str and kind.bound is None
    return action.choices is None and action.type in TEXTS


@pytest.mark.parametrize(("name", "command"), [*commands()])
def test_a_wrong_value_is_named_with_its_flag_and_what_it_takes(
    name: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = remote if name == remote.PROGRAM.name else learning
    words = command.split()
    parser, _ = command_line._parser(cli.PROGRAM, words[0])
    for word in words:
        (chooser,) = (
            action for action in parser._actions
            if isinstance(action, argparse._SubParsersAction)
        )  # fmt: skip
        parser = chooser.choices[word]
    flags = [
        action for action in parser._actions
        if action.option_strings and action.nargs != 0 and not takes_any_text(action)
    ]  # fmt: skip
    wrong = []
    for action in flags:
        flag = action.option_strings[0]
        values = [WRONG] * (action.nargs if isinstance(action.nargs, int) else 1)
        needed = NEEDED.get(command, [])
        if flag in needed:
            needed = needed[2:]
        try:
            code = cli.main([*words, *needed, flag, *values])
        except SystemExit as end:
            code = int(str(end.code))
        said = capsys.readouterr().err
        if code not in (2, 3) or not all(text in said for text in (flag, WRONG, "expected")):
            wrong.append(f"{flag}: exit code {code}, {said!r}")
    assert wrong == []


@pytest.mark.parametrize("line", DEVICES)
def test_a_wrong_device_is_named_with_its_flag_and_the_choices(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, cli = line.split()[0], remote if line.startswith("infer") else learning
    try:
        code = cli.main([command, *DEVICES[line]])
    except SystemExit as end:
        code = int(str(end.code))
    said = capsys.readouterr().err
    assert code != 0
    assert DEVICES[line][-2] in said
    assert WRONG in said
    choices = said.partition("expected")[2].splitlines()[0]
    assert all(name in choices for name in ("auto", "cuda", "cpu")), said
