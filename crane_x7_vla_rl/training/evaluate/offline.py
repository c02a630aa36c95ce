"""Recorded episodes → the policy's errors and latency, frame by frame, against what was recorded.

The policy gets one frame at a time, as on a robot, so the latency is that on a robot.
`offline.parquet` has a row per frame and step of the chunk: episode, frame, step, instruction, the
error of each joint in rad (policy minus recording), and the latency of the prediction in ms.

Of chosen episodes every frame is compared: `episode_000.parquet` and so on, and all of them in
`all_episodes.parquet`, have a row per frame, with the chunk's first target as the prediction. Their
columns are `episode`, `frame`, for each joint in rad `joint_position_…`, `predicted_action_…`,
`gt_action_…`, `abs_error_…`, and `inference_time_s`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crane_x7_vla_rl.data.episode import DataError, Episode
from crane_x7_vla_rl.data.files import write_whole
from crane_x7_vla_rl.data.source import EpisodeSource, open_source
from crane_x7_vla_rl.policies.base import Policy, more_cameras
from crane_x7_vla_rl.robot import JOINT_NAMES
from crane_x7_vla_rl.training.evaluate.config import (
    ALL_EPISODES,
    OFFLINE,
    EvaluateConfig,
)
from crane_x7_vla_rl.training.evaluate.ranks import ALONE, Ranks
from crane_x7_vla_rl.types import ActionChunk, JointState, Observation

WARM_UP: Final = 3
"""Predictions before the first timed one: the first ones allocate buffers."""


def compare(policy: Policy, config: EvaluateConfig, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Return the summary, in each process of `ranks` alike; the first one writes offline.parquet.

    Raises DataError.
    """
    assert config.data_root is not None
    cameras = more_cameras(policy)
    source = open_source(config.data_root, reading=config.reading, all_cameras=bool(cameras))
    if not len(source):
        raise DataError(f"{source.name}: holds no episodes to compare with")
    _check_cameras(cameras, source)
    rows: list[dict[str, Any]] = []
    chosen = list(_spread(source, config.offline_frames))
    _warm_up(policy, source, chosen[0])
    for episode, frame in ranks.share(chosen):
        rows += _rows(policy, source, episode, frame)
    rows = sorted(ranks.gather(rows), key=lambda row: (row["episode"], row["frame"], row["step"]))
    if ranks.is_first:
        _write(config, OFFLINE, pa.Table.from_pylist(rows))
    whole = _compare_episodes(policy, source, config, ranks)
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
        **whole,
    }


def _check_cameras(cameras: Sequence[str], source: EpisodeSource) -> None:
    """Raise DataError if the recordings lack a camera that the policy wants."""
    missing = set(cameras) - set(source[0].others)
    if missing:
        raise DataError(
            f"{source.name}: has no camera {', '.join(sorted(missing))}, which the policy wants;"
            " compare it with recordings that have one (record --camera wrist=TOPIC)"
        )


def _compare_episodes(
    policy: Policy, source: EpisodeSource, config: EvaluateConfig, ranks: Ranks
) -> dict[str, Any]:
    """Write a file per chosen episode, and all of them as one; return the mean errors, in rad."""
    chosen = sorted(set(config.offline_episodes))
    if not chosen:
        return {}
    if chosen[-1] >= len(source):
        raise DataError(
            f"{config.data_root}: --offline-episodes {chosen[-1]}: it has {len(source)} episodes,"
            f" expected 0 to {len(source) - 1}"
        )
    tables = []
    for episode in ranks.share(chosen):
        policy.reset()
        frames = range(source.lengths[episode])
        table = pa.Table.from_pylist([_frame(policy, source, episode, at) for at in frames])
        _write(config, f"episode_{episode:03d}.parquet", table)
        tables.append((episode, table))
    tables = sorted(ranks.gather(tables), key=lambda pair: pair[0])
    merged = pa.concat_tables([table for _, table in tables])
    if ranks.is_first:
        _write(config, ALL_EPISODES, merged)
    errors = {name: float(np.mean(merged[f"abs_error_{name}"].to_numpy())) for name in JOINT_NAMES}
    return {"episodes": chosen, "episodes_mean_error_rad": errors}


def _frame(policy: Policy, source: EpisodeSource, episode: int, frame: int) -> dict[str, Any]:
    """Return the row of one frame in an episode's file."""
    seen, recorded = _observe(source, episode, frame)
    chunk, latency_s = _predict(policy, seen)
    predicted, wanted = chunk.position_rad[0], recorded.action[frame].astype(float)
    columns = {
        "joint_position": seen.joints.position_rad, "predicted_action": predicted,
        "gt_action": wanted, "abs_error": np.abs(predicted - wanted),
    }  # fmt: skip
    row: dict[str, Any] = {"episode": episode, "frame": frame}
    for column, values in columns.items():
        row |= {
            f"{column}_{name}": float(value)
            for name, value in zip(JOINT_NAMES, values, strict=True)
        }
    return row | {"inference_time_s": latency_s}


def _write(config: EvaluateConfig, name: str, table: pa.Table) -> None:
    write_whole(config.output / name, lambda path: pq.write_table(table, path))


def _predict(policy: Policy, seen: Observation) -> tuple[ActionChunk, float]:
    """Return the chunk, and how long it took in s."""
    started_s = time.monotonic()
    (chunk,) = policy.predict([seen])
    return chunk, time.monotonic() - started_s


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
    time_s = frame / recorded.fps
    more = {name: recorded.seen_by(name).image(frame) for name in recorded.others}
    seen = Observation(recorded.image(frame), joints, recorded.instruction, time_s, more)
    return seen, recorded


def _warm_up(policy: Policy, source: EpisodeSource, at: tuple[int, int]) -> None:
    seen, _ = _observe(source, *at)
    for _ in range(WARM_UP):
        policy.predict([seen])


def _rows(
    policy: Policy, source: EpisodeSource, episode: int, frame: int
) -> Iterator[dict[str, Any]]:
    seen, recorded = _observe(source, episode, frame)
    policy.reset()  # the frame before is of another moment, or of another episode
    chunk, latency_s = _predict(policy, seen)
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
            "latency_ms": latency_s * 1e3,
            **dict(zip(JOINT_NAMES, error.tolist(), strict=True)),
        }
