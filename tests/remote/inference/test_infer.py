"""The command `infer` as a process: its exit codes, its messages, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from loop_rig import FaultyRobot, wait_until
from places import RIGS

SCRIPT = RIGS.joinpath("infer_with_policy.py")
WAITS = "policy warmed up"
"""The last line before the command waits for the robot."""
CLEAN = {
    key: value for key, value in os.environ.items() if not key.startswith(("VLA_", "ROSBRIDGE_"))
}


def _infer(policy: str, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), policy, *flags],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=CLEAN,
    )


def _command(*flags: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "crane_x7_remote", "infer", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        env=CLEAN | environ,
        check=False,
    )


@pytest.fixture
def robot() -> Iterator[FaultyRobot]:
    with FaultyRobot() as robot:
        yield robot


def _at(robot: FaultyRobot) -> tuple[str, ...]:
    return ("--rosbridge-host", "127.0.0.1", "--rosbridge-port", str(robot.port))


def _wait_for_line(process: subprocess.Popen[str], part: str, timeout_s: float = 60.0) -> str:
    """Read the command's log up to a line with `part`; return what was read."""
    assert process.stderr is not None
    too_late = threading.Timer(timeout_s, process.kill)
    too_late.start()
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if part in line:
                return "".join(lines)
    finally:
        too_late.cancel()
    pytest.fail(f"no line with {part!r} within {timeout_s} s:\n{''.join(lines)}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_the_middle_of_a_tick_ends_in_order_with_the_arm_at_rest(
    robot: FaultyRobot, tmp_path: Path, number: signal.Signals
) -> None:
    metrics = tmp_path / "metrics.json"
    process = _infer("slow", *_at(robot), "--metrics", str(metrics))
    try:
        wait_until(lambda: robot.moved >= 12, 30, "driving")
        process.send_signal(number)
        if number == signal.SIGHUP:  # of a lost session: one from the kernel, one from the shell
            process.send_signal(number)
        _, errors = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    time.sleep(1.0)
    resting = robot._controller.update(robot.time_s()).copy()  # type: ignore[union-attr]
    time.sleep(0.3)
    assert (robot._controller.update(robot.time_s()) == resting).all()  # type: ignore[union-attr]
    robot.assert_nothing_bad_arrived()
    assert json.loads(metrics.read_text())["trajectories"] >= 12


