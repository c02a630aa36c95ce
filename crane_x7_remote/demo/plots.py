"""The plots of a run: `Recording` and the loop's metrics → targets.png and latency.png.

Times are seconds since the loop's start, as in report.json and in the video's captions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from crane_x7_remote.demo.recorder import Recording
from crane_x7_vla_rl.robot import JOINT_NAMES, PREFIX
from crane_x7_vla_rl.types import Array

BEFORE_S: Final = 0.5
"""Time before the loop's start that is plotted."""
FEW: Final = 200
"""Up to this number of samples each is a dot; a histogram of fewer shows mostly its bins."""
BINS: Final = 40
LATENCIES: Final = (
    ("latency_ms", "frame received → trajectory sent"),
    ("latency_without_policy_ms", "the same, without the policy"),
    ("policy_ms", "the policy alone"),
)


def write(figure: Any, path: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, dpi=110)


def joint_plot(recording: Recording, duration_s: float) -> Any:
    """Plot the controllers' targets and the measured positions, a panel for each joint."""
    # Both are published after the arm's step: a target was in force during the step before.
    dashed = {"lw": 0.9, "ls": "--", "ds": "steps-pre"}
    lines = (
        ("measured", *recording.measured(), {"lw": 1.2}),
        ("controller target", *recording.commanded(), dashed),
    )
    figure, axes = _figure(4, 2, (11, 10))
    for index, (axis, name) in enumerate(zip(axes.flat, JOINT_NAMES, strict=True)):
        for label, times_s, positions, style in lines:
            since_s = times_s - recording.start_s
            shown = (since_s >= -BEFORE_S) & (since_s <= duration_s)
            axis.plot(since_s[shown], positions[shown, index], label=label, **style)
        for time_s, _ in recording.instructions[1:]:
            axis.axvline(time_s - recording.start_s, color="0.6", lw=0.8)
        axis.set_title(name.removeprefix(PREFIX), fontsize=8)
        axis.set_ylabel("rad", fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("s since the loop started; grey line: new instruction", fontsize=8)
    axes.flat[0].legend(fontsize=7)
    return figure


def latency_plot(metrics: dict[str, Any]) -> Any:
    """Plot the loop's latency: a dot per trajectory if there are few, else a histogram."""
    rows = [
        (label, samples)
        for key, label in LATENCIES
        if len(samples := latencies_ms(metrics.get(key) or {}))
    ]
    figure, axes = _figure(1, 1, (8, 4))
    axis = axes.flat[0]
    if max((len(samples) for _, samples in rows), default=0) > FEW:
        _draw_histograms(axis, rows)
    else:
        _draw_dots(axis, rows)
    axis.set_xscale("log")
    axis.set_xlabel("ms")
    return figure


def latencies_ms(summary: dict[str, Any]) -> Array:
    """Return each sample of a distribution in metrics.json, exact to the 2 % of its bins."""
    bins = np.array(summary.get("histogram") or [], dtype=np.float64).reshape(-1, 2)
    return np.repeat(bins[:, 0], bins[:, 1].astype(int))


def _draw_dots(axis: Any, rows: list[tuple[str, Array]]) -> None:
    for row, (_, samples) in enumerate(rows):
        # Spread by rank, so that equal samples do not cover each other.
        heights = row + 0.18 * np.sin(2.4 * np.arange(len(samples)))
        axis.plot(samples, heights, "o", ms=5, alpha=0.6)
        median = float(np.median(samples))
        axis.plot([median, median], [row - 0.32, row + 0.32], color="black", lw=1.5)
        text = f"median {median:.1f} ms"
        axis.annotate(text, (median, row - 0.36), ha="center", va="bottom", fontsize=8)
    labels = [f"{label}\n({len(samples)} trajectories)" for label, samples in rows]
    axis.set_yticks(range(len(rows)), labels)
    axis.set_ylim(len(rows) - 0.4, -0.7)
    axis.grid(axis="x", which="both", alpha=0.25)


def _draw_histograms(axis: Any, rows: list[tuple[str, Array]]) -> None:
    everything = np.concatenate([samples for _, samples in rows])
    edges = np.geomspace(everything.min(), everything.max() * 1.01, BINS + 1)
    for label, samples in rows:
        share = np.full(len(samples), 100 / len(samples))
        text = f"{label}: median {np.median(samples):.1f} ms"
        axis.hist(samples, edges, weights=share, histtype="step", label=text)
    axis.set_ylabel("% of trajectories")
    axis.legend(fontsize=8)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure without a display and without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)
