"""Frozen dataclasses from files, flags and `--override a.b=c`; the one loader of configurations.

Layers of `{dotted key: value}` come in, what counts most last; a checked dataclass leaves, or a
ConfigError that names the layer, the key and the nearest one that exists. A section is a field
whose type is a dataclass; a leaf is a bool, int, float, str or Literal, possibly None. Each leaf is
a flag too; the docstring under a field is its help, so that no default and no text stands twice.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from crane_x7_vla_rl.suggest import nearest
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.yaml_file import YamlError, parse_yaml, read_yaml

T = TypeVar("T")

FLAG: Final = "flag"
"""Key of a field's metadata: the flag that sets it, where that is not `--<name of the field>`."""
BARE: Final = "bare"
"""Key of a field's metadata: what its flag means without a value."""


@dataclass(frozen=True)
class Layer:
    """What one source wants."""

    source: str
    """For messages: a file's path, `command line`."""
    values: Mapping[str, Any]
    """By dotted key."""


@dataclass(frozen=True)
class Leaf:
    """One value of a configuration."""

    key: str
    """Dotted."""
    flag: str
    bare: Any
    """What the flag means without a value; None where it needs one."""
    kind: Any
    """Its type, None taken off."""
    optional: bool
    default: Any
    """dataclasses.MISSING where there is none."""
    text: str
    """Help."""


def leaves(cls: type, prefix: str = "") -> Iterator[Leaf]:
    """Yield every leaf of a dataclass and of its sections."""
    hints, texts = get_type_hints(cls), _docstrings(cls)
    for field in dataclasses.fields(cls):
        kind, optional = _without_none(hints[field.name])
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            yield from leaves(kind, f"{prefix}{field.name}.")
        else:
            flag = field.metadata.get(FLAG, "--" + field.name.replace("_", "-"))
            key, text = prefix + field.name, texts[field.name]
            bare = field.metadata.get(BARE)
            yield Leaf(key, flag, bare, kind, optional, field.default, text)


def _without_none(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        assert len(kinds) == 1, hint
        return kinds[0], True
    return hint, False


@lru_cache(maxsize=32)
def _docstrings(cls: type) -> dict[str, str]:
    """Return the docstring under each field, on one line."""
    found = {field.name: "" for field in dataclasses.fields(cls)}
    name = ""
    for node in _statements(cls):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name in found:
            found[name] = " ".join(str(node.value.value).split())
    return found


def _statements(cls: type) -> Iterator[ast.stmt]:
    """Yield what the class and those that it inherits from say, its own last."""
    for ancestor in reversed(cls.__mro__):
        if dataclasses.is_dataclass(ancestor):
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(ancestor))).body
            assert isinstance(body, ast.ClassDef)
            yield from body.body


