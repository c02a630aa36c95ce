"""The table on the terminal after a run: `DemoResult`, report → text.

Each task with its time, then the loop's rate and latency, the run's files and the next commands.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.cells import cell_len

from crane_x7_remote.demo.report import DemoResult

PROGRAM: Final = "crane-x7-remote"
GAP: Final = "   "
REACHED: Final = 0.98
"""Share of the set rate above which it counts as reached."""


def text(result: DemoResult, report: dict[str, Any], folder: Path) -> str:
    """Return the summary."""
    return "\n".join([*_table(_tasks(result)), "", *_table(details(result, report, folder))])


def details(result: DemoResult, report: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Return (name, text) of the rows below the tasks."""
    rows = []
    if result.random_weights:
        rows.append(("policy", f"{result.model} has random weights: it cannot do a task"))
    rows += [
        ("hand", f"took the {colour} cube: this policy was not trained to let go")
        for colour in result.put_back
    ]
    if report.get("rate_hz"):
        rows.append(("rate", rate(report)))
    latency = report.get("latency_without_policy_ms") or {}
    if latency.get("p50") is not None:
        figures = f"median {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms"
        rows.append(("latency", f"{figures} from frame to trajectory, without the policy"))
    if moved := report.get("motion"):
        rows.append((
            "motion", f"jerk {moved['jerk_rad_s3']:.0f} rad/s³, paused {moved['pauses']} times,"
            f" {moved['paused_s']:.1f} s",
        ))  # fmt: skip
    files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    rows += [("files", f"{folder}/"), ("", ", ".join(files))]
    names = ["next", "", ""]
    return rows + list(zip(names, _next_steps(result, folder), strict=False))


def rate(report: dict[str, Any]) -> str:
    """Return the loop's rate, the set rate with its reason, and what limited it."""
    words = f"{report['rate_hz']:.2f} Hz reached, {report['asked_rate_hz']:g} Hz set"
    if report.get("rate_reason"):
        words += f" ({report['rate_reason']})"
    if report.get("rate_limit") and report["rate_hz"] < REACHED * report["asked_rate_hz"]:
        words += f"; limited by the {report['rate_limit']}"
    return words


def _tasks(result: DemoResult) -> list[tuple[str, str, str]]:
    rows = [("task", "result", "seconds")]
    for task in result.tasks:
        done, seconds = ("not done", "") if task.done_s is None else ("done", f"{task.done_s:.1f}")
        rows.append((task.instruction, done, seconds))
    return rows


def _next_steps(result: DemoResult, folder: Path) -> list[str]:
    """Return the next commands, each with a comment."""
    again = f"{_program()} demo --seed {result.seed + 1}", "other cube positions"
    if not result.succeeded:
        rows = [(f"less {folder / 'loop.log'}", "when and why the loop held"), again]
    else:
        other = "small" if result.policy == "color-servo" else "color-servo"
        rows = [
            again,
            (f"{_program()} demo --policy {other}", "another policy"),
            (f"{_program()} infer --help", "drive your own robot; docs/robot.md"),
        ]
    return _table([(command, f"# {comment}") for command, comment in rows])


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return lines with aligned columns; nothing is wrapped, so that commands can be copied."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return [
        GAP.join(
            cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _program() -> str:
    """Return this command's program as it was typed."""
    typed = Path(sys.argv[0])
    return os.path.relpath(typed) if typed.name == PROGRAM and typed.is_file() else PROGRAM
