"""Recorded episodes → the policy's errors and latency, frame by frame, against what was recorded.

The policy gets one frame at a time, as on a robot, so the latency is that on a robot.
`offline.parquet` has a row per frame and step of the chunk: episode, frame, step, instruction, the
error of each joint in rad (policy minus recording), and the latency of the prediction in ms.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crane_x7_vla_rl.data.episode import Episode
from crane_x7_vla_rl.data.files import write_whole
from crane_x7_vla_rl.data.source import EpisodeSource, open_source
from crane_x7_vla_rl.policies.base import Policy
from crane_x7_vla_rl.robot import JOINT_NAMES
from crane_x7_vla_rl.training.evaluate.config import OFFLINE, EvaluateConfig
from crane_x7_vla_rl.training.evaluate.ranks import ALONE, Ranks
from crane_x7_vla_rl.types import JointState, Observation

WARM_UP: Final = 3
"""Predictions before the first timed one: the first ones allocate buffers."""


def compare(policy: Policy, config: EvaluateConfig, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Return the summary, in each process of `ranks` alike; the first one writes offline.parquet.

    Raises DataError.
    """
    assert config.data_root is not None
    source = open_source(config.data_root)
    rows: list[dict[str, Any]] = []
    chosen = list(_spread(source, config.offline_frames))
    _warm_up(policy, source, chosen[0])
    for episode, frame in ranks.share(chosen):
        rows += _rows(policy, source, episode, frame)
    rows = sorted(ranks.gather(rows), key=lambda row: (row["episode"], row["frame"], row["step"]))
    if ranks.is_first:
        table = pa.Table.from_pylist(rows)
        write_whole(config.output / OFFLINE, lambda path: pq.write_table(table, path))
    latency = np.array([row["latency_ms"] for row in rows if row["step"] == 0])
    return {
        "data_root": config.data_root,
        "frames": len(chosen),
        "mean_error_rad": {
            name: float(np.mean([abs(row[name]) for row in rows])) for name in JOINT_NAMES
        },
        "latency_ms": {
            "p50": float(np.percentile(latency, 50)),
            "p95": float(np.percentile(latency, 95)),
        },
    }


def _spread(source: EpisodeSource, wanted: int) -> Iterator[tuple[int, int]]:
    """Yield (episode, frame), evenly over all frames."""
    ends = np.cumsum(source.lengths)
    total = int(ends[-1])
    for index in np.unique(np.linspace(0, total - 1, min(wanted, total)).astype(int)):
        episode = int(np.searchsorted(ends, index, side="right"))
        yield episode, int(index - (ends[episode] - source.lengths[episode]))


def _observe(source: EpisodeSource, episode: int, frame: int) -> tuple[Observation, Episode]:
    """Return the observation at a frame, and its episode."""
    recorded = source[episode]
    state = recorded.state[frame]
    joints = JointState(state, np.full(state.shape, np.nan))
    seen = Observation(recorded.image(frame), joints, recorded.instruction, frame / recorded.fps)
    return seen, recorded


def _warm_up(policy: Policy, source: EpisodeSource, at: tuple[int, int]) -> None:
    seen, _ = _observe(source, *at)
    for _ in range(WARM_UP):
        policy.predict([seen])


def _rows(
    policy: Policy, source: EpisodeSource, episode: int, frame: int
) -> Iterator[dict[str, Any]]:
    seen, recorded = _observe(source, episode, frame)
    started_s = time.monotonic()
    (chunk,) = policy.predict([seen])
    latency_ms = (time.monotonic() - started_s) * 1e3
    for step, wanted in enumerate(chunk.position_rad):
        at = frame + round(step * chunk.period_s * recorded.fps)
        if at >= len(recorded):
            return
        error = wanted - recorded.action[at]
        yield {
            "episode": episode,
            "frame": frame,
            "step": step,
            "instruction": seen.instruction,
            "latency_ms": latency_ms,
            **dict(zip(JOINT_NAMES, error.tolist(), strict=True)),
        }
