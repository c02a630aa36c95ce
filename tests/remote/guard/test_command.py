"""`crane-x7-remote guard`, `stop` and `resume` as processes: signals, flags, what is printed."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from guard_rig import (
    ARM,
    PREDICTION,
    STATE_TOPIC,
    Caller,
    GuardProcess,
    command,
    first_line,
    trajectory,
)
from links import RecordingServer
from loop_rig import wait_until

from crane_x7_remote import cli, settings, settings_values
from crane_x7_remote.errors import ExitCode, SettingsError
from crane_x7_remote.guard.command import is_private
from crane_x7_remote.system.parent_death import die_with


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer() as server:
        yield server


@pytest.fixture
def guard(server: RecordingServer) -> Iterator[GuardProcess]:
    with GuardProcess(server.port) as guard:
        wait_until(lambda: server.of("subscribe"), 10, "rosbridge reached")
        yield guard


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "crane_x7_remote", *words],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def stop(guard: GuardProcess, *words: str) -> subprocess.CompletedProcess[str]:
    return run(*(words or ("stop",)), "--port", str(guard.port))


def test_stop_and_resume_are_confirmed(guard: GuardProcess) -> None:
    done = stop(guard, "stop", "--reason", "a hand")
    assert done.returncode == 0, done.stderr
    assert "stopped (" in done.stdout
    assert "a hand" in done.stdout
    assert "a hand" in guard.state()["stopped"]
    assert stop(guard).returncode == 0, "again is no mistake"
    done = stop(guard, "resume")
    assert done.returncode == 0, done.stderr
    assert "resumed" in done.stdout
    assert guard.state()["stopped"] is None


def test_a_stop_that_nobody_confirms_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        for port in (str(deaf.getsockname()[1]), "1"):
            began_s = time.monotonic()
            done = run("stop", "--port", port)
            assert done.returncode == ExitCode.GUARD
            assert "did not confirm" in done.stderr
            assert "emergency stop" in done.stderr
            assert "Traceback" not in done.stderr
            assert time.monotonic() - began_s < 8


def test_a_server_that_is_no_guard_does_not_confirm(server: RecordingServer) -> None:
    done = run("stop", "--port", str(server.port))
    assert done.returncode == ExitCode.GUARD
    assert "did not confirm" in done.stderr


def test_signals_stop_and_resume(guard: GuardProcess) -> None:
    guard.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: guard.state()["stopped"] == "SIGUSR1", 5, "stopped")
    guard.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: guard.state()["stopped"] is None, 5, "resumed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_ends_in_order_with_the_arm_braked(
    guard: GuardProcess, server: RecordingServer, number: signal.Signals
) -> None:
    with guard.connect() as driver:
        driver.publish(ARM, trajectory())
        wait_until(lambda: server.of("publish", ARM), 5, "driving")
        guard.process.send_signal(number)
        assert guard.process.wait(5) == 0
        sent = [operation["msg"]["header"]["frame_id"] for operation in server.of("publish", ARM)]
        assert sent[-1] == "brake"
        assert driver.end().rcvd is not None


def test_a_log_that_nobody_reads_holds_up_nothing(guard: GuardProcess) -> None:
    """A terminal held by Ctrl-S, a journal that stands still: here a pipe of 64 KB."""
    for _ in range(800):
        with guard.connect("/stop", user_agent_header=None) as client:
            client.send({"op": "call_service", "service": "/x"})
    assert stop(guard).returncode == 0
    guard.process.send_signal(signal.SIGTERM)
    assert guard.process.wait(5) == 0


def test_the_token_can_be_a_file_and_is_asked_for(
    server: RecordingServer, tmp_path: object
) -> None:
    path = f"{tmp_path}/token"
    with open(path, "w") as file:
        file.write("s3cret\n")
    with GuardProcess(server.port, "--guard-token", f"file:{path}") as guard:
        assert stop(guard).returncode == 0, "from this machine stopping is free"
        done = stop(guard, "resume")
        assert done.returncode == ExitCode.GUARD
        assert "token" in done.stderr
        assert stop(guard, "resume", "--token", f"file:{path}").returncode == 0
        assert stop(guard, "stop", "--token", "wrong").returncode == ExitCode.GUARD


def test_the_rules_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["guard", "--rules"]) == 0
    text = capsys.readouterr().out
    assert f"publish    {ARM}" in text
    assert f"subscribe  {PREDICTION}" in text
    assert "refused    every other" in text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--guard-listen", "0.0.0.0:9091"], "GUARD_TOKEN"),
        (["--guard-listen", "127.0.0.1:9091,192.168.1.5:9091"], "192.168.1.5"),
        (["--guard-listen", "[::]:9091"], "GUARD_TOKEN"),
        (["--guard-listen", "robot:9091"], "GUARD_TOKEN"),
        (["--guard-listen", "9091"], "--guard-listen '9091'"),
        (["--guard-listen", ""], "--guard-listen ''"),
        (["--guard-upstream", "127.0.0.1:9091"], "both"),
        (["--guard-upstream", "127.0.0.1"], "--guard-upstream '127.0.0.1'"),
        (["--guard-upstream", "127.0.0.1:0"], "GUARD_UPSTREAM"),
        (["--guard-token", "a b"], "--guard-token ***"),
        (["--guard-token", "file:/nowhere"], "GUARD_TOKEN=file:/nowhere"),
        (["--guard-link-timeout", "nan"], "--guard-link-timeout 'nan': expected a number, above 0"),
        (["--guard-max-clients", "0"], "at least 1, at most 100"),
        (["--guard-topics", "/x"], "topic=type"),
    ],
)
def test_wrong_settings_are_named(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["guard", *words]) == ExitCode.SETTINGS
    assert text in capsys.readouterr().err


def test_a_token_lets_it_listen_anywhere_and_a_name_is_no_address(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["guard", "--guard-listen", "robot:1", "--guard-token", "x"]) == ExitCode.GUARD
    assert "robot is not an IP address" in capsys.readouterr().err


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        assert cli.main(["guard", "--guard-listen", place]) == ExitCode.GUARD
    assert place in capsys.readouterr().err


def test_it_listens_on_a_tailnet_address_that_comes_later(server: RecordingServer) -> None:
    places = "127.0.0.1:0,100.64.99.99:0"
    upstream = f"127.0.0.1:{server.port}"
    with command("guard", "--guard-listen", places, "--guard-upstream", upstream) as process:
        assert re.search(r"127.0.0.1 port \d+, 100.64.99.99 port \d+", first_line(process))


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("100.64.0.1", True),
        ("100.127.255.255", True),
        ("fd7a:115c:a1e0::1", True),
        ("100.128.0.1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.1", False),
        ("robot", False),
    ],
)
def test_addresses_that_need_no_token(host: str, private: bool) -> None:
    assert is_private(host) is private


def test_the_token_is_never_shown() -> None:
    loaded = settings.load({"guard_token": "s3cret", "rosbridge_token": "s3cret"}, {})
    assert "s3cret" not in repr(loaded)
    assert {"GUARD_TOKEN", "ROSBRIDGE_TOKEN"} <= settings.secret_variables()
    with pytest.raises(SettingsError) as caught:
        settings_values.token_text(
            settings.load({"guard_token": "s3 cret"}, {}).guard_token, "GUARD_TOKEN"
        )
    assert "s3" not in str(caught.value)


def test_sim_robot_runs_a_guard_before_it_and_ends_it() -> None:
    words = ("--arm", "kinematic", "--port", "0", "--guard", "0")
    with command("sim-robot", *words, fake=False) as process:
        found = re.search(r"port (\d+), guard on port (\d+)", first_line(process))
        assert found
        with Caller(int(found[2])) as client:
            client.subscribe(STATE_TOPIC, "std_msgs/String")
            assert client.state()["stopped"] is None
            client.subscribe("/joint_states", "sensor_msgs/JointState")
            assert client.next("publish", "/joint_states")
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(found[2])))


def test_a_guard_whose_parent_is_killed_ends(server: RecordingServer) -> None:
    """As sim-robot starts it: the kernel tells it."""
    code = (
        "import os, subprocess, sys, time\n"
        "from crane_x7_remote.system.parent_death import die_with\n"
        "p = subprocess.Popen([sys.executable, '-m', 'crane_x7_remote', 'guard', '--guard-listen',"
        f" '127.0.0.1:0', '--guard-upstream', '127.0.0.1:{server.port}'],"
        " preexec_fn=die_with(os.getpid()))\n"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    assert die_with
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate(timeout=10)
    from processes import survivors

    assert not survivors([pid])
