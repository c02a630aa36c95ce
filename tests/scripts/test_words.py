"""Code and pages use plain technical English, and Japanese pages one word per thing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = ("crane_x7_remote", "crane_x7_vla_rl", "tests", "scripts")
PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md")
JAPANESE = ("README.ja.md", "docs/ja/*.md")
BANNED = {
    r"asked for": "requested, required, wanted, or name the flag",
    r"anew": "again, or new",
    r"by (itself|themselves)": "automatically, alone, or leave it out",
    r"of its own accord": "automatically",
    r"dear(er|est)?": "expensive, slow, or costly",
    r"in turns": "alternately, or one after another",
    r"gone on with": "resumed, or continued",
    r"so as to": "to",
    r"by turns": "alternately",
    r"till": "until",
    r"lest": "so that … not",
    r"of today": "present, current, or leave it out",
    r"now and then": "sometimes, or occasionally",
    r"learnt": "learned",
    r"hence": "so, or therefore",
    r"wherever one \w+": "name the place, such as: the working folder",
    r"whatever \w+ says": "regardless of …",
    r"in vain": "without success",
    r"all the while": "meanwhile",
    r"whence|thereof|whereby|therein|betimes": "a present-day word",
    r"(is|are|was|be) asked": "required, predicts, runs (at 1.6 Hz), or name who asks",
    r"asked (of|to)": "required, must, or the task is",
    r"that there (is|are)": "existing, or leave it out",
    r"at hand": "available",
    r"lies? in (a|the|this|that|one) (folder|file)": "is in",
    r"likeliest": "most likely",
    r"gives? way to": "is replaced by, or is skipped",
    r"comes? (later|with a later)": "is not implemented yet",
    r"counts? (more|most)": "overrides, or has precedence",
    r"(goes|go|going|gone|went) on": "continues, or resumes",
    r"in earnest": "for a real run",
    r"spoil(t|ed)": "damaged",
    r"made-up": "synthetic",
    r"throw(s|n)? away": "discards",
    r"puts? right": "corrects",
    r"(broken|breaks|broke) off": "interrupted, or fails",
    r"some \d+ (s|seconds|minutes|hours|GB|MB)": "about",
    r"in turn": "one after another, or alternately",
    r"unless told otherwise": "by default",
    r"(is|are) no numbers?": "is not a number",
    r"so many": "N, or the number of",
    r"where there is (one|none)": "if available, or otherwise",
    r"(where it is|if) not given": "default:",
    r"not given,": "default:",
    r"to be had": "available",
    r"hand(s|ed) on": "passes",
    r"(is|are) (no longer|not) to be": "must not",
    r"(is|are) to be": "must be",
    r"of ours": "our code, this project, or the name",
    r"of its own": "its own",
    r"of their own": "their own",
    r"once more": "again",
    r"let alone": "and certainly not",
    r"at times": "sometimes",
    r"the last word": "decides",
}
"""Phrase → what to write instead; a phrase may run over the end of a line."""
ONE_WORD = {
    r"方策": "ポリシー",
    r"立方体|ブロック|積み木": "キューブ",
    r"フォルダ(?!ー)|ディレクトリ": "フォルダー",
    r"お?手本|教示データ": "デモンストレーション",
    r"教え": "学習させる",
    r"軌跡": "軌道",
    r"ファインチューン(?!ング)|微調整": "ファインチューニング",
    r"サーバ(?!ー)": "サーバー",
    r"ユーザ(?!ー)": "ユーザー",
    r"コンピュータ(?!ー)": "コンピューター",
    r"パラメータ(?!ー)": "パラメーター",
    r"グリッパ(?!ー)": "グリッパー",
    r"コントローラ(?!ー)": "コントローラー",
    r"シミュレータ(?!ー)": "シミュレーター",
    r"アダプタ(?!ー)": "アダプター",
    r"ブラウザー": "ブラウザ",
    r"プロトコール": "プロトコル",
    r"成功確率": "成功率",
    r"指図|お願い": "指示",
    r"ロボットアーム": "アーム",
    r"ホールド(?!\()": "停止、または保持（hold）",
    r"業者": "プロバイダー",
    r"シーン": "場面",
    r"有効期間": "有効期限",
    r"(休止|待機)姿勢": "ホーム姿勢",
}
"""Japanese → the one word for that thing. Code and 「quoted instructions」 may hold others."""
FLOW = r"(?:(come|comes|go|goes) in(?! (?:the|order))|(enters?|leaves?)(?=[.,:;]| in ))"
"""In module docstrings, where data flow is written as "input → output"."""


def files() -> Iterator[Path]:
    for folder in CODE:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix == ".py" or (path.parent.name == "scripts" and path.is_file()):
                yield path
    for pattern in PAGES:
        yield from ROOT.glob(pattern)


def pattern(*phrases: str) -> re.Pattern[str]:
    """Return what finds any of the phrases."""
    words = "|".join(phrase.replace(" ", r"[\s#>*\"']+") for phrase in phrases)
    return re.compile(rf"\b(?:{words})\b", re.IGNORECASE)


def hits(text: str, phrase: str) -> Iterator[tuple[int, str]]:
    """Yield the line number and the words of each place where `phrase` stands in `text`."""
    for found in pattern(phrase).finditer(text):
        yield text.count("\n", 0, found.start()) + 1, " ".join(found[0].split())


def module_docstring(path: Path, text: str) -> str:
    return (ast.get_docstring(ast.parse(text), clean=False) or "") if path.suffix == ".py" else ""


def test_no_phrase_that_the_style_bans() -> None:
    found = []
    any_phrase, any_flow = pattern(*BANNED), pattern(FLOW)
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        if path == Path(__file__):
            continue
        text = path.read_text(encoding="utf-8")
        # Most files have none: one search instead of one for each phrase.
        for phrase, instead in BANNED.items() if any_phrase.search(text) else ():
            found += [f"{name}:{n}: {words!r}: write {instead}" for n, words in hits(text, phrase)]
        docstring = module_docstring(path, text) if any_flow.search(text) else ""
        found += [
            f"{name}:{n}: {words!r} in a module docstring: write 'purpose: input → output'"
            for n, words in hits(docstring, FLOW)
        ]
    assert not found, "\n" + "\n".join(sorted(found))


def unquoted(text: str) -> str:
    """Return `text` without what is code or quoted, its lines kept."""
    pattern = r"^```.*?^```|`[^`\n]*`|「[^」\n]*」|\([^)\s]*\)"
    return re.sub(
        pattern, lambda found: "\n" * found[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL
    )


def test_japanese_pages_have_one_word_per_thing() -> None:
    found = []
    for path in (path for pattern in JAPANESE for path in ROOT.glob(pattern)):
        for n, line in enumerate(unquoted(path.read_text(encoding="utf-8")).splitlines(), 1):
            found += [
                f"{path.relative_to(ROOT)}:{n}: {match[0]}: write {instead}"
                for word, instead in ONE_WORD.items()
                for match in re.finditer(word, line)
            ]
    assert not found, "\n" + "\n".join(found)
