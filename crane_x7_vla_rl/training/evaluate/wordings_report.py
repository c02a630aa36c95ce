"""The results of `evaluate --wordings` → tables on the terminal and in wordings.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl import tables
from crane_x7_vla_rl.data.files import write_whole

FILE: Final = "wordings.md"
COLUMNS: Final = ("kind", "followed", "refused", "right cube first", "success")
UNSEEN: Final = "all wordings never seen"


def show(results: Mapping[str, Any]) -> None:
    """Print the totals of each group, and each wording that was answered wrongly."""
    tables.show(_title(results), COLUMNS, list(_totals(results)), right=COLUMNS[1:])
    for line in _wrong(results):
        print(line)


def write(folder: Path, results: Mapping[str, Any]) -> None:
    """Replace the sheet: the totals, then each wording."""
    lines = [_title(results), "", *_markdown(COLUMNS, _totals(results)), ""]
    columns = ("wording", "means", "answer", "right cube first", "success")
    lines += _markdown(columns, (_row(each) for each in results["wordings"]))
    text = "\n".join([*lines, ""])
    write_whole(folder / FILE, lambda path: path.write_text(text, encoding="utf-8"))


def _title(results: Mapping[str, Any]) -> str:
    swapped = ", success counted for another cube than the named one" if results["swapped"] else ""
    how = f"temperature {results['temperature']:g}" if results["temperature"] else "greedy"
    source = results["checkpoint"] or results["policy"]
    return (
        f"Wordings, {source} ({how}{swapped}): {results['wording_episodes']} episodes each, seeds"
        f" from {results['first_seed']}"
    )


def _totals(results: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    found = results["summary"]
    for name, one in {**found["groups"], UNSEEN: found["unseen"]}.items():
        yield (
            name, _count(one["followed"]), _count(one["refused"]), _percent(one["right_first"]),
            _percent(one["success"]),
        )  # fmt: skip


def _count(one: Mapping[str, int]) -> str:
    return f"{one['count']} of {one['of']}" if one["of"] else "–"


def _percent(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return "–"
    return f"{one['rate']:.0%} ({one['low']:.0%} to {one['high']:.0%})"


def _row(each: Mapping[str, Any]) -> tuple[str, ...]:
    answer = "followed" if each["refusal"] is None else "refused"
    if not each["answered"]:
        answer = f"**{answer}**"
    if each["task"] is None:
        return each["text"], "must be refused", answer, "–", "–"
    of = each["episodes"]
    return (
        each["text"], each["task"], answer, f"{each['right_first']} of {of}",
        f"{each['success']} of {of}",
    )  # fmt: skip


def _wrong(results: Mapping[str, Any]) -> Iterator[str]:
    for each in results["wordings"]:
        if each["answered"]:
            continue
        if each["refusal"] is None:
            yield f'  followed, must be refused: "{each["text"]}"'
        else:
            yield f'  refused: "{each["text"]}" ({each["task"]}): {each["refusal"]}'


def _markdown(columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return lines + [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows
    ]
