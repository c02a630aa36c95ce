"""Fields of frozen dataclasses. A class → a `Leaf` per value; text and YAML values → typed values.

A section is a field whose type is a dataclass. A leaf is a bool, int, float, str, Literal, a size
or several texts, or None. `Annotated[int, at_least(1)]` bounds it; the docstring under it is its
help. So type, default, range and help of a value are in one place, for file and flag.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import inspect
import json
import math
import re
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Any, Final, Literal, TypeVar, get_args, get_origin

T = TypeVar("T")

FLAG: Final = "flag"
"""Key of a field's metadata: the flag that sets it, if that is not `--<name of the field>`."""
BARE: Final = "bare"
"""Key of a field's metadata: the meaning of its flag without a value."""
SIZE: Final = r"0*[1-9]\d*x0*[1-9]\d*"
"""Text form of width and height of an image, for `tuple[int, int]`."""
EXPECTED: Final[Mapping[Any, str]] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text",
    tuple[int, int]: "WxH as in 128x128", tuple[str, ...]: "a list of texts",
}  # fmt: skip
UNITS: Final[Mapping[str, str]] = {
    "s": "S", "hz": "HZ", "m": "M", "rad": "RAD", "minutes": "MIN", "mb": "MB",
}  # fmt: skip
"""Last word of a flag → metavar of its number in help."""
STRINGS: Final[Mapping[str, str]] = {
    "dir": "FOLDER", "root": "FOLDER", "pretrained": "MODEL", "checkpoint": "MODEL",
    "model": "MODEL", "instruction": "TEXT", "key": "KEY", "file": "FILE", "statistics": "FILE",
    "device": "DEVICE",
}  # fmt: skip
"""The same for text."""


@dataclass(frozen=True)
class Bound:
    """Range of a field's values."""

    accepts: Callable[[Any], bool]
    expected: str
    """Follows this word in messages."""
    names: tuple[str, ...] = ()
    """All of them, if they can be listed."""


def at_least(low: float) -> Bound:
    """Bound a number from below."""
    return Bound(lambda value: value >= low, f"{low} or more")


def above(low: float) -> Bound:
    """Bound a number from below, excluding `low`."""
    return Bound(lambda value: value > low, f"above {low}")


def within(low: float, high: float, unit: str = "") -> Bound:
    """Bound a number by both ends, including them."""
    return Bound(lambda value: low <= value <= high, f"{low} to {high} {unit}".rstrip())


def size_text(example: str) -> Bound:
    """Bound a text to width and height of an image."""
    return Bound(lambda text: bool(re.fullmatch(SIZE, text)), f"WxH as in {example}")


def one_of(names: tuple[str, ...]) -> Bound:
    """Bound a text to these."""
    return Bound(names.__contains__, f"one of {', '.join(names)}", names)


def some_of(names: tuple[str, ...]) -> Bound:
    """Bound texts to at least one of these, and no others."""
    expected = f"a list of some of {', '.join(names)}"
    return Bound(lambda texts: 0 < len({*texts}) == len({*texts} & {*names}), expected, names)


Count = Annotated[int, at_least(1)]
Index = Annotated[int, at_least(0)]
Amount = Annotated[float, at_least(0)]
Positive = Annotated[float, above(0)]
FiniteAmount = Annotated[float, Bound(lambda value: 0 <= value < math.inf, "0 or more")]
"""A length or noise; a limit or weight may be infinite."""
FinitePositive = Annotated[float, Bound(lambda value: 0 < value < math.inf, "above 0")]
Share = Annotated[float, within(0, 1)]
BelowOne = Annotated[float, Bound(lambda value: 0 <= value < 1, "0 to below 1")]


