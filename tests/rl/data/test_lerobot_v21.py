"""Format v2.1, for openpi's trainer: read back by a reader written from the format alone."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the train extra")
pytest.importorskip("av", reason="needs the train extra")

import av
import pyarrow.parquet as pq
from data_rig import FPS, INSTRUCTIONS, SIZE, episode

from crane_x7_vla_rl.data.convert import FORMATS, convert
from crane_x7_vla_rl.data.episode import DataError, EpisodeError
from crane_x7_vla_rl.data.lerobot import LeRobotWriter, V21Writer, open_lerobot
from crane_x7_vla_rl.data.reading import Reading
from crane_x7_vla_rl.lerobot_env import interpreter
from crane_x7_vla_rl.robot import JOINT_NAMES

V21 = FORMATS[1]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_v21(folder: Path) -> list[dict[str, Any]]:
    """Read a data set as the format's description says, with nothing of this project."""
    info = json.loads((folder / "meta/info.json").read_text())
    assert info["codebase_version"] == "v2.1"
    tasks = {line["task_index"]: line["task"] for line in lines(folder / "meta/tasks.jsonl")}
    assert len(tasks) == info["total_tasks"]
    found, begun = [], 0
    for row in lines(folder / "meta/episodes.jsonl"):
        number = row["episode_index"]
        place = {"episode_chunk": number // info["chunks_size"], "episode_index": number}
        table = pq.read_table(folder / info["data_path"].format(**place)).to_pydict()
        film = info["video_path"].format(video_key="observation.images.base", **place)
        with av.open(str(folder / film)) as container:
            stream = container.streams.video[0]
            decoded = list(container.decode(stream))
            times = [float(frame.pts * stream.time_base) for frame in decoded]
        assert table["index"] == list(range(begun, begun + row["length"]))
        assert table["frame_index"] == list(range(row["length"]))
        np.testing.assert_allclose(table["timestamp"], times, atol=1e-4)
        np.testing.assert_allclose(np.diff(table["timestamp"]), 1 / info["fps"], atol=1e-4)
        assert [tasks[task] for task in set(table["task_index"])] == row["tasks"]
        found.append(
            {
                "state": np.array(table["observation.state"], np.float32),
                "action": np.array(table["action"], np.float32),
                "images": np.stack([frame.to_ndarray(format="rgb24") for frame in decoded]),
                "task": row["tasks"][0],
            }
        )
        begun += row["length"]
    assert (len(found), begun) == (info["total_episodes"], info["total_frames"])
    return found


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    with LeRobotWriter(tmp_path / "v3", FPS, SIZE) as writer:
        for number in range(3):
            writer.add(episode(number, 4 + number))
    return tmp_path / "v3"


def test_an_independent_reader_gets_every_frame(ours: Path, tmp_path: Path) -> None:
    target = tmp_path / "v21"
    assert convert(ours, target, "", resume=False, form=V21) == 3
    for number, got in enumerate(read_v21(target)):
        sent = episode(number, 4 + number)
        np.testing.assert_array_equal(got["state"], sent.state)
        np.testing.assert_array_equal(got["action"], sent.action)
        assert got["task"] == INSTRUCTIONS[number % 2]
        pictures = np.stack([sent.image(t) for t in range(len(sent))]).astype(int)
        assert np.abs(got["images"] - pictures).mean() < 4
    info = json.loads((target / "meta/info.json").read_text())
    assert info["features"]["action"]["names"] == list(JOINT_NAMES)
    assert not list(target.rglob("*.partial"))


def test_the_statistics_are_those_of_each_episode(ours: Path, tmp_path: Path) -> None:
    convert(ours, tmp_path / "v21", "", resume=False, form=V21)
    for number, line in enumerate(lines(tmp_path / "v21/meta/episodes_stats.jsonl")):
        action = episode(number, 4 + number).action.astype(float)
        stats = line["stats"]["action"]
        assert (line["episode_index"], stats["count"]) == (number, [len(action)])
        for name in ("min", "max", "mean", "std"):
            np.testing.assert_allclose(stats[name], getattr(action, name)(axis=0), rtol=1e-6)
        assert np.shape(line["stats"]["observation.images.base"]["mean"]) == (3, 1, 1)


def test_we_read_v21_as_we_read_v3(ours: Path, tmp_path: Path) -> None:
    convert(ours, tmp_path / "v21", "", resume=False, form=V21)
    three, two = open_lerobot(ours), open_lerobot(tmp_path / "v21")
    assert two.lengths.tolist() == three.lengths.tolist()
    for number in range(3):
        a, b = three[number], two[number]
        np.testing.assert_array_equal(a.state, b.state)
        np.testing.assert_array_equal(a.action, b.action)
        assert (a.instruction, a.success, a.seed) == (b.instruction, b.success, b.seed)
        for t in range(len(a)):
            assert np.abs(a.image(t).astype(int) - b.image(t)).max() <= 12


def test_v20_is_read_too_and_v21_becomes_v3(ours: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    convert(ours, old, "", resume=False, form=V21)
    info = json.loads((old / "meta/info.json").read_text())
    (old / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v2.0"}))
    (old / "meta/episodes_stats.jsonl").unlink()
    assert convert(old, tmp_path / "back", "", resume=False) == 3
    back = open_lerobot(tmp_path / "back")
    np.testing.assert_array_equal(back[2].action, episode(2, 6).action)


def test_a_conversion_is_resumed_after_the_episodes_that_info_counts(tmp_path: Path) -> None:
    folder = tmp_path / "v21"
    with V21Writer(folder, FPS, SIZE) as writer:
        writer.add(episode(0))
        whole = (folder / "meta/info.json").read_bytes()
        writer.add(episode(1))
    # As if the writer was killed before it counted the second episode.
    (folder / "meta/info.json").write_bytes(whole)
    with V21Writer(folder, FPS, SIZE, resume=True) as writer:
        assert len(writer) == 1
        writer.add(episode(2))
    got = read_v21(folder)
    np.testing.assert_array_equal(got[1]["state"], episode(2).state)
    assert [one["task"] for one in got] == [INSTRUCTIONS[0], INSTRUCTIONS[0]]
    assert len(lines(folder / "meta/episodes_stats.jsonl")) == 2


def test_another_data_set_is_never_mixed_in(ours: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds a data set already; resume it"):
        V21Writer(ours, FPS, SIZE)
    with pytest.raises(DataError, match=r"codebase_version is 'v3.0', expected 'v2.1'"):
        V21Writer(ours, FPS, SIZE, resume=True)
    folder = tmp_path / "v21"
    with V21Writer(folder, FPS, SIZE) as writer:
        writer.add(episode(0))
        with pytest.raises(EpisodeError, match="has 20 frames/s of 48×32, expected 10"):
            writer.add(episode(1, fps=20.0))
        with pytest.raises(DataError, match="another writer uses this data set"):
            V21Writer(folder, FPS, SIZE, resume=True)
    with pytest.raises(DataError, match="its features differ"):
        V21Writer(folder, FPS, (64, 64), resume=True)
    assert len(read_v21(folder)) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("meta/episodes.jsonl", None, "episodes.jsonl: cannot be read"),
        ("meta/episodes.jsonl", '{"episode_index": 0', "line 1 is no JSON"),
        ("meta/episodes.jsonl", "[]", r"line 1 is \[\], expected an object"),
        ("meta/episodes.jsonl", "", "no line for episode 0"),
        ("meta/episodes.jsonl", '{"episode_index": 0, "tasks": [], "length": 0}', "length of 1"),
        ("meta/tasks.jsonl", '{"task": "x"}', "expected task_index and task in each line"),
        ("data/chunk-000/episode_000000.parquet", None, "episode_000000.parquet: the file is miss"),
        ("videos/chunk-000/observation.images.base/episode_000000.mp4", None, "episode_000000.mp4"),
    ],
)
def test_a_broken_file_is_named(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    with V21Writer(tmp_path, FPS, SIZE) as writer:
        writer.add(episode(0))
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        open_lerobot(tmp_path, reading=Reading())[0].image(1)


CONVERT = """
import sys
from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset
convert_dataset("local/ours", root=sys.argv[1], push_to_hub=False)
"""


@pytest.mark.lerobot
@pytest.mark.timeout(600)
def test_lerobots_own_converter_reads_it(tmp_path: Path) -> None:
    """The converter of the installed release is an independent reader of v2.1."""
    folder = tmp_path / "v21"
    with V21Writer(folder, FPS, SIZE) as writer:
        for number in range(3):
            writer.add(episode(number, 4 + number))
    done = subprocess.run(
        [interpreter(os.environ.get("LEROBOT_VENV")), "-c", CONVERT, str(folder)],
        capture_output=True,
        text=True,
        timeout=500,
        env={
            **{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path / "hf"),
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    source = open_lerobot(folder)
    assert json.loads((folder / "meta/info.json").read_text())["codebase_version"] == "v3.0"
    for number in range(3):
        sent = episode(number, 4 + number)
        np.testing.assert_array_equal(source[number].action, sent.action)
        assert np.abs(source[number].image(3).astype(int) - sent.image(3)).max() <= 12
