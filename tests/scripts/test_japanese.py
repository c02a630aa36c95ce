"""Each page has a Japanese twin: same headings, commands, variables, figures and links."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from pathlib import Path

import pages
import pytest
from pages import prose
from places import ROOT

PAGES = pages.english()
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
both = pytest.mark.parametrize("page", PAGES, ids=NAMES)

CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
VARIABLE = re.compile(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b")


def headings(page: Path) -> list[int]:
    return [len(line) - len(line.lstrip("#")) for line in prose(page) if re.match(r"#+ ", line)]


def rows(page: Path) -> list[int]:
    """Return the cells of each row of each table."""
    return [line.replace(r"\|", "").count("|") for line in prose(page) if line.startswith("|")]


def blocks(page: Path) -> list[tuple[str, str, object]]:
    """Return what is typed, and how; comments are prose, and so are texts in diagrams."""
    return [
        (block.language, "" if block.language == "mermaid" else block.commands, block.label)
        for block in pages.blocks(page)
    ]


def codes(page: Path) -> set[str]:
    return {code for line in prose(page) for code in CODE.findall(line)}


def numbers(page: Path) -> Counter[str]:
    text = LINK.sub("", CODE.sub("", "\n".join(prose(page))))
    return Counter(number.replace(",", "") for number in NUMBER.findall(text))


def links(page: Path) -> set[str]:
    """Return where a page leads, from the root; a Japanese page stands for its twin."""
    found = set()
    for line in prose(page):
        for target in LINK.findall(line):
            if "://" in target:
                found.add(target)
                continue
            file, _, _ = target.partition("#")
            path = posixpath.normpath((page.parent / file).as_posix()) if file else page.as_posix()
            found.add(path.removeprefix(f"{ROOT}/").replace("docs/ja/", "docs/"))
    return found - {"README.ja.md", "README.md", page.relative_to(ROOT).as_posix()} - {
        page.relative_to(ROOT).as_posix().replace("docs/ja/", "docs/")
    }  # fmt: skip


@both
def test_a_page_has_a_japanese_twin_with_the_same_headings(page: Path) -> None:
    twin = pages.japanese(page)
    assert twin.is_file(), f"{twin.relative_to(ROOT)} is missing"
    assert headings(twin) == headings(page)


@both
def test_commands_are_the_same_in_both_languages(page: Path) -> None:
    assert blocks(pages.japanese(page)) == blocks(page)


@both
def test_tables_have_the_same_rows_in_both_languages(page: Path) -> None:
    assert rows(pages.japanese(page)) == rows(page)


@both
def test_code_words_and_variables_are_the_same_in_both_languages(page: Path) -> None:
    twin = pages.japanese(page)
    assert codes(twin) == codes(page)
    names = [set(VARIABLE.findall("\n".join(prose(each)))) for each in (page, twin)]
    assert names[0] == names[1]


@both
def test_figures_are_the_same_in_both_languages(page: Path) -> None:
    """English may spell small numbers out; a figure with two digits or a point is in both."""
    here, there = numbers(page), numbers(pages.japanese(page))
    assert not here - there, "figures that the Japanese page lacks"
    extra = {number for number in there.keys() - here.keys() if len(number) > 1}
    assert not extra, "figures that the English page lacks"


@both
def test_links_lead_to_the_same_places_in_both_languages(page: Path) -> None:
    assert links(pages.japanese(page)) == links(page)
