"""failures.html: every failed episode of an evaluation, with where it failed. Results → a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from crane_x7_vla_rl import strip_page
from crane_x7_vla_rl.data.files import write_whole
from crane_x7_vla_rl.strip_page import Picture, Section
from crane_x7_vla_rl.training.evaluate.trace import WORDS, Phase

if TYPE_CHECKING:
    from crane_x7_vla_rl.training.evaluate.rollout import Result

FILE: Final = "failures.html"
MOST: Final = 100
"""Episodes with pictures; a page of more would be too large for a browser."""


def write(folder: Path, summary: Mapping[str, Any], results: Sequence[Result]) -> None:
    """Replace the page."""
    text = render(summary, results)
    write_whole(folder / FILE, lambda path: path.write_text(text, encoding="utf-8"))


def render(summary: Mapping[str, Any], results: Sequence[Result]) -> str:
    """Return the page; `summary` is that of `report.summary`."""
    failed = [each for each in results if not each.success]
    found = Counter(each.phase for each in failed)
    lead = f"{len(failed)} of {len(results)} episodes failed"
    if found:
        lead += ": " + ", ".join(f"{count} at {phase}" for phase, count in found.most_common())
    about = f"Policy {summary['checkpoint'] or summary['policy']}, task {summary['task']}."
    if len(failed) > MOST:
        about += f" The first {MOST} are shown."
    control_hz = summary["world"]["control_hz"]
    sections = [_section(each, control_hz) for each in failed[:MOST]]
    return strip_page.render("Failed episodes", lead, about, sections, "No episode failed.")


def _section(result: Result, control_hz: int) -> Section:
    facts = [
        f"{result.phase}: {WORDS[Phase(result.phase)]}; the fingertips came within"
        f" {100 * result.nearest_m:.1f} cm of it",
        f"instruction: {result.instruction}",
    ]
    others = [colour for colour in result.lifted if colour != result.named]
    if others:
        facts.append(f"at the end it held the {others[0]} cube instead of the {result.named} one")
    pictures = [Picture(jpeg, step / control_hz) for jpeg, step in result.pictures]
    return Section(f"seed-{result.seed}", f"Seed {result.seed}", facts, pictures)
