"""`point` on real pictures with a tiny model: towers that learn, a checkpoint that drives."""

from __future__ import annotations

import argparse
import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import training_rig as rig
from safetensors.torch import load_file

from crane_x7_vla_rl import kinematics
from crane_x7_vla_rl.actions import find_statistics
from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.policies.openvla.builder import build
from crane_x7_vla_rl.policies.openvla.codec import Codec, PolicySpec
from crane_x7_vla_rl.policies.openvla.image import WHOLE, normalised
from crane_x7_vla_rl.policies.openvla.weights.loading import load
from crane_x7_vla_rl.scenes import COLOUR_NAMES, LIFT_WORDS, PLACE_WORDS
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.errors import ConfigError, ExitCode, NotFiniteError, ResumeError
from crane_x7_vla_rl.training.pointing import command, descent, moves, towers, views
from crane_x7_vla_rl.training.pointing.config import add_arguments
from crane_x7_vla_rl.training.pointing.descent import Descent, Group, descend
from crane_x7_vla_rl.training.pointing.kept import Kept
from crane_x7_vla_rl.training.pointing.views import Views
from crane_x7_vla_rl.types import Image

pytestmark = pytest.mark.timeout(rig.PATIENCE_S)
FEW = ("--pictures", "24", "--updates", "3", "--move-updates", "3")


@lru_cache(maxsize=1)
def start() -> str:
    spec = PolicySpec(chunk_steps=4, period_s=0.1)
    return str(build(rig.workplace() / "pointing", rig.SIZES, inputs=spec))


def drawn(seed: int = 0, count: int = 12) -> Views:
    return views.draw(count, seed, views.scenes(COLOUR_NAMES), WHOLE, rig.SIDE)


def test_pictures_depend_on_the_seed_alone() -> None:
    one, again, other = drawn(), drawn(), drawn(1)
    assert one.images.shape == (12, rig.SIDE, rig.SIDE, 3)
    assert one.joints_rad.shape == (12, 8)
    assert one.things_m.shape == (12, len(COLOUR_NAMES) + 1, 2)
    assert np.array_equal(one.images, again.images)
    assert np.array_equal(one.things_m, again.things_m)
    assert not np.array_equal(one.images, other.images)
    assert len({picture.tobytes() for picture in one.images}) == 12


def test_pictures_of_varied_scenes_differ_in_light_and_depend_on_the_seed_alone() -> None:
    def shown(vary: float) -> Views:
        scenes = views.scenes(COLOUR_NAMES, vary)
        return views.draw(3 * views.VARIED_BATCH, 0, scenes, WHOLE, rig.SIDE)

    varied, again, plain = shown(1), shown(1), shown(0)
    assert np.array_equal(varied.images, again.images)
    corners = [found.images[:, -4:, :4].mean((1, 2, 3)) for found in (varied, plain)]
    by_scene = corners[0].reshape(3, -1).mean(1)  # the table, which the arm does not reach
    assert by_scene.max() - by_scene.min() > 3
    assert corners[1].max() - corners[1].min() < 3


def test_fingers_around_a_larger_cube_are_further_open() -> None:
    found = views.draw(12 * views.VARIED_BATCH, 0, views.scenes(COLOUR_NAMES, 1), WHOLE, rig.SIDE)
    around = found.joints_rad[found.held >= 0, 7]
    assert around.min() < views.AROUND_CUBE_RAD - 0.03
    assert around.max() > views.AROUND_CUBE_RAD + 0.03
    assert np.abs(around - views.AROUND_CUBE_RAD).max() < 0.3 * views.OPENS_RAD + 0.05


def test_a_third_holds_a_cube_and_fingers_alone_do_not_tell_which() -> None:
    found = drawn(count=60)
    held = found.held >= 0
    assert 10 <= held.sum() <= 35
    assert set(found.held) == {-1, 0, 1, 2}
    rows = np.flatnonzero(held)
    hands = np.stack([kinematics.tool_frame(found.joints_rad[row, :7])[:2, 3] for row in rows])
    places = found.things_m[rows, found.held[rows]]
    assert np.abs(hands - places).max() < 0.015
    around = np.abs(found.joints_rad[:, 7] - views.AROUND_CUBE_RAD) < 0.05
    assert around[held].all()
    assert around[~held].any()
    assert not around[~held].all()


def test_the_picture_shows_the_held_cube_in_the_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    drawer = views._Drawer(views.scenes(COLOUR_NAMES), WHOLE, rig.SIDE)
    scene, away = drawer._world.scene, []
    real = drawer._world.image

    def image() -> Image:
        tool = scene.tool_position()[0]
        away.append([float((cube.pose.p[0] - tool).norm()) for cube in scene.cubes.values()])
        return real()

    monkeypatch.setattr(drawer._world, "image", image)
    found = drawer((0, 0, 30))
    rows = np.flatnonzero(found.held >= 0)
    assert len(rows) > 3
    assert np.array(away)[rows, found.held[rows]].max() < 0.02


