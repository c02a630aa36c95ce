"""Typing mistakes in the few English words that every task needs: "pik up the gren cube".

A word is mended if one letter of such a word is missing, doubled, has changed places with its
neighbour, or is one that sounds alike (a vowel for another; c, k and s), and the first letter is
right. Other replaced letters are not mended: "kick" is one letter from "pick". Neither are other
English words: "pace" is no "place". What stays wrong is refused later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

WORDS: Final = (
    *("pick", "lift", "grasp", "grab", "raise", "place", "move"),
    *("green", "blue", "yellow", "cube", "block", "plate"),
)
"""Four letters or more: a mistake in "red" or "put" leaves too little of the word."""
REAL: Final = (
    *("bock", "black", "cub", "cue", "gab", "garb", "gasp", "grub", "left", "lit", "loft", "mauve"),
    *("pace", "pack", "pate", "peck", "plat", "pock", "puck", "rase", "rise", "rouse"),
)
"""Mistakes that are words themselves."""
ALIKE: Final = ("aeiou", "cks")
WORD: Final = re.compile(r"[a-z]{3,}")


def _mistakes(word: str) -> Iterator[str]:
    for at in range(1, len(word)):
        yield word[:at] + word[at + 1 :]
        yield word[:at] + word[at] + word[at:]
        for letters in ALIKE:
            if word[at] in letters:
                yield from (word[:at] + letter + word[at + 1 :] for letter in letters)
        if at + 1 < len(word):
            yield word[:at] + word[at + 1] + word[at] + word[at + 2 :]


MENDED: Final = {
    mistake: word for word in WORDS for mistake in _mistakes(word) if mistake not in {*REAL, *WORDS}
}


def mend(text: str) -> str:
    """Return a text in lower case with such mistakes mended."""
    return WORD.sub(lambda found: MENDED.get(found[0], found[0]), text)
