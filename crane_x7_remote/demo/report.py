"""report.json of a run: the loop's figures, the truth from the simulation, versions."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from crane_x7_remote.demo.motion import motion
from crane_x7_remote.demo.recorder import Recording
from crane_x7_remote.errors import OutputError
from crane_x7_vla_rl.robot import ARM_DOF

PACKAGES = ("crane-x7-remote", "mani_skill", "sapien", "torch", "websockets", "numpy")
CLOCK = "seconds since the loop's first trajectory, in this report, the video and the plots"
FROM_THE_LOOP = (
    "asked_rate_hz", "rate_hz", "rate_limit", "trajectory_rate_hz", "ticks", "skipped_ticks",
    "trajectories", "holds", "lateness_ms", "latency_ms", "latency_without_policy_ms", "policy_ms",
    "frame_age_ms", "policy_failures", "link",
)  # fmt: skip


@dataclass(frozen=True)
class TaskResult:
    """Result of one instruction."""

    instruction: str
    done_s: float | None
    """When it was fulfilled for one second; None: never."""


@dataclass(frozen=True)
class DemoResult:
    """Result of the instructions; seconds count from the loop's first trajectory."""

    seed: int
    tasks: tuple[TaskResult, ...]
    """In the order in which they were given."""
    picked: tuple[str, ...]
    """Cubes that were lifted by 10 cm at any time."""
    placed: tuple[str, ...]
    """Cubes on the plate at the end, with the gripper open and away."""
    duration_s: float
    put_back: tuple[str, ...] = ()
    """Cubes that a hand took from the fingers when the task changed."""
    policy: str = "color-servo"
    model: str | None = None
    """Folder or Hub id, for a policy with weights."""
    random_weights: bool = False
    """The model's config states that its weights are random: the arm cannot do the task."""
    rate_reason: str = ""
    """Reason for the loop's rate."""

    @property
    def succeeded(self) -> bool:
        """Whether all instructions were fulfilled."""
        return all(task.done_s is not None for task in self.tasks)


def build(
    outcome: DemoResult, metrics: dict[str, Any], scene: dict[str, Any], recording: Recording
) -> dict[str, Any]:
    """Return the contents of report.json."""
    return {
        **asdict(outcome),
        "clock": CLOCK,
        "succeeded": outcome.succeeded,
        **{name: _without_histogram(metrics.get(name)) for name in FROM_THE_LOOP},
        "tracking_error_rad": tracking_error_rad(recording),
        "motion": _motion(outcome, recording),
        "cubes": scene.get("cubes", {}),
        "controller": scene.get("controller", {}),
        "recorded": {
            "frames": len(recording.frames),
            "views": len(recording.views),
            "joint_states": len(recording.joint_times_s),
            "trajectories": len(recording.trajectories),
        },
        "versions": {name: version(name) for name in PACKAGES},
        "machine": {
            "cores": os.cpu_count(),
            "platform": platform.platform(),
            "python": platform.python_version(),
        },
    }


def _without_histogram(figure: object) -> object:
    """The bins stay in metrics.json and in the plot."""
    if isinstance(figure, dict):
        return {name: value for name, value in figure.items() if name != "histogram"}
    return figure


def _motion(outcome: DemoResult, recording: Recording) -> dict[str, float] | None:
    """Return jerk and pauses from the loop's start to the end."""
    begin_s = recording.start_s
    found = motion(*recording.measured(), begin_s, begin_s + outcome.duration_s)
    return None if found is None else asdict(found)


def tracking_error_rad(recording: Recording) -> dict[str, float] | None:
    """Return median and 95th percentile of |measured − target| over the arm's joints; None if too
    little was recorded."""
    measured_s, measured = recording.measured()
    commanded_s, commanded = recording.commanded()
    if len(measured_s) < 2 or len(commanded_s) < 2:
        return None
    inside = (measured_s >= commanded_s[0]) & (measured_s <= commanded_s[-1])
    errors = [
        np.abs(measured[inside, joint] - np.interp(measured_s[inside], commanded_s, target))
        for joint, target in enumerate(commanded.T[:ARM_DOF])
    ]
    if not inside.any():
        return None
    return {
        "p50": float(np.percentile(errors, 50)),
        "p95": float(np.percentile(errors, 95)),
    }


def write(report: dict[str, Any], path: Path) -> None:
    """Write the report; raises OutputError if that fails."""
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.write_text(text)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
