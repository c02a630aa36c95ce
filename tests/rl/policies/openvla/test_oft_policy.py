"""An OpenVLA-OFT checkpoint drives the arm: chunks of joint targets, or of steps of the tool."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from oft_rig import KEY, STATE, STEPS, proprio_weights, write_adapter, write_for_arm

from crane_x7_vla_rl.kinematics import tool_frame
from crane_x7_vla_rl.policies.base import ModelOptions
from crane_x7_vla_rl.policies.load import load_policy
from crane_x7_vla_rl.policies.openvla.errors import CheckpointError
from crane_x7_vla_rl.policies.openvla.run.oft import ChunkSettings, load_oft
from crane_x7_vla_rl.policies.openvla.targets import joint_targets
from crane_x7_vla_rl.policies.openvla.tokenizer import PromptTokenizer
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.types import ActionChunk, JointState, Observation

BENT = HOME_RAD + np.array([0.3, 0.4, 0.2, 0.3, -0.1, -0.2, 0.1, 0.2])
"""Away from the limits and from every singular pose."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A released layout whose steps are small enough for the arm to follow."""
    return write_for_arm(tmp_path / "oft")


def set_statistics(folder: Path, statistics: dict[str, object]) -> None:
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics))


def observe(joints: np.ndarray = BENT) -> Observation:
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    return Observation(image, JointState(joints, np.zeros(8)), "pick up the red cube", 0.0)


def predict(folder: Path, *observations: Observation, key: str = KEY) -> list[ActionChunk]:
    policy = load_policy("openvla", ModelOptions(str(folder), unnorm_key=key, chunk_steps=STEPS))
    return policy.predict(observations)


def test_the_head_decides_and_reads_the_measured_joints(folder: Path) -> None:
    observation = observe()
    model = load_oft(folder, settings=ChunkSettings(STEPS))
    ids = PromptTokenizer(folder / "tokenizer.json")(observation.instruction)
    pixels = model.base.preprocess([observation.image])
    actions = model.predict(pixels, [ids], KEY, BENT[None])[0]
    (chunk,) = predict(folder, observation)
    assert chunk.position_rad.shape == (STEPS, 8)
    np.testing.assert_array_equal(chunk.position_rad, joint_targets(actions, BENT))
    (moved,) = predict(folder, observe(BENT + 0.05))
    assert np.abs(moved.position_rad - chunk.position_rad - 0.05)[:, :7].max() > 1e-4


def test_steps_of_the_tool_add_up() -> None:
    steps = np.array([[0.01, 0.0, 0.005, 0.0, 0.02, 0.0, 0.5]] * 3)
    targets = joint_targets(steps, BENT)
    start = tool_frame(BENT)[:3, 3]
    for count, target in enumerate(targets, start=1):
        moved = tool_frame(target)[:3, 3] - start
        np.testing.assert_allclose(moved, count * steps[0, :3], atol=2e-4 * count)
        assert target[7] == pytest.approx(0.3)


def test_a_batch_gets_the_answers_of_each_alone(folder: Path) -> None:
    both = predict(folder, observe(BENT), observe(BENT + 0.05))
    for joints, chunk in zip((BENT, BENT + 0.05), both, strict=True):
        (alone,) = predict(folder, observe(joints))
        np.testing.assert_allclose(alone.position_rad, chunk.position_rad, atol=1e-4)


def test_without_the_number_of_steps_it_is_refused_not_read_as_tokens(folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"OpenVLA-OFT checkpoint.*set VLA_CHUNK_STEPS"
    ) as caught:
        load_policy("openvla", ModelOptions(str(folder), unnorm_key=KEY))
    assert f'write {{"chunk_steps": 8}} into {folder}/policy.json' in str(caught.value)


@pytest.mark.parametrize("left", ["proprio_projector", "noisy_action_projector", "vision_backbone"])
def test_where_its_head_is_missing_tokens_are_not_read_instead(folder: Path, left: str) -> None:
    for path in folder.glob("*_checkpoint.pt"):
        path.unlink()
    torch.save({}, folder / f"{left}--150000_checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"OpenVLA-OFT checkpoint.*set VLA_CHUNK_STEPS"):
        load_policy("openvla", ModelOptions(str(folder), unnorm_key=KEY))
    with pytest.raises(CheckpointError, match=f"holds no action_head.*{left}|is not implemented"):
        predict(folder, observe())


def test_a_head_of_other_dimensions_than_the_statistics_is_refused(folder: Path) -> None:
    wide = {"q01": [-1.0] * 8, "q99": [1.0] * 8}
    set_statistics(folder, {"joints": {"action": wide, "proprio": STATE}})
    with pytest.raises(CheckpointError, match="head has 7 dimensions, the statistics 'joints'"):
        predict(folder, observe(), key="joints")


def test_a_state_that_is_no_joints_of_ours_is_refused(folder: Path) -> None:
    weights = proprio_weights()
    weights["module.fc1.weight"] = weights["module.fc1.weight"][:, :6].contiguous()
    torch.save(weights, folder / "proprio_projector--150000_checkpoint.pt")
    with pytest.raises(CheckpointError, match="its state has 6 dimensions, expected 8"):
        predict(folder, observe())


@pytest.mark.parametrize("named", ["run", "run/lora_adapter"])
@pytest.mark.parametrize("heads", ["oft", "run", "run/lora_adapter"])
def test_heads_are_found_with_the_adapter_its_run_or_its_base(
    folder: Path, heads: str, named: str
) -> None:
    """Whichever folder is named: without them, tokens would be read that nobody trained."""
    wanted = predict(folder, observe())
    root = folder.parent
    write_adapter(root / "run" / "lora_adapter", folder)
    for path in folder.glob("*_checkpoint.pt"):
        if heads != "oft":
            shutil.move(path, root / heads / path.name)
    with pytest.raises(CheckpointError, match=r"OpenVLA-OFT checkpoint.*set VLA_CHUNK_STEPS"):
        load_policy("openvla", ModelOptions(str(root / named), unnorm_key=KEY))
    found = predict(root / named, observe())
    np.testing.assert_array_equal(found[0].position_rad, wanted[0].position_rad)


def test_tokens_that_were_trained_since_outweigh_the_heads_of_the_base(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = write_adapter(folder.parent / "run", folder)
    (adapter / "policy.json").write_text('{"chunk_steps": 2}')
    policy = load_policy("openvla", ModelOptions(str(adapter), unnorm_key=KEY))
    assert policy.predict([observe()])[0].position_rad.shape == (2, 8)
    assert f"in {folder} are not used: according to {adapter / 'policy.json'}" in caplog.text


def test_the_number_of_steps_may_stand_beside_the_heads(folder: Path) -> None:
    wanted = predict(folder, observe())
    (folder / "policy.json").write_text(json.dumps({"chunk_steps": STEPS}))
    policy = load_policy("openvla", ModelOptions(str(folder), unnorm_key=KEY))
    (found,) = policy.predict([observe()])
    np.testing.assert_array_equal(found.position_rad, wanted[0].position_rad)
