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

from crane_x7_vla_rl.policies import lexicon, spelling, vocabulary


class Verb(StrEnum):
    """What to do with the cube."""

    LIFT = "lift"
    PLACE = "place"
    """Onto the plate."""


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
IN_JAPANESE: Final = re.compile(r"(?<=[^\x00-\x7f])[^\S\n]+(?=[^\x00-\x7f])")
"""Spaces that only some people write."""
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
    text = _without_where(text)
    onto_plate = _is_onto_plate(text)
    colour = _colour(text, before, onto_plate)
    if isinstance(colour, NotUnderstood):
        return colour
    known = ", ".join(colours)
    if colour is None:
        return NotUnderstood(f"it names no cube with a known colour ({known})")
    if colour not in colours:
        return NotUnderstood(f"it names the colour {colour}, the cubes are {known}")
    verb = _verb(text, onto_plate)
    if isinstance(verb, NotUnderstood):
        return verb
    if (word := vocabulary.unknown(text)) is not None:
        return NotUnderstood(f'it has a word that may change what is meant: "{word}"')
    return Task(verb, colour)


def _plain(instruction: str) -> str:
    """Return the text in lower case and normal width, its spelling mended.

    Negations that forbid nothing are left out.
    """
    text = unicodedata.normalize("NFKC", instruction.translate(APOSTROPHES)).casefold().strip()
    text = IN_JAPANESE.sub("", text)
    text = spelling.mend(BETWEEN_SCRIPTS.sub(" ", text))
    for pattern in (lexicon.POLITE, lexicon.WITHOUT, lexicon.CONTRAST):
        text = pattern.sub(" ", text).strip()
    text = lexicon.SUPPOSED.sub(r"\1", text)
    return lexicon.APPROACH.sub("reach for", lexicon.GRIP.sub("grip", text))


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
    if lexicon.CONDITION.search(text):
        return "it waits for a condition, expected something to do now"
    if lexicon.QUOTED.search(text):
        return "it quotes words, expected the instruction alone"
    if lexicon.GERUND_IS.match(text) or any(
        _is_told(found) for found in lexicon.STATEMENT.finditer(text)
    ):
        return "it tells what somebody does, or did"
    others = (one for one in lexicon.RELATIVE.findall(text) if not lexicon.THINGS.fullmatch(one))
    if (thing := next(others, None) or _other_object(text)) is not None:
        return f'it names another thing: "{thing}", expected a cube with a colour'
    return None


def _is_told(found: re.Match[str]) -> bool:
    """Whether a sentence about people is about an action."""
    verb = found["verb"]
    return verb is None or any(
        re.fullmatch(known, verb)
        for known in (lexicon.LIFT, lexicon.PLACE, lexicon.LIFTED, lexicon.PLACED)
    )


def _other_object(text: str) -> str | None:
    """Return the object of an action, if it is no cube: the mug of "lift the mug with …"."""
    for found in lexicon.OBJECT_OF.finditer(text):
        if not lexicon.CUBE_WORD.search(found["object"]) and not _hits(found["object"]):
            return found["object"]
    found_ja = lexicon.OTHER_OBJECT_JA.search(text)
    return found_ja and found_ja[1]


def _without_where(text: str) -> str:
    """Return the text without words that only tell where the cube is, if an action remains."""
    shorter = lexicon.ALREADY.sub(" ", text)
    acts = lexicon.LIFT.search(shorter) or lexicon.PLACE.search(shorter)
    return shorter if acts and not lexicon.GET_ONTO.search(text) else text


def _is_onto_plate(text: str) -> bool:
    """Whether the plate is named as the place where to put something."""
    there = lexicon.THERE.search(_without_places(text))
    return any((lexicon.ON_PLATE.search(text), lexicon.PLATE_GETS.search(text), there))


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
    too = [hit for hit in cubes if of_object and lexicon.TOO_JA.match(text, hit.end)]
    if too and too[-1].colour != of_object[-1].colour:
        return NotUnderstood(f"it names two colours, {of_object[-1].colour} and {too[-1].colour}")
    for one, two in pairwise(cubes):
        between = text[one.end : two.start]
        if one.colour != two.colour and (
            lexicon.AND_ANOTHER.match(between) or lexicon.THEN_ANOTHER.search(between)
        ):
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
    """Return the action."""
    wished = lexicon.WISHED.search(text)
    lifts = lexicon.LIFT.search(lexicon.GET_ONTO.sub(" ", text)) or (wished and wished["lifted"])
    places = (
        lexicon.PLACE.search(text)
        or (wished and wished["placed"])
        or lexicon.PLATE_GETS.search(text)
        or (onto_plate and lifts and lexicon.TO.search(text))
        or (onto_plate and not lifts and lexicon.WISHED_THERE.search(text))
        or (not lifts and lexicon.GET_ONTO.search(text))
        or lexicon.TERSE.fullmatch(text)
    )
    if places:
        return Verb.PLACE if onto_plate else NotUnderstood("it names no known place (on the plate)")
    if lifts and lexicon.ELSEWHERE.search(_without_places(text)):
        return NotUnderstood("it names no known place (on the plate)")
    if lifts:
        return Verb.LIFT
    return NotUnderstood("it names no known action (pick up, place on the plate)")
