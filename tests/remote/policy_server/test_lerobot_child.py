"""LeRobot's process from our side: what is refused before it starts, its death, its restart."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import lerobot_rig
import numpy as np
import pytest

from crane_x7_remote.errors import RemoteError
from crane_x7_remote.policy_server.lerobot_child import LerobotPolicy, load
from crane_x7_vla_rl.lerobot_env import VERSION
from crane_x7_vla_rl.policies.base import ModelOptions, PolicyLoadError
from crane_x7_vla_rl.robot import HOME_RAD
from crane_x7_vla_rl.types import JointState, Observation


def observation(time_s: float = 0.0, size: tuple[int, int] = (320, 240)) -> Observation:
    image = np.zeros((size[1], size[0], 3), np.uint8)
    return Observation(image, JointState(HOME_RAD, np.zeros(8)), "pick up the red cube", time_s)


@pytest.fixture
def venv(tmp_path: Path) -> str:
    """An environment with LeRobot, as far as files tell: its Python always fails."""
    folder = tmp_path / "venv"
    (folder / f"lib/python3.12/site-packages/lerobot-{VERSION}.dist-info").mkdir(parents=True)
    (folder / "bin").mkdir()
    python = folder / "bin/python"
    python.write_text("#!/bin/sh\necho 'error: no such luck' >&2\nexit 5\n")
    python.chmod(0o755)
    return str(folder)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint, as far as its small files tell."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"type": "act", "input_features": {}}))
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        (folder / name).write_text('{"steps": []}')
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(4)
    (folder / "model.safetensors").write_bytes(content)
    return folder


def test_without_lerobot_the_command_is_named(tmp_path: Path, checkpoint: Path) -> None:
    options = ModelOptions(str(checkpoint), lerobot_venv=str(tmp_path / "absent"))
    with pytest.raises(PolicyLoadError, match="run scripts/setup-lerobot"):
        load(options)


def test_a_checkpoint_that_does_not_state_its_units_is_refused(venv: str, checkpoint: Path) -> None:
    with pytest.raises(PolicyLoadError, match="POLICY_IO") as raised:
        load(ModelOptions(str(checkpoint), lerobot_venv=venv))
    assert "policy_io.yaml" in str(raised.value)


def test_a_truncated_checkpoint_is_refused_before_anything_starts(
    venv: str, checkpoint: Path
) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(PolicyLoadError, match="truncated"):
        load(ModelOptions(str(checkpoint), lerobot_venv=venv))


def test_the_error_of_the_process_is_the_users_error(venv: str, checkpoint: Path) -> None:
    with pytest.raises(PolicyLoadError, match=r"^no such luck$"):
        load(ModelOptions(str(checkpoint), lerobot_venv=venv, policy_io="lerobot"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lerobot_rig.tiny("pi0", tmp_path_factory.mktemp("tiny") / "pi0")


@pytest.fixture
def policy(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LerobotPolicy]:
    for name, value in lerobot_rig.environment().items():
        monkeypatch.setenv(name, value)
    made = load(ModelOptions(str(tiny), answer_timeout_s=20.0))
    assert isinstance(made, LerobotPolicy)
    yield made
    made.close()


@pytest.mark.lerobot
@pytest.mark.timeout(300)
def test_a_checkpoint_predicts_from_any_size_of_camera(policy: LerobotPolicy) -> None:
    """The image is resized as policy_io.yaml says, and real-time chunking gets the rest."""
    for k, size in enumerate([(640, 480), (320, 240), (96, 64)]):
        (chunk,) = policy.predict([observation(0.2 * k, size)])
        assert chunk.position_rad.shape == (10, 8)
        assert chunk.period_s == 0.1
        assert np.abs(chunk.position_rad - HOME_RAD).max() < 1.0
    policy.reset()
    assert len(policy.predict([observation()])) == 1


@pytest.mark.lerobot
@pytest.mark.timeout(300)
def test_a_killed_process_raises_and_is_started_again(policy: LerobotPolicy) -> None:
    policy.predict([observation()])
    assert policy.child.pid is not None
    os.kill(policy.child.pid, signal.SIGKILL)
    time.sleep(0.2)
    with pytest.raises(RemoteError, match=r"killed by signal 9|ended without a farewell"):
        policy.predict([observation()])
    said, end_s = "", time.monotonic() + 10  # a busy machine takes time to end it
    while "being started again" not in said:
        assert time.monotonic() < end_s, said
        with pytest.raises(RemoteError) as caught:
            policy.predict([observation()])
        said = str(caught.value)
    end_s = time.monotonic() + 120
    while policy.child.starts < 2:
        assert time.monotonic() < end_s
        time.sleep(0.1)
    while True:
        try:
            (chunk,) = policy.predict([observation()])
            break
        except RemoteError:
            assert time.monotonic() < end_s
            time.sleep(0.1)
    assert chunk.position_rad.shape == (10, 8)


@pytest.mark.lerobot
@pytest.mark.timeout(300)
def test_closing_the_policy_ends_its_process(policy: LerobotPolicy) -> None:
    pid = policy.child.pid
    policy.close()
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.lerobot
@pytest.mark.timeout(300)
def test_a_moved_checkpoint_brings_its_tokenizer(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of the tokenizer in policy_preprocessor.json is another machine's."""
    for name, value in lerobot_rig.environment().items():
        monkeypatch.setenv(name, value)
    moved = tmp_path / "checkpoints/000020/pretrained_model"
    shutil.copytree(tiny, moved)
    path = moved / "policy_preprocessor.json"
    path.write_text(path.read_text().replace(str(tiny), "/absent/tokenizer"))
    made = load(ModelOptions(str(tmp_path), answer_timeout_s=20.0))
    try:
        assert len(made.predict([observation()])) == 1
    finally:
        made.close()  # type: ignore[attr-defined]
