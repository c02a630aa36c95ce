"""A training's folder → curves and videos on the page. Files are read where they have grown.

The trainers write `metrics.jsonl`, one JSON object per update, and videos of evaluations below
`evaluation/`. Nothing is imported from them: a folder that was copied from elsewhere is shown too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from crane_x7_remote.dashboard.board import Board

logger = logging.getLogger(__name__)

METRICS: Final = "metrics.jsonl"
PERIOD_S: Final = 1.0
POINTS: Final = 240
"""Points of a curve; a longer one is thinned out."""
KEPT: Final = 200_000
"""Updates that are kept; a longer run loses its first ones on the page."""
VIDEOS: Final = 6
ENDINGS: Final = (".mp4", ".webm")
RUNNING_S: Final = 600.0
"""A run without a new update for this long is shown as silent."""
CURVES: Final[Mapping[str, tuple[str, str]]] = {
    "recent_success": ("success, newest 100 episodes", "share"),
    "success": ("success of this rollout", "share"),
    "evaluation_success": ("success in evaluation", "share"),
    "episode_return": ("return", ""),
    "approx_kl": ("KL to the acting policy", "nats"),
    "clip_fraction": ("ratios clipped", "share"),
    "explained_variance": ("explained variance", ""),
    "entropy": ("entropy", "nats"),
    "loss": ("loss", ""),
    "grad_norm": ("gradient norm", ""),
    "learning_rate": ("learning rate", ""),
    "env_steps_s": ("control steps", "1/s"),
    "samples_s": ("samples", "1/s"),
    "update_s": ("time of an update", "s"),
    "gpu_memory_gib": ("GPU memory", "GiB"),
}
"""Key of a figure → its title and unit, in the order of the page."""


class RunFollower:
    """A context manager that reads the folder until it is left."""

    def __init__(self, folder: Path, board: Board) -> None:
        self.folder = folder
        self._board = board
        self._figures: list[dict[str, Any]] = []
        self._read_bytes = 0
        self._rest = b""
        self._videos: dict[str, Path] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="run", daemon=True)

    def __enter__(self) -> RunFollower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=2)

    def video(self, name: str) -> Path | None:
        """Return the file of a video by the name that the page has for it."""
        return self._videos.get(name)

    def look(self) -> None:
        """Read what is new, and put it on the board."""
        self._read_figures()
        videos = newest_videos(self.folder)
        self._videos = {name_of(self.folder, path): path for path in videos}
        self._board.put_training(self._section())

    def _follow(self) -> None:
        while True:
            try:
                self.look()
            except OSError as error:
                logger.warning("%s cannot be read: %s", self.folder, error)
            if self._ended.wait(PERIOD_S):
                return

    def _read_figures(self) -> None:
        path = self.folder / METRICS
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            self._restart()
            return
        if size < self._read_bytes:  # a resumed run writes its last updates again
            self._restart()
        with path.open("rb") as file:
            file.seek(self._read_bytes)
            added = file.read()
        self._read_bytes += len(added)
        *lines, self._rest = (self._rest + added).split(b"\n")
        self._figures += [figures for line in lines if (figures := _figures(line))]
        del self._figures[:-KEPT]

    def _restart(self) -> None:
        self._figures, self._read_bytes, self._rest = [], 0, b""

    def _section(self) -> dict[str, Any]:
        figures = self._figures
        last = figures[-1] if figures else {}
        return {
            "folder": self.folder.name,
            "step": last.get("step"),
            "samples": last.get("samples") or last.get("env_steps"),
            "changed_at": _changed_at(self.folder / METRICS),
            "silent_after_s": RUNNING_S,
            "curves": list(_curves(figures)),
            "videos": [
                {"name": name, "title": _title(self.folder, path)}
                for name, path in self._videos.items()
            ],
        }


def _figures(line: bytes) -> dict[str, Any] | None:
    """Return an update's figures; None for a line that is damaged or something else."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(line)
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            return found
    return None


def _changed_at(path: Path) -> float | None:
    """Return the time of day of the last change."""
    with contextlib.suppress(OSError):
        return round(path.stat().st_mtime, 1)
    return None


def _curves(figures: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each known figure's curve, thinned out."""
    for key, (title, unit) in CURVES.items():
        points = [
            (each["step"], float(each[key]))
            for each in figures
            if isinstance(each.get(key), int | float) and math.isfinite(each[key])
        ]
        if points:
            yield {
                "title": title,
                "unit": unit,
                "last": points[-1][1],
                "points": [(step, _short(value)) for step, value in thinned(points)],
            }


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most about POINTS points, each the mean of its neighbours; the last one exact."""
    if len(points) <= POINTS:
        return points
    stride = -(-len(points) // POINTS)
    means = []
    for first in range(0, len(points) - 1, stride):
        group = points[first : first + stride]
        means.append((group[-1][0], sum(value for _, value in group) / len(group)))
    means[-1] = points[-1]
    return means


def newest_videos(folder: Path) -> list[Path]:
    """Return the newest videos below a folder, the newest first; links out of it are left out."""
    root = folder.resolve()
    found: list[tuple[float, Path]] = []
    for ending in ENDINGS:
        for path in folder.rglob(f"*{ending}"):
            with contextlib.suppress(OSError):
                if path.is_file() and path.resolve().is_relative_to(root):
                    found.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(found, reverse=True)[:VIDEOS]]


def name_of(folder: Path, path: Path) -> str:
    """Return the name of a video in URLs: no part of a path, and another for another content."""
    text = f"{path.relative_to(folder)} {path.stat().st_mtime_ns}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:20]


def _title(folder: Path, path: Path) -> str:
    relative = path.relative_to(folder)
    return " / ".join(part for part in (*relative.parts[:-1], relative.stem) if part != "videos")
