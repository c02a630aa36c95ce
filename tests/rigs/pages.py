"""The project's pages. Markdown → blocks of commands with their labels and expected output.

A block of commands is a fence ```bash; an HTML comment `<!-- first-hour: … -->` directly above it
says how it is typed, and a fence ```text directly below it what it prints. See CONTRIBUTING.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from places import ROOT

LABEL: Final = re.compile(r"<!-- first-hour: (.+?) -->")
FENCE: Final = re.compile(r"(```+)(\w*)")
REASONS: Final = (
    "a GPU", "a real robot", "an account", "the Internet", "a tailnet", "ROS 2", "root",
    "a cloud machine", "an example", "typed by tests/",
)  # fmt: skip
"""Why a block cannot be typed on any machine with a checkout."""


class PageError(Exception):
    """A page breaks the convention; says where."""


@dataclass(frozen=True)
class Label:
    """How a block is typed."""

    exit_code: int = 0
    keeps_running: bool = False
    ends_it: bool = False
    """Whether the commands that keep running are ended afterwards."""
    with_a_robot: bool = False
    for_s: float | None = None
    """Seconds after which the block is interrupted."""
    slow: bool = False
    not_here: str | None = None
    """Why it is not typed at all."""

    @classmethod
    def parse(cls, text: str) -> Label:
        """Return the label in a comment's text; raises PageError."""
        values: dict[str, object] = {}
        for part in map(str.strip, text.split(";")):
            match re.split(r"[ ,]+", part, maxsplit=1):
                case ["exit", code] if code.isdigit():
                    values["exit_code"] = int(code)
                case ["for", seconds] if re.fullmatch(r"\d+ s", seconds):
                    values["for_s"] = float(seconds.split()[0])
                case ["not", reason] if reason.startswith("here"):
                    values["not_here"] = _reason(reason.removeprefix("here").lstrip(", "))
                case _ if (name := part.replace(" ", "_")) in (
                    "keeps_running", "ends_it", "with_a_robot", "slow"
                ):  # fmt: skip
                    values[name] = True
                case _:
                    raise PageError(f"the label {part!r} is unknown; see CONTRIBUTING.md")
        return cls(**values)  # type: ignore[arg-type]


def _reason(text: str) -> str:
    if not text.startswith(REASONS):
        raise PageError(f"'not here, {text}': a reason begins with one of {', '.join(REASONS)}")
    typed_by = text.removeprefix("typed by ").split("::")[0].split()[0]
    if text.startswith("typed by") and not (ROOT / typed_by).is_file():
        raise PageError(f"'not here, {text}': there is no {typed_by}")
    return text


@dataclass(frozen=True)
class Block:
    """A fence."""

    line: int
    language: str
    text: str
    label: Label = field(default_factory=Label)
    seen: str | None = None
    """What one should see, of commands."""

    @property
    def commands(self) -> str:
        """The text without comments: the same in both languages."""
        lines = (re.sub(r"(^|\s+)# .*$", "", line).rstrip() for line in self.text.splitlines())
        return "\n".join(line for line in lines if line)


def prose(page: Path) -> list[str]:
    """Return the lines of a page outside its fences and comments."""
    lines, fenced = [], False
    text = re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.S)
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            lines.append(line)
    return lines


def english() -> list[Path]:
    """Return every page for users, the first one first."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def japanese(page: Path) -> Path:
    """Return where the Japanese twin of an English page is."""
    if page == ROOT / "README.md":
        return ROOT / "README.ja.md"
    return page.parent / "ja" / page.name


def blocks(page: Path) -> list[Block]:
    """Return every fence of a page; raises PageError."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found: list[Block] = []
    ends: dict[int, int] = {}
    n = 0
    while n < len(lines):
        fence = FENCE.fullmatch(lines[n].strip())
        if fence is None:
            n += 1
            continue
        try:
            end = next(m for m in range(n + 1, len(lines)) if lines[m].strip() == fence[1])
        except StopIteration:
            raise PageError(f"{page.name}:{n + 1}: the fence is never closed") from None
        indent = len(lines[n]) - len(lines[n].lstrip())
        text = "\n".join(line[indent:] for line in lines[n + 1 : end])
        found.append(Block(n + 1, fence[2], text, _label(page, lines, n)))
        ends[n] = end
        n = end + 1
    return list(_with_seen(found, lines, ends))


def _label(page: Path, lines: list[str], fence: int) -> Label:
    above = lines[fence - 1].strip() if fence else ""
    match = LABEL.fullmatch(above)
    if match is None:
        return Label()
    try:
        return Label.parse(match[1])
    except PageError as error:
        raise PageError(f"{page.name}:{fence}: {error}") from None


def _with_seen(found: list[Block], lines: list[str], ends: dict[int, int]) -> Iterator[Block]:
    for block, after in zip(found, [*found[1:], None], strict=False):
        between = lines[ends[block.line - 1] + 1 : after.line - 1] if after else ["?"]
        follows = (
            after is not None and after.language == "text" and not any(map(str.strip, between))
        )
        is_bash = block.language == "bash"
        seen = after.text if is_bash and follows and after else None
        yield Block(block.line, block.language, block.text, block.label, seen)


def missing(seen: str, output: str) -> str | None:
    """Return the first line of `seen` that `output` lacks, in this order; `…` is any text."""
    place = 0
    for line in filter(str.strip, seen.splitlines()):
        words = [re.escape(part) for part in line.strip().split("…")]
        match = re.compile(r"[^\n]*".join(words)).search(output, place)
        if match is None:
            return line.strip()
        place = match.end()
    return None
