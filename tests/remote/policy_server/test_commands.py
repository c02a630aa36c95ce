"""`infer` with a policy server, as processes: what a user types, and how each mistake ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from loop_rig import FaultyRobot
from plain_policy_server import PlainPolicyServer

from crane_x7_remote.errors import ExitCode
from crane_x7_vla_rl.policies.load import TINY

CLEAN = {
    key: value
    for key, value in os.environ.items()
    if not key.startswith(("VLA_", "ROSBRIDGE_", "POLICY_"))
}


def infer(*flags: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "crane_x7_remote", "infer", "--rosbridge-host", "127.0.0.1", *flags],
        capture_output=True, text=True, timeout=120, env=CLEAN | environ, check=False,
    )  # fmt: skip


@contextmanager
def served(**environ: str) -> Iterator[str]:
    """Serve the shipped policy by the real command; yields its address."""
    command = [sys.executable, "-m", "crane_x7_remote", "serve-policy", "--port", "0"]
    model = ["--vla-policy", "openvla", "--vla-model-path", str(TINY), "--vla-device", "cpu"]
    process = subprocess.Popen(
        command + model, stdout=subprocess.PIPE, text=True, env=CLEAN | environ
    )
    try:
        assert process.stdout is not None
        found = re.search(r"at (ws://[^,]+),", process.stdout.readline())
        assert found is not None
        yield found[1]
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0


@pytest.mark.timeout(300)
def test_the_loop_drives_by_serve_policy_in_another_process() -> None:
    with FaultyRobot() as robot, served(POLICY_API_KEY="key") as url:
        flags = ["--rosbridge-port", str(robot.port), "--policy-server", url, "--duration", "6",
                 "--vla-task-instruction", "pick up the red cube", "--policy-timeout", "3",
                 "--max-jump", "1.6", "--trajectory-validity", "1.25", "--policy-jpeg", "90",
                 "--vla-inference-rate", "1.6"]  # fmt: skip
        refused = infer(*flags, "--policy-api-key", "another")
        assert refused.returncode == ExitCode.POLICY_LOAD
        assert "set POLICY_API_KEY" in refused.stderr
        assert "another" not in refused.stderr
        done = infer(*flags, POLICY_API_KEY="key")
        assert done.returncode == 0, done.stderr
        assert f"policy server {url}: openvla" in done.stderr
        assert robot.moved >= 3, done.stderr
        robot.assert_nothing_bad_arrived()


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--policy-server", "ws://127.0.0.1:9"], ExitCode.POLICY_LOAD, "no policy server at"),
        (["--policy-server", "http://x"], ExitCode.POLICY_LOAD, "expected ws://host:port"),
        (["--vla-policy", "remote"], ExitCode.POLICY_LOAD, "set POLICY_SERVER to its address"),
        (
            ["--policy-server", "127.0.0.1:9", "--vla-model-path", str(TINY)],
            ExitCode.SETTINGS,
            "both VLA_MODEL_PATH and POLICY_SERVER are set",
        ),
        (
            ["--policy-server", "127.0.0.1:9", "--policy-io", "aloah"],
            ExitCode.POLICY_LOAD,
            "did you mean aloha?",
        ),
        (["--policy-jpeg", "101", "--policy-server", "x"], ExitCode.SETTINGS, "at most 100"),
    ],
)
def test_a_mistake_ends_at_once_and_names_what_to_set(
    flags: list[str], code: ExitCode, said: str
) -> None:
    done = infer(*flags)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_without_metadata_on_its_inputs_names_the_presets() -> None:
    with PlainPolicyServer(lambda _: {}, {"model": "pi05_droid"}) as server:
        done = infer("--policy-server", server.url)
    assert done.returncode == ExitCode.POLICY_LOAD
    assert "set POLICY_IO to a file, or to one of droid, aloha" in done.stderr
