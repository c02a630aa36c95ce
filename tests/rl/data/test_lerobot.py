"""LeRobotDataset v3: what is written is read back, and what is torn is never read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from places import RIGS, ROOT

pytest.importorskip("pyarrow", reason="needs the train extra")
pytest.importorskip("av", reason="needs the train extra")

import pyarrow as pa
import pyarrow.parquet as pq
from data_rig import FPS, SIZE, episode

from crane_x7_vla_rl.data.convert import convert
from crane_x7_vla_rl.data.episode import DataError, Episode, EpisodeError
from crane_x7_vla_rl.data.lerobot import LeRobotWriter, open_lerobot
from crane_x7_vla_rl.data.reading import Reading
from crane_x7_vla_rl.data.source import open_source, select
from crane_x7_vla_rl.robot import JOINT_NAMES


def write(folder: Path, numbers: range | list[int], *, resume: bool = False) -> None:
    with LeRobotWriter(folder, FPS, SIZE, resume=resume) as writer:
        for number in numbers:
            writer.add(episode(number, 4 + number))


def test_episodes_come_back_as_they_were_written(tmp_path: Path) -> None:
    write(tmp_path, range(5))
    source = open_source(tmp_path)
    assert len(source) == 5
    assert source.fps == FPS
    assert source.lengths.tolist() == [4, 5, 6, 7, 8]
    for number in range(5):
        sent, got = episode(number, 4 + number), source[number]
        np.testing.assert_array_equal(got.state, sent.state)
        np.testing.assert_array_equal(got.action, sent.action)
        assert (got.instruction, got.success, got.seed) == (
            sent.instruction, sent.success, sent.seed,
        )  # fmt: skip
        for t in range(len(sent)):
            error = np.abs(got.image(t).astype(int) - sent.image(t))
            assert error.max() <= 12
            assert error.mean() < 2


WRITER = RIGS.joinpath("lerobot_dying_writer.py")
EPISODES = 5
"""Of the dying writer: two groups and one left over."""


def same(got: Episode, sent: Episode) -> bool:
    pictures = all(
        np.abs(got.image(t).astype(int) - sent.image(t)).max() <= 12 for t in range(len(sent))
    )
    return (
        pictures
        and np.array_equal(got.state, sent.state)
        and np.array_equal(got.action, sent.action)
        and (got.instruction, got.seed) == (sent.instruction, sent.seed)
    )


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of writers that were killed, each at another file operation."""
    root = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, str(WRITER), str(root), str(EPISODES), "7"],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10
    return [root / str(k + 1) for k in range(int(done.stdout))]


def test_a_writer_killed_anywhere_leaves_only_whole_episodes(killed: list[Path]) -> None:
    counts = set()
    for folder in killed:
        added = len((folder / "added").read_text().split())
        if not (folder / "meta/info.json").exists():
            assert added < EPISODES
            continue
        source = open_lerobot(folder)
        counts.add(len(source))
        assert len(source) >= added - added % 2  # groups of two were published
        assert all(same(source[k], episode(k, 2)) for k in range(len(source)))
    assert counts == {2, 4, 5}


def test_a_killed_writer_is_resumed_without_loss(killed: list[Path]) -> None:
    for folder in killed:
        added = len((folder / "added").read_text().split())
        with LeRobotWriter(folder, FPS, SIZE, resume=True) as writer:
            begun = len(writer)
            assert begun >= added
            assert writer.seeds == {1000 + k for k in range(begun)}
            for number in range(begun, EPISODES):
                writer.add(episode(number, 2))
        source = open_lerobot(folder)
        assert len(source) == EPISODES
        assert all(same(source[k], episode(k, 2)) for k in range(EPISODES))
        rows = [
            row["episode_index"]
            for path in sorted(folder.glob("data/*/*.parquet"))
            for row in pq.read_table(path).to_pylist()
        ]
        assert rows == [k for k in range(EPISODES) for _ in range(2)]  # for readers that glob
        stats = json.loads((folder / "meta/stats.json").read_text())
        assert stats["action"]["count"] == [2 * EPISODES]
        assert not list(folder.glob("**/*.partial"))
        assert not (folder / ".staging").exists()


