"""`validate` names file, episode and field of all that is wrong, and sums up what is whole."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags_rig import CAMERA, JOINTS, Scene, write_bag
from tfrecord_rig import Value, logger_steps, picture, rlds_episode, walk, write, write_log

from crane_x7_vla_rl.data.episode import Episode
from crane_x7_vla_rl.data.source import open_source
from crane_x7_vla_rl.data.validate import add_arguments, run
from crane_x7_vla_rl.data.validate_checks import Contents, Problem, check_episodes, open_tolerantly


def validate(path: Path, *flags: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(path), "--workers", "2", *flags]))


def problems_of(path: Path) -> list[Problem]:
    source, problems = open_tolerantly(path, "")
    return problems + ([] if source is None else check_episodes(source, workers=2))


def longer(count: int = 2, seed: int = 0) -> list[dict[str, Value]]:
    return logger_steps(12, seed=seed + count)


def test_a_whole_folder_exits_0_with_sizes_and_statistics(tmp_path, capsys):
    for number in range(3):
        write_log(tmp_path, number, longer(seed=number))
    assert validate(tmp_path) == 0
    said = capsys.readouterr().out
    assert "3 episodes, 36 frames at 30 per second" in said
    assert "images 32×24; no problems" in said
    assert "3 × pick up the red cube" in said
    assert "3 not judged" in said
    row = next(line for line in said.splitlines() if "part_rotate_joint" in line)
    states = np.concatenate([walk(12, 2 + number)[:-1, 3] for number in range(3)])
    assert f"{states.min():.3f}" in row
    assert f"{states.max():.3f}" in row
    assert f"{states.mean():.3f}" in row


def test_the_first_picture_can_be_looked_at(tmp_path):
    write_log(tmp_path / "data", 0, longer())
    file = tmp_path / "first.png"
    assert validate(tmp_path / "data", "--frame", str(file)) == 0
    image = cv2.imread(str(file))
    assert image[2, 16, 2] > 180  # OpenCV reads BGR: red is last.


def test_problems_exit_1_in_a_table_that_names_file_episode_and_field(tmp_path, capsys):
    write_log(tmp_path, 0, longer(seed=0))
    steps = longer(seed=1)
    steps[3] = steps[3] | {"action": [0.0] * 7}
    write_log(tmp_path, 1, steps)
    file = write_log(tmp_path, 2, longer(seed=2))
    file.write_bytes(file.read_bytes()[:-20])
    assert validate(tmp_path) == 1
    said = capsys.readouterr().out
    assert f"{tmp_path}: 2 problems" in said
    rows = [line for line in said.splitlines() if "episode_000" in line]
    assert any("record 11" in row and "bytes" in row for row in rows)
    assert any("record 3" in row and "  1        " in row and "action" in row for row in rows)
    assert "1 of 2 readable episodes are whole" in said
    assert "no problems" not in said


@pytest.mark.parametrize("flags", [[], ["--instruction", "stack"]])
def test_a_missing_instruction_is_a_problem_unless_one_is_given(tmp_path, flags, capsys):
    steps = [{k: v for k, v in step.items() if "instruction" not in k} for step in longer()]
    write_log(tmp_path, 0, steps)
    assert validate(tmp_path, *flags) == (0 if flags else 1)
    assert ("stack" if flags else "is missing in the records") in capsys.readouterr().out


@pytest.mark.parametrize("make", [lambda _: None, lambda path: (path / "notes.txt").touch()])
def test_an_empty_folder_exits_1(tmp_path, make: Callable[[Path], None], capsys):
    make(tmp_path)
    assert validate(tmp_path) == 1
    assert "found no episodes" in capsys.readouterr().out


def test_a_missing_folder_exits_1(tmp_path, capsys):
    assert validate(tmp_path / "nowhere") == 1
    assert "this folder does not exist" in capsys.readouterr().out


def test_everything_wrong_in_a_folder_of_logs_is_told(tmp_path):
    write_log(tmp_path, 0, longer(seed=0))
    broken: dict[int, dict[str, Value]] = {
        1: {"observation/proprio": [float("nan")] * 8},
        2: {"observation/image_primary": [picture(10)[:300]]},
        3: {"observation/timestep": [3]},
    }
    for number, change in broken.items():
        steps = longer(seed=number)
        steps[5] = steps[5] | change
        write_log(tmp_path, number, steps)
    shutil.copytree(next(tmp_path.glob("episode_0000*")), tmp_path / "episode_0004_copy")
    found = problems_of(tmp_path)
    assert [(problem.episode, problem.field) for problem in found] == [
        (1, "state"),
        (2, "images"),
        (3, "observation/timestep"),
        (4, "episode"),
    ]
    assert all(f"episode_000{problem.episode}" in problem.file for problem in found)
    assert "row 5 joint 0 is nan" in found[0].what
    assert "frame 5: JPEG of 300 bytes cannot be decoded" in found[1].what
    assert "same joints as episode 0" in found[3].what


def test_every_broken_record_of_a_shard_is_told(tmp_path):
    file = write(tmp_path / "a.tfrecord", [rlds_episode(4, seed=seed) for seed in range(4)])
    content = bytearray(file.read_bytes())
    for at in (200, len(content) - 200):
        content[at] ^= 1
    file.write_bytes(content)
    found = problems_of(tmp_path)
    assert [(problem.file[-8:], problem.field) for problem in found] == [
        ("record 0", "checksum"),
        ("record 3", "checksum"),
    ]


def changed(
    state: Callable[[np.ndarray], np.ndarray] = lambda joints: joints,
    action: Callable[[np.ndarray], np.ndarray] = lambda joints: joints,
    images: Callable[[int], bytes] = lambda at: picture(10 * at),
) -> list[dict[str, Value]]:
    joints = walk(20, 5)
    states, actions = state(joints[:-1].copy()), action(joints[1:].copy())
    return [
        step
        | {
            "observation/proprio": states[at],
            "action": actions[at],
            "observation/image_primary": [images(at)],
        }
        for at, step in enumerate(logger_steps(20))
    ]


def set_at(row: int, joint: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(joints: np.ndarray) -> np.ndarray:
        joints[row, joint] = value
        return joints

    return change


@pytest.mark.parametrize(
    ("steps", "field", "what"),
    [
        (changed(state=np.rad2deg), "state", "is it in degrees?"),
        (changed(action=lambda joints: joints * 0), "action", "expected absolute joint targets"),
        (changed(state=set_at(7, 0, 2.0)), "state", "jumps 2.0"),
        (changed(action=set_at(7, 3, 0.5)), "action", "expected -2.78 … 0.00 rad"),
        (changed(state=lambda joints: joints[:1].repeat(20, 0)), "state", "no motion was recorded"),
        (
            changed(images=lambda at: picture(10 + 40 * (at == 9), (24 + 8 * (at == 9), 32))),
            "images",
            "change size: 32×24, 32×32",
        ),
        (
            changed(
                state=lambda joints: joints + np.linspace(0, 0.3, 20)[:, None],
                images=lambda _: picture(50),
            ),
            "images",
            "the camera was frozen",
        ),
        (logger_steps(1), "length", "one frame"),
    ],
)
def test_what_no_arm_can_have_done_is_told(tmp_path, steps, field, what):
    write_log(tmp_path, 0, steps)
    found = problems_of(tmp_path)
    assert any(problem.field == field and what in problem.what for problem in found), found
    assert all(problem.episode == 0 for problem in found)


def test_mixed_rates_are_told(tmp_path):
    for number, period in enumerate((0.1, 0.1, 1 / 30)):
        steps = [
            step | {"observation/timestamp": [period * at]}
            for at, step in enumerate(longer(seed=number))
        ]
        write_log(tmp_path, number, steps)
    (found,) = problems_of(tmp_path)
    assert (found.episode, found.field) == (2, "fps")


class Mixed:
    """A source whose own index is wrong."""

    name = "mixed"
    fps = 10.0
    lengths = np.array([5, 4])

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Episode:
        joints = walk(5, index)
        images = [picture(10 * at) for at in range(5)]
        fps = (10.0, 20.0)[index]
        return Episode(images, joints[:-1], joints[1:], "go", fps, True, f"mixed {index}")


def test_an_index_that_disagrees_with_its_episodes_is_told():
    found = check_episodes(Mixed())
    assert [(problem.episode, problem.field) for problem in found] == [(1, "fps"), (1, "length")]


def test_what_is_whole_is_counted(tmp_path):
    write(tmp_path / "a.tfrecord", [rlds_episode(4, seed=seed) for seed in range(3)])
    seen, calls = Contents(), []
    assert check_episodes(open_source(tmp_path), contents=seen, progress=calls.append) == []
    assert (seen.episodes, seen.frames, len(calls)) == (3, 12, 3)
    assert seen.outcomes == {True: 3}
    assert seen.instructions == {"lift the blue cube": 3}


def test_bags_are_checked_too(tmp_path, capsys):
    write_bag(tmp_path / "whole", Scene().sent())
    assert validate(tmp_path) == 0
    assert "1 episodes, 19 frames at 10 per second" in capsys.readouterr().out
    write_bag(tmp_path / "blind", [entry for entry in Scene().sent() if entry[1] != CAMERA])
    write_bag(tmp_path / "limp", [entry for entry in Scene().sent() if entry[1] != JOINTS])
    bag = write_bag(tmp_path / "cut", Scene().sent())
    file = next(bag.glob("*.mcap"))
    file.write_bytes(file.read_bytes()[:-1000])
    assert validate(tmp_path) == 1
    said = capsys.readouterr().out
    assert "3 problems" in said
    rows = {line.split("  ")[0]: line for line in said.splitlines()}
    assert CAMERA in rows["blind"]
    assert JOINTS in rows["limp"]
    assert "bag" in rows["cut"]


def test_help_needs_nothing_heavy():
    code = (
        "import argparse, sys; from crane_x7_vla_rl.data import validate;"
        "validate.add_arguments(argparse.ArgumentParser());"
        "print(sorted({'numpy', 'cv2', 'rich', 'rosbags', 'google.protobuf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