def test_towers_learn_where_the_named_cube_is() -> None:
    torch.manual_seed(0)
    loaded = load(start())
    model, codec = loaded.model, Codec.of(loaded.layout, loaded.model.norm_stats, "crane_x7")
    tasks = [
        codec.prompts([words.format(colour) for colour in COLOUR_NAMES], np.zeros((3, 8)))
        for words in (LIFT_WORDS, PLACE_WORDS)
    ]
    towers.add_film(model, tasks, is_random=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = drawn(count=4)
    pointer, losses = towers.teach(model, tasks, found, Descent("towers", 250, 3e-3), seed=0)
    assert losses[0] > 0.6
    # The mean of the cubes would leave about half a standard deviation.
    assert np.mean(losses[-20:]) < 0.25
    pixels = normalised(torch.from_numpy(found.images).permute(0, 3, 1, 2), torch.float32)
    right = towers.scaled(found)
    away = []
    for number, prompt in [pair for prompts in tasks for pair in enumerate(prompts)]:
        with torch.no_grad():
            patches = model.encode(pixels, told=towers.told(model, [prompt] * len(pixels)))
            places = pointer(patches).mean(1)  # (4, 4)
        away.append(places - torch.cat([right[:, number], right[:, -1]], dim=1))
    # With red for blue and blue for red it was 0.34.
    assert torch.stack(away).abs().mean() < 0.25
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert any(name.startswith("vision_backbone.") and ".film." in name for name in moved)
    assert not any(name.startswith(towers.LANGUAGE) for name in moved)


def test_the_checkpoint_drives_and_sft_continues_it(tmp_path: Path) -> None:
    out = tmp_path / "pointing"
    assert cli.main(["point", start(), str(out), *FEW]) == ExitCode.OK
    policy = load_policy("openvla", ModelOptions(path=str(out)))
    (chunk,) = policy.predict([rig.observation()])
    assert chunk.position_rad.shape == (4, 8)
    assert chunk.period_s == pytest.approx(0.1)
    rig.train(tmp_path / "run", "--model", str(out), "--no-use-lora", "--max-steps", "1")
    assert (tmp_path / "run" / "last" / "vision_backbone--1_checkpoint.pt").is_file()


def test_demonstrations_are_learned_in_the_same_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pointing"
    words = (*FEW, "--demos", str(rig.data()))
    assert cli.main(["point", start(), str(out), *words]) == ExitCode.OK
    with_demos = torch.load(out / "action_head--0_checkpoint.pt", weights_only=True)
    assert cli.main(["point", start(), str(tmp_path / "other"), *FEW]) == ExitCode.OK
    other = torch.load(tmp_path / "other" / "action_head--0_checkpoint.pt", weights_only=True)
    assert not torch.equal(with_demos["model.fc2.bias"], other["model.fc2.bias"])
    fast = build(tmp_path / "fast", rig.SIZES, inputs=PolicySpec(chunk_steps=4, period_s=0.2))
    capsys.readouterr()
    assert cli.main(["point", str(fast), str(tmp_path / "no"), *words]) == ExitCode.CONFIG
    assert "record with --control-hz 5" in capsys.readouterr().err


def test_a_folder_that_exists_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("mine")
    assert cli.main(["point", start(), str(tmp_path), *FEW]) == ExitCode.OUTPUT
    assert "point writes a new folder" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_place_where_nothing_can_be_written_is_named_before_anything_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "draw", None)
    (tmp_path / "file").write_text("")
    assert cli.main(["point", start(), str(tmp_path / "file/out"), *FEW]) == ExitCode.OUTPUT
    assert "is a file; choose another output folder" in capsys.readouterr().err


def test_heads_of_others_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import oft_rig

    folder = oft_rig.write(tmp_path / "oft")
    assert cli.main(["point", str(folder), str(tmp_path / "out"), *FEW]) == ExitCode.CONFIG
    assert "point continues its own checkpoints" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_its_checkpoint_is_continued_with_what_it_has_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert cli.main(["point", start(), str(one), *FEW]) == ExitCode.OK
    monkeypatch.setattr(moves, "FROZEN", 1.0)  # only towers beside new heads stay still at first
    more = ("--pictures", "24", "--updates", "0", "--move-updates", "1", "--learning-rate", "1e-6")
    assert cli.main(["point", str(one), str(two), *more]) == ExitCode.OK
    for kind in ("action_head", "proprio_projector", "vision_backbone"):
        before, after = (
            torch.load(folder / f"{kind}--0_checkpoint.pt", weights_only=True)
            for folder in (one, two)
        )
        assert before.keys() == after.keys()
        assert any(not torch.equal(before[key], after[key]) for key in before), "all parts learn"
        assert all(torch.allclose(before[key], after[key], atol=1e-4) for key in before)


