"""What a recording says of interventions and success reaches every reader, and selects samples."""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_rig import FPS, SIZE, ListSource, picture, seen_twice

from crane_x7_vla_rl.data import convert as convert_command
from crane_x7_vla_rl.data import validate as validate_command
from crane_x7_vla_rl.data.episode import DataError, Episode
from crane_x7_vla_rl.data.lerobot import Extras, LeRobotWriter, open_lerobot
from crane_x7_vla_rl.data.loader.batches import Batches, LoaderOptions
from crane_x7_vla_rl.data.loader.selection import Choice
from crane_x7_vla_rl.data.reading import Reading
from crane_x7_vla_rl.data.source import interventions, join, open_source, select
from crane_x7_vla_rl.robot import HOME_RAD

TWO = Extras({"wrist": (24, 16)}, intervention=True)
LENGTHS = (6, 7, 8)
MARKED = [(e, t) for e, length in enumerate(LENGTHS) for t in range(length // 2, length)]
PLAIN = [(e, t) for e, length in enumerate(LENGTHS) for t in range(length // 2)]
OUTCOMES = (True, False, None)


def seen(number: int = 0, length: int = 6) -> Episode:
    """An episode of two cameras whose arm moves as a real one can; its second half is marked."""
    way = np.linspace(0, 0.3 + 0.01 * number, length + 1)[:, None].astype(np.float32)
    path = HOME_RAD.astype(np.float32) + way
    return replace(seen_twice(number, length), state=path[:-1], action=path[1:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marked") / "data"
    with LeRobotWriter(folder, FPS, SIZE, extras=TWO) as writer:
        for number, (length, success) in enumerate(zip(LENGTHS, OUTCOMES, strict=True)):
            writer.add(replace(seen(number, length), success=success))
    return folder


def epoch(folder: Path, choice: Choice, epochs: int = 1, **more: int) -> list[tuple[int, int]]:
    """The (episode, frame) of every sample of some epochs."""
    options = LoaderOptions(choice=choice, **more)  # type: ignore[arg-type]
    with Batches(open_lerobot(folder), 1, seed=4, options=options) as batches:
        count = epochs * batches.frames_per_epoch
        taken = list(itertools.islice(batches, count))
    return [(int(batch.episodes[0]), int(batch.frames[0])) for batch in taken]


# --- readers -------------------------------------------------------------------------------------


def test_every_camera_mark_and_judgement_comes_back(folder: Path) -> None:
    source = open_lerobot(folder, all_cameras=True)
    for number, length in enumerate(LENGTHS):
        episode, expected = source[number], seen(number, length)
        assert episode.success is OUTCOMES[number]
        assert episode.intervention is not None
        np.testing.assert_array_equal(episode.intervention, expected.intervention)
        assert episode.others.keys() == {"wrist"}
        for t in range(length):
            shown = episode.seen_by("wrist").image(t).astype(int)
            assert np.abs(shown - picture(number + 50, t, (24, 16))).max() < 12
    assert open_lerobot(folder)[0].others == {}
    alone = open_lerobot(folder, reading=Reading(camera="wrist"), all_cameras=True)
    assert alone[0].others == {}, "the wrist camera stands for the base camera, which there is"


def test_marks_of_all_episodes_come_in_their_order_and_as_selected(folder: Path) -> None:
    source = open_source(folder)
    marks = interventions(source)
    assert marks is not None
    expected = [t >= length // 2 for length in LENGTHS for t in range(length)]
    assert marks.tolist() == expected
    last_first = interventions(select(source, [2, 0]))
    assert last_first is not None
    assert last_first.tolist() == expected[13:] + expected[:6]
    assert interventions(ListSource([seen()])) is None


def test_data_sets_are_joined_with_their_marks(folder: Path) -> None:
    marked, plain = open_source(folder), ListSource([seen(5, 9), seen(6, 4)])
    both = join([marked, plain])
    assert len(both) == 5
    assert both.lengths.tolist() == [*LENGTHS, 9, 4]
    assert [len(both[number]) for number in range(5)] == [*LENGTHS, 9, 4]
    np.testing.assert_array_equal(both[3].state, seen(5, 9).state)
    assert both.fps == marked.fps
    assert marked.name in both.name
    marks, alone = interventions(both), interventions(marked)
    assert marks is not None
    assert alone is not None
    assert marks.tolist() == alone.tolist() + [False] * 13, "without the column: none is one"
    assert interventions(join([plain, plain])) is None
    assert join([plain]) is plain


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([1.0] * 21), "holds double"),
        (pa.array([True, None] * 10 + [True]), "holds bool with 10 empty of 21 values"),
    ],
)
def test_a_damaged_column_is_named(tmp_path: Path, column: pa.Array, said: str) -> None:
    folder = tmp_path / "data"
    with LeRobotWriter(folder, FPS, SIZE, extras=TWO) as writer:
        for number, length in enumerate(LENGTHS):
            writer.add(seen(number, length))
    path = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("intervention")
    pq.write_table(table.set_column(place, "intervention", column), path)
    with pytest.raises(DataError, match=rf"file-000.parquet: intervention {said}"):
        open_lerobot(folder)[0]


def test_a_column_as_lerobot_writes_it_is_read(folder: Path, tmp_path: Path) -> None:
    import shutil

    copied = tmp_path / "data"
    shutil.copytree(folder, copied)
    path = copied / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("intervention")
    lists = pa.array([[value] for value in table["intervention"].to_pylist()])
    pq.write_table(table.set_column(place, "intervention", lists), path)
    marks, before = interventions(open_source(copied)), interventions(open_source(folder))
    assert marks is not None
    np.testing.assert_array_equal(marks, before)


@pytest.mark.parametrize("form", ["lerobot-v3.0", "lerobot-v2.1"])
def test_convert_keeps_cameras_marks_and_judgements(
    folder: Path, tmp_path: Path, form: str
) -> None:
    parser = argparse.ArgumentParser()
    convert_command.add_arguments(parser)
    for flags in ((), ("--resume",)):
        words = [str(folder), str(tmp_path / "copy"), "--format", form, *flags]
        assert convert_command.run(parser.parse_args(words)) == 0
    before = open_lerobot(folder, all_cameras=True)
    after = open_lerobot(tmp_path / "copy", all_cameras=True)
    for number in range(len(LENGTHS)):
        one, two = before[number], after[number]
        assert two.success is one.success is OUTCOMES[number]
        np.testing.assert_array_equal(two.intervention, one.intervention)
        np.testing.assert_array_equal(two.state, one.state)
        for view in ("base", "wrist"):
            views = [each if view == "base" else each.seen_by(view) for each in (one, two)]
            images = [each.image(3).astype(int) for each in views]
            assert images[0].shape == images[1].shape
            assert np.abs(images[0] - images[1]).mean() < 8
    info = json.loads((tmp_path / "copy/meta/info.json").read_text())
    assert "observation.images.wrist" in info["features"]
    if form == "lerobot-v2.1":
        assert info["total_videos"] == 2 * len(LENGTHS)


def test_convert_of_one_camera_makes_it_the_base(folder: Path, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    convert_command.add_arguments(parser)
    words = [str(folder), str(tmp_path / "one"), "--camera", "wrist"]
    assert convert_command.run(parser.parse_args(words)) == 0
    source = open_lerobot(tmp_path / "one", all_cameras=True)
    assert (source.camera, source.others) == ("observation.images.base", {})
    assert source[0].image(0).shape == (16, 24, 3)


def test_a_camera_of_another_name_becomes_the_base_beside_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with LeRobotWriter(folder, FPS, SIZE, extras=TWO) as writer:
        writer.add(seen())
    for name in ("meta/info.json", "meta/stats.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("images.base", "images.front"))
    path = next((folder / "meta/episodes").rglob("*.parquet"))
    table = pq.read_table(path)
    names = [name.replace("images.base", "images.front") for name in table.column_names]
    pq.write_table(table.rename_columns(names), path)
    videos = folder / "videos"
    (videos / "observation.images.base").rename(videos / "observation.images.front")
    source = open_lerobot(folder, reading=Reading(camera="front"), all_cameras=True)
    assert source.others == {"wrist": "observation.images.wrist"}
    assert source[0].seen_by("wrist").image(0).shape == (16, 24, 3)


def checked(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    validate_command.add_arguments(parser)
    code = validate_command.run(parser.parse_args([str(folder), "--workers", "1", *flags]))
    return code, capsys.readouterr().out


def test_validate_counts_interventions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = checked(folder, capsys)
    assert code == 0, said
    assert "Interventions: 11 frames in 3 episodes" in said
    assert "1 succeeded" in said
    code, said = checked(folder, capsys, "--json")
    assert json.loads(said)["interventions"] == {"frames": 11, "episodes": 3}


def test_validate_looks_at_every_camera(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    with LeRobotWriter(folder, FPS, SIZE, extras=TWO) as writer:
        writer.add(seen())
    video = next((folder / "videos/observation.images.wrist").rglob("*.mp4"))
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    code, said = checked(folder, capsys, "--json")
    assert code == 1
    problems = json.loads(said)["problems"]
    assert "wrist" in problems[0]["file"] + problems[0]["what"]
    assert checked(folder, capsys, "--camera", "base")[0] == 1, "the others are checked, too"


# --- selection -----------------------------------------------------------------------------------


def test_an_epoch_has_the_chosen_frames_once(folder: Path) -> None:
    assert sorted(epoch(folder, Choice("only"))) == MARKED
    assert sorted(epoch(folder, Choice("without"))) == PLAIN
    assert sorted(epoch(folder, Choice())) == sorted(MARKED + PLAIN)
    assert epoch(folder, Choice("only"), 2)[:11] != epoch(folder, Choice("only"), 2)[11:]


def test_a_weight_repeats_interventions_and_nothing_else(folder: Path) -> None:
    found = Counter(epoch(folder, Choice("with", 3.0)))
    assert {name: found[name] for name in MARKED} == dict.fromkeys(MARKED, 3)
    assert {name: found[name] for name in PLAIN} == dict.fromkeys(PLAIN, 1)


@pytest.mark.parametrize(("weight", "low", "high"), [(0.5, 0, 1), (2.5, 2, 3)])
def test_a_part_of_a_weight_is_met_over_epochs(
    folder: Path, weight: float, low: int, high: int
) -> None:
    epochs = 12
    names = epoch(folder, Choice("with", weight), epochs)
    size = len(names) // epochs
    assert size == len(PLAIN) + round(weight * len(MARKED))
    for k in range(epochs):
        found = Counter(names[k * size : (k + 1) * size])
        assert all(low <= found[name] <= high for name in MARKED)
        assert all(found[name] == 1 for name in PLAIN)
    mean = sum(name in MARKED for name in names) / epochs / len(MARKED)
    assert mean == pytest.approx(weight, abs=0.05)
    every = Counter(name for name in names if name in MARKED)
    assert min(every.values()) > 0, "chance takes none out for good"


def test_actions_end_where_frames_follow_that_are_not_chosen(folder: Path) -> None:
    options = LoaderOptions(chunk_steps=5, choice=Choice("without"))
    source = open_lerobot(folder)
    with Batches(source, len(PLAIN), seed=1, options=options) as batches:
        batch = next(batches)
    for k, (e, t) in enumerate(zip(batch.episodes, batch.frames, strict=True)):
        last = LENGTHS[e] // 2 - 1
        expected = source[int(e)].action[np.minimum(np.arange(t, t + 5), last)]
        np.testing.assert_array_equal(batch.actions[k], expected)


def test_ranks_and_restarts_see_the_same_selection(folder: Path) -> None:
    options = LoaderOptions(choice=Choice("with", 2.5))
    source = open_lerobot(folder)
    with Batches(source, 4, seed=2, options=options) as one:
        alone = [next(one) for _ in range(9)]
        state = one.state_dict()
        then = next(one)
    parts = []
    for rank in range(2):
        with Batches(source, 2, seed=2, rank=rank, world_size=2, options=options) as batches:
            parts.append([next(batches) for _ in range(9)])
    for step, whole in enumerate(alone):
        together = np.concatenate([part[step].frames for part in parts])
        np.testing.assert_array_equal(together, whole.frames)
    with Batches(source, 4, seed=2, options=options) as again:
        again.load_state_dict(state)
        np.testing.assert_array_equal(next(again).frames, then.frames)
    other = LoaderOptions(choice=Choice("with", 2.0))
    with (
        Batches(source, 4, seed=2, options=other) as changed,
        pytest.raises(DataError, match="not the data of the run's start"),
    ):
        changed.load_state_dict(state)


def test_a_broken_episode_is_replaced_by_chosen_frames_only() -> None:
    class Marked(ListSource):
        def interventions(self) -> np.ndarray:
            return np.concatenate([item.intervention for item in self.items])

    items = [seen(number, 6) for number in range(12)]
    items[3] = replace(items[3], images=[b"no image"] * 6)
    none = np.zeros(6, bool)
    items[4] = replace(items[4], intervention=none)  # has none to stand in with
    options = LoaderOptions(workers=1, corrupt="skip", choice=Choice("only"))
    with Batches(Marked(items), 33, seed=0, options=options) as batches:
        batch = next(batches)
    found = set(zip(batch.episodes.tolist(), batch.frames.tolist(), strict=True))
    assert all(e not in (3, 4) and t >= 3 for e, t in found)
    assert len(batch.frames) == 33


def test_a_choice_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    with LeRobotWriter(folder, FPS, SIZE, extras=Extras({"wrist": (24, 16)})) as writer:
        writer.add(replace(seen(), intervention=None))
    for choice in (Choice("only"), Choice("without"), Choice("with", 2.0)):
        with pytest.raises(DataError, match="does not say which frames are interventions"):
            Batches(open_lerobot(folder), 1, 0, options=LoaderOptions(choice=choice))
    marked = tmp_path / "marked"
    with LeRobotWriter(marked, FPS, SIZE, extras=TWO) as writer:
        writer.add(replace(seen(), intervention=np.zeros(6, bool)))
    with pytest.raises(DataError, match="none of its 6 frames is an intervention"):
        Batches(open_lerobot(marked), 1, 0, options=LoaderOptions(choice=Choice("only")))
