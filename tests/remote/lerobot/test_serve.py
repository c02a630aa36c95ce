"""LeRobot checkpoints behind our server, in LeRobot's environment."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lerobot_rig
import numpy as np
import pytest
from websockets.sync.client import connect

from crane_x7_remote.policy_server import wire
from crane_x7_vla_rl.robot import HOME_RAD

pytestmark = [pytest.mark.lerobot, pytest.mark.timeout(300)]
KINDS = ("act", "diffusion", "smolvla", "pi0", "pi05")


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yield the process and its URL."""
    process = subprocess.Popen(
        [str(lerobot_rig.python()), "-m", "crane_x7_remote.lerobot.serve",
         "--checkpoint", str(folder), "--until-stdin-closes"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=lerobot_rig.environment(), cwd=lerobot_rig.ROOT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving ws://127.0.0.1:"), process.communicate()[1][-3000:]
        yield process, line.split()[1]
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def request() -> dict[str, Any]:
    return {
        "observation.images.base": np.zeros((64, 96, 3), np.uint8),
        "observation.state": HOME_RAD.astype(np.float32),
        "task": "pick up the red cube",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_answers_with_targets_in_radians(tmp_path: Path, kind: str) -> None:
    folder = lerobot_rig.tiny(kind, tmp_path / kind)
    with serving(folder) as (_, url), connect(url, compression=None, max_size=None) as socket:
        metadata = wire.unpack(socket.recv())  # type: ignore[arg-type]
        assert isinstance(metadata, dict)
        assert metadata["policy_type"] == kind
        assert metadata["period_s"] == 0.1
        assert metadata["rtc"] == (kind in ("smolvla", "pi0", "pi05"))
        for extra in ({}, {"reset": True}):
            socket.send(wire.pack(request() | extra))
            answer = wire.unpack(socket.recv())  # type: ignore[arg-type]
            assert isinstance(answer, dict)
            actions = answer["actions"]
            assert actions.dtype == np.float32
            assert actions.shape == (metadata["chunk_steps"], 8)
            assert np.abs(actions - HOME_RAD).max() < 1.0  # near the mean of the statistics
            assert answer["policy_timing"]["infer_ms"] > 0


def test_the_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    folder = lerobot_rig.tiny("act", tmp_path / "act")
    with serving(folder) as (process, _):
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0
    with serving(folder) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_an_error_is_one_line_with_the_exit_code(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(lerobot_rig.python()), "-m", "crane_x7_remote.lerobot.serve",
         "--checkpoint", str(tmp_path)],
        capture_output=True, text=True, timeout=120, env=lerobot_rig.environment(),
        cwd=lerobot_rig.ROOT,
    )  # fmt: skip
    assert done.returncode == 5
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "config.json is missing" in done.stderr
