"""`crane-x7-remote cloud`: one table of actions; a training is rented, run, and always ended.

    cloud train --gpu-model H100 --env-file .env --train-config train.remote.yaml --run-id first
    cloud list      what is rented now, at every provider with a key
    cloud down RUN  end a run
    cloud sweep     what interrupted runs left anywhere

See docs/cloud.md.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any, Final

from crane_x7_vla_rl import command_line

ACTIONS: Final = {
    "train": ("train_command", "rent a machine, train on it, bring the results home, delete it"),
    "resume": ("train_command", "the same from the newest checkpoint on the Hub"),
    "resume_local": ("train_command", "the same from a disk that was kept"),
    "list": ("list_command", "what is rented now, with its cost per hour"),
    "logs": ("logs_command", "what a run's training prints"),
    "ssh": ("ssh_command", "a shell on a run's machine"),
    "down": ("down_command", "end a run: its machine, its volumes"),
    "sweep": ("sweep_command", "find and remove what interrupted runs left"),
    "export": ("export_command", "the same training as a file for SkyPilot or dstack"),
}
"""Action → module of this folder with `add_arguments(parser)` and `run(args) -> int`, and help."""


class _ActionParser(command_line.Parser):
    """Gets its flags when somebody looks at them: `cloud list` then need not import a trainer's."""

    _module_name = ""

    @property
    def _actions(self) -> list[argparse.Action]:
        name, self._module_name = self._module_name, ""
        if name:
            _module(name).add_arguments(self)
        return self._known

    @_actions.setter
    def _actions(self, known: list[argparse.Action]) -> None:
        self._known = known


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their flags."""
    actions = parser.add_subparsers(
        dest="action", metavar="ACTION", required=True, title="actions", parser_class=_ActionParser
    )
    for name, (_, text) in ACTIONS.items():
        actions.add_parser(name, help=text, description=text)._module_name = name


def run(args: argparse.Namespace) -> int:
    """Run the action; raises RemoteError."""
    return int(_module(args.action).run(args))


def _module(name: str) -> Any:
    return importlib.import_module(f"crane_x7_remote.cloud.{ACTIONS[name][0]}")
