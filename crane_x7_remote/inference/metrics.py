"""Metrics of the loop. Counts, durations and holds by reason → a JSON snapshot in a file.

The loop adds to `LoopMetrics`. `MetricsWriter` writes snapshots on its own thread, so that a slow
disk does not delay a tick. Memory use is constant.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Literal

logger = logging.getLogger(__name__)

RateLimit = Literal["policy", "camera"]

_FINEST_MS = 0.001
_RATIO = 1.02
_BINS = 1 + math.ceil(math.log(1e9) / math.log(_RATIO))


class Distribution:
    """Histogram of durations in bins 2 % wide, from 1 µs to 1000 s: quantiles are exact to 2 %."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._total = 0
        self._sum_ms = 0.0
        self._max_ms = 0.0

    def add(self, duration_s: float) -> None:
        """Count one duration; a negative one counts as zero."""
        ms = max(duration_s * 1e3, 0.0)
        index = 0
        if ms > _FINEST_MS:
            index = min(1 + int(math.log(ms / _FINEST_MS) / math.log(_RATIO)), _BINS)
        self._counts[index] += 1
        self._total += 1
        self._sum_ms += ms
        self._max_ms = max(self._max_ms, ms)

    def quantile_ms(self, share: float) -> float | None:
        """Return the quantile of `share`; None without any duration."""
        if self._total == 0:
            return None
        wanted, seen = share * self._total, 0
        for index in sorted(self._counts):
            seen += self._counts[index]
            if seen >= wanted:
                return min(_upper_ms(index), self._max_ms)
        return self._max_ms

    def summary(self) -> dict[str, Any]:
        """Return count, mean, quantiles and maximum in ms, and the bins that are not empty."""
        return {
            "count": self._total,
            "mean": self._sum_ms / self._total if self._total else None,
            "p50": self.quantile_ms(0.5),
            "p90": self.quantile_ms(0.9),
            "p99": self.quantile_ms(0.99),
            "max": self._max_ms if self._total else None,
            "histogram": [
                [_upper_ms(index), self._counts[index]] for index in sorted(self._counts)
            ],
        }


def _upper_ms(index: int) -> float:
    return float(_FINEST_MS * _RATIO**index)


class LoopMetrics:
    """All metrics of the loop; belongs to the loop's thread."""

    def __init__(self, session: str, asked_rate_hz: float) -> None:
        self.session = session
        self.asked_rate_hz = asked_rate_hz
        self.counters: Counter[str] = Counter()
        """ticks, skipped_ticks, trajectories, refused_frames, gripper_goals, …"""
        self.holds: Counter[str] = Counter()
        """HoldReason → ticks."""
        self.lateness = Distribution()
        """Delay of a tick after its deadline; after the previous tick, if that took longer."""
        self.latency = Distribution()
        """Frame received → trajectory passed to the socket."""
        self.latency_without_policy = Distribution()
        self.policy = Distribution()
        self.decode = Distribution()
        self.frame_age = Distribution()
        """Age of a frame, by the robot's stamp, when its trajectory is sent."""
        self.lead = Distribution()
        """Reaction time due to the link: trajectory made → it leaves the running one."""
        self.warm_up_s: float | None = None
        self.rate_limit: RateLimit | None = None
        """What has kept the loop below the requested rate for the last seconds."""
        self.rate_lost_hz = 0.0
        """The requested rate minus the rate of the last seconds."""
        self.state = "starting"
        self.instruction = ""
        self._ticks_s: list[float] = []
        self._trajectories_s: list[float] = []

    def tick(self, now_s: float) -> None:
        """Count a tick that began at `now_s`."""
        self.counters["ticks"] += 1
        _span(self._ticks_s, now_s)

    def trajectory(self, now_s: float) -> None:
        """Count a trajectory that was passed to the socket at `now_s`."""
        self.counters["trajectories"] += 1
        _span(self._trajectories_s, now_s)

    @property
    def rate_hz(self) -> float | None:
        """Ticks per second since the first one; None before the second."""
        return _rate(self.counters["ticks"], self._ticks_s)

    def snapshot(self, link: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return all metrics, ready for JSON; `link` is the client's state."""
        trajectories = self.counters["trajectories"]
        return {
            "session": self.session,
            "state": self.state,
            "instruction": self.instruction,
            "asked_rate_hz": self.asked_rate_hz,
            "rate_hz": self.rate_hz,
            "trajectory_rate_hz": _rate(trajectories, self._trajectories_s),
            "rate_limit": self.rate_limit,
            "rate_lost_hz": self.rate_lost_hz,
            "duration_s": self._ticks_s[1] - self._ticks_s[0] if self._ticks_s else 0.0,
            "warm_up_s": self.warm_up_s,
            **{name: self.counters[name] for name in sorted({*self.counters, *_ALWAYS})},
            "holds": dict(sorted(self.holds.items())),
            "lateness_ms": self.lateness.summary(),
            "latency_ms": self.latency.summary(),
            "latency_without_policy_ms": self.latency_without_policy.summary(),
            "policy_ms": self.policy.summary(),
            "decode_ms": self.decode.summary(),
            "frame_age_ms": self.frame_age.summary(),
            "lead_ms": self.lead.summary(),
            "link": link or {},
        }


_ALWAYS = (
    "ticks", "skipped_ticks", "trajectories", "frames_used", "refused_frames", "gripper_goals",
    "policy_failures", "resyncs", "retimed",
)  # fmt: skip


def _span(first_and_last_s: list[float], now_s: float) -> None:
    if not first_and_last_s:
        first_and_last_s[:] = [now_s, now_s]
    first_and_last_s[1] = now_s


def _rate(count: int, first_and_last_s: list[float]) -> float | None:
    if count < 2 or first_and_last_s[1] <= first_and_last_s[0]:
        return None
    return (count - 1) / (first_and_last_s[1] - first_and_last_s[0])


class MetricsWriter:
    """Writes the newest snapshot to `path` atomically; a full disk is a warning."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._pending: dict[str, Any] | None = None
        self._closed = False
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def offer(self, snapshot: dict[str, Any]) -> None:
        """Pass a snapshot without waiting; it replaces one that is not yet written."""
        with self._changed:
            self._pending = snapshot
            self._changed.notify()

    def close(self, timeout_s: float = 2.0) -> None:
        """Write the pending snapshot and end the thread; give up after `timeout_s`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending is not None or self._closed)
                snapshot, self._pending = self._pending, None
            if snapshot is None:
                return
            self._write(snapshot)

    def _write(self, snapshot: dict[str, Any]) -> None:
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            partial.write_text(json.dumps(snapshot, allow_nan=False) + "\n")
            partial.replace(self._path)
        except (OSError, ValueError) as error:
            if not self._failed:
                logger.warning("cannot write metrics to %s: %s", self._path, error)
            self._failed = True
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        else:
            if self._failed:
                logger.info("writing metrics to %s again", self._path)
            self._failed = False