def test_towers_that_have_not_learned_are_not_left_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["point", start(), str(tmp_path / "out"), *FEW, "--updates", "0"]
    assert cli.main(words) == ExitCode.CONFIG
    assert "have not learned where things are" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_each_prompt_is_taught_with_its_own_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lift or place, the named cube's way; the held cube's instruction for a carried one."""
    colours, pictures = 3, 8
    held = np.array([-1, -1, 0, 2, -1, 1, -1, 0])
    empty, full = np.flatnonzero(held < 0), np.flatnonzero(held >= 0)
    seen = Views(
        np.arange(pictures, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 2, 2, 3), np.uint8),
        np.zeros((pictures, 8)), np.zeros((pictures, colours + 1, 2)), held,
    )  # fmt: skip
    # A chunk's value names its picture and its cube: 10 · picture + cube, a carried one's + 7.
    ways = 10.0 * empty[:, None] + np.arange(colours)
    planned = moves.Moves(
        empty, torch.tensor(ways)[..., None, None].expand(-1, -1, 4, 8).float(),
        full, torch.tensor(10.0 * full + 7)[:, None, None].expand(-1, 4, 8).float(),
        torch.arange(pictures)[:, None].expand(-1, 8).float(),
    )  # fmt: skip
    words = moves.Words(
        [torch.tensor([colour]) for colour in range(colours)],
        [torch.tensor([100 + colour]) for colour in range(colours)],
    )
    taught: list[tuple[int, int, float, float]] = []

    def answer(_: object, __: object, pixels: torch.Tensor, prompts: list[torch.Tensor],
               state: torch.Tensor, steps: int) -> torch.Tensor:  # fmt: skip
        for row, prompt, joints in zip(pixels, prompts, state, strict=True):
            taught.append((int(row[0, 0, 0]), int(prompt), float(joints[0]), 0.0))
        return torch.zeros(len(prompts), steps, 8)

    def compare(_: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        start = len(taught) - len(wanted)
        for number, chunk in enumerate(wanted):
            taught[start + number] = (*taught[start + number][:3], float(chunk[0, 0]))
        return torch.tensor(0.0)

    def once(
        _: object, __: object, loss: Callable[[int], torch.Tensor], ___: object
    ) -> list[float]:
        return [float(loss(update)) for update in range(30)]

    monkeypatch.setattr(moves, "evaluate_chunk", answer)
    monkeypatch.setattr(moves.functional, "l1_loss", compare)
    monkeypatch.setattr(moves, "normalised", lambda pictures, _: pictures)
    monkeypatch.setattr(moves, "descend", once)
    model = torch.nn.Linear(1, 1)
    stage = Descent("moves", 30, 1e-3)
    moves.teach(model, (model, model), words, seen, planned, stage, seed=0)  # type: ignore[arg-type]
    for picture, prompt, joints, chunk in taught:
        assert joints == picture
        if held[picture] >= 0:
            assert prompt == 100 + held[picture]
            assert chunk == 10 * picture + 7
        else:
            assert chunk == 10 * picture + prompt % 100
    assert {prompt for picture, prompt, *_ in taught if held[picture] < 0} == {
        0,
        1,
        2,
        100,
        101,
        102,
    }
    assert {picture for picture, *_ in taught} == set(range(pictures))


def test_state_tokens_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["point", str(rig.base()), str(tmp_path / "out"), *FEW]) == ExitCode.CONFIG
    assert "build the model without --state-tokens" in capsys.readouterr().err


def test_data_that_are_missing_are_named_before_anything_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "draw", None)
    words = ("--demos", str(tmp_path / "nothing"))
    assert cli.main(["point", start(), str(tmp_path / "out"), *FEW, *words]) == ExitCode.DATA
    assert "nothing" in capsys.readouterr().err


def test_too_few_pictures_are_named() -> None:
    one = drawn(count=1)
    over = replace(one, things_m=np.repeat(one.things_m[:, :1] + 9, 4, axis=1))
    scale = find_statistics(load(start()).model.norm_stats, "crane_x7")
    with pytest.raises(ConfigError, match="draw more with --pictures"):
        moves.plan(over, 4, 0.1, scale, scale)


def test_the_same_seed_gives_the_same_heads(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert cli.main(["point", start(), str(tmp_path / name), *FEW]) == ExitCode.OK
    file = "action_head--0_checkpoint.pt"
    one, two = (torch.load(tmp_path / n / file, weights_only=True) for n in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)


class Stopped(Exception):
    """What a lost machine does to a run."""


@pytest.mark.parametrize("stage", ["towers", "moves"])
def test_a_stopped_run_continues_and_equals_one_that_was_not_stopped(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--pictures", "24", "--updates", "6", "--move-updates", "6",
             "--demos", str(rig.data()))  # fmt: skip
    assert cli.main(["point", start(), str(tmp_path / "whole"), *words]) == ExitCode.OK
    out = tmp_path / "stopped"
    stop_in(12 if stage == "moves" else 6, out, words, 2, monkeypatch)
    assert not out.exists()
    real, done = descent.learning_rate, []

    def counted(update: int, updates: int, ratio: float, peak: float) -> float:
        done.append(update)
        return real(update, updates, ratio, peak)

    monkeypatch.setattr(descent, "learning_rate", counted)
    run(["point", start(), str(out), *words])
    assert done == ([4, 5] if stage == "moves" else [4, 5, *range(6)]), "what was done is kept"
    whole, stopped = (files_of(tmp_path / name) for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    assert {key for key in whole if not torch.equal(whole[key], stopped[key])} == set()
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".unfinished")] == []


def files_of(folder: Path) -> dict[str, torch.Tensor]:
    found = dict(load_file(folder / "model.safetensors"))
    for path in folder.glob("*.pt"):
        found |= {
            f"{path.name}:{key}": value
            for key, value in torch.load(path, weights_only=True).items()
        }
    assert len(found) > 20
    return found


def run(words: list[str]) -> None:
    """Like the command, but errors of this test are its own."""
    parsed = argparse.ArgumentParser()
    add_arguments(parsed)
    assert command.run(parsed.parse_args(words[1:])) == 0


def stop_in(
    number: int, out: Path, words: Sequence[str], saved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leave what a run keeps every `saved` updates that stops in its `number`th one."""
    real, reached = descent.learning_rate, []

    def lost(update: int, updates: int, ratio: float, peak: float) -> float:
        reached.append(update)
        if len(reached) == number:
            raise Stopped
        return real(update, updates, ratio, peak)

    with monkeypatch.context() as patch:
        patch.setattr(descent, "SAVED", saved)
        patch.setattr(descent, "learning_rate", lost)
        with pytest.raises(Stopped):
            run(["point", start(), str(out), *words])


