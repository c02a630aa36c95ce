"""A checkpoint's kind follows from its config.json; incomplete ones are passed by."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from crane_x7_vla_rl.policies import lerobot_folder
from crane_x7_vla_rl.policies.base import ModelOptions, PolicyLoadError
from crane_x7_vla_rl.policies.kind import kind_of
from crane_x7_vla_rl.policies.load import POLICY_NAMES, TINY, check, load_policy


def safetensors(values: int = 4) -> bytes:
    """Return a file with one float32 tensor."""
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4 * values)


def pretrained(folder: Path) -> Path:
    """Write a complete `pretrained_model` folder with one tensor."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"type": "act", "input_features": {}}))
    (folder / "model.safetensors").write_bytes(safetensors())
    for name in lerobot_folder.PROCESSORS:
        (folder / name).write_text("{}")
    return folder


def test_the_shipped_checkpoint_is_openvla() -> None:
    assert kind_of(TINY) == "openvla"


def test_a_folder_that_does_not_exist_is_left_to_the_loader() -> None:
    assert kind_of("no/such/folder") == "openvla"


def test_every_folder_of_a_lerobot_training_means_its_newest_complete_checkpoint(
    tmp_path: Path,
) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    pretrained(checkpoints / "000009" / "pretrained_model")
    newest = pretrained(checkpoints / "000010" / "pretrained_model")
    begun = pretrained(checkpoints / "000020" / "pretrained_model")
    (begun / "model.safetensors").write_bytes(safetensors()[:-3])
    (checkpoints / "last").symlink_to("000030")
    for named in (tmp_path / "run", checkpoints, newest.parent, newest):
        assert lerobot_folder.find(named) == newest
        assert kind_of(named) == "lerobot"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (b"", "is not a safetensors file (0 bytes)"),
        (bytes(4096), "is not a safetensors file (4096 bytes)"),
        (safetensors()[:-1], "it is truncated or damaged"),
        (safetensors()[:20], "is truncated"),
    ],
)
def test_damaged_weights_are_named(tmp_path: Path, damage: bytes, said: str) -> None:
    folder = pretrained(tmp_path / "checkpoints" / "000005" / "pretrained_model")
    (folder / "model.safetensors").write_bytes(damage)
    (problem,) = lerobot_folder.missing(folder)
    assert said in problem
    with pytest.raises(PolicyLoadError, match="no checkpoint is complete"):
        kind_of(tmp_path)


def test_a_link_to_nowhere_hides_no_checkpoint(tmp_path: Path) -> None:
    folder = pretrained(tmp_path / "checkpoints" / "000005" / "pretrained_model")
    (tmp_path / "checkpoints" / "last").symlink_to("000006")
    assert lerobot_folder.find(tmp_path) == folder


def test_remote_without_a_server_names_the_variable() -> None:
    with pytest.raises(PolicyLoadError, match="set POLICY_SERVER to its address"):
        check("remote", ModelOptions())


def test_an_unknown_policy_lists_the_known_ones() -> None:
    with pytest.raises(PolicyLoadError, match=", ".join(POLICY_NAMES)):
        load_policy("pi0")
