"""The nearest known name for an unknown one. A word and the known names → text for a message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6, most: int = 1) -> list[str]:
    """Return up to `most` of the known names, best first; case is ignored.

    `cutoff` is the least ratio of difflib.SequenceMatcher, 0 to 1.
    """
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), folded, most, cutoff)
    return [folded[name] for name in close]


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6, most: int = 1) -> str:
    """Return `; did you mean …?` to follow `… is unknown`, or "" if no name is near."""
    near = nearest(word, known, cutoff, most)
    return f"; did you mean {' or '.join(near)}?" if near else ""