def test_a_model_of_other_sizes_does_not_continue_it(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    stage, kept = Descent("towers", 2, 1e-3), Kept.of(tmp_path / "out", {})
    descend(stage, [Group([weight])], lambda _: weight.sum(), kept)
    other = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ResumeError, match="towers was begun with a model of other sizes"):
        descend(stage, [Group([other])], lambda _: other.sum(), kept)
    assert other.equal(torch.ones(3))


def test_another_configuration_does_not_continue_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    stop_in(3, out, FEW, 1, monkeypatch)
    words = ["point", start(), str(out), *FEW, "--seed", "1"]
    assert cli.main(words) == ExitCode.CONFIG
    said = capsys.readouterr().err
    assert "out.unfinished holds a run of another configuration: seed was 0, is now 1" in said
    assert not out.exists()
    assert cli.main([*words, "--seed", "0", "--cache-mb", "100"]) == ExitCode.OK


def test_what_was_kept_but_is_damaged_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    stop_in(6, out, FEW, 1, monkeypatch)
    kept = tmp_path / "out.unfinished" / "moves.pt"
    words = ["point", start(), str(out), *FEW]
    for content in (b"", b"text", kept.read_bytes()[:-2000]):
        kept.write_bytes(content)
        assert cli.main(words) == ExitCode.CONFIG
        said = capsys.readouterr().err
        assert "moves.pt: cannot be continued" in said
        assert "remove it, and the stage begins again" in said
    kept.unlink()
    assert cli.main(words) == ExitCode.OK


def test_a_run_that_could_not_begin_keeps_nothing(tmp_path: Path) -> None:
    one = ["point", start(), str(tmp_path / "out"), *FEW, "--pictures"]
    assert cli.main([*one, "1"]) == ExitCode.CONFIG
    assert list(tmp_path.iterdir()) == []
    assert cli.main([*one, "24"]) == ExitCode.OK


def test_a_full_disk_ends_it_and_keeps_what_there_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    stop_in(3, out, FEW, 1, monkeypatch)
    kept = tmp_path / "out.unfinished" / "towers.pt"
    before = kept.read_bytes()

    def full(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert cli.main(["point", start(), str(out), *FEW]) == ExitCode.OUTPUT
    assert "the same command continues at what was saved last" in capsys.readouterr().err
    assert kept.read_bytes() == before
    assert cli.main(["point", start(), str(out), *FEW]) == ExitCode.OK


def test_a_loss_that_is_not_finite_ends_it() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(NotFiniteError, match="towers: the gradient of update 1 is not finite"):
        descend(Descent("towers", 2, 1e-3), [Group([weight])], lambda _: (weight * torch.inf).sum())
    assert bool(torch.isfinite(weight).all())
