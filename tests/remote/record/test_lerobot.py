"""LeRobot itself loads what a recorder wrote: two cameras, interventions, and their episodes.

It runs in its own environment, which scripts/setup-lerobot makes.
"""

from __future__ import annotations

from pathlib import Path

import lerobot_rig
import numpy as np
import pytest
from record_rig import CAMERA, START_S, decided, options, position, stream

from crane_x7_remote.record.events import BASE, Picture, Told
from crane_x7_remote.record.recorder import Recorder
from crane_x7_remote.record.writing import EpisodeWriter
from crane_x7_vla_rl.data.lerobot import open_lerobot

pytestmark = [pytest.mark.lerobot, pytest.mark.timeout(600)]

READ = """
import sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
folder, target = sys.argv[1:]
data = LeRobotDataset("local/ours", root=folder, video_backend="pyav")
items = [data[k] for k in range(len(data))]
np.savez(
    target,
    base=[float(x["observation.images.base"].mean()) for x in items],
    wrist=[float(x["observation.images.wrist"].mean()) for x in items],
    intervention=[bool(x["intervention"]) for x in items],
    dtype=str(items[0]["intervention"].dtype),
    state=np.stack([x["observation.state"].numpy() for x in items]),
    episode=[int(x["episode_index"]) for x in items],
    task=[x["task"] for x in items],
    mean=data.meta.stats["intervention"]["mean"],
    cameras=data.meta.camera_keys,
)
"""


def recorded(folder: Path) -> Path:
    """Two episodes of a loop of two cameras; a person shows the middle of each."""
    writer = EpisodeWriter(folder, resume=False, kept=0, observe=None)
    chosen = options(folder, "policy", follows_policy=True)
    both = {BASE: CAMERA, "wrist": "/wrist"}
    chosen = type(chosen)(**(vars(chosen) | {"cameras": both}))
    recorder = Recorder(chosen, writer, lambda _: None)
    for number in range(2):
        begin_s = START_S + 10 * number
        recorder.handle(Told(f"task {number}"))
        for event in stream(3.0, begin_s, camera_hz=10, cameras=("wrist", BASE)):
            if isinstance(event, Picture) and event.camera == BASE:
                at_s = event.frame.stamp_s
                shows = 1.0 <= at_s - begin_s < 2.0
                recorder.handle(decided(at_s, None if shows else position(at_s), shows))
            recorder.handle(event)
    recorder.end()
    writer.close()
    return folder


def test_lerobot_reads_both_cameras_and_the_interventions(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "data")
    program, target = tmp_path / "read.py", tmp_path / "found.npz"
    program.write_text(READ)
    lerobot_rig.run(program, folder, target)
    found = np.load(target)
    source = open_lerobot(folder, all_cameras=True)
    episodes = list(source)
    assert sorted(found["cameras"]) == ["observation.images.base", "observation.images.wrist"]
    assert str(found["dtype"]) == "torch.bool"
    marks = np.concatenate([each.intervention for each in episodes])  # type: ignore[misc]
    assert marks.sum() == 20
    np.testing.assert_array_equal(found["intervention"], marks)
    assert float(found["mean"][0]) == pytest.approx(marks.mean())
    np.testing.assert_array_equal(found["state"], np.concatenate([each.state for each in episodes]))
    lengths = source.lengths.tolist()
    assert found["episode"].tolist() == [0] * lengths[0] + [1] * lengths[1]
    assert found["task"].tolist() == ["task 0"] * lengths[0] + ["task 1"] * lengths[1]
    for name in ("base", "wrist"):
        views = [each if name == "base" else each.seen_by(name) for each in episodes]
        ours = [view.image(t).mean() / 255 for view in views for t in range(len(view))]
        np.testing.assert_allclose(found[name], ours, atol=0.02)