def test_combined_statistics_are_those_of_all_frames(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    write(tmp_path, range(3, 9), resume=True)
    stats = json.loads((tmp_path / "meta/stats.json").read_text())["observation.state"]
    states = np.concatenate([episode(k, 4 + k).state for k in range(9)]).astype(float)
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(stats[name], getattr(states, name)(axis=0), rtol=1e-9)
    assert stats["count"] == [len(states)]


def test_an_existing_dataset_is_refused_unless_resumed(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    with pytest.raises(DataError, match="holds a data set already; resume it"):
        LeRobotWriter(tmp_path, FPS, SIZE)
    with pytest.raises(DataError, match=r"fps is 10, expected 5"):
        LeRobotWriter(tmp_path, 5.0, SIZE, resume=True)
    with pytest.raises(DataError, match=r"its features differ .*observation\.images\.base"):
        LeRobotWriter(tmp_path, FPS, (64, 64), resume=True)
    write(tmp_path, [2], resume=True)
    assert len(open_lerobot(tmp_path)) == 3


def test_what_was_staged_under_another_size_is_not_taken_over(tmp_path: Path) -> None:
    def fail() -> None:
        with LeRobotWriter(tmp_path, FPS, SIZE) as writer:
            writer.add(episode())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with pytest.raises(EpisodeError, match="has 10 frames/s of 48×32, expected 10 of 64×64"):
        LeRobotWriter(tmp_path, FPS, (64, 64), resume=True)


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path, FPS, SIZE) as writer:
        writer.add(episode())
        with pytest.raises(DataError, match="another writer uses this data set"):
            LeRobotWriter(tmp_path, FPS, SIZE, resume=True)
    assert len(open_lerobot(tmp_path)) == 1


def test_an_episode_of_another_kind_is_refused_and_the_others_kept(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path, FPS, SIZE) as writer:
        writer.add(episode(0))
        with pytest.raises(EpisodeError, match="rig episode 1: has 20 frames/s of 48×32"):
            writer.add(episode(1, fps=20.0))
        mixed = episode(2)
        images = [*mixed.images[:3], *episode(2, size=(8, 8)).images[3:]]
        with pytest.raises(EpisodeError, match=r"rig episode 2: images frame 3 is \(8, 8, 3\)"):
            writer.add(replace(mixed, images=images))
        writer.add(episode(3))
    assert [item.seed for item in map(open_lerobot(tmp_path).__getitem__, range(2))] == [1000, 1003]


FULL_DISK = """
import resource, sys
import numpy as np
from dataclasses import replace
from data_rig import FPS, SIZE, episode
from crane_x7_vla_rl.data.lerobot import LeRobotWriter
from crane_x7_vla_rl.data.episode import DataError
def noisy(number):
    images = np.random.default_rng(number).integers(0, 256, (6, 32, 48, 3), dtype=np.uint8)
    return replace(episode(number), images=images)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    with LeRobotWriter(sys.argv[1], FPS, SIZE) as writer:
        for number in range(3):
            writer.add(noisy(number))
except DataError as error:
    sys.exit(f"DataError: {error}")
"""


@pytest.mark.parametrize(
    ("limit", "message", "kept"),
    [
        (15_000, "episode 0 cannot be written", 0),
        (30_000, "the last episodes cannot be published", 3),
    ],
)
def test_a_full_disk_ends_in_one_line_and_keeps_what_was_written(
    tmp_path: Path, limit: int, message: str, kept: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(limit)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": f"{RIGS}:{ROOT}"},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("DataError: ")
    assert message in done.stderr
    assert "File too large" in done.stderr
    assert not list(tmp_path.glob("**/*.partial"))
    with LeRobotWriter(tmp_path, FPS, SIZE, resume=True) as writer:
        assert len(writer) == kept
        writer.add(episode(kept))
    assert len(open_lerobot(tmp_path)) == kept + 1


def damage(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


VIDEO = "videos/observation.images.base/chunk-000/file-000.mp4"


@pytest.mark.parametrize(
    ("name", "share", "message"),
    [
        ("meta/info.json", 0.5, "info.json: cannot be read"),
        ("meta/tasks.parquet", 0.5, "tasks.parquet: the parquet file is truncated"),
        ("meta/episodes/chunk-000/file-000.parquet", 0.9, "the parquet file is truncated"),
        ("data/chunk-000/file-000.parquet", 0.7, "file-000.parquet: the parquet file is trunc"),
        ("data/chunk-000/file-000.parquet", 0.0, "file-000.parquet: the parquet file is trunc"),
        (VIDEO, 0.0, "file-000.mp4: the video is broken"),
        (VIDEO, 0.6, r"file-000.mp4: the video (ends before|is broken at)"),
        (VIDEO, 0.999, r"episode 3: images frame 6: .*file-000.mp4: the video is broken at 2.1"),
    ],
)
def test_a_truncated_file_is_named(tmp_path: Path, name: str, share: float, message: str) -> None:
    write(tmp_path, range(4))
    damage(tmp_path / name, share)
    with pytest.raises(DataError, match=message):
        read_all(tmp_path)


@pytest.mark.parametrize("name", ["data/chunk-000/file-000.parquet", VIDEO, "meta/info.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, range(2))
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=Path(name).name):
        read_all(tmp_path)


def read_all(folder: Path) -> None:
    source = open_lerobot(folder)
    for index in range(len(source)):
        item = source[index]
        for t in range(len(item)):
            item.image(t)


def test_flipped_bits_in_pictures_are_noticed(tmp_path: Path) -> None:
    write(tmp_path, range(4))
    path = tmp_path / VIDEO
    whole = path.read_bytes()
    begin = whole.find(b"mdat") + 8
    noticed = []
    for trial in range(10):
        content = bytearray(whole)
        at = begin + (len(whole) - begin - 300) * trial // 10
        content[at : at + 300] = np.random.default_rng(trial).bytes(300)
        path.write_bytes(content)
        try:
            read_all(tmp_path)
        except EpisodeError as error:
            noticed.append(str(error))
    assert len(noticed) >= 8
    assert all("file-000.mp4: the video is broken at" in message for message in noticed)


def edit_info(folder: Path, **changes: object) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebase_version": "v1.6"}, "codebase_version is v1.6, expected v3.x, v2.1 or v2.0;"),
        ({"codebase_version": "v2.1"}, "episodes.jsonl: cannot be read"),
        ({"total_episodes": 3}, "no row for episode 2"),
        ({"features": {}}, r"observation.state has shape None, expected \[8\]"),
    ],
)
def test_another_kind_of_dataset_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    write(tmp_path, range(2))
    edit_info(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        open_lerobot(tmp_path)


def test_an_unknown_camera_lists_the_known_ones(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    with pytest.raises(
        DataError, match=r"has no camera \"wrist\"; it has observation\.images\.base: name one of"
    ):
        open_lerobot(tmp_path, reading=Reading("wrist"))


def test_rows_of_another_episode_are_not_taken_for_its_own(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    path = tmp_path / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, len(table) - 2), path)
    source = open_lerobot(tmp_path)
    assert len(source[1]) == 5
    with pytest.raises(EpisodeError, match="episode 2: some of its rows 9 to 14 belong to another"):
        source[2]


def test_pictures_inside_the_table_are_read(tmp_path: Path) -> None:
    """LeRobot's other way to keep pictures: PNG in the table of frames."""
    write(tmp_path, range(3))
    path = tmp_path / "data/chunk-000/file-000.parquet"
    pictures = [
        {"bytes": cv2.imencode(".png", episode(k, 4 + k).image(t)[:, :, ::-1])[1].tobytes(),
         "path": f"frame-{t:06d}.png"}
        for k in range(3) for t in range(4 + k)
    ]  # fmt: skip
    table = pq.read_table(path).append_column("observation.images.base", pa.array(pictures))
    pq.write_table(table, path)
    info = json.loads((tmp_path / "meta/info.json").read_text())
    info["features"]["observation.images.base"]["dtype"] = "image"
    edit_info(tmp_path, features=info["features"])
    got = open_lerobot(tmp_path)[2]
    for t in range(6):
        np.testing.assert_array_equal(got.image(t), episode(2, 6).image(t))


def test_frames_are_found_in_any_order_and_from_many_threads(tmp_path: Path) -> None:
    write(tmp_path, range(12))
    source = open_lerobot(tmp_path)
    wanted = [(k, t) for k in range(12) for t in range(4 + k)]
    rng = np.random.default_rng(0)

    def check(order: list[int]) -> int:
        return sum(
            np.abs(source[k].image(t).astype(int) - episode(k, 4 + k).image(t)).max() <= 12
            for k, t in (wanted[n] for n in order)
        )

    orders = [rng.permutation(len(wanted)).tolist() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(check, orders)) == [len(wanted)] * 4


def test_a_folder_without_episodes_and_an_unknown_name_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found no episodes; expected one of meta/info\.json"):
        open_source(tmp_path)
    with pytest.raises(DataError, match="this folder does not exist, and it is not a Hub id"):
        open_source(tmp_path / "missing")


def test_a_selection_renumbers_episodes(tmp_path: Path) -> None:
    write(tmp_path, range(4))
    part = select(open_lerobot(tmp_path), [3, 1])
    assert (len(part), part.lengths.tolist(), part.fps) == (2, [7, 5], FPS)
    assert [part[0].seed, part[1].seed] == [1003, 1001]
    with pytest.raises(DataError, match="has no episode 4; it has 4"):
        select(open_lerobot(tmp_path), [4])


def rename_joints(folder: Path, names: object, **changes: object) -> None:
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    for name in ("observation.state", "action"):
        features[name]["names"] = names
    edit_info(folder, features=features, **changes)


GRIPPER_FIRST = [JOINT_NAMES[-1], *JOINT_NAMES[:-1]]


@pytest.mark.parametrize(
    "names",
    [GRIPPER_FIRST, {"motors": GRIPPER_FIRST}, [f"{name}.pos" for name in GRIPPER_FIRST]],
)
def test_joints_are_told_by_their_names_not_by_their_columns(tmp_path: Path, names: object) -> None:
    write(tmp_path / "a", range(2))
    rename_joints(tmp_path / "a", names)
    convert(tmp_path / "a", tmp_path / "b", "", resume=False)
    for source in (open_lerobot(tmp_path / "a"), open_lerobot(tmp_path / "b")):
        sent = episode(1, 5)
        np.testing.assert_array_equal(source[1].state[:, 7], sent.state[:, 0])
        np.testing.assert_array_equal(source[1].state[:, :7], sent.state[:, 1:])
        np.testing.assert_array_equal(source[1].action[:, :7], sent.action[:, 1:])


def test_joints_of_another_robot_are_refused_and_listed(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    panda = [f"panda_joint{k}" for k in range(1, 8)]
    rename_joints(tmp_path, [*panda, "panda_finger"], robot_type="franka")
    said = r"state has the joints panda_joint1, .*panda_finger \(robot_type is 'franka'\), not"
    with pytest.raises(DataError, match=said):
        open_lerobot(tmp_path)
    rename_joints(tmp_path, [*JOINT_NAMES[:7], JOINT_NAMES[0]])
    with pytest.raises(DataError, match=f"it lacks {JOINT_NAMES[7]}"):
        open_lerobot(tmp_path)


def test_joints_without_names_are_taken_in_our_order_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, range(2))
    rename_joints(tmp_path, None, robot_type="franka")
    np.testing.assert_array_equal(open_lerobot(tmp_path)[1].state, episode(1, 5).state)
    assert "state names no joints (robot_type is 'franka')" in caplog.text


def test_joints_may_be_named_by_their_columns(tmp_path: Path) -> None:
    """LeRobot writes names of some robots as {name: column}."""
    write(tmp_path, range(2))
    columns = {name: column for column, name in enumerate(GRIPPER_FIRST)}
    for names in (columns, {"motors": columns}):
        rename_joints(tmp_path, names)
        state = open_lerobot(tmp_path)[1].state
        np.testing.assert_array_equal(state[:, 7], episode(1, 5).state[:, 0])


def test_more_names_than_columns_are_refused(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    rename_joints(tmp_path, [*JOINT_NAMES, "rail"])
    with pytest.raises(DataError, match=r"rail .* has 9 names for 8 columns"):
        open_lerobot(tmp_path)


@pytest.mark.parametrize("nameless", ["observation.state", "action"])
def test_an_order_that_only_state_or_action_names_is_no_guess_for_the_other(
    tmp_path: Path, nameless: str
) -> None:
    write(tmp_path, range(2))
    rename_joints(tmp_path, GRIPPER_FIRST)
    features = json.loads((tmp_path / "meta/info.json").read_text())["features"]
    features[nameless]["names"] = None
    edit_info(tmp_path, features=features)
    with pytest.raises(DataError, match=f"add the names of {nameless} to this file"):
        open_lerobot(tmp_path)


def test_rows_of_uneven_length_are_refused_though_their_sum_fits(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    path = tmp_path / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    rows = table["observation.state"].to_pylist()
    rows[5], rows[6] = [*rows[5], rows[6][0]], rows[6][1:]
    column = pa.array(rows, pa.list_(pa.float32()))
    at = table.column_names.index("observation.state")
    pq.write_table(table.set_column(at, "observation.state", column), path)
    with pytest.raises(DataError, match="does not hold rows of 8 numbers"):
        open_lerobot(tmp_path)[1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("length", None),
        ("tasks", None),
        ("dataset_from_index", None),
        ("data/chunk_index", None),
        ("videos/observation.images.base/from_timestamp", float("nan")),
        ("videos/observation.images.base/from_timestamp", float("inf")),
    ],
)
def test_what_an_episodes_row_does_not_say_is_named(
    tmp_path: Path, key: str, value: object
) -> None:
    write(tmp_path, range(3))
    path = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[1][key] = value
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(DataError, match=f"episodes: {key} of episode 1 is {value}; correct it"):
        open_lerobot(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": None}, "fps is null"),
        ({"fps": 0}, "fps is 0"),
        ({"total_episodes": None}, "total_episodes is null"),
        ({"features": []}, r"features is \[\]"),
        ({"features": {"action": None}}, "action is null"),
    ],
)
def test_senseless_values_in_the_info_are_named(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    write(tmp_path, range(1))
    edit_info(tmp_path, **changes)
    with pytest.raises(DataError, match=f"info.json: {message}, expected"):
        open_lerobot(tmp_path)


def shift_stamps(folder: Path, frames: Callable[[int], float]) -> None:
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    name = "videos/observation.images.base/from_timestamp"
    stamps = [at + frames(k) / FPS for k, at in enumerate(table[name].to_pylist())]
    at = table.column_names.index(name)
    pq.write_table(table.set_column(at, name, pa.array(stamps, pa.float64())), path)


@pytest.mark.parametrize("frames", [1, -1, 3])
def test_video_stamps_a_few_frames_off_are_mended(
    tmp_path: Path, frames: int, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, range(4))
    shift_stamps(tmp_path, lambda number: frames if number else 0)
    source = open_lerobot(tmp_path)
    assert all(same(source[k], episode(k, 4 + k)) for k in range(4))
    assert f"stamps of 3 episodes are up to {abs(frames)} frames off" in caplog.text


def test_video_stamps_that_are_further_off_are_an_error_with_episode_and_drift(
    tmp_path: Path,
) -> None:
    write(tmp_path, range(4))
    shift_stamps(tmp_path, lambda number: 4 if number == 2 else 0)
    source = open_lerobot(tmp_path)
    assert same(source[3], episode(3, 7))
    with pytest.raises(EpisodeError, match=r"episode 2: images begin at 1\.300 s .* \+4 frames"):
        source[2]


def test_stamps_are_not_mended_where_the_video_holds_other_frames(tmp_path: Path) -> None:
    write(tmp_path, range(4))
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", range(5))
    shift_stamps(tmp_path, lambda number: 1 if number == 2 else 0)
    shutil.copy(tmp_path / "other" / VIDEO, tmp_path / VIDEO)
    with pytest.raises(EpisodeError, match=r"\(30 frames\) .* \+1 frames .*\(all: 22 frames\)"):
        open_lerobot(tmp_path)[2]


def test_macos_side_files_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, range(2))
    rows = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
    rows.with_name("._file-000.parquet").write_bytes(b"\0\5\x16\7 Mac OS X")
    assert len(open_lerobot(tmp_path)) == 2
    assert "1 files skipped whose names begin with a dot" in caplog.text
