"""An instruction in words → what to do with which cube, or why it is not clear.

English and Japanese. Only a clear request for one cube becomes a task. A colour that is no cube's,
another thing than a cube, another action, a prohibition or a question become a reason to hold.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final

from crane_x7_vla_rl.policies import lexicon, spelling


class Verb(StrEnum):
    """What to do with the cube."""

    LIFT = "lift"
    PLACE = "place"
    """Put it on the plate."""


@dataclass(frozen=True)
class Task:
    """An action, and the colour of its cube."""

    verb: Verb
    colour: str
    """A key of lexicon.COLOURS."""

    def __str__(self) -> str:
        """Return the task in English."""
        place = " on the plate" if self.verb is Verb.PLACE else ""
        return f"{self.verb} the {self.colour} cube{place}"


@dataclass(frozen=True)
class NotUnderstood:
    """Why an instruction is not a task."""

    reason: str

    def __str__(self) -> str:
        """Return the reason."""
        return f"not understood, {self.reason}"


CUBE_COLOURS: Final = ("red", "green", "blue", "yellow")
"""Colours of cubes that this project knows; a policy may know fewer."""
EXAMPLE: Final = "pick up the red cube"
UNDERSTOOD: Final = (
    f'expected an instruction such as "{EXAMPLE}" or "place the blue cube on the plate", with red,'
    " green, blue or yellow, in English or Japanese"
)
APOSTROPHES: Final = str.maketrans(dict.fromkeys("’‘ʼ´`′＇", "'"))
BETWEEN_SCRIPTS: Final = re.compile(r"(?<=[a-z])(?=[^\x00-\x7f])|(?<=[^\x00-\x7f])(?=[a-z])")


@dataclass(frozen=True)
class _Hit:
    """A colour in the text."""

    start: int
    end: int
    colour: str


def parse(
    instruction: str, before: str | None = None, colours: Sequence[str] = CUBE_COLOURS
) -> Task | NotUnderstood:
    """Return the task, for a policy whose cubes have these `colours`.

    If several colours are named, the first is that of the cube to move; in Japanese it is the one
    before the first を. `before` is the colour of the task before, for "it" or "the cube".
    """
    text = _plain(instruction)
    if (reason := _refused(text)) is not None:
        return NotUnderstood(reason)
    text = lexicon.ALREADY.sub(" ", text)
    onto_plate = lexicon.ON_PLATE.search(text) is not None
    colour = _colour(text, before, onto_plate)
    if isinstance(colour, NotUnderstood):
        return colour
    known = ", ".join(colours)
    if colour is None:
        return NotUnderstood(f"it names no cube with a known colour ({known})")
    if colour not in colours:
        return NotUnderstood(f"it names the colour {colour}, the cubes are {known}")
    verb = _verb(text, onto_plate)
    return verb if isinstance(verb, NotUnderstood) else Task(verb, colour)


def _plain(instruction: str) -> str:
    """Return the text in lower case and normal width, its spelling mended.

    Negations that forbid nothing are left out.
    """
    text = unicodedata.normalize("NFKC", instruction.translate(APOSTROPHES)).casefold().strip()
    text = spelling.mend(BETWEEN_SCRIPTS.sub(" ", text))
    for pattern in (lexicon.POLITE, lexicon.WITHOUT, lexicon.CONTRAST):
        text = pattern.sub(" ", text)
    return text


def _refused(text: str) -> str | None:
    """Return what makes the whole text no task."""
    if lexicon.FORBID.search(text):
        return "it forbids an action"
    if lexicon.QUESTION.search(text):
        return "it is a question"
    if (other := lexicon.OTHER_ACTION.search(text)) is not None:
        return f'it names no known action: "{other[0]}" (known: pick up, place on the plate)'
    if lexicon.SEVERAL.search(text):
        return "it names several cubes, expected one colour"
    for thing in lexicon.RELATIVE.findall(text):
        if not lexicon.THINGS.fullmatch(thing):
            return f'it names another thing: "{thing}", expected a cube with a colour'
    return None


def _colour(text: str, before: str | None, onto_plate: bool) -> str | NotUnderstood | None:
    """Return the colour of the cube to move."""
    named = _without_places(text)
    hits = _hits(named)
    cubes = [hit for hit in hits if not _is_place(named, hit)]
    if not cubes:
        is_only = named == text and not hits
        is_before = lexicon.THE_CUBE.search(named) and (onto_plate or is_only)
        return before if is_before else None
    chosen = _chosen(named, cubes)
    if isinstance(chosen, NotUnderstood):
        return chosen
    after = named[chosen.end :]
    if not (lexicon.OBJECT.match(after) or lexicon.CUBE_JA.match(after)):
        return NotUnderstood(
            f'it names another thing: "{named[chosen.start :][:40].strip()}", expected a cube with'
            " a colour"
        )
    return chosen.colour


def _hits(text: str) -> list[_Hit]:
    """Return every colour in the text; "navy blue" is one."""
    hits: list[_Hit] = []
    for found in lexicon.COLOUR.finditer(text):
        hit = _Hit(found.start(), found.end(), str(found.lastgroup).replace("_", "-"))
        last = hits[-1] if hits else None
        if last and last.colour == hit.colour and not text[last.end : hit.start].strip(" -"):
            hits[-1] = _Hit(last.start, hit.end, hit.colour)
        else:
            hits.append(hit)
    return hits


def _chosen(text: str, cubes: list[_Hit]) -> _Hit | NotUnderstood:
    """Return the cube to move: the last before the first を, else the first."""
    of_object = [hit for hit in cubes if hit.start < text.find("を")]
    for one, two in pairwise(cubes):
        if one.colour != two.colour and lexicon.AND_ANOTHER.match(text[one.end : two.start]):
            return NotUnderstood(f"it names two colours, {one.colour} and {two.colour}")
    if of_object:
        return of_object[-1]
    if not text.isascii() and len({hit.colour for hit in cubes}) > 1:
        return NotUnderstood("it names several colours, and を follows none of them")
    return cubes[0]


def _without_places(text: str) -> str:
    """Return the text without "next to …" up to the end of its clause."""
    while (beside := lexicon.BESIDE.search(text)) is not None:
        end = lexicon.CLAUSE_END.search(text, beside.end())
        text = text[: beside.start()] + (text[end.start() :] if end else "")
    return text


def _is_place(text: str, hit: _Hit) -> bool:
    """Whether the colour is that of a plate, or of a cube on which something is."""
    return (
        lexicon.PLACE_NOUN.match(text, hit.end) is not None
        or lexicon.ON_THING.search(text, 0, hit.start) is not None
    )


def _verb(text: str, onto_plate: bool) -> Verb | NotUnderstood:
    lifts = lexicon.LIFT.search(text) is not None
    if lexicon.PLACE.search(text) or (lifts and onto_plate and lexicon.TO.search(text)):
        return Verb.PLACE if onto_plate else NotUnderstood("it names no known place (on the plate)")
    if lifts:
        return Verb.LIFT
    return NotUnderstood("it names no known action (pick up, place on the plate)")