@dataclass(frozen=True)
class Kind:
    """Type and range of a field's values."""

    base: Any
    """Its type, without None and bound."""
    optional: bool
    bound: Bound | None

    @property
    def is_section(self) -> bool:
        """Whether it is a dataclass itself."""
        return dataclasses.is_dataclass(self.base)

    def convert(self, value: Any) -> Any:
        """Return `value` in this type. YAML reads 5e-5 as text, and flags are all text.

        Raises ValueError that says what was expected; `check` looks at the range.
        """
        if value is None and self.optional:
            return None
        if get_origin(self.base) is Literal:
            if value in get_args(self.base):
                return value
            raise ValueError(" or ".join(map(str, get_args(self.base))))
        if self.base in (int, float) and type(value) in (int, float, str):
            return _number(self.base, value)
        if self.base == tuple[int, int] and re.fullmatch(SIZE, str(value)):
            return tuple(map(int, str(value).split("x")))
        is_list = self.base == tuple[str, ...] and isinstance(value, list | tuple)
        if is_list and all(isinstance(text, str) for text in value):
            return tuple(value)
        if self.base in (bool, str) and isinstance(value, self.base):
            return value
        raise ValueError(EXPECTED[self.base])

    def check(self, value: Any) -> None:
        """Raise ValueError that says what was expected, if `value` is out of range."""
        if self.bound is None or (self.optional and value is None) or self.bound.accepts(value):
            return
        raise ValueError(self.bound.expected + (", or none" if self.optional else ""))

    def from_text(self, text: str) -> Any:
        """Return the value of a flag's text; raises ArgumentTypeError."""
        required = dataclasses.replace(self, optional=False)
        try:
            value = required.convert(text)
            required.check(value)
        except ValueError as expected:
            raise argparse.ArgumentTypeError(f"{text!r}, expected {expected}") from None
        return value


def _number(base: type, value: float | str) -> float:
    if base is int and not isinstance(value, float):
        with contextlib.suppress(ValueError):
            return int(value)  # a float would round more than 53 bits
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if base is int and number.is_integer():
        return int(number)
    if base is int or math.isnan(number):
        raise ValueError(EXPECTED[base])
    return number


def quoted(value: Any) -> str:
    """Return a value for a message: text in quotes, other values as in YAML and JSON."""
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return json.dumps(value, default=str, ensure_ascii=False)


def kind_of(hint: Any) -> Kind:
    """Return the kind of a field with this type, such as `Annotated[int, at_least(1)] | None`."""
    if get_origin(hint) in (typing.Union, types.UnionType):
        (inner,) = (each for each in get_args(hint) if each is not type(None))
        return dataclasses.replace(kind_of(inner), optional=True)
    if get_origin(hint) is Annotated:
        base, bound = get_args(hint)
        return Kind(base, False, bound)
    return Kind(hint, False, None)


def argument_type(hint: Any) -> Callable[[str], Any]:
    """Return a function for argparse that converts and checks text as a field of this type."""
    return kind_of(hint).from_text


def kinds(cls: type) -> Mapping[str, Kind]:
    """Return the kind of each field of a dataclass, by name."""
    return _kinds(cls)


@lru_cache(maxsize=64)
def _kinds(cls: type) -> Mapping[str, Kind]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: kind_of(hints[field.name]) for field in dataclasses.fields(cls)}


@dataclass(frozen=True)
class Leaf:
    """One value of a configuration."""

    key: str
    """Dotted."""
    flag: str
    bare: Any
    """Meaning of the flag without a value; None if it needs one."""
    kind: Kind
    default: Any
    """dataclasses.MISSING without one."""
    text: str
    """Help."""


def flag(name: str, default: Any) -> Any:
    """Return a field whose flag is `name`."""
    return dataclasses.field(default=default, metadata={FLAG: name})


def leaves(cls: type, prefix: str = "") -> Iterator[Leaf]:
    """Yield every leaf of a dataclass and of its sections."""
    texts = _docstrings(cls)
    for field in dataclasses.fields(cls):
        key, kind = prefix + field.name, kinds(cls)[field.name]
        if kind.is_section:
            yield from leaves(kind.base, f"{key}.")
        else:
            option = field.metadata.get(FLAG, "--" + field.name.replace("_", "-"))
            bare = field.metadata.get(BARE)
            yield Leaf(key, option, bare, kind, field.default, texts[field.name])


@lru_cache(maxsize=64)
def _docstrings(cls: type) -> dict[str, str]:
    """Return the docstring under each field, on one line; a class's own override its bases'."""
    found = {field.name: "" for field in dataclasses.fields(cls)}
    for ancestor in reversed(cls.__mro__):
        if "__dataclass_fields__" not in vars(ancestor):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(ancestor))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in pairwise(body.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(words))):
                    found[name] = " ".join(words.split())
    return found


