"""Runs the parts of check_gpu. Options → one JSON of figures and verdicts.

Every part is a child process in a separate session, with a time limit; when the limit passes, or
the parent is told to stop, its whole process group ends. What a part measured until then counts.
The parent imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

SCRIPT: Final = Path(__file__).resolve().parents[1] / "check_gpu"
SKIPPED: Final = 77
"""Exit code of a part that cannot run here."""
LEAST_S: Final = 5.0
"""A part is not started with less time than this."""
GRACE_S: Final = 5.0
"""From SIGTERM to SIGKILL."""
KEYS: Final = ("name", "value", "unit", "baseline", "ratio", "target", "met")
Row = dict[str, Any]


def row(name: str, value: object, unit: str = "", met: bool | None = None) -> Row:
    """Return a row with a value alone, or with a verdict."""
    return dict(zip(KEYS, (name, value, unit, None, None, None, met), strict=True))


@dataclass(frozen=True)
class Job:
    """One part of one run."""

    name: str
    limit_s: float
    words: Sequence[str]
    """Arguments of the child."""
    needs: Path | None = None
    """Not started without it."""


@dataclass
class Report:
    """Rows so far, written after each part."""

    path: Path | None
    rows: list[Row] = field(default_factory=list)

    def add(self, rows: Sequence[Row]) -> None:
        """Keep rows and write the file."""
        self.rows += rows
        if self.path is not None:
            text = json.dumps(self.rows, indent=2, ensure_ascii=False)
            self.path.write_text(text + "\n")

    @property
    def failed(self) -> list[str]:
        """Names of the parts that failed or ran out of time."""
        return [
            str(one["name"]).removeprefix("part ")
            for one in self.rows
            if str(one["name"]).startswith("part ") and one["met"] is False
        ]


def run_all(
    jobs: Sequence[Job], report: Report, scratch: Path, environment: Mapping[str, str],
    limit_s: float,
) -> None:  # fmt: skip
    """Run the jobs one after the other, within `limit_s` altogether."""
    end_s = time.monotonic() + limit_s
    for job in jobs:
        print(f"\n== {job.name}", flush=True)
        started_s = time.monotonic()
        left_s = min(job.limit_s, end_s - started_s)
        rows: list[Row] = []
        met: bool | None = False
        if job.needs is not None and not job.needs.exists():
            said = f"not run: {job.needs.name} was not written"
        elif left_s < LEAST_S:
            said = "not run: no time was left"
        else:
            rows, said, met = _one(job, left_s, scratch, environment)
        print(f"== {job.name}: {said} ({time.monotonic() - started_s:.1f} s)", flush=True)
        report.add([
            *({**each, "name": f"{job.name}: {each['name']}"} for each in rows),
            row(f"part {job.name}", said, "", met),
            row(f"part {job.name}: time", round(time.monotonic() - started_s, 2), "s"),
        ])  # fmt: skip


def _one(
    job: Job, limit_s: float, scratch: Path, environment: Mapping[str, str]
) -> tuple[list[Row], str, bool | None]:
    """Run a job; return its rows, a word about its end, and whether it passed (None: skipped)."""
    figures, reason = scratch / f"{job.name}.json", scratch / f"{job.name}.reason"
    child = subprocess.Popen(
        [sys.executable, str(SCRIPT), *job.words, "--figures", str(figures)],
        env=dict(environment), start_new_session=True,
    )  # fmt: skip
    try:
        code: int | None = child.wait(limit_s)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        _end(child)
    rows = json.loads(figures.read_text()) if figures.exists() else []
    if code is None:
        return rows, f"ran out of its {limit_s:.0f} s", False
    if code == SKIPPED:
        return rows, f"skipped: {reason.read_text().strip()}", None
    if code:
        return rows, f"failed with exit code {code}", False
    missed = [str(one["name"]) for one in rows if one["met"] is False]
    return rows, f"done; {len(missed)} of {len(rows)} figures miss their target", True


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child's session: itself and what it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        if child.poll() is not None and number == signal.SIGTERM:
            time.sleep(0.1)  # for grandchildren
            continue
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)
