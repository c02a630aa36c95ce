"""`/metrics`: the board → Prometheus text. Base units: seconds, hertz, radians, bytes.

Histograms have the bounds below; the loop's own bins are 2 % wide, so counts are exact to that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from crane_x7_remote.dashboard.board import Board

CONTENT_TYPE: Final[str] = CONTENT_TYPE_PLAIN_0_0_4
BOUNDS_S: Final = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
)  # fmt: skip
STAGES: Final = {
    "decode_ms": ("decode", "Decoding one camera image"),
    "policy_ms": ("policy", "One prediction"),
    "latency_ms": ("latency", "Frame received to trajectory sent"),
    "frame_age_ms": ("frame_age", "Age of the frame when its trajectory was sent"),
    "lateness_ms": ("lateness", "Start of a tick after its deadline"),
    "lead_ms": ("lead", "Reaction time due to the link"),
}
COUNTERS: Final = {
    "ticks": "Ticks of the loop",
    "skipped_ticks": "Deadlines that passed during a longer tick",
    "trajectories": "Trajectories sent",
    "frames_used": "Camera frames used",
    "refused_frames": "Camera frames that could not be decoded",
    "policy_failures": "Ticks without a usable prediction",
}


def text(board: Board, viewers: int) -> bytes:
    """Return the exposition text."""
    registry = CollectorRegistry()
    registry.register(_Collector(board, viewers))
    return generate_latest(registry)


class _Collector:
    def __init__(self, board: Board, viewers: int) -> None:
        self._board = board
        self._viewers = viewers

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before the first metrics; see prometheus_client."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield every metric that is known."""
        yield _gauge("dashboard_viewers", "Browsers that watch", self._viewers)
        yield from _loop(self._board)
        yield from _link(self._board)
        yield from _joints(self._board.get("joints") or ())
        yield from _recording(self._board.get("recording"))
        yield from _training(json.loads(self._board.training_text()))


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"crane_x7_{name}", help_text, value=value)


def _loop(board: Board) -> Iterator[Metric]:
    loop, metrics = board.get("loop"), board.metrics
    if loop is None:
        return
    info = {"session": str(loop.get("session")), "policy": str(loop.get("policy"))}
    yield InfoMetricFamily("crane_x7_loop", "The loop", value=info)
    yield _gauge("loop_driving", "1 while the arm is driven", loop.get("state") == "driving")
    for key, name in (("rate_hz", "rate"), ("wanted_hz", "wanted_rate")):
        if loop.get(key) is not None:
            yield _gauge(f"loop_{name}_hertz", "Ticks per second", loop[key])
    for key, help_text in COUNTERS.items():
        if key in metrics:
            yield CounterMetricFamily(f"crane_x7_loop_{key}", help_text, value=metrics[key])
    holds = CounterMetricFamily("crane_x7_loop_holds", "Ticks without driving", labels=["reason"])
    for reason, count in (metrics.get("holds") or {}).items():
        holds.add_metric([reason], count)
    yield holds
    for key, (name, help_text) in STAGES.items():
        if metrics.get(key, {}).get("count"):
            yield _histogram(f"crane_x7_loop_{name}_seconds", help_text, metrics[key])


def _histogram(name: str, help_text: str, summary: Mapping[str, Any]) -> Metric:
    bins: Sequence[tuple[float, int]] = summary["histogram"]
    buckets = [
        (f"{bound_s:g}", float(sum(count for upper_ms, count in bins if upper_ms <= bound_s * 1e3)))
        for bound_s in BOUNDS_S
    ]
    buckets.append(("+Inf", float(summary["count"])))
    total_s = (summary["mean"] or 0.0) * summary["count"] / 1e3
    return HistogramMetricFamily(name, help_text, buckets=buckets, sum_value=total_s)


def _link(board: Board) -> Iterator[Metric]:
    link, guard = board.get("link"), board.get("guard")
    if link is not None:
        yield _gauge("link_connected", "1 while rosbridge is connected", link["connected"])
        if link["rtt_ms"] is not None:
            yield _gauge("link_round_trip_seconds", "Newest round trip", link["rtt_ms"] / 1e3)
    yield _gauge("guard_present", "1 while a guard tells its state", guard is not None)
    if guard is not None:
        stopped = guard["stopped"] is not None
        yield _gauge("guard_stopped", "1 while the guard lets nothing pass", stopped)


def _joints(rows: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    families = {
        "measured_deg": GaugeMetricFamily(
            "crane_x7_joint_position_radians", "Measured position", labels=["joint"]
        ),
        "target_deg": GaugeMetricFamily(
            "crane_x7_joint_target_radians", "Target that is due next", labels=["joint"]
        ),
    }
    for row in rows:
        for key, family in families.items():
            if row[key] is not None:
                family.add_metric([row["name"]], row[key] * 3.141592653589793 / 180)
    yield from families.values()


def _recording(status: Mapping[str, Any] | None) -> Iterator[Metric]:
    if status is not None:
        yield _gauge("recording", "1 while an episode is recorded", status["recording"])
        yield _gauge("recording_kept_episodes", "Episodes in the data set", status["kept"])


def _training(training: Mapping[str, Any] | None) -> Iterator[Metric]:
    if not training:
        return
    if training["step"] is not None:
        yield _gauge("training_step", "Updates done", training["step"])
    figures = GaugeMetricFamily(
        "crane_x7_training_figure", "Newest figure of the run", labels=["figure"]
    )
    for curve in training["curves"]:
        figures.add_metric([curve["title"]], curve["last"])
    yield figures
