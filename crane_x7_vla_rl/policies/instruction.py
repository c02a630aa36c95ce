"""From an instruction in words to the task that the colour servo can do, or why it cannot.

English and Japanese. Only what is clearly asked for becomes a task: an unknown verb or place holds
the arm.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Verb(StrEnum):
    """What to do with the cube."""

    LIFT = "lift"
    PLACE = "place"
    """Put it on the plate."""


@dataclass(frozen=True)
class Task:
    """What to do with the cube of which colour."""

    verb: Verb
    colour: str
    """One of COLOUR_WORDS' keys."""


@dataclass(frozen=True)
class NotUnderstood:
    """Why an instruction is no task."""

    reason: str


COLOUR_WORDS: Final = {
    "red": re.compile(r"\bred\b|赤"),
    "green": re.compile(r"\bgreen\b|緑"),
    "blue": re.compile(r"\bblue\b|青"),
    "yellow": re.compile(r"\byellow\b|黄"),
}
_LIFT: Final = re.compile(
    r"\b(pick|picking|lift|grasp|grab|raise|take|hold|fetch|get)\b|持ち|持って|取|掴|つか|拾|上げ"
)
_PLACE: Final = re.compile(r"\b(place|put|set|drop|lay|move|bring)\b|置|のせ|載せ|乗せ|運")
_PLATE: Final = re.compile(r"\b(plate|dish|saucer)\b|皿|プレート")
_THE_CUBE: Final = re.compile(
    r"\b(it|the (cube|block|object))\b|(^|[、。\s])(それ|キューブ|ブロック|物体)"
)
"""The cube that was spoken of before. "The purple cube" is none of these: it must not become one
that the arm knows."""
_NOT: Final = re.compile(r"\b(don'?t|do not|not|never|stop)\b|ないで|するな|止ま")


def parse(instruction: str, before: str | None = None) -> Task | NotUnderstood:
    """Return the task; of several colours, the one named first is the cube to move.

    `before` is the colour of the task before, which "it" or "the cube" means.
    """
    text = instruction.casefold().replace("’", "'")
    colour = _colour(text) or (before if _THE_CUBE.search(text) else None)
    if colour is None:
        known = ", ".join(COLOUR_WORDS)
        return NotUnderstood(f"it names no known colour ({known})")
    if _NOT.search(text):
        return NotUnderstood("it forbids something")
    onto_plate = _PLATE.search(text)
    if onto_plate and (_PLACE.search(text) or _LIFT.search(text)):
        return Task(Verb.PLACE, colour)
    if _PLACE.search(text):
        return NotUnderstood("it names no place that is known (the plate)")
    if _LIFT.search(text):
        return Task(Verb.LIFT, colour)
    return NotUnderstood("it names nothing to do that is known (pick up, place on the plate)")


def _colour(text: str) -> str | None:
    hits = {colour: words.search(text) for colour, words in COLOUR_WORDS.items()}
    places = {colour: hit.start() for colour, hit in hits.items() if hit}
    return min(places, key=lambda name: places[name]) if places else None
