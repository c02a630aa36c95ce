"""Fine-tuning with OpenVLA-OFT's head: the chunk that is trained is the chunk that drives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import oft_rig
import openvla_rig
import pytest
import torch
import training_rig as rig

from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.policies.openvla.run.oft import ChunkSettings, load_oft
from crane_x7_vla_rl.policies.openvla.run.oft_evaluate import evaluate_chunk
from crane_x7_vla_rl.policies.openvla.weights import layout, oft_loading
from crane_x7_vla_rl.training import cli
from crane_x7_vla_rl.training.checkpoints import chunk_files, merge
from crane_x7_vla_rl.training.checkpoints import save as checkpoint
from crane_x7_vla_rl.training.errors import ExitCode, ResumeError
from crane_x7_vla_rl.training.sft import chunk_loss
from crane_x7_vla_rl.training.sft.loss import SftLearner

pytestmark = pytest.mark.timeout(rig.PATIENCE_S + 100)
L1 = ("--action-head", "l1", "--chunk-steps", "4")
WHOLE = ("--no-use-lora", "--learning-rate", "1e-3")
FILM = (*WHOLE, "--film")
KINDS = [
    pytest.param((), id="lora"), pytest.param(WHOLE, id="whole"), pytest.param(FILM, id="film"),
]  # fmt: skip


@pytest.mark.parametrize("padded", [False, True])
def test_training_computes_what_drives(tmp_path: Path, padded: bool) -> None:
    policy = load_oft(oft_rig.write(tmp_path / "oft"), settings=ChunkSettings(oft_rig.STEPS))
    pixels = openvla_rig.expected()["pixel_values"][:2]
    prompts = list(openvla_rig.prompts()[:2])
    if not padded:
        prompts[1] = prompts[0]
    state = torch.linspace(-1, 1, 2 * oft_rig.STATE_DIM).reshape(2, -1)
    drives = policy.predict_normalised(pixels, prompts, state)
    heads = policy.head, policy.proprio
    learned = evaluate_chunk(policy.base, heads, pixels, prompts, state, oft_rig.STEPS)
    assert learned.requires_grad
    torch.testing.assert_close(learned.detach(), drives, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_checkpoint_drives_in_chunks(tmp_path: Path, kind: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    rig.train(run, *L1, *kind)
    for name, step in (("checkpoint-3", 3), ("last", 8)):
        assert checkpoint.problem(run / name) is None
        assert (run / name / f"action_head--{step}_checkpoint.pt").is_file()
        policy = load_policy("openvla", ModelOptions(path=str(run / name)))
        (chunk,) = policy.predict([rig.observation()])
        assert chunk.position_rad.shape == (4, 8)
        assert chunk.period_s == pytest.approx(1 / rig.FPS)


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_may_learn_gets_a_gradient(tmp_path: Path, kind: tuple[str, ...]) -> None:
    seen: dict[str, bool] = {}

    class Seen(Exception):
        pass

    def look(taught: SftLearner, rate: float) -> None:
        del rate
        named = taught.loss.named_parameters()
        seen.update({n: p.grad is not None for n, p in named if p.requires_grad})
        raise Seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SftLearner, "update", look)
        with pytest.raises(Seen):
            rig.train(tmp_path / "run", *L1, *kind)
    assert {name.partition(".")[0] for name in seen} == {"model", "head", "proprio"}
    assert all(seen.values()), [name for name, had in seen.items() if not had]


def test_it_learns_what_it_is_shown(tmp_path: Path) -> None:
    rig.train(
        tmp_path / "run", *L1, "--max-steps", "120", "--batch-size", "16", "--save-steps", "200",
        "--no-use-lora", "--learning-rate", "3e-3", "--no-random-crop", "--colour-jitter", "0",
    )  # fmt: skip
    losses = rig.losses(tmp_path / "run")
    assert losses[0] > 0.4
    assert np.mean(losses[-5:]) < 0.15
    policy = load_policy("openvla", ModelOptions(path=str(tmp_path / "run" / "last")))
    (chunk,) = policy.predict([rig.observation()])
    shown = rig.episode(0).action[:4]
    assert np.abs(chunk.position_rad - shown).max() < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_repeats_the_losses_bit_for_bit(
    tmp_path: Path, kind: tuple[str, ...]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    rig.train(whole, *L1, *kind)
    rig.train(broken, *L1, *kind, "--stop-after", "3")
    rig.again("--resume-from-checkpoint", str(broken / "checkpoint-3"))
    assert rig.losses(broken) == rig.losses(whole)
    for name in oft_loading_names():
        a, b = (torch.load(run / "last" / name, weights_only=True) for run in (whole, broken))
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    "kind", [pytest.param(("--film",), id="lora"), pytest.param(FILM, id="whole")]
)
def test_film_is_stored_and_continued(tmp_path: Path, kind: tuple[str, ...]) -> None:
    rig.train(tmp_path / "first", *L1, *kind)
    first = tmp_path / "first" / "last"
    stored = torch.load(first / "vision_backbone--8_checkpoint.pt", weights_only=True)
    assert all(".film." not in name and ".blocks." in name for name in stored)
    assert max(float(value.abs().max()) for value in stored.values()) > 0
    merged = merge.merge(str(first), tmp_path / "merged", torch.float32)
    at = rig.observation()
    (one,), (other,) = (
        load_policy("openvla", ModelOptions(path=str(folder))).predict([at])
        for folder in (first, merged)
    )
    assert np.allclose(one.position_rad, other.position_rad, atol=1e-4)
    rig.train(tmp_path / "second", "--model", str(merged), *WHOLE, "--max-steps", "1")
    again = torch.load(
        tmp_path / "second" / "last" / "vision_backbone--1_checkpoint.pt", weights_only=True
    )
    assert again.keys() == stored.keys()
    assert all((again[name] - stored[name]).abs().max() < 0.01 for name in stored)


def test_film_without_its_head_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = rig.flags(tmp_path / "run", "--film", "--action-head", "tokens")
    assert cli.main(["sft", *words]) == ExitCode.CONFIG
    assert "policy.film needs actions from OpenVLA-OFT's head" in capsys.readouterr().err


def test_a_run_keeps_its_kind_of_head(tmp_path: Path) -> None:
    rig.train(tmp_path / "run", *L1, "--stop-after", "1")
    with pytest.raises(ResumeError, match="action_head"):
        rig.again("--resume", str(tmp_path / "run"), "--action-head", "tokens")


def oft_loading_names() -> list[str]:
    return [oft_loading.file_name(kind, 8) for kind in chunk_files.PARTS]


def test_a_start_with_heads_is_continued(tmp_path: Path) -> None:
    rig.train(tmp_path / "first", *L1, *WHOLE)
    rig.train(tmp_path / "second", "--model", str(tmp_path / "first" / "last"), "--max-steps", "1")
    last = tmp_path / "second" / "last"
    assert layout.find(last).heads() == last
    assert json.loads((last / "policy.json").read_text())["chunk_steps"] == 4
    first, second = rig.losses(tmp_path / "first"), rig.losses(tmp_path / "second")
    assert second[0] < first[0]


def test_a_head_for_another_arm_is_replaced_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = oft_rig.write(tmp_path / "oft")
    loaded = load_oft(base, settings=ChunkSettings(4))
    assert loaded.head.action_dim == 7
    from crane_x7_vla_rl.policies.openvla.weights.loading import load

    loss = chunk_loss.build(load(base), None)
    assert loss.head.action_dim == 8
    assert "its action head has 7 dimensions; a new one for 8 joints is trained" in caplog.text
    kept, stored = loss.proprio.fc1.weight, loaded.proprio
    assert stored is not None
    assert torch.equal(kept, stored.fc1.weight)


def test_tokens_are_not_trained_on_a_start_with_heads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rig.train(tmp_path / "first", *L1, *WHOLE, "--max-steps", "1")
    model = str(tmp_path / "first" / "last")
    words = rig.flags(tmp_path / "run", "--model", model, "--action-head", "tokens")
    assert cli.main(["sft", *words]) == ExitCode.CONFIG
    assert "its actions come from a head" in capsys.readouterr().err
