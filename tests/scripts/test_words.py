"""Code and pages keep to plain technical English: no phrase that our style bans."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = ("crane_x7_remote", "crane_x7_vla_rl", "tests", "scripts")
PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md")
HISTORY = {"docs/log.md"}
BANNED = {
    r"asked for": "requested, required, wanted, or name the flag",
    r"anew": "again, or new",
    r"by (itself|themselves)": "automatically, alone, or leave it out",
    r"of its own accord": "automatically",
    r"dear(er|est)?": "expensive, slow, or costly",
    r"in turns": "alternately, or one after another",
    r"gone on with": "resumed, or continued",
}
"""Phrase → what to write instead; a phrase may run over the end of a line."""
FLOW = r"(?:(come|comes|go|goes) in(?! (?:the|order))|(enters?|leaves?)(?=[.,:;]| in ))"
"""In module docstrings, where data flow is written as "input → output"."""


def files() -> Iterator[Path]:
    for folder in CODE:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix == ".py" or (path.parent.name == "scripts" and path.is_file()):
                yield path
    for pattern in PAGES:
        yield from ROOT.glob(pattern)


def hits(text: str, phrase: str) -> Iterator[tuple[int, str]]:
    """Yield the line number and the words of each place where `phrase` stands in `text`."""
    pattern = r"\b" + phrase.replace(" ", r"[\s#>*\"']+") + r"\b"
    for found in re.finditer(pattern, text, re.IGNORECASE):
        yield text.count("\n", 0, found.start()) + 1, " ".join(found[0].split())


def module_docstring(path: Path, text: str) -> str:
    return (ast.get_docstring(ast.parse(text), clean=False) or "") if path.suffix == ".py" else ""


def test_no_phrase_that_the_style_bans() -> None:
    found = []
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        if name in HISTORY or path == Path(__file__):
            continue
        text = path.read_text(encoding="utf-8")
        for phrase, instead in BANNED.items():
            found += [f"{name}:{n}: {words!r}: write {instead}" for n, words in hits(text, phrase)]
        found += [
            f"{name}:{n}: {words!r} in a module docstring: write 'purpose: input → output'"
            for n, words in hits(module_docstring(path, text), FLOW)
        ]
    assert not found, "\n" + "\n".join(sorted(found))
