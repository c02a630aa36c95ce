"""Sections of the page. The loop's ticks and metrics, statuses → values ready for JSON. Pure.

Angles in degrees, times in ms, as people read them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from crane_x7_remote.rosbridge.loop_status import LoopStatus
from crane_x7_vla_rl.robot import LOWER_RAD, UPPER_RAD

STAGES: Final = {
    "decode_ms": "decode",
    "policy_ms": "policy",
    "latency_without_policy_ms": "all but the policy",
    "latency_ms": "frame to trajectory",
    "frame_age_ms": "age of the frame",
    "lead_ms": "lead for the link",
}
"""Key of a distribution in the loop's metrics → its name on the page."""


JOINTS: Final = (
    "pan", "shoulder", "upper twist", "elbow", "lower twist", "lower arm", "wrist", "gripper",
)  # fmt: skip
"""Short names, in the order of robot.JOINT_NAMES."""


def joints(
    measured_rad: Sequence[float] | None, target_rad: Sequence[float] | None
) -> list[dict[str, Any]]:
    """Return a row for each joint, in degrees."""
    return [
        {
            "name": name,
            "measured_deg": None if measured_rad is None else _degrees(measured_rad[index]),
            "target_deg": None if target_rad is None else _degrees(target_rad[index]),
            "lower_deg": _degrees(LOWER_RAD[index]),
            "upper_deg": _degrees(UPPER_RAD[index]),
        }
        for index, name in enumerate(JOINTS)
    ]


def _degrees(value_rad: float) -> float | None:
    return round(float(np.degrees(value_rad)), 2) if math.isfinite(value_rad) else None


def stages(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the latency of each stage, in ms."""
    found = []
    for key, name in STAGES.items():
        summary = metrics.get(key) or {}
        if summary.get("p50") is not None:
            found.append({"name": name, "p50": summary["p50"], "p99": summary["p99"]})
    return found


def holds(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the holds by reason, the most frequent first."""
    counts: Mapping[str, int] = metrics.get("holds") or {}
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [{"reason": words(reason), "ticks": count} for reason, count in ordered]


def words(reason: str) -> str:
    """Return a hold's reason as words."""
    return reason.replace("_", " ")


def link(state: Mapping[str, Any], address: str) -> dict[str, Any]:
    """Return the connection to rosbridge; `state` is a LinkStatus as a map."""
    rtt_s = state.get("rtt_s")
    return {
        "address": address,
        "connected": bool(state.get("connected")),
        "rtt_ms": None if rtt_s is None else round(rtt_s * 1e3, 1),
        "reconnects": state.get("reconnects"),
        "error": None if state.get("connected") else state.get("last_error"),
        "silent": state.get("no_frame_because") or state.get("no_joints_because"),
    }


def guard(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the guard's state on /vla/guard."""
    refused = state.get("refused")
    counts = refused.values() if isinstance(refused, dict) else ()
    return {
        "stopped": state.get("stopped"),
        "driver": state.get("driver"),
        "passed": state.get("passed"),
        "retimed": state.get("retimed"),
        "refused": sum(count for count in counts if isinstance(count, int)),
        "moves_s": state.get("ends_s"),
    }


def status(heard: LoopStatus) -> dict[str, Any]:
    """Return the section of a loop that is only known from /vla/status."""
    hold = None if heard.hold is None else words(heard.hold)
    driving = "dry run" if heard.dry_run else "driving"
    return {
        "session": heard.session,
        "policy": None,
        "dry_run": heard.dry_run,
        "instruction": heard.task,
        "wanted_hz": None,
        "rate_hz": heard.rate_hz,
        "state": "hold" if hold else driving,
        "hold": hold,
        "detail": None,
        "trajectories": heard.trajectories,
    }
