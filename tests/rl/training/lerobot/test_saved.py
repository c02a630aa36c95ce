"""Only complete checkpoints count, whatever a kill or a damaged disk left."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import lerobot_saves
import pytest

from crane_x7_vla_rl.training.errors import ResumeError
from crane_x7_vla_rl.training.lerobot import resuming, save_whole, saved
from crane_x7_vla_rl.training.lerobot.resuming import Places


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("harm", [Path.unlink, _cut, _zero])
@pytest.mark.parametrize(
    "name",
    [
        "pretrained_model/model.safetensors", "pretrained_model/config.json",
        "pretrained_model/policy_preprocessor_0.safetensors",
        "pretrained_model/train_config.json", "training_state/training_step.json",
        "training_state/optimizer_state.safetensors", "training_state/rng_state.safetensors",
    ],
)  # fmt: skip
def test_a_checkpoint_with_a_missing_cut_or_zero_file_is_never_taken(
    name: str, harm: Callable[[Path], None], tmp_path: Path
) -> None:
    lerobot_saves.save(tmp_path, 2)
    broken = lerobot_saves.save(tmp_path, 4)
    assert saved.newest(tmp_path) == saved.Saved(4, broken)
    harm(broken / name)
    found = saved.newest(tmp_path)
    assert found is not None
    assert found.step == 2


def test_a_scheduler_without_its_state_is_incomplete(tmp_path: Path) -> None:
    folder = lerobot_saves.save(tmp_path, 2, {"scheduler": {"type": "cosine"}})
    assert "scheduler_state.json is missing" in (saved.problem(folder) or "")


def test_the_marker_holds_every_size(tmp_path: Path) -> None:
    folder = lerobot_saves.save(tmp_path, 2)
    save_whole.finish(folder)
    assert saved.problem(folder) is None
    (folder / "pretrained_model/README.md").write_text("more")
    assert saved.problem(folder) is None
    config = folder / "pretrained_model/train_config.json"
    config.write_text(config.read_text() + " ")
    assert "complete.json says" in (saved.problem(folder) or "")


def test_a_save_that_dies_leaves_no_checkpoint_and_a_whole_one_has_its_name_last(
    tmp_path: Path,
) -> None:
    target = tmp_path / "checkpoints" / "000002"
    target.parent.mkdir(parents=True)

    def dies(folder: Path, **_: object) -> None:
        (folder / "pretrained_model").mkdir(parents=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_whole.whole(dies)(checkpoint_dir=target, step=2)
    assert not target.exists()
    assert saved.newest(tmp_path) is None

    def saves(folder: Path, **_: object) -> None:
        lerobot_saves.save(tmp_path / "aside", 2).rename(folder)

    save_whole.whole(saves)(checkpoint_dir=target, step=2)
    assert saved.newest(tmp_path) == saved.Saved(2, target)


@pytest.mark.parametrize("name", ["", "checkpoints", "checkpoints/last", "checkpoints/000004",
                                  "checkpoints/last/pretrained_model"])  # fmt: skip
def test_last_that_points_nowhere_finds_the_newest_complete_one(name: str, tmp_path: Path) -> None:
    folder = lerobot_saves.save(tmp_path, 4)
    (folder.parent / "last").unlink()
    (folder.parent / "last").symlink_to("000099")
    assert saved.find(tmp_path / name) == saved.Saved(4, folder)
    saved.prepare(saved.Saved(4, folder))
    assert os.readlink(folder.parent / "last") == "000004"


def test_last_that_is_a_folder_becomes_a_link(tmp_path: Path) -> None:
    folder = lerobot_saves.save(tmp_path, 4)
    last = folder.parent / "last"
    last.unlink()
    lerobot_saves.save(tmp_path / "other", 4).rename(last)
    saved.prepare(saved.Saved(4, folder))
    assert last.is_symlink()
    assert saved.newest(tmp_path) == saved.Saved(4, folder)


def test_resuming_removes_what_a_kill_left_of_later_checkpoints(tmp_path: Path) -> None:
    folder = lerobot_saves.save(tmp_path, 2)
    later = lerobot_saves.save(tmp_path, 4)
    (later / "pretrained_model/model.safetensors").unlink()
    (folder.parent / ".saving-000006").mkdir()
    found = saved.newest(tmp_path)
    assert found is not None
    saved.prepare(found)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["000002", "last"]


def test_of_several_places_the_most_advanced_complete_one_is_resumed(tmp_path: Path) -> None:
    lerobot_saves.save(tmp_path / "a", 2)
    best = lerobot_saves.save(tmp_path / "b", 4)
    broken = lerobot_saves.save(tmp_path / "c", 6)
    (broken / "training_state/rng_state.safetensors").unlink()
    lerobot_saves.save(tmp_path / "c", 3)
    places = Places(tmp_path / "run", root=tmp_path)
    named = [str(tmp_path / name) for name in "abc"]
    for wanted in (named, ["local"]):
        found = resuming.find(wanted, places)
        assert found is not None
        assert found.saved.folder == best
        assert found.run == tmp_path / "b"
    assert resuming.find(["auto"], places) is None
    with pytest.raises(ResumeError, match="no complete checkpoint"):
        resuming.find(["local"], Places(tmp_path / "run", root=tmp_path / "none"))
    with pytest.raises(ResumeError, match="does not exist"):
        resuming.find([str(tmp_path / "z")], places)
