"""A checkpoint made smaller is the same policy: small, by the ordinary loader, and always alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rl_rig
import torch
import training_rig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from crane_x7_vla_rl.actions import FIRST_ACTION_TOKEN, VOCABULARY
from crane_x7_vla_rl.policies.base import ModelOptions, PolicyLoadError
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.policies.openvla.run.runner import Runner
from crane_x7_vla_rl.policies.openvla.weights import loading
from crane_x7_vla_rl.policies.skills import Skills
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.training.checkpoints import ship
from crane_x7_vla_rl.training.errors import OutputError
from crane_x7_vla_rl.types import JointState, Observation

SKILLS = Skills("Lift-CRANE-X7", ("red", "blue"), 0.02, ("pick up the red cube",), 5.0, 1.0)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with random weights, made smaller."""
    folder = tmp_path_factory.mktemp("ship")
    inputs = ship.write(str(rl_rig.base()), folder)
    assert inputs.period_s == 0.2
    return folder


def looks(count: int) -> list[Observation]:
    """Pictures of noise, joints near home."""
    draw = np.random.default_rng(0)
    return [
        Observation(
            draw.integers(0, 256, (48, 64, 3), dtype=np.uint8),
            JointState(HOME_RAD + draw.normal(0, 0.1, 8), np.zeros(8)),
            f"pick up the {('red', 'blue')[index % 2]} cube",
            0.0,
        )
        for index in range(count)
    ]


def test_its_logits_differ_by_the_rounding_alone(shipped: Path) -> None:
    models = [loading.load(path).model for path in (rl_rig.base(), shipped)]
    pixels = torch.randn(2, 6, training_rig.SIDE, training_rig.SIDE)
    ids = [torch.tensor([1, 300, 301]), torch.tensor([1, 302, 31800])]
    before, after = (Runner(model).roll_out(pixels, ids, 1).logits for model in models)
    assert (before - after).abs().max() < 5e-3 * before.abs().max()


def test_it_does_what_it_did(shipped: Path) -> None:
    seen = looks(8)
    before, after = (
        load_policy("openvla", ModelOptions(path=str(path))).predict(seen)
        for path in (rl_rig.base(), shipped)
    )
    same = [
        bool((one.position_rad == other.position_rad).all())
        for one, other in zip(before, after, strict=True)
    ]
    assert sum(same) >= 6  # of random weights, whose best bins hardly differ


def test_rows_that_nothing_reads_are_zeros(shipped: Path) -> None:
    before = loading.load(rl_rig.base()).model.state_dict()
    after = loading.load(shipped).model.state_dict()
    actions = slice(FIRST_ACTION_TOKEN, VOCABULARY)
    assert not after[ship.HEAD][:FIRST_ACTION_TOKEN].any()
    for name in (ship.HEAD, ship.EMBEDDINGS):
        assert torch.equal(after[name][actions], before[name][actions].half().float())
    zero = ~after[ship.EMBEDDINGS].any(dim=1)
    assert 0.9 < zero.float().mean() < 1
    assert before[ship.EMBEDDINGS].any(dim=1).all()


def test_the_same_checkpoint_gives_the_same_files(shipped: Path, tmp_path: Path) -> None:
    ship.write(str(rl_rig.base()), tmp_path)
    names = sorted(path.name for path in shipped.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (shipped / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_policy_of_chunks_keeps_its_heads_and_leaves_out_the_one_that_it_never_reads(
    tmp_path: Path,
) -> None:
    chunks = ("--action-head", "l1", "--chunk-steps", "4", "--no-use-lora")
    training_rig.train(tmp_path / "run", *chunks, "--max-steps", "2")
    learned, small = tmp_path / "run" / "last", tmp_path / "small"
    small.mkdir()
    ship.write(str(learned), small)
    with safe_open(small / "model.safetensors", framework="pt") as stored:
        assert ship.HEAD not in stored.keys()  # noqa: SIM118 # not a dictionary
    config = json.loads((small / "config.json").read_text())
    assert config["text_config"]["tie_word_embeddings"] is True
    assert "random_weights" not in config
    seen = looks(4)
    before, after = (
        load_policy("openvla", ModelOptions(path=str(path))).predict(seen)
        for path in (learned, small)
    )
    for one, other in zip(before, after, strict=True):
        assert one.position_rad.shape == (4, 8)
        np.testing.assert_allclose(other.position_rad, one.position_rad, atol=0.01)


def test_a_head_is_missing_only_where_it_is_the_embeddings(tmp_path: Path) -> None:
    folder = shutil.copytree(training_rig.base(), tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    del tensors[ship.HEAD]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PolicyLoadError, match=r"are missing: language_model\.lm_head"):
        loading.load(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    tied = loading.load(folder).model.state_dict()
    assert torch.equal(tied[ship.HEAD], tied[ship.EMBEDDINGS])


def test_what_does_not_fit_in_16_bits_is_refused() -> None:
    with pytest.raises(OutputError, match=r"head holds 100000, beyond float16's 65504"):
        ship.halved("head", torch.tensor([1e5]))
    with pytest.raises(OutputError, match="nan"):
        ship.halved("head", torch.tensor([float("nan")]))


def test_what_is_too_large_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(ship.MOST_BYTES + 1)
    with pytest.raises(OutputError, match="15,000,001 bytes, expected at most 15,000,000"):
        ship.check_size(tmp_path)


def test_skills_come_back_as_they_were_written(tmp_path: Path) -> None:
    assert Skills.beside(tmp_path) is None
    SKILLS.write(tmp_path)
    assert Skills.beside(tmp_path) == SKILLS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list, expected an object"),
        ("{}", "colours, instructions, rate_hz, spawn_range_m, task is missing"),
        ('{"speed": 1}', "speed is unknown; known: colours"),
    ],
)
def test_a_file_that_is_no_skills_is_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "skills.json").write_text(text)
    with pytest.raises(PolicyLoadError, match=said):
        Skills.beside(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("task", "Pour-CRANE-X7", "one of Lift-CRANE-X7"),
        ("colours", ["pink"], "a list of some of red, green, blue"),
        ("colours", [], "a list of some of red, green, blue"),
        ("spawn_range_m", 0.2, "0 to 0.05 m"),
        ("instructions", [""], "a list of tasks in words"),
        ("rate_hz", True, "0.1 to 200 Hz"),
        ("temperature", -1, "0 to 10"),
        ("max_jump_rad", "far", "0.01 to 10 rad"),
        ("lets_go", 0, "true or false"),
    ],
)
def test_a_skill_that_cannot_be_is_named(name: str, value: object, said: str) -> None:
    raw = {**vars(SKILLS), "colours": ["red"], "instructions": ["lift"], name: value}
    with pytest.raises(PolicyLoadError, match=rf"a\.json: {name} is .*, expected {said}"):
        Skills.from_dict(raw, "a.json")
