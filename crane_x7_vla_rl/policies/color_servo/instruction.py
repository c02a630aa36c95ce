"""An instruction in words → the task of the colour servo, or why it cannot do it.

English and Japanese. Only a clear request becomes a task: an unknown verb or place holds the arm.
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
    """An action, and the colour of its cube."""

    verb: Verb
    colour: str
    """One of COLOUR_WORDS' keys."""

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


COLOUR_WORDS: Final = {
    "red": re.compile(r"\bred\b|赤|あか[いの]|レッド"),
    "green": re.compile(r"\bgreen\b|緑|みどり|グリーン"),
    "blue": re.compile(r"\bblue\b|青|あお[いの]|ブルー"),
    "yellow": re.compile(r"\byellow\b|黄|きいろ|イエロー"),
}
_LIFT: Final = re.compile(
    r"\b(pick|picking|lift|grasp|grab|raise|take|hold|fetch|get)\b|持ち|持って|取|掴|つか|拾|上げ"
)
_PLACE: Final = re.compile(r"\b(place|put|set|drop|lay|move|bring)\b|置|のせ|載せ|乗せ|運")
_ONTO: Final = re.compile(r"\bonto\b")
_ON_PLATE: Final = re.compile(
    r"\b(on|onto|in|into|to) (the |a )?(\w+ )?(plate|dish|saucer)\b"
    r"|(皿|プレート)(の上|のうえ)?[にへ]"
)
_THE_CUBE: Final = re.compile(
    r"\b(it|the (cube|block|object))\b|(^|[、。\s])(それ|キューブ|ブロック|物体)"
)
"""Words for the cube of the task before. "The purple cube" is not among them: it must not become a
cube that the arm knows."""
_NOT: Final = re.compile(
    r"n't\b|\b(dont|not|never|stop|cannot|avoid)\b|ない|やめ|止め|止ま|だめ|ダメ|駄目|禁止"
    r"|[うくぐすつぬぶむる]な(?![らのんど])"
)
_BESIDE: Final = re.compile(
    r"\b(next to|besides?|near|by|behind|under|left of|right of|in front of|close to)\b"
)
"""The words after it name a place: their colour is not that of the cube to move."""


EXAMPLE: Final = "pick up the red cube"
UNDERSTOOD: Final = (
    f'expected an instruction such as "{EXAMPLE}" or "place the blue cube on the plate", with red,'
    " green, blue or yellow, in English or Japanese"
)


def parse(instruction: str, before: str | None = None) -> Task | NotUnderstood:
    """Return the task; if several colours are named, the first is that of the cube to move.

    In Japanese it is the one before the first を. `before` is the colour of the task before, for
    "it" or "the cube".
    """
    text = instruction.casefold().replace("’", "'")
    if _NOT.search(text):
        return NotUnderstood("it forbids an action")
    named, *elsewhere = _BESIDE.split(text, maxsplit=1)
    onto_plate = _ON_PLATE.search(text)
    colour = _colour(named)
    if colour is None and _THE_CUBE.search(named) and (onto_plate or not elsewhere):
        colour = before
    if colour is None:
        known = ", ".join(COLOUR_WORDS)
        return NotUnderstood(f"it names no cube with a known colour ({known})")
    if _PLACE.search(text) or (_ONTO.search(text) and _LIFT.search(text)):
        if onto_plate:
            return Task(Verb.PLACE, colour)
        return NotUnderstood("it names no known place (on the plate)")
    if _LIFT.search(text):
        return Task(Verb.LIFT, colour)
    return NotUnderstood("it names no known action (pick up, place on the plate)")


def _colour(text: str) -> str | None:
    """Return the colour of the cube to move: the last before the first を, else the first."""
    hits = sorted(
        (hit.start(), colour)
        for colour, words in COLOUR_WORDS.items()
        for hit in words.finditer(text)
    )
    of_object = [colour for place, colour in hits if place < text.find("を")]
    if of_object:
        return of_object[-1]
    return hits[0][1] if hits else None
