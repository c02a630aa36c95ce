"""Type, range, help and flag of a value are read from one field of a dataclass."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from crane_x7_vla_rl import fields
from crane_x7_vla_rl.fields import (
    Amount,
    Count,
    FiniteAmount,
    FinitePositive,
    Index,
    Positive,
    Share,
    at_least,
    size_text,
    some_of,
    within,
)


@dataclass(frozen=True)
class Base:
    """Its own words."""

    steps: Count | None = None
    """How many."""
    share: Share = 0.5
    """Of the whole."""


@dataclass(frozen=True)
class Options(Base):
    """Words of the class are no field's."""

    size: tuple[int, int] = (4, 4)
    """Of pictures."""
    names: Annotated[tuple[str, ...], some_of(("red", "blue"))] = ("red",)
    """Of cubes."""
    kind: Literal["a", "b"] = "a"
    """Which."""
    seed: int = 0
    """Of chance."""


def parsed(*argv: str) -> Options:
    parser = argparse.ArgumentParser()
    fields.add_flags(parser, Options, typed=True)
    return fields.from_flags(Options, parser.parse_args(argv))


def test_a_help_text_is_what_stands_under_its_field() -> None:
    texts = {leaf.key: leaf.text for leaf in fields.leaves(Options)}
    assert texts["share"] == "Of the whole."
    assert texts["seed"] == "Of chance."


def test_typed_flags_make_the_dataclass() -> None:
    assert parsed() == Options()
    given = parsed("--size", "8x6", "--names", "red", "blue", "--steps", "3", "--kind", "b")
    assert given == Options(steps=3, size=(8, 6), names=("red", "blue"), kind="b")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--steps", "0"], "argument --steps: '0', expected 1 or more\n"),
        (["--share", "1.5"], "argument --share: '1.5', expected 0 to 1"),
        (["--share", "nan"], "argument --share: 'nan', expected a number"),
        (["--size", "0x5"], "argument --size: '0x5', expected WxH as in 128x128"),
        (["--names", "pink"], "argument --names: invalid choice: 'pink'"),
    ],
)
def test_a_wrong_flag_says_what_came_and_what_was_expected(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(*argv)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("hint", "inside", "outside", "said"),
    [
        (Count, [1], [0], "1 or more"),
        (Index, [0], [-1], "0 or more"),
        (Amount, [0.0, math.inf], [-0.1, math.nan], "0 or more"),
        (Positive, [1e-9, math.inf], [0.0], "above 0"),
        (FiniteAmount, [0.0], [-0.1, math.inf], "0 or more"),
        (FinitePositive, [0.1], [0.0, math.inf], "above 0"),
        (Share, [0.0, 1.0], [1.1, -0.1], "0 to 1"),
        (Annotated[float, within(0.1, 2, "m")], [0.1, 2.0], [0.0, 2.1], "0.1 to 2 m"),
        (Annotated[int, at_least(1_000_000)], [1_000_000], [5], "1000000 or more"),
        (Annotated[str, size_text("4x4")], ["12x3"], ["0x3", "12", "x3"], "WxH as in 4x4"),
    ],
)
def test_a_range_holds_its_ends_and_says_itself(
    hint: Any, inside: list[Any], outside: list[Any], said: str
) -> None:
    kind = fields.kind_of(hint)
    for value in inside:
        kind.check(value)
    for value in outside:
        with pytest.raises(ValueError, match=f"^{said}$"):
            kind.check(value)


def test_a_seed_beyond_the_whole_numbers_of_a_float_is_not_rounded() -> None:
    kind = fields.kind_of(int)
    assert kind.convert(2**53 + 1) == kind.convert(str(2**53 + 1)) == 2**53 + 1
    assert kind.convert("1e3") == kind.convert(1e3) == 1000


def test_a_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(ValueError, match="a number"):
        fields.kind_of(float).convert(10**400)
