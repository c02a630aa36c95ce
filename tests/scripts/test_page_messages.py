"""Messages that docs/troubleshooting.md quotes are those that the program and its scripts print."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

import pytest
from places import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
OTHERS = (
    "could not select device driver", "Can't open display", "missing or unsuitable terminal",
    "import OpenGL.EGL",
)  # fmt: skip
"""Messages of other programs."""
VARIES = re.compile(r"…|\b\d[\d.]*\b|(?<!\S)/\S+|setup: |\bno CUDA device")
"""Values in a message, and words that code puts together."""
LEAST = 8
"""Characters of a piece that are worth a search."""


@cache
def printed() -> str:
    """Return the sources with texts that run over lines joined, and blanks as one."""
    parts = [
        path.read_text(encoding="utf-8")
        for folder in ("crane_x7_remote", "crane_x7_vla_rl", "scripts")
        for path in (ROOT / folder).rglob("*")
        if path.suffix == ".py" or (folder == "scripts" and path.is_file() and not path.suffix)
    ]
    joined = re.sub(r"\"\s*\n\s*f?\"|\\\n", "", "\n".join(parts))
    return re.sub(r"\s+", " ", joined)


def quoted() -> Iterator[str]:
    """Yield each quoted symptom and reason to hold: the first column of the tables."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| "):
            yield from re.findall(r"`([^`]+)`", line.split(" | ")[0])


def pieces(message: str) -> list[str]:
    return [piece for piece in map(str.strip, VARIES.split(message)) if len(piece) >= LEAST]


MESSAGES = [text for text in quoted() if pieces(text) and " " in text and text not in OTHERS]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_symptom_is_what_the_program_prints(message: str) -> None:
    assert [piece for piece in pieces(message) if piece not in printed()] == []


def test_symptoms_are_read() -> None:
    assert len(MESSAGES) > 10
    assert pieces("setup: only … MB are free") == ["MB are free"]
    assert "the program never prints these words" not in printed()
