"""A question before something is deleted: text → yes or no from a terminal."""

from __future__ import annotations

import sys

from crane_x7_remote.errors import CloudError


def agreed(question: str, instead: str) -> bool:
    """Return whether a person has typed y.

    Raises CloudError where nobody can answer; `instead` names the flag for scripts.
    """
    if not sys.stdin.isatty():
        raise CloudError(f"{question} stdin is no terminal: nothing was deleted; add {instead}")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
