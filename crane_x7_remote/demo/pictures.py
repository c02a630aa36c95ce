"""A recording → video, plots and the picture for the README.

Legend: pictures are (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from crane_x7_remote.demo.recorder import Recording
from crane_x7_remote.rosbridge.frames import EncodedFrame, decode_image
from crane_x7_vla_rl.robot import JOINT_NAMES, PREFIX
from crane_x7_vla_rl.types import Image

STRIP_HEIGHT = 44


def write_video(recording: Recording, path: Path, rate_hz: int = 15) -> int:
    """Write the pictures with their captions as H.264; return how many."""
    from crane_x7_vla_rl.mp4 import write_mp4

    even = (
        picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
        for picture in captioned(recording)
    )
    return write_mp4(str(path), even, rate_hz, {"preset": "veryfast", "crf": "23"})


def captioned(recording: Recording) -> Iterator[Image]:
    """Yield each picture with the time and the instruction in force under it."""
    if not recording.frames:
        return
    start_s = recording.frames[0].stamp_s
    for frame in recording.frames:
        yield caption(frame, start_s, instruction_at(recording, frame.stamp_s))


def caption(frame: EncodedFrame, start_s: float, text: str) -> Image:
    """Return the picture with a strip below it."""
    picture = decode_image(frame)
    strip = np.full((STRIP_HEIGHT, picture.shape[1], 3), 24, dtype=np.uint8)
    words = f"{frame.stamp_s - start_s:5.1f} s  {text}"
    scale = picture.shape[1] / 640
    cv2.putText(
        strip, words, (10, 29), cv2.FONT_HERSHEY_SIMPLEX, 0.65 * scale, (240, 240, 240), 1,
        cv2.LINE_AA,
    )  # fmt: skip
    return np.concatenate([picture, strip])


def instruction_at(recording: Recording, time_s: float) -> str:
    """Return the instruction in force at a time on the robot's clock."""
    given = [text for since_s, text in recording.instructions if since_s <= time_s]
    if given:
        return given[-1]
    return recording.instructions[0][1] if recording.instructions else ""


def write_strip(recording: Recording, times_s: Sequence[float], path: Path) -> None:
    """Write the captioned pictures nearest to `times_s` side by side as a PNG."""
    if not recording.frames:
        return
    start_s = recording.frames[0].stamp_s
    chosen = [
        min(recording.frames, key=lambda frame, at=time_s: abs(frame.stamp_s - at))  # type: ignore[misc]
        for time_s in times_s
    ]
    pictures = [
        caption(frame, start_s, instruction_at(recording, frame.stamp_s)) for frame in chosen
    ]
    joined = np.concatenate(pictures, axis=1)
    width = 1440
    height = round(joined.shape[0] * width / joined.shape[1])
    small = cv2.resize(joined, (width, height), interpolation=cv2.INTER_AREA)
    ok, png = cv2.imencode(".png", small[:, :, ::-1])
    assert ok
    path.write_bytes(png.tobytes())


def write_joint_plot(recording: Recording, path: Path) -> None:
    """Plot targets against measured positions, a panel for each joint."""
    measured_s, measured = recording.measured()
    commanded_s, commanded = recording.commanded()
    start_s = min([*measured_s[:1], *commanded_s[:1]], default=0.0)
    figure, axes = _figure(4, 2, (11, 10))
    for index, (axis, name) in enumerate(zip(axes.flat, JOINT_NAMES, strict=True)):
        axis.plot(measured_s - start_s, measured[:, index], lw=1.2, label="measured")
        axis.plot(commanded_s - start_s, commanded[:, index], lw=0.8, ls="--", label="target")
        for time_s, _ in recording.instructions[1:]:
            axis.axvline(time_s - start_s, color="0.6", lw=0.8)
        axis.set_title(name.removeprefix(PREFIX), fontsize=8)
        axis.set_ylabel("rad", fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("s", fontsize=8)
    axes.flat[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def write_latency_plot(metrics: dict[str, Any], path: Path) -> None:
    """Plot how long frames took from arrival to their trajectory, from the loop's own figures."""
    figure, axes = _figure(1, 1, (8, 4.5))
    axis = axes.flat[0]
    for key, label in (
        ("latency_ms", "frame received → trajectory sent"),
        ("latency_without_policy_ms", "without the policy's time"),
    ):
        summary = metrics.get(key) or {}
        bins = summary.get("histogram") or []
        if bins:
            edges = [upper for upper, _ in bins]
            share = 100 * np.array([count for _, count in bins]) / summary["count"]
            axis.step(edges, share, where="mid", label=f"{label}: p50 {summary['p50']:.1f} ms")
    axis.set_xscale("log")
    axis.set_xlabel("ms")
    axis.set_ylabel("% of trajectories")
    if axis.lines:
        axis.legend()
    figure.savefig(path, dpi=110)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure without a display and without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)