def construct(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Return the dataclass with these values of its leaves by dotted key, or their defaults."""
    arguments = {}
    for name, kind in kinds(cls).items():
        key = prefix + name
        if kind.is_section:
            arguments[name] = construct(kind.base, values, f"{key}.")
        elif key in values:
            arguments[name] = values[key]
    return cls(**arguments)


def check(instance: Any, prefix: str = "", error: type[Exception] = ValueError) -> None:
    """Raise `error` for the first field of a dataclass whose value is out of range."""
    for name, kind in kinds(type(instance)).items():
        value = getattr(instance, name)
        try:
            kind.check(value)
        except ValueError as expected:
            text = f"{prefix}{name} is {quoted(value)}, expected {expected}"
            raise error(text) from None


def add_flags(
    parser: argparse._ActionsContainer, cls: type, without: Collection[str] = (), *, typed: bool,
    asked: Collection[str] = (),
) -> None:  # fmt: skip
    """Add a flag for each leaf except those whose key, or section, is in `without`.

    The flags of a section are in a separate group. If `typed`, the parser converts, checks and
    fills in defaults, for `from_flags`. Otherwise a value stays text, and an omitted flag sets
    nothing. Flags of `asked` are None by default: a checkpoint may set the value.
    """
    groups = {"": parser}
    for leaf in leaves(cls):
        section = leaf.key.partition(".")[0] if "." in leaf.key else ""
        if leaf.key in without or section in without:
            continue
        if section not in groups:
            groups[section] = parser.add_argument_group(_title(cls, section))
        options, text = _options(leaf, typed), _help(leaf)
        if leaf.key in asked:
            options["default"], text = None, _help(leaf, "the checkpoint's, else ")
        groups[section].add_argument(leaf.flag, help=text, **options)


def _title(cls: type, section: str) -> str:
    """Return a section's name, and the first line of its class's docstring."""
    words = (inspect.getdoc(kinds(cls)[section].base) or "").partition("\n")[0]
    first = words.partition(". ")[0].rstrip(".")
    return f"{section}: {first[:1].lower()}{first[1:]}"


class OnOff(argparse.BooleanOptionalAction):
    """`--name` and `--no-name`; the help is unchanged."""

    def __init__(self, *args: Any, help: str | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.help = help


def _options(leaf: Leaf, typed: bool) -> dict[str, Any]:
    base, bound = leaf.kind.base, leaf.kind.bound
    options: dict[str, Any] = {"dest": leaf.key, "default": argparse.SUPPRESS}
    if typed:
        options["default"] = leaf.default
    if leaf.bare is not None:
        options |= {"nargs": "?", "const": leaf.bare}
    if base is bool:
        return options | {"action": OnOff}
    if base == tuple[str, ...]:
        options["nargs"] = "+"
    if choices := get_args(base) if get_origin(base) is Literal else bound and bound.names:
        return options | {"choices": choices}
    if typed:
        options["type"] = leaf.kind.from_text
    return options | {"metavar": _metavar(leaf)}


def _metavar(leaf: Leaf) -> str:
    """Return one short word for the value: its unit, or its kind."""
    if "WxH" in EXPECTED.get(leaf.kind.base, "") or (
        leaf.kind.bound and "as in" in leaf.kind.bound.expected
    ):
        return "WxH"
    last = leaf.flag.rpartition("-")[2]
    if leaf.kind.base is str:
        return STRINGS.get(last, "NAME")
    return UNITS.get(last, "N" if leaf.kind.base is int else "X")


def _help(leaf: Leaf, before: str = "") -> str:
    text, default = leaf.text.rstrip(".").replace("%", "%%"), leaf.default
    if default is dataclasses.MISSING or default is None:
        return text
    if isinstance(default, tuple):
        default = ("x" if leaf.kind.base == tuple[int, int] else " ").join(map(str, default))
    if isinstance(default, bool):
        default = "on" if default else "off"
    value = f"{default:g}" if isinstance(default, float) else default
    return f"{text} ({before}{value})"


def from_flags(cls: type[T], args: argparse.Namespace, **fixed: Any) -> T:
    """Return the dataclass in typed flags; `fixed` fields override them."""
    given = {name: value for name, value in vars(args).items() if name in kinds(cls)}
    several = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return cls(**(given | several | fixed))
