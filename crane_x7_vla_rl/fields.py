"""Fields of frozen dataclasses. A class → a `Leaf` per value; text and YAML values → typed values.

A section is a field whose type is a dataclass. A leaf is a bool, int, float, str, Literal, a size
or several texts, or None. `Annotated[int, Range(1)]` bounds it; the docstring under it is its
help. Type, default, range and help of a value thus stand in one place, for file and flag alike.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import inspect
import math
import re
import textwrap
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

T = TypeVar("T")

FLAG: Final = "flag"
"""Key of a field's metadata: the flag that sets it, where that is not `--<name of the field>`."""
BARE: Final = "bare"
"""Key of a field's metadata: what its flag means without a value."""
SIZE: Final = r"0*[1-9]\d*x0*[1-9]\d*"
"""Width and height of a picture, as text; `tuple[int, int]` is this."""
EXPECTED: Final[Mapping[Any, str]] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text",
    tuple[int, int]: "WxH as in 128x128", tuple[str, ...]: "a list of texts",
}  # fmt: skip


class Bound(Protocol):
    """Which values of its type a field takes; `str` of it follows `expected`."""

    def __contains__(self, value: Any, /) -> bool: ...


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, without the ends that are open."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    unit: str = ""

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.low_open else self.low <= value
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        if self.high < math.inf and not self.high_open:
            return f"{self.low} to {self.high} {self.unit}".rstrip()
        least = f"above {self.low}" if self.low_open else f"{self.low} or more"
        return least if self.high == math.inf else f"{least} and below {self.high}"


@dataclass(frozen=True)
class Like:
    """Texts that fit a pattern."""

    pattern: str
    example: str

    def __contains__(self, value: str) -> bool:
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return f"as in {self.example}"


@dataclass(frozen=True)
class OneOf:
    """One of these texts."""

    names: tuple[str, ...]

    def __contains__(self, value: str) -> bool:
        return value in self.names

    def __str__(self) -> str:
        return f"one of {', '.join(self.names)}"


@dataclass(frozen=True)
class SomeOf:
    """Some of these texts, at least one."""

    names: tuple[str, ...]

    def __contains__(self, value: tuple[str, ...]) -> bool:
        return len(value) > 0 and {*value} <= {*self.names}

    def __str__(self) -> str:
        return f"a list of some of {', '.join(self.names)}"


Count = Annotated[int, Range(1)]
Index = Annotated[int, Range(0)]
Amount = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, low_open=True)]
FiniteAmount = Annotated[float, Range(0, high_open=True)]
"""A length or noise; a limit or weight may be infinite."""
FinitePositive = Annotated[float, Range(0, low_open=True, high_open=True)]
Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class Kind:
    """What values a field takes."""

    base: Any
    """Its type, None and bound taken off."""
    optional: bool
    bound: Bound | None

    @property
    def is_section(self) -> bool:
        """Whether it is a dataclass of its own."""
        return dataclasses.is_dataclass(self.base)

    def convert(self, value: Any) -> Any:
        """Return `value` in this type. YAML takes 5e-5 for text, and flags are all text.

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
        """Raise ValueError that says what was expected, where `value` is out of range."""
        if self.bound is None or (self.optional and value is None) or value in self.bound:
            return
        raise ValueError(f"{self.bound}, or none" if self.optional else self.bound)

    def from_text(self, text: str) -> Any:
        """Return the value that a flag's text means; raises ArgumentTypeError."""
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
            return int(value)  # a float would round it beyond 53 bits
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if base is int and number.is_integer():
        return int(number)
    if base is int or math.isnan(number):
        raise ValueError(EXPECTED[base])
    return number


def kind_of(hint: Any) -> Kind:
    """Return what a field with this type takes, such as `Annotated[int, Range(1)] | None`."""
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = (each for each in get_args(hint) if each is not type(None))
        return dataclasses.replace(kind_of(inner), optional=True)
    if get_origin(hint) is Annotated:
        base, bound = get_args(hint)
        return Kind(base, False, bound)
    return Kind(hint, False, None)


def argument_type(hint: Any) -> Callable[[str], Any]:
    """Return what argparse calls to convert and check text as a field of this type."""
    return kind_of(hint).from_text


def kinds(cls: type) -> dict[str, Kind]:
    """Return what each field of a dataclass takes, by name."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: kind_of(hints[field.name]) for field in dataclasses.fields(cls)}


@dataclass(frozen=True)
class Leaf:
    """One value of a configuration."""

    key: str
    """Dotted."""
    flag: str
    bare: Any
    """What the flag means without a value; None where it needs one."""
    kind: Kind
    default: Any
    """dataclasses.MISSING where there is none."""
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
    """Return the docstring under each field, on one line; a class's own count most."""
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
    """Return the dataclass whose leaves have these values by dotted key, or their defaults."""
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
            raise error(f"{prefix}{name} is {value!r}, expected {expected}") from None


def add_flags(
    parser: argparse._ActionsContainer, cls: type, without: Collection[str] = (), *, typed: bool
) -> None:
    """Add a flag for each leaf but those whose key, or section, is in `without`.

    Typed, the parser converts, checks and fills in defaults, for `from_flags`. Otherwise a value
    stays text, and what is not given sets nothing.
    """
    for leaf in leaves(cls):
        if leaf.key not in without and leaf.key.partition(".")[0] not in without:
            parser.add_argument(leaf.flag, help=_help(leaf), **_options(leaf, typed))


def _options(leaf: Leaf, typed: bool) -> dict[str, Any]:
    base, bound = leaf.kind.base, leaf.kind.bound
    options: dict[str, Any] = {"dest": leaf.key, "default": argparse.SUPPRESS}
    if typed:
        options["default"] = leaf.default
    if leaf.bare is not None:
        options |= {"nargs": "?", "const": leaf.bare}
    if base is bool:
        return options | {"action": argparse.BooleanOptionalAction}
    if base == tuple[str, ...]:
        options["nargs"] = "+"
    if isinstance(bound, OneOf | SomeOf):
        return options | {"choices": bound.names}
    if get_origin(base) is Literal:
        return options | {"choices": get_args(base)}
    if typed:
        options["type"] = leaf.kind.from_text
    name = leaf.key.rpartition(".")[2].upper()
    return options | {"metavar": "WxH" if base == tuple[int, int] else name}


def _help(leaf: Leaf) -> str:
    text, default = leaf.text.rstrip(".").replace("%", "%%"), leaf.default
    if default is dataclasses.MISSING or default is None:
        return text
    if isinstance(default, tuple):
        default = ("x" if leaf.kind.base == tuple[int, int] else " ").join(map(str, default))
    return f"{text} ({default})"


def from_flags(cls: type[T], args: argparse.Namespace, **fixed: Any) -> T:
    """Return the dataclass in typed flags; `fixed` fields count more."""
    given = {name: value for name, value in vars(args).items() if name in kinds(cls)}
    several = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return cls(**(given | several | fixed))
