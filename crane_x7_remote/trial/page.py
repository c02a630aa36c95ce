"""failures.html: what each failed episode looked like. Episodes and their images → one file.

Made by `strip_page`; the images are kept beside it, for a page that a resumed trial writes again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from crane_x7_remote.errors import OutputError
from crane_x7_remote.trial.results import Episode, TrialPlan, rate
from crane_x7_vla_rl import strip_page
from crane_x7_vla_rl.data.files import write_whole
from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.strip_page import Picture, Section

FILE: Final = "failures.html"
FRAMES: Final = "frames"


def save_frames(folder: Path, number: int, pictures: Sequence[bytes]) -> None:
    """Write the images of one episode; raises OutputError."""
    place = folder / FRAMES / f"{number:03d}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        for old in place.glob("*.jpg"):
            old.unlink()
        for index, picture in enumerate(pictures):
            (place / f"{index:03d}.jpg").write_bytes(picture)
    except OSError as error:
        raise OutputError(f"{place} cannot be written: {why(error)}") from error


def write(folder: Path, plan: TrialPlan, episodes: Sequence[Episode]) -> None:
    """Replace the page; raises OutputError."""
    text = render(folder, plan, episodes)
    try:
        write_whole(folder / FILE, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise OutputError(f"{folder / FILE} cannot be written: {why(error)}") from error


def render(folder: Path, plan: TrialPlan, episodes: Sequence[Episode]) -> str:
    """Return the page."""
    failed = [_section(folder, each) for each in episodes if each.result == "failure"]
    model = "" if plan.model is None else f", {plan.model}"
    about = f"Policy {plan.policy}{model}; time limit {plan.timeout_s:g} s; judged by {plan.judge}."
    lead = rate(list(episodes)).in_words()
    return strip_page.render(plan.task, lead, about, failed, "No episode failed.")


def _section(folder: Path, episode: Episode) -> Section:
    facts = [f"{episode.reason} after {episode.seconds:.1f} s of driving", episode.started]
    if episode.holds:
        facts.append("holds: " + ", ".join(f"{name} {n}" for name, n in episode.holds.items()))
    facts += [
        f"taken over ({each.kind}) at {each.at_s:.1f} s for {each.seconds:.1f} s"
        for each in episode.interventions
    ]
    if episode.retries:
        facts.append(f"attempt {episode.retries + 1}")
    paths = sorted((folder / FRAMES / f"{episode.number:03d}").glob("*.jpg"))[: episode.frames]
    step_s = episode.total_s / len(paths) if paths else 0.0
    pictures = [Picture(path.read_bytes(), index * step_s) for index, path in enumerate(paths)]
    title = f"Episode {episode.number}"
    return Section(f"episode-{episode.number}", title, (*facts, *episode.notes), pictures)
