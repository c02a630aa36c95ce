"""Settings as a person reads them: flags and their help, wrong values, docs/settings.md.

The declared fields come from `settings.Settings`; every text is made of their docstrings and types.
"""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from crane_x7_remote.settings_values import shown
from crane_x7_vla_rl.fields import quoted

Fields = Mapping[str, FieldInfo]
"""Name → declaration, as pydantic has it."""
ALIASES = {"vla_policy": ("--policy",)}
"""Additional names of some flags."""
GROUPS = {
    "robot link": ("rosbridge_", "peer_", "ts_"),
    "policy": ("vla_", "hf_", "camera_pose", "policy_server", "policy_api_key", "policy_io",
               "policy_jpeg"),
    "safety": ("max_", "policy_timeout", "trajectory_validity", "dry_run",
               "speed"),
    "guard": ("guard_",),
    "dashboard": ("dashboard_",),
    "topics": ("camera_topic", "wrist_camera_topic", "joint_states_topic", "instruction_topic",
               "arm_topic", "trajectory_topic", "action_topic", "gripper_action"),
    "other": ("",),
}  # fmt: skip
"""Groups of flags in help → prefixes of their fields; the first match counts."""
METAVARS = {
    "_host": "HOST", "_port": "PORT", "_proxy": "URL", "_timeout": "S", "_age": "S",
    "_validity": "S", "max_jump": "RAD", "_rate": "HZ", "vla_policy": "POLICY",
    "_model_path": "MODEL", "_device": "DEVICE", "_key": "KEY", "_topic": "TOPIC",
    "gripper_action": "ACTION", "_listen": "ADDRESS:PORT", "_upstream": "HOST:PORT",
    "_pose": "FILE", "_root": "FOLDER", "_dir": "FOLDER", "_socket": "FILE",
    "socks5_server": "ADDRESS:PORT", "policy_server": "URL", "policy_io": "FILE",
}  # fmt: skip
"""Ending of a field's name → metavar in help."""


def add_flags(parser: argparse.ArgumentParser, names: Iterable[str], fields: Fields) -> None:
    """Give `parser` a flag for each named field, with its docstring and default as help.

    Values stay text, so that the same code checks variables and flags.
    """
    groups: dict[str, argparse._ActionsContainer] = {}
    for name in names:
        title = next(title for title, starts in GROUPS.items() if name.startswith(starts))
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        flags = ("--" + name.replace("_", "-"), *ALIASES.get(name, ()))
        kind = _flag_kind(name, fields[name])
        groups[title].add_argument(*flags, dest=name, help=_flag_help(name, fields[name]), **kind)


def _flag_kind(name: str, field: FieldInfo) -> dict[str, Any]:
    annotation = field.annotation
    if annotation in (bool, bool | None):
        return {"action": argparse.BooleanOptionalAction, "default": None}
    if SecretStr in typing.get_args(annotation):
        return {"metavar": "SECRET"}
    kinds = {annotation, *typing.get_args(annotation)}
    words = (word for ending, word in METAVARS.items() if name.endswith(ending))
    return {"metavar": next(words, "N" if int in kinds else "X" if float in kinds else "TEXT")}


def _flag_help(name: str, field: FieldInfo) -> str:
    default = "" if field.default in (None, "") else "=" + quoted(field.default).strip("'")
    text = (field.description or "").rstrip(".")
    return f"{text} [{name.upper()}{default}]".replace("%", "%%")


def explain(problem: Mapping[str, Any], fields: Fields) -> str:
    name = str(problem["loc"][0])
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] != "value_error":
        message = f"expected {expected(fields[name])}"
    return f"{name.upper()}={shown(name, problem['input'])}: {message}"


def expected(field: FieldInfo) -> str:
    """Return the values that a field accepts, in words."""
    kind = typing.get_origin(field.annotation)
    kinds = (
        typing.get_args(field.annotation)
        if kind in (typing.Union, types.UnionType)
        else (field.annotation,)
    )
    if choices := [
        word for kind in kinds if typing.get_origin(kind) is Literal
        for word in typing.get_args(kind)
    ]:  # fmt: skip
        return " or ".join(choices)
    if bool in kinds:
        return "true or false"
    if int not in kinds and float not in kinds:
        return "text"
    texts = ["a whole number" if int in kinds else "a number"]
    for bound, words in (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most")):
        limits = [getattr(each, bound) for each in field.metadata if hasattr(each, bound)]
        texts += [f"{words} {limit:g}" for limit in limits]
    return ", ".join(texts)


def named(problem: str, given: Collection[str]) -> str:
    """Return the problem, with the flag's name if a flag set the value."""
    variable, equals, rest = problem.partition("=")
    if not equals or variable.lower() not in given:
        return problem
    return f"--{variable.lower().replace('_', '-')} {rest}"


def as_markdown(flags: Mapping[str, str], fields: Fields) -> str:
    """Return docs/settings.md; scripts/render-settings writes it, and a test compares.

    `flags` has a text for each variable that is a flag of some command.
    """
    count = len(fields)
    head = f"""# Settings

[日本語](ja/settings.md)

Each of these {count} settings is an environment variable. {len(flags)} are flags as well; the last
column says of which commands. The others are variables only: `boot`, tailscaled, sshd or libraries
read them.

- Default < checkpoint < variable < flag. A checkpoint of `infer` decides `VLA_INFERENCE_RATE`,
  `VLA_TEMPERATURE`, `MAX_JUMP` and `TRAJECTORY_VALIDITY`. Its files set `MAX_JUMP` to 2 rad and
  `TRAJECTORY_VALIDITY` to 2 s at most; variables and flags have no such cap. The log names the
  source of each value.
- Empty means unset where that is allowed. The same holds for null, None, nil and undefined in
  secrets, keys, folders, addresses and models.
- All wrong values are listed at once, before anything starts, with exit code 3.
- `crane-x7-remote infer --help-all` shows the flags of the loop.

| variable | default | meaning | flag |
|---|---|---|---|
"""
    rows = []
    for name, field in fields.items():
        default = "(unset)" if field.default is None else f"`{field.default}`"
        default = "(empty)" if field.default == "" else default
        flag = flags.get(name.upper(), "–")
        rows.append(f"| `{name.upper()}` | {default} | {field.description} | {flag} |\n")
    return head + "".join(rows)
