"""A checkpoint's errors on recordings. Runs inside LeRobot's environment.

    python evaluate_process.py CHECKPOINT DATASET OUTPUT EPISODES DEVICE ACTION

Every frame is one prediction, of which the first step is compared. EPISODES: comma-separated, ""
for all. ACTION: position or delta, what the checkpoint predicts; columns of actions are deltas, in
the unit of the data set. Exit code 4 and one line on standard error: the data set does not fit.

Nothing of this project is imported: the environment holds LeRobot.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

DATA = 4
STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."


class MisfitError(Exception):
    """The data set does not fit the checkpoint."""


def main(words: list[str]) -> int:
    """Write a table per episode, all of them, and summary.json; returns the exit code."""
    checkpoint, root, output = (Path(word) for word in words[:3])
    episodes, device, kind = words[3:6]
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = LeRobotDataset(f"local/{root.name}", root=root)
    policy, before, after = load(checkpoint, device)
    try:
        check(policy.config, data.meta)
        chosen = wanted(episodes, int(data.meta.total_episodes))
    except MisfitError as error:
        print(error, file=sys.stderr)
        return DATA
    tables = []
    predict(policy, before, after, data[0], device)  # warm-up, not timed
    for number in chosen:
        columns = episode(data, number, policy, before, after, device, kind)
        tables.append(write(output / f"episode_{number:03d}.parquet", columns))
        print(f"episode {number}: {tables[-1].num_rows} frames", flush=True)
    if len(tables) > 1:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.concat_tables(tables), output / "all_episodes.parquet")
    summary = summarized(tables, names(data.meta))
    (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for joint, mae in summary["mae"].items():
        print(f"mean absolute error {joint}: {mae:.5f}", flush=True)
    print(f"inference: median {summary['inference_time_s']['median'] * 1e3:.1f} ms", flush=True)
    return 0


def load(checkpoint: Path, device: str) -> tuple[Any, Any, Any]:
    """Return the policy and its own processors."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(str(checkpoint))
    config.device, config.pretrained_path = device, checkpoint
    if getattr(config, "pretrained_backbone_weights", None):
        config.pretrained_backbone_weights = None  # the checkpoint has them all
    policy = get_policy_class(config.type).from_pretrained(str(checkpoint), config=config)
    policy.to(device).eval()
    before, after = make_pre_post_processors(
        config,
        pretrained_path=str(checkpoint),
        preprocessor_overrides={"device_processor": {"device": device}},
    )
    return policy, before, after


def check(config: Any, meta: Any) -> None:
    """Raise MisfitError where the data set lacks what the policy was trained with."""
    for name, feature in {**config.input_features, **config.output_features}.items():
        found = meta.features.get(name)
        if found is None:
            raise MisfitError(
                f"the data set has no {name}, the policy was trained with it; it has"
                f" {', '.join(meta.features)}"
            )
        shape = [int(size) for size in found["shape"]]
        if name.startswith(IMAGES) and shape[-1] == 3:
            shape = [shape[2], shape[0], shape[1]]
        if shape != [int(size) for size in feature.shape]:
            raise MisfitError(
                f"{name} is {shape} in the data set, the policy was trained with"
                f" {[int(size) for size in feature.shape]}"
            )


def wanted(text: str, total: int) -> list[int]:
    """Return the episodes; raises MisfitError for one that the data set does not have."""
    chosen = [int(word) for word in text.split(",")] if text else [*range(total)]
    for number in chosen:
        if not 0 <= number < total:
            raise MisfitError(
                f"episode {number} (EVAL_EPISODES): the data set has {total} episodes"
            )
    return chosen


def names(meta: Any) -> list[str]:
    """Return the joints, or their numbers where the data set does not name them."""
    feature = meta.features[ACTION]
    found = feature.get("names")
    if isinstance(found, dict):
        found = next(iter(found.values()), None)
    return [str(each) for each in found or range(feature["shape"][0])]


def predict(policy: Any, before: Any, after: Any, frame: Any, device: str) -> tuple[Any, float]:
    """Return the first step of the prediction for a frame, (D,), and its duration."""
    import torch

    batch = {
        key: value.unsqueeze(0) for key, value in frame.items()
        if key == STATE or key.startswith(IMAGES)
    }  # fmt: skip
    batch["task"] = [frame["task"]]
    began_s = time.perf_counter()
    with torch.no_grad():
        chunk = after(policy.predict_action_chunk(before(batch)))
        if device.startswith("cuda"):
            torch.cuda.synchronize()
    return chunk[0, 0].float().cpu().numpy(), time.perf_counter() - began_s


def episode(
    data: Any, number: int, policy: Any, before: Any, after: Any, device: str, kind: str
) -> dict[str, list[float]]:
    """Return the columns of one episode."""
    row = data.meta.episodes[number]
    policy.reset()
    joints = names(data.meta)
    columns: dict[str, list[float]] = {}
    for index in range(int(row["dataset_from_index"]), int(row["dataset_to_index"])):
        frame = data[index]
        state, truth = frame[STATE].numpy(), frame[ACTION].numpy()
        predicted, took_s = predict(policy, before, after, frame, device)
        if kind == "position":
            predicted, truth = predicted - state, truth - state
        values: dict[str, float] = {
            "episode_index": number,
            "frame_index": int(frame["frame_index"]),
            "timestamp": float(frame["timestamp"]),
        }
        for at, joint in enumerate(joints):
            values[f"joint_position_{joint}"] = float(state[at])
            values[f"predicted_action_{joint}"] = float(predicted[at])
            values[f"gt_action_{joint}"] = float(truth[at])
            values[f"abs_error_{joint}"] = abs(float(predicted[at]) - float(truth[at]))
        values["inference_time_s"] = took_s
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    return columns


def write(path: Path, columns: dict[str, list[float]]) -> Any:
    """Write a table, whole or not at all, and return it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(columns)
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial)
    partial.rename(path)
    return table


def summarized(tables: list[Any], joints: list[str]) -> dict[str, Any]:
    """Return the mean absolute error of each joint, and the latency of predictions."""
    import numpy as np

    def column(name: str) -> Any:
        return np.concatenate([table[name].to_numpy() for table in tables])

    took_s = column("inference_time_s")
    return {
        "frames": len(took_s),
        "mae": {joint: float(column(f"abs_error_{joint}").mean()) for joint in joints},
        "inference_time_s": {
            "median": float(np.median(took_s)), "p99": float(np.quantile(took_s, 0.99)),
        },
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
