"""The sheet of a sweep. `Row`s → a table, sweep.json, sweep.md and sweep.png."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from crane_x7_vla_rl import tables
from crane_x7_vla_rl.data.files import write_whole

JSON, MARKDOWN, PLOT = "sweep.json", "sweep.md", "sweep.png"
COLUMNS: Final = ("condition", "value", "success", "95 % interval", "of baseline", "target")
PANELS_WIDE: Final = 5


@dataclass(frozen=True)
class Row:
    """What was measured under one condition."""

    name: str
    """Of the sweep; `baseline` for the first row."""
    about: str
    value: float | None
    """Of the option that the sweep changes; None for the baseline."""
    unit: str
    """Of the value; empty for a factor or share."""
    rate: float
    """Success, with the 95 % interval of Wilson."""
    low: float
    high: float
    successes: int
    episodes: int
    baseline: float
    """The baseline's rate."""
    ratio: float | None
    """Rate through the baseline's; None if that is 0."""
    target: float | None
    """Least ratio that is wanted; None without one."""
    met: bool | None
    """Whether the ratio reaches it; None without a target."""

    def cells(self) -> tuple[str, ...]:
        """Return it as text, in the order of COLUMNS."""
        value = "" if self.value is None else f"{self.value:g} {self.unit}".rstrip()
        ratio = "-" if self.ratio is None else f"{self.ratio:.2f}"
        target = ""
        if self.target is not None:
            target = f"≥ {self.target:.2f}, {'met' if self.met else 'missed'}"
        interval = f"{100 * self.low:.1f} to {100 * self.high:.1f} %"
        return self.about, value, f"{100 * self.rate:.1f} %", interval, ratio, target


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    tables.show("success under changed conditions", COLUMNS, [row.cells() for row in rows],
                right=COLUMNS[1:5])  # fmt: skip
    for row in rows:
        if row.met is False:
            print(f"missed: {row.about} {row.value:g} {row.unit}".rstrip())


def write(folder: Path, rows: Sequence[Row], lead: str) -> None:
    """Replace sweep.json and sweep.md."""
    document = json.dumps([asdict(row) for row in rows], indent=4, ensure_ascii=False) + "\n"
    _write_text(folder / JSON, document)
    _write_text(folder / MARKDOWN, markdown(rows, lead))


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def markdown(rows: Sequence[Row], lead: str) -> str:
    """Return the sheet as a section of a Markdown file."""
    return "\n".join(_lines(rows, lead)) + "\n"


def _lines(rows: Sequence[Row], lead: str) -> Iterator[str]:
    yield lead
    yield ""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" + "|---:" * 4 + "|---|"
    for row in rows:
        yield f"| {' | '.join(row.cells())} |"
    yield ""
    yield f"![success under each condition; bars are 95 % intervals]({PLOT})"


def plot(folder: Path, rows: Sequence[Row]) -> None:
    """Draw sweep.png."""
    drawn = figure(rows)
    write_whole(folder / PLOT, lambda partial: drawn.savefig(partial, dpi=110, format="png"))


def figure(rows: Sequence[Row]) -> Any:
    """Return a panel per sweep: success over its values, the baseline as a line."""
    from matplotlib.figure import Figure

    baseline, names = rows[0], list(dict.fromkeys(row.name for row in rows[1:]))
    wide = min(PANELS_WIDE, max(1, len(names)))
    high = max(1, -(-len(names) // wide))
    drawn = Figure(figsize=(3 * wide, 2.6 * high), layout="constrained")
    axes = list(drawn.subplots(high, wide, squeeze=False).flat)
    for axis, name in zip(axes, names, strict=False):
        _panel(axis, baseline, [row for row in rows if row.name == name])
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    return drawn


def _panel(axis: Any, baseline: Row, rows: Sequence[Row]) -> None:
    values = [row.value for row in rows]
    errors = [
        [100 * (row.rate - row.low) for row in rows],
        [100 * (row.high - row.rate) for row in rows],
    ]
    axis.axhspan(100 * baseline.low, 100 * baseline.high, color="0.9")
    axis.axhline(100 * baseline.rate, color="0.5", lw=1, label="baseline")
    axis.errorbar(values, [100 * row.rate for row in rows], errors, fmt="o-", ms=4, capsize=3)
    for row in rows:
        if row.target is not None:
            wanted = 100 * row.target * row.baseline
            axis.plot([row.value], [wanted], "_", color="C3", ms=14, mew=2, label="target")
    axis.set_ylim(-3, 103)
    axis.set_title(rows[0].about, fontsize=8)
    axis.set_xlabel(f"{rows[0].name}, {rows[0].unit}" if rows[0].unit else rows[0].name, fontsize=8)
    axis.set_ylabel("success, %", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=6, loc="lower left")
