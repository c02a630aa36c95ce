"""Links of the pages lead to files and headings; the indexes name all pages."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from pathlib import Path

import pages
import pytest
from pages import prose
from places import ROOT

ENGLISH = pages.english()
PAGES = [*ENGLISH, *map(pages.japanese, ENGLISH), ROOT / "CONTRIBUTING.md"]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
INDEXES = [ROOT / "docs" / "README.md", ROOT / "docs" / "ja" / "README.md"]

CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page; a repeated one is numbered."""
    found: set[str] = set()
    times: Counter[str] = Counter()
    for line in prose(page):
        heading = re.fullmatch(r"#{1,6} +(.+?)[ #]*", line)
        if heading is None:
            continue
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).replace("`", "")
        kept = (
            char
            for char in text.lower()
            if char in " -" or unicodedata.category(char)[0] in "LM"
            or unicodedata.category(char) in ("Nd", "Pc")
        )  # fmt: skip
        slug = "".join(kept).replace(" ", "-")
        found.add(f"{slug}-{times[slug]}" if times[slug] else slug)
        times[slug] += 1
    return found


def targets(page: Path) -> list[str]:
    """Return where a page's links and images lead within this repository."""
    text = "\n".join(CODE.sub(lambda code: "·" * len(code[0]), line) for line in prose(page))
    return [target for target in LINK.findall(text) if not re.match(r"\w+:", target)]


def dead_ends(page: Path) -> list[str]:
    """Return a line for each link that leads nowhere."""
    found = []
    for target in targets(page):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists():
            found.append(f"{target}: there is no such file")
        elif anchor and anchor not in anchors(file):
            found.append(f"{target}: {file.name} has no such heading")
    return found


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert targets(page), "no link was read"
    assert dead_ends(page) == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_fence_names_its_language(page: Path) -> None:
    nameless = [block.line for block in pages.blocks(page) if not block.language]
    assert nameless == [], "lines of fences without a language; use text for what is no code"


@pytest.mark.parametrize("index", INDEXES, ids=["en", "ja"])
def test_the_index_names_every_page(index: Path) -> None:
    named = {(index.parent / target.partition("#")[0]).resolve() for target in targets(index)}
    assert set(index.parent.glob("*.md")) - {index} - named == set()


@pytest.mark.parametrize("page", ENGLISH, ids=NAMES[: len(ENGLISH)])
def test_a_page_and_its_twin_lead_to_each_other(page: Path) -> None:
    twin = pages.japanese(page)
    assert twin in [(page.parent / target).resolve() for target in targets(page)]
    assert page in [(twin.parent / target).resolve() for target in targets(twin)]


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text(
        "# What `it` says: A & B\n## 終了コード\n## Twice\n## Twice\n"
    )
    page = tmp_path / "page.md"
    good = "what-it-says-a--b", "終了コード", "twice", "twice-1"
    page.write_text("".join(f"[x](other.md#{anchor})\n" for anchor in good))
    assert dead_ends(page) == []
    page.write_text(
        "# Here\n[a](#here) [b](#there) [`c`](none.md) ![d](none.png) `[e](code.md)`\n"
        "[f](other.md#twice-2) [g](https://example.org/#x)\n```text\n[h](fenced.md)\n```\n"
    )
    assert [line.partition(":")[0] for line in dead_ends(page)] == [
        "#there", "none.md", "none.png", "other.md#twice-2",
    ]  # fmt: skip