def add_arguments(parser: argparse.ArgumentParser, cls: type) -> None:
    """Add a flag per leaf, `--config` and `--override`; what is not given sets nothing."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML; flags count more")
    parser.add_argument(
        "--override", action="append", default=[], metavar="KEY=VALUE",
        help="set any key of the configuration, such as training.batch_size=4; counts most",
    )  # fmt: skip
    for leaf in leaves(cls):
        options: dict[str, Any] = {"dest": leaf.key, "default": argparse.SUPPRESS}
        if leaf.kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(leaf.kind) is Literal:
            options["choices"] = get_args(leaf.kind)
        else:
            options["metavar"] = leaf.key.rpartition(".")[2].upper()
        if leaf.bare is not None:
            options |= {"nargs": "?", "const": leaf.bare}
        parser.add_argument(leaf.flag, help=_help(leaf), **options)


def _help(leaf: Leaf) -> str:
    text = leaf.text.rstrip(".").replace("%", "%%")
    if leaf.default is dataclasses.MISSING or leaf.default is None:
        return text
    return f"{text} ({leaf.default})"


def layers(args: argparse.Namespace, cls: type) -> list[Layer]:
    """Return what file, flags and overrides want, in this order; raises ConfigError."""
    given = vars(args)
    flags = {leaf.key: given[leaf.key] for leaf in leaves(cls) if leaf.key in given}
    found = [] if args.config is None else [read_file(args.config)]
    return [*found, Layer("command line", flags), _overrides(args.override)]


def read_file(path: Path) -> Layer:
    """Return what a YAML file wants; raises ConfigError."""
    try:
        content = read_yaml(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except YamlError as error:
        raise ConfigError(f"{path}: {error}") from error
    if content is None:
        content = {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: holds a {type(content).__name__}, expected keys and values")
    return Layer(str(path), dict(_flatten(content)))


def _flatten(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _overrides(given: Sequence[str]) -> Layer:
    values: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--override {text}: expected KEY=VALUE, as in training.batch_size=4")
        if (name := key.strip()) in values:
            raise ConfigError(f"--override {text}: {name} is given twice; keep one")
        try:
            values[name] = parse_yaml(value)
        except YamlError as error:
            raise ConfigError(f"--override {text}: the value {error}") from error
    return Layer("--override", values)


def build(cls: type[T], wanted: Sequence[Layer]) -> T:
    """Return the dataclass that the layers describe, the last one counting most.

    Raises ConfigError for an unknown key, a value of another type, a key without a value, and what
    a section's own check refuses.
    """
    known = {leaf.key: leaf for leaf in leaves(cls)}
    values: dict[str, Any] = {}
    for layer in wanted:
        for key, value in layer.values.items():
            if key not in known:
                raise ConfigError(f"{layer.source}: {_unknown(key, known)}")
            values[key] = _coerce(known[key], value, layer.source)
    for leaf in known.values():
        if leaf.key not in values and leaf.default is dataclasses.MISSING:
            raise ConfigError(f"{leaf.key} is not set; give {leaf.flag}, or {leaf.key} in the file")
    return _construct(cls, values)


def _unknown(key: str, known: Mapping[str, Leaf]) -> str:
    section, _, name = key.rpartition(".")
    near = nearest(key, known, 0.7)
    if not near:
        near = [other for other in known if other.rpartition(".")[2] == name][:1]
    if near:
        same = near[0].rpartition(".")[0] == section
        return f"{key} is unknown; did you mean {near[0].rpartition('.')[2] if same else near[0]}?"
    return f"{key} is unknown; known: {', '.join(known)}"


def _construct(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    hints, arguments = get_type_hints(cls), {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        key = prefix + field.name
        kind, _ = _without_none(hints[field.name])
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            arguments[field.name] = _construct(kind, values, f"{key}.")
        elif key in values:
            arguments[field.name] = values[key]
    return cls(**arguments)


def _coerce(leaf: Leaf, value: Any, source: str) -> Any:
    """Return `value` in the leaf's type. YAML takes 5e-5 for text, and flags are all text."""
    if value is None and leaf.optional:
        return None
    kind = leaf.kind
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise _wrong(leaf, value, source, " or ".join(map(str, get_args(kind))))
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str):
        return value
    numeric = isinstance(value, int | float | str) and not isinstance(value, bool)
    if kind in (int, float) and numeric:
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if kind is float and number == number:
            return number
        if kind is int and number.is_integer():
            return int(number)
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    raise _wrong(leaf, value, source, names[kind])


def _wrong(leaf: Leaf, value: object, source: str, expected: str) -> ConfigError:
    return ConfigError(f"{source}: {leaf.key} is {value!r}, expected {expected}")


def flat(config: Any) -> dict[str, Any]:
    """Return every value of a configuration by dotted key."""
    return dict(_flatten(dataclasses.asdict(config)))


def to_yaml(config: Any) -> str:
    """Return the whole configuration as YAML that `read_file` reads back."""
    text: str = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
    return text


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Return {dotted key: (old value, new value)} of what two configurations say differently."""
    before, after = flat(old), flat(new)
    return {
        key: (before.get(key), after.get(key))
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    }
