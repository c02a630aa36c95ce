"""failures.html: what each failed episode looked like. Episodes and their images → one file.

The page contains its images, no script and no link to another host; a browser opens it from the
disk. All texts are escaped.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from crane_x7_remote.errors import OutputError
from crane_x7_remote.trial.attempt import PICTURE_WIDTH
from crane_x7_remote.trial.results import Episode, TrialPlan, rate
from crane_x7_vla_rl.data.files import write_whole
from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.log_text import shown

FILE: Final = "failures.html"
FRAMES: Final = "frames"
STYLE: Final = f"""
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1240px; color: #1d2733;
  background: #fff; padding: 0 1rem }}
h1 {{ font-size: 1.4rem; margin-bottom: .2rem }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .2rem }}
p {{ margin: .2rem 0 }} .quiet {{ color: #5b6875 }}
.strip {{ display: flex; flex-wrap: wrap; gap: 6px; margin-top: .6rem }}
figure {{ margin: 0 }}
img {{ width: {PICTURE_WIDTH // 2 + 40}px; border-radius: 4px; display: block }}
figcaption {{ font-size: 12px; color: #5b6875 }}
@media (prefers-color-scheme: dark) {{ body {{ color: #dde4ea; background: #12181f }}
  .quiet, figcaption {{ color: #93a1ae }} }}
"""
POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
    failed = [each for each in episodes if each.result == "failure"]
    parts = [_section(folder, each) for each in failed] or ["<p>No episode failed.</p>"]
    model = "" if plan.model is None else f", {_safe(plan.model)}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>Failures: {_safe(plan.task)}</title><style>{STYLE}</style></head><body>
<h1>{_safe(plan.task)}</h1>
<p>{_safe(rate(list(episodes)).in_words())}</p>
<p class="quiet">Policy {_safe(plan.policy)}{model}; time limit {plan.timeout_s:g} s; judged by
{_safe(plan.judge)}.</p>
{"".join(parts)}
</body></html>
"""


def _section(folder: Path, episode: Episode) -> str:
    facts = [f"{episode.reason} after {episode.seconds:.1f} s of driving", episode.started]
    if episode.holds:
        facts.append("holds: " + ", ".join(f"{name} {n}" for name, n in episode.holds.items()))
    facts += [
        f"taken over ({each.kind}) at {each.at_s:.1f} s for {each.seconds:.1f} s"
        for each in episode.interventions
    ]
    if episode.retries:
        facts.append(f"attempt {episode.retries + 1}")
    lines = "".join(f'<p class="quiet">{_safe(fact)}</p>' for fact in (*facts, *episode.notes))
    paths = sorted((folder / FRAMES / f"{episode.number:03d}").glob("*.jpg"))[: episode.frames]
    step_s = episode.total_s / len(paths) if paths else 0.0
    strip = "".join(_figure(path, index * step_s) for index, path in enumerate(paths))
    return (
        f'<h2 id="episode-{episode.number}">Episode {episode.number}</h2>{lines}'
        f'<div class="strip">{strip}</div>'
    )


def _figure(path: Path, at_s: float) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img src="data:image/jpeg;base64,{content}" alt="camera at {at_s:.0f} s">'
        f"<figcaption>{at_s:.0f} s</figcaption></figure>"
    )


def _safe(text: str) -> str:
    return html.escape(shown(text, 1100))
