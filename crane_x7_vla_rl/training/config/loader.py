"""Defaults < file < flags < overrides: the one loader of configurations.

Layers of `{dotted key: value}`, later ones override → a checked dataclass, or a ConfigError
that names the layer, the key and the nearest one that exists. Types, ranges and help are in
crane_x7_vla_rl/fields.py.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

from crane_x7_vla_rl.fields import Leaf, add_flags, construct, kinds, leaves, quoted
from crane_x7_vla_rl.file_errors import kind_in_words
from crane_x7_vla_rl.old_names import key_now
from crane_x7_vla_rl.suggest import nearest
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.yaml_file import YamlError, parse_yaml, read_yaml

T = TypeVar("T")
FLAGS: Final = "command line"
"""The source of what flags set; messages name the flag instead."""


@dataclass(frozen=True)
class Layer:
    """The values of one source."""

    source: str
    """For messages: a file's path, `command line`."""
    values: Mapping[str, Any]
    """By dotted key."""


def add_arguments(parser: argparse.ArgumentParser, cls: type) -> None:
    """Add a flag per leaf, `--config` and `--override`; an omitted flag sets nothing."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML; flags override it")
    parser.add_argument(
        "--override", action="append", default=[], metavar="KEY=VALUE",
        help="set any configuration key, such as training.batch_size=4; overrides flags",
    )  # fmt: skip
    add_flags(parser, cls, typed=False)


def layers(args: argparse.Namespace, cls: type) -> list[Layer]:
    """Return the values of file, flags and overrides, in this order; raises ConfigError."""
    given = vars(args)
    flags = {leaf.key: given[leaf.key] for leaf in leaves(cls) if leaf.key in given}
    found = [] if args.config is None else [read_file(args.config)]
    return [*found, Layer(FLAGS, flags), overrides(args.override)]


def read_file(path: Path) -> Layer:
    """Return the values of a YAML file; raises ConfigError."""
    try:
        content = read_yaml(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except YamlError as error:
        raise ConfigError(f"{path}: {error}") from error
    if content is None:
        content = {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: holds {kind_in_words(content)}, expected keys and values")
    values: dict[str, Any] = {}
    for key, value in _flatten(content):
        _add(values, key, value, str(path))  # an alias and a dotted key may mean the same
    return Layer(str(path), values)


def _flatten(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def overrides(given: Sequence[str]) -> Layer:
    """Return the values of `--override KEY=VALUE`; raises ConfigError."""
    values: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--override {text}: expected KEY=VALUE, as in training.batch_size=4")
        try:
            parsed = parse_yaml(value)
        except YamlError as error:
            raise ConfigError(f"--override {text}: the value {error}") from error
        for name, each in _flatten({key.strip(): parsed}):
            _add(values, name, each, f"--override {text}")
    return Layer("--override", values)


def _add(values: dict[str, Any], key: str, value: Any, source: str) -> None:
    if key in values:
        raise ConfigError(f"{source}: {key} is given twice; keep one")
    values[key] = value


def build(cls: type[T], wanted: Sequence[Layer]) -> T:
    """Return the dataclass that the layers describe; later layers override earlier ones.

    A section without values, as YAML has it where all its lines are comments, sets nothing. Raises
    ConfigError with all unknown keys, values of another type or out of range, and keys without a
    value, and with what the checks of the other sections refuse.
    """
    known = {leaf.key: leaf for leaf in leaves(cls)}
    sections = {key.rpartition(".")[0] for key in known if "." in key}
    values: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for layer in wanted:
        for key, value in layer.values.items():
            if key in sections and value is None:
                continue
            if key in sections:
                problems[key] = (
                    f"{layer.source}: {key} is {quoted(value)}, expected keys and values"
                )
            elif key not in known:
                problems[key] = f"{layer.source}: {_unknown(key, known)}"
            else:
                try:
                    values[key] = value = known[key].kind.convert(value)
                    known[key].kind.check(value)
                except ValueError as error:
                    source = known[key].flag if layer.source == FLAGS else layer.source
                    problems[key] = f"{source}: {key} is {quoted(value)}, expected {error}"
    for leaf in known.values():
        if leaf.key not in values | problems and leaf.default is dataclasses.MISSING:
            problems[leaf.key] = (
                f"{leaf.key} is not set; give {leaf.flag}, or {leaf.key} in the file"
            )
    odd = {key.partition(".")[0] for key in problems}
    _raise_all([*problems.values(), *_refused_sections(cls, values, odd)])
    return construct(cls, values)


def _refused_sections(cls: type, values: Mapping[str, Any], without: Collection[str]) -> list[str]:
    """Return the problems that the sections' own checks find, one text per section."""
    found = []
    for name, kind in kinds(cls).items():
        if kind.is_section and name not in without:
            try:
                construct(kind.base, values, f"{name}.")
            except ConfigError as error:
                found.append(str(error))
    return found


def _raise_all(problems: Sequence[str]) -> None:
    """Raise ConfigError with all problems, a single one unchanged."""
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        lines = "".join(f"\n  - {text}" for text in problems)
        raise ConfigError(f"{len(problems)} problems in the configuration:{lines}")


def _unknown(key: str, known: Mapping[str, Leaf]) -> str:
    now = key_now(key, known)
    if now is not None:
        return f"{key} is unknown; it is now {now}"
    section, _, name = key.rpartition(".")
    # A shared section does not make keys similar: training.lr is not near training.seed.
    inside = {other.rpartition(".")[2]: other for other in known if other.startswith(f"{section}.")}
    near = [inside[other] for other in nearest(name, inside, 0.7)] if section else []
    near = near or [
        other for other in nearest(key, known, 0.8) if nearest(name, [other.rpartition(".")[2]])
    ]
    if not near:
        near = [other for other in known if other.rpartition(".")[2] == name][:1]
    if near:
        same = near[0].rpartition(".")[0] == section
        return f"{key} is unknown; did you mean {near[0].rpartition('.')[2] if same else near[0]}?"
    return f"{key} is unknown; known: {', '.join(known)}"


def flat(config: Any) -> dict[str, Any]:
    """Return every value of a configuration by dotted key."""
    return dict(_flatten(dataclasses.asdict(config)))


def to_yaml(config: Any) -> str:
    """Return the whole configuration as YAML that `read_file` reads back."""
    text: str = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
    return text


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Return {dotted key: (old value, new value)} of the differences of two configurations."""
    before, after = flat(old), flat(new)
    return {
        key: (before.get(key), after.get(key))
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    }
