"""Checkpoints are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import checkpoint_rig as rig
import pytest
from places import ROOT

from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.errors import OutputError, ResumeError

RIG = Path(rig.__file__)
NO_MOUNT = 77


def save(run: Path, step: int, name: str | None = None) -> Path:
    return checkpoint.save(
        run, name or checkpoint.named(step), step, lambda folder: rig.write(folder, step)
    )


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def start(run: Path, step: int) -> subprocess.Popen[str]:
    """Return the rig, which is about to save."""
    process = subprocess.Popen(
        [sys.executable, str(RIG), str(run), str(step)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    if line != "ready\n":
        _, said = process.communicate()
        pytest.fail(f"the rig said {line!r}: {said}")
    return process


def test_a_saved_checkpoint_is_complete_and_last_points_to_it(tmp_path: Path) -> None:
    for step in (5, 10):
        folder = save(tmp_path, step)
        assert checkpoint.problem(folder) is None
        assert checkpoint.step_of(folder) == step
        assert (tmp_path / "last").resolve() == folder
        assert rig.read(tmp_path / "last") == step
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-5", "last"]
    assert os.readlink(tmp_path / "last") == "checkpoint-10"


@pytest.mark.parametrize("moments", [25, pytest.param(100, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments_leaves_the_last_complete_checkpoint(
    tmp_path: Path, moments: int
) -> None:
    draw = random.Random(5)
    step, killed_inside = 0, 0
    for moment in range(moments):
        process = start(tmp_path, step)
        time.sleep(draw.uniform(0, 0.06))
        process.kill()
        out, said = process.communicate()
        assert process.returncode == -9, said
        promised = int(out.split()[-1]) if out.split() else step
        killed_inside += any(name.startswith(".") for name in names(tmp_path))
        last = tmp_path / "last"
        if last.is_symlink():  # what VLA_MODEL_PATH=…/last means at this very moment
            assert rig.read(last) % 1_000_000 >= promised, moment
        checkpoint.clean(tmp_path)
        newest = checkpoint.newest(tmp_path)
        if newest is None:
            assert promised == 0
            continue
        assert rig.read(newest) % 1_000_000 == checkpoint.step_of(newest) >= promised, moment
        assert last.resolve() == newest
        assert not [name for name in names(tmp_path) if name.startswith(".")]
        step = checkpoint.step_of(newest)
    assert step > moments / 10, "it hardly ever saved anything"
    assert killed_inside > moments / 10, "it was hardly ever killed within a save"


def test_a_full_disk_leaves_what_was_there_and_says_what_to_do(tmp_path: Path) -> None:
    before = save(tmp_path, 5)
    room = 100_000
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OutputError) as caught:
            save(tmp_path, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = str(caught.value)
    assert os.strerror(errno.EFBIG) in said
    assert str(before) in said
    assert "free some space" in said
    assert names(tmp_path) == ["checkpoint-5", "last"]
    assert rig.read(tmp_path / "last") == 5


def test_a_full_file_system_leaves_what_was_there(tmp_path: Path) -> None:
    script = (
        f"mount -t tmpfs -o size=1500k none {tmp_path} || exit {NO_MOUNT};"
        f" {sys.executable} {RIG} {tmp_path} 0; ls -A {tmp_path}"
    )
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", script],
        capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode == NO_MOUNT or done.stderr.startswith("unshare:"):
        # A container without privileges may not mount, and a disk cannot be filled otherwise.
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert "No space left on device" in done.stderr
    assert "the last complete checkpoint is" in done.stderr
    assert done.stdout.split() == ["ready", "checkpoint-1", "last"]


@pytest.mark.parametrize("swap_works", [True, False])
def test_a_checkpoint_of_the_same_name_is_replaced(
    tmp_path: Path, swap_works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swap_works:
        monkeypatch.setattr(checkpoint, "RENAME_EXCHANGE", 1 << 30)  # a flag no kernel knows
    save(tmp_path, 5, checkpoint.FINAL)
    save(tmp_path, 7, checkpoint.FINAL)
    assert rig.read(tmp_path / "last") == 7
    assert names(tmp_path) == ["checkpoint-final", "last"]


def test_without_swapping_a_kill_between_the_renames_loses_nothing(tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    folder.rename(tmp_path / f"{checkpoint.ASIDE}{folder.name}-old")
    checkpoint.clean(tmp_path)
    assert rig.read(tmp_path / "last") == 5


def test_pruning_keeps_the_newest_and_what_is_spared(tmp_path: Path) -> None:
    folders = [save(tmp_path, step) for step in (1, 2, 3, 4)]
    assert checkpoint.prune(tmp_path, None) == []
    assert checkpoint.prune(tmp_path, 2, [folders[0]]) == [folders[1]]
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-3", "checkpoint-4", "last"]


def test_going_on_from_an_older_checkpoint_makes_its_successors_the_newest(tmp_path: Path) -> None:
    for step in (5, 10, 7):  # 7 came after resuming from 5
        save(tmp_path, step)
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoint-7"
    assert checkpoint.prune(tmp_path, 2) == [tmp_path / "checkpoint-5"]


def truncate(folder: Path) -> None:
    (folder / rig.FILES[0]).write_bytes(b"short")


def lose(folder: Path) -> None:
    (folder / rig.FILES[2]).unlink()


def garble(folder: Path) -> None:
    (folder / checkpoint.MARKER).write_text('{"step": 10}')


def unmark(folder: Path) -> None:
    (folder / checkpoint.MARKER).unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "has 5 bytes, expected 320000"),
        (lose, "optimizer.pt is missing"),
        (garble, "expected step, serial, files"),
        (unmark, "complete.json is missing"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_named(
    tmp_path: Path, damage: object, said: str
) -> None:
    good, bad = save(tmp_path, 5), save(tmp_path, 10)
    assert callable(damage)
    damage(bad)
    assert checkpoint.newest(tmp_path) == good
    with pytest.raises(ResumeError, match=said) as caught:
        checkpoint.locate(bad)
    assert f"the newest complete one is {good}" in str(caught.value)


def test_a_checkpoint_is_found_by_its_name_by_last_and_by_its_run(tmp_path: Path) -> None:
    old, new = save(tmp_path, 5), save(tmp_path, 10)
    assert checkpoint.locate(old) == old
    assert checkpoint.locate(tmp_path / "last") == new
    assert checkpoint.locate(tmp_path) == new
    with pytest.raises(ResumeError, match="no complete one is next to it"):
        checkpoint.locate(tmp_path / "elsewhere" / "checkpoint-5")
