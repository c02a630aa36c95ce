"""One HTML page of episodes, each with facts and a strip of pictures. Values → text.

The page contains its images, no script and no link to another host; a browser opens it from the
disk. All texts are escaped.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from crane_x7_vla_rl.log_text import shown

POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
LONGEST: Final = 1100
"""Characters of a text; an instruction may have a thousand."""
STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1240px; color: #1d2733;
  background: #fff; padding: 0 1rem }
h1 { font-size: 1.4rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin: 2rem 0 .2rem }
p { margin: .2rem 0 } .quiet { color: #5b6875 }
.strip { display: flex; flex-wrap: wrap; gap: 6px; margin-top: .6rem }
figure { margin: 0 }
img { width: 200px; border-radius: 4px; display: block }
figcaption { font-size: 12px; color: #5b6875 }
@media (prefers-color-scheme: dark) { body { color: #dde4ea; background: #12181f }
  .quiet, figcaption { color: #93a1ae } }
"""


@dataclass(frozen=True)
class Picture:
    """One image of a strip."""

    jpeg: bytes
    at_s: float
    """Time since the episode's start."""


@dataclass(frozen=True)
class Section:
    """One episode."""

    anchor: str
    title: str
    facts: Sequence[str]
    pictures: Sequence[Picture]


def render(title: str, lead: str, about: str, sections: Sequence[Section], nothing: str) -> str:
    """Return the page; `nothing` is its text without sections."""
    parts = [_section(each) for each in sections] or [f"<p>{_safe(nothing)}</p>"]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>Failures: {_safe(title)}</title><style>{STYLE}</style></head><body>
<h1>{_safe(title)}</h1>
<p>{_safe(lead)}</p>
<p class="quiet">{_safe(about)}</p>
{"".join(parts)}
</body></html>
"""


def _section(section: Section) -> str:
    lines = "".join(f'<p class="quiet">{_safe(fact)}</p>' for fact in section.facts)
    strip = "".join(_figure(each) for each in section.pictures)
    return (
        f'<h2 id="{_safe(section.anchor)}">{_safe(section.title)}</h2>{lines}'
        f'<div class="strip">{strip}</div>'
    )


def _figure(picture: Picture) -> str:
    content = base64.b64encode(picture.jpeg).decode()
    return (
        f'<figure><img src="data:image/jpeg;base64,{content}" alt="camera at {picture.at_s:.1f} s">'
        f"<figcaption>{picture.at_s:.1f} s</figcaption></figure>"
    )


def _safe(text: str) -> str:
    return html.escape(shown(text, LONGEST))