def test_a_signal_ends_the_loop_although_nobody_reads_its_log(robot: FaultyRobot) -> None:
    """Standard error is a full pipe, as that of a stopped `less`."""
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "slow", *_at(robot)],
        stderr=write, stdout=subprocess.DEVNULL, env=CLEAN,
    )  # fmt: skip
    try:
        wait_until(lambda: robot.moved >= 12, 60, "driving")
        # Opened again: the process's own end still blocks.
        full = os.open(f"/proc/self/fd/{write}", os.O_WRONLY | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(full, b".")
        os.close(full)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(10)
        os.close(read)
        os.close(write)
    moved = robot.moved
    time.sleep(0.5)
    assert robot.moved == moved


def test_a_duration_ends_the_loop_and_leaves_metrics(robot: FaultyRobot, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    process = _infer(
        "slow", *_at(robot), "--duration", "3", "--metrics", str(path), "--session", "0a1b2c3d"
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    metrics = json.loads(path.read_text())
    assert metrics["session"] == "0a1b2c3d"
    assert metrics["latency_ms"]["count"] == metrics["trajectories"] > 10
    assert metrics["link"]["connected"] is True
    assert {session for _, session in robot.sessions} == {"0a1b2c3d"}
    robot.assert_nothing_bad_arrived()


def test_dry_run_sends_the_robot_nothing(robot: FaultyRobot, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    process = _infer("slow", *_at(robot), "--dry-run", "--duration", "2", "--metrics", str(path))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert json.loads(path.read_text())["trajectories"] > 5
    assert robot.moved == 0
    assert robot.report.rejected == {}


def test_a_refused_port_names_host_and_port_and_what_to_check() -> None:
    port = _free_port()
    process = _infer(
        "slow", "--rosbridge-host", "127.0.0.1", "--rosbridge-port", str(port),
        "--peer-wait-timeout", "1.5",
    )  # fmt: skip
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 4
    message = errors.splitlines()[-1]
    assert f"127.0.0.1:{port}" in errors
    assert "refused" in errors
    assert "Traceback" not in errors
    assert message


def test_an_unknown_host_names_host_and_port_and_what_to_check() -> None:
    process = _infer(
        "slow", "--rosbridge-host", "no-such-robot.invalid", "--peer-wait-timeout", "1.5"
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "no-such-robot.invalid" in errors
    assert "9090" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ROSBRIDGE_HOST", "wss://robot:9090"),
        ("ROSBRIDGE_HOST", "robot:99999"),
        ("ROSBRIDGE_HOST", "my robot"),
        ("ROSBRIDGE_PROXY", "socks5h://127.0.0.1:99999"),
        ("ROSBRIDGE_PROXY", "127.0.0.1:1055"),
    ],
)
def test_an_address_that_cannot_be_dialled_is_refused_before_anything_starts(
    variable: str, value: str
) -> None:
    done = _command("--policy", "color-servo", **{variable: value})
    assert done.returncode == 3
    assert f"{variable}={value!r}: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_whole_address_as_the_host_drives(robot: FaultyRobot, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    host = f"ws://127.0.0.1:{robot.port}/"
    process = _infer(
        "slow", "--rosbridge-host", host, "--dry-run", "--duration", "2", "--metrics", str(path)
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert json.loads(path.read_text())["trajectories"] > 5


def test_waiting_for_a_robot_that_comes_later_succeeds(tmp_path: Path) -> None:
    port, path = _free_port(), tmp_path / "metrics.json"
    process = _infer(
        "slow", "--rosbridge-host", "127.0.0.1", "--rosbridge-port", str(port),
        "--metrics", str(path),
    )  # fmt: skip
    try:
        _wait_for_line(process, WAITS)
        time.sleep(0.5)  # a few attempts find nobody
        with FaultyRobot(port) as robot:
            wait_until(lambda: robot.moved >= 5, 20, "driving")
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=10)
            robot.assert_nothing_bad_arrived()
    finally:
        process.kill()
    assert process.returncode == 0, errors


def test_a_signal_while_waiting_for_the_robot_ends_in_order() -> None:
    process = _infer("slow", "--rosbridge-host", "127.0.0.1", "--rosbridge-port", "1")
    try:
        log = _wait_for_line(process, WAITS)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, log + errors
    assert "stopping on SIGTERM" in errors
    assert "Traceback" not in log + errors


def test_a_policy_that_cannot_be_loaded_has_its_own_exit_code() -> None:
    process = _infer("broken", "--rosbridge-host", "127.0.0.1")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 5
    assert "weights.safetensors" in errors


def test_a_policy_that_fails_in_the_warm_up_has_its_own_exit_code() -> None:
    process = _infer("failing", "--rosbridge-host", "127.0.0.1")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 5
    assert "ZeroDivisionError" in errors


def test_a_policy_that_answers_nan_in_the_warm_up_does_not_drive(robot: FaultyRobot) -> None:
    process = _infer("nan", *_at(robot))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 5
    assert "is nan for crane_x7_shoulder_fixed_part_pan_joint in step 1 of 2" in errors
    assert "Traceback" not in errors


def test_a_model_that_no_policy_can_load_is_an_error() -> None:
    result = _command(
        "--vla-model-path", "someone/model", "--vla-device", "cpu", HF_HUB_OFFLINE="1"
    )
    assert result.returncode == 5
    assert "someone/model" in result.stderr
    assert "HF_HUB_OFFLINE" in result.stderr
    assert "Traceback" not in result.stderr


def test_policy_is_another_name_of_vla_policy() -> None:
    result = _command("--policy", "openvla")
    assert result.returncode == 5
    assert "set VLA_MODEL_PATH" in result.stderr


def test_no_policy_names_both_ways_to_choose_one() -> None:
    result = _command()
    assert result.returncode == 3
    assert "VLA_MODEL_PATH" in result.stderr
    assert "VLA_POLICY" in result.stderr


def test_all_wrong_settings_are_named_at_once() -> None:
    result = _command("--vla-inference-rate", "0", VLA_POLICY="x", ROSBRIDGE_PORT="none")
    assert result.returncode == 3
    for variable in ("--vla-inference-rate", "VLA_POLICY", "ROSBRIDGE_PORT"):
        assert variable in result.stderr


def test_metrics_into_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    result = _command(
        "--vla-policy", "color-servo", "--metrics", str(tmp_path / "none" / "metrics.json")
    )
    assert result.returncode == 8
    assert "none" in result.stderr
