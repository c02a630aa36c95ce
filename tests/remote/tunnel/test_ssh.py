"""The tunnel through ssh: a real sshd, OpenSSH's client and rosbridge, in both directions."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
from containers import MissingToolsError
from loop_rig import FaultyRobot, RunningLoop, Tunnel, wait_until
from processes import children, is_alive
from sshd_rig import Sshd, find_sshd, make_key
from tailnet_rig import LOOPBACK, Process, free_port

from crane_x7_remote.errors import (
    ExitCode,
    ForwardRefusedError,
    PeerUnreachableError,
    RemoteError,
    SshAuthError,
    SshHostKeyError,
    SshUnreachableError,
)
from crane_x7_remote.tunnel.ssh import SshTunnel
from crane_x7_remote.tunnel.ssh_cli import Patience, SshConfig, arguments, complaint

Direction = Literal["local", "remote"]
both_directions = pytest.mark.parametrize("direction", ["local", "remote"])

# --- words, without any program ------------------------------------------------------------------

CONFIG = SshConfig("local", "vla@gpu.test", 9090, ssh_port=2222)


@pytest.mark.parametrize(
    ("said", "kind", "patience"),
    [
        ("Host key verification failed.", SshHostKeyError, Patience.NONE),
        (
            "vla@gpu.test: Permission denied (publickey).",
            SshAuthError,
            Patience.IF_IT_EVER_WORKED,
        ),
        (
            "bind [127.0.0.1]:9090: Address already in use",
            ForwardRefusedError,
            Patience.IF_IT_EVER_WORKED,
        ),
        (
            "Error: remote port forwarding failed for listen port 9090",
            ForwardRefusedError,
            Patience.ALWAYS,
        ),
        (
            "channel 2: open failed: administratively prohibited: open failed",
            ForwardRefusedError,
            Patience.IF_IT_EVER_WORKED,
        ),
        (
            "ssh: Could not resolve hostname gpu.test: Name or service not known",
            SshUnreachableError,
            Patience.ALWAYS,
        ),
        (
            "ssh: connect to host gpu.test port 2222: Connection refused",
            SshUnreachableError,
            Patience.ALWAYS,
        ),
        (
            "ssh: connect to host gpu.test port 2222: No route to host",
            SshUnreachableError,
            Patience.ALWAYS,
        ),
        ("Timeout, server gpu.test not responding.", SshUnreachableError, Patience.ALWAYS),
        ("Connection to gpu.test closed by remote host.", SshUnreachableError, Patience.ALWAYS),
        ("command-line: line 0: Bad configuration option: x", SshUnreachableError, Patience.NONE),
        ("something new", SshUnreachableError, Patience.ALWAYS),
    ],
)
def test_each_complaint_of_ssh_has_its_error_and_patience(
    said: str, kind: type[RemoteError], patience: Patience
) -> None:
    found = complaint(["Warning: Permanently added 'gpu.test'.", said], CONFIG)
    assert (found.kind, found.patience) == (kind, patience)
    assert len(found.text) > 30


def test_a_refused_channel_is_not_taken_for_a_missing_sshd() -> None:
    lines = [
        "channel 2: open failed: connect failed: Connection refused",
        "Timeout, server gpu.test not responding.",
    ]
    assert "is silent" in complaint(lines, CONFIG).text


@both_directions
def test_no_port_is_opened_beyond_the_loopback(direction: Direction) -> None:
    words = arguments(dataclasses.replace(CONFIG, direction=direction), 40000)
    forwards = [after for flag, after in itertools.pairwise(words) if flag in ("-L", "-R")]
    assert forwards
    assert all(forward.startswith("127.0.0.1:") for forward in forwards)
    assert words[-3:-1] == ["--", "vla@gpu.test"]


def test_the_host_key_is_always_checked() -> None:
    assert "StrictHostKeyChecking=accept-new" in arguments(CONFIG, 40000)


async def test_ssh_is_understood_on_a_machine_that_speaks_another_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ssh"
    program.write_text(
        "#!/bin/sh\n"
        'reason="Verbindungsaufbau abgelehnt"\n'
        '[ "$LC_ALL" != C ] || reason="Connection refused"\n'
        'echo "ssh: connect to host gpu.test port 2222: $reason" >&2\n'
        "exit 255\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    config = dataclasses.replace(CONFIG, port=free_port(), program=str(program), timeout_s=0.2)
    error = await failure(config)
    assert "no process listens on port 2222; check sshd" in str(error)


# --- with a real sshd ----------------------------------------------------------------------------


def real(test: Any) -> Any:
    """Mark a test that needs sshd."""
    return pytest.mark.container(pytest.mark.usefixtures("openssh")(test))


@pytest.fixture(scope="module")
def openssh(request: pytest.FixtureRequest) -> None:
    """sshd is on this machine, if need be because it was installed just now."""
    try:
        find_sshd()
    except MissingToolsError:
        request.getfixturevalue("workshop")


@pytest.fixture
def sshd(openssh: None, tmp_path: Path) -> Iterator[Sshd]:
    del openssh
    with Sshd(tmp_path / "sshd") as server:
        yield server


@pytest.fixture
def robot() -> Iterator[FaultyRobot]:
    with FaultyRobot() as robot:
        yield robot


def config_of(sshd: Sshd, direction: Direction, rosbridge_port: int, **changes: Any) -> SshConfig:
    """A tunnel by way of `sshd`; both its ends are on this machine, at different ports."""
    values = {
        "direction": direction,
        "destination": sshd.destination,
        "port": free_port(),
        "rosbridge_port": rosbridge_port,
        "ssh_port": sshd.port,
        "identity": sshd.identity,
        "known_hosts": sshd.known_hosts,
        "timeout_s": 30.0,
    }
    return SshConfig(**(values | changes))


@contextlib.asynccontextmanager
async def held(config: SshConfig) -> AsyncIterator[SshTunnel]:
    """A tunnel that is up."""
    tunnel, stop = SshTunnel(config), asyncio.Event()
    task = asyncio.create_task(tunnel.run(stop))
    try:
        await until(lambda: tunnel.is_up or task.done(), "the tunnel is up")
        yield tunnel
    finally:
        stop.set()
        await asyncio.wait_for(task, 10)


async def until(holds: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
    await asyncio.to_thread(wait_until, holds, timeout_s, what)


async def failure(config: SshConfig) -> RemoteError:
    """Return what a tunnel that never comes up ends with."""
    with pytest.raises(RemoteError) as caught:
        await asyncio.wait_for(SshTunnel(config).run(asyncio.Event()), 30)
    return caught.value


def listens(port: int) -> bool:
    """Return whether something takes connections at `port` of the loopback."""
    try:
        socket.create_connection((LOOPBACK, port), 5).close()
    except ConnectionRefusedError:
        return False
    return True


def drive(port: int, ticks: int = 5) -> None:
    with RunningLoop(port) as running:
        running.wait_driving(ticks=ticks)


@real
@both_directions
async def test_the_loop_drives_through_the_tunnel_as_if_the_robot_were_here(
    sshd: Sshd, robot: FaultyRobot, direction: Direction
) -> None:
    config = config_of(sshd, direction, robot.port)
    async with held(config):
        await asyncio.to_thread(drive, config.port)
    robot.assert_nothing_bad_arrived()
    assert sshd.host_key in sshd.known_hosts.read_text()
    # `remote`: sshd closes its port when it notices that the connection is gone.
    await until(lambda: not listens(config.port), "the port is closed")


@real
@both_directions
async def test_a_killed_sshd_that_comes_back_lets_the_same_loop_go_on(
    sshd: Sshd, robot: FaultyRobot, direction: Direction
) -> None:
    config = config_of(sshd, direction, robot.port)

    def switch_off_and_on() -> None:
        with RunningLoop(config.port) as running:
            running.wait_driving()
            sshd.kill()
            wait_until(lambda: not running.client.link.connected, 20, "the loop notices")
            time.sleep(1.0)
            sshd.start()
            running.wait_driving(timeout_s=30)
            assert running.client.link.reconnects >= 1

    async with held(config) as tunnel:
        await asyncio.to_thread(switch_off_and_on)
        assert tunnel.is_up
        assert tunnel.times_up >= 2
    robot.assert_nothing_bad_arrived(refused=("expired",))


@real
async def test_a_link_that_goes_dark_is_given_up_and_heals(sshd: Sshd, robot: FaultyRobot) -> None:
    with Tunnel(sshd.port) as link:
        config = config_of(sshd, "local", robot.port, ssh_port=link.port)
        async with held(config) as tunnel:
            link.go_dark()
            await until(lambda: not tunnel.is_up, "the silence is noticed")
            link.come_back()
            await until(lambda: tunnel.is_up, "the tunnel is made again")
            await asyncio.to_thread(drive, config.port)


@real
@both_directions
async def test_the_tunnel_waits_for_rosbridge_and_says_where(
    sshd: Sshd, direction: Direction, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    port = free_port()
    tunnel = SshTunnel(config_of(sshd, direction, port))
    stop = asyncio.Event()
    task = asyncio.create_task(tunnel.run(stop))
    side = "here" if direction == "remote" else f"at {sshd.destination}"
    missing = f"no rosbridge answers at {LOOPBACK}:{port} {side}"
    await until(lambda: missing in caplog.text, "it says what is missing")
    assert not tunnel.is_up
    with FaultyRobot(port=port):
        await until(lambda: tunnel.is_up, "the tunnel is up once rosbridge is")
    stop.set()
    await asyncio.wait_for(task, 10)


@real
@both_directions
async def test_no_rosbridge_in_time_is_an_error(sshd: Sshd, direction: Direction) -> None:
    error = await failure(config_of(sshd, direction, free_port(), timeout_s=1.0))
    assert type(error) is PeerUnreachableError
    assert "no rosbridge answers" in str(error)


@real
async def test_a_key_that_sshd_refuses_is_an_error_at_once(sshd: Sshd, tmp_path: Path) -> None:
    stranger = make_key(tmp_path / "stranger")
    error = await failure(config_of(sshd, "local", 9090, identity=stranger))
    assert type(error) is SshAuthError
    assert str(stranger) in str(error)


@real
async def test_another_host_key_ends_a_tunnel_that_was_up(sshd: Sshd, robot: FaultyRobot) -> None:
    config = config_of(sshd, "local", robot.port)
    tunnel = SshTunnel(config)
    task = asyncio.create_task(tunnel.run(asyncio.Event()))
    await until(lambda: tunnel.is_up, "the tunnel is up")
    sshd.kill()
    sshd.renew_host_key()
    sshd.start()
    with pytest.raises(SshHostKeyError, match=rf"ssh-keygen -R '\[{LOOPBACK}\]:{sshd.port}'"):
        await asyncio.wait_for(task, 30)


@real
async def test_a_port_that_is_taken_here_is_an_error_even_if_rosbridge_holds_it(
    sshd: Sshd, robot: FaultyRobot
) -> None:
    error = await failure(config_of(sshd, "local", robot.port, port=robot.port))
    assert type(error) is ForwardRefusedError
    assert f"{LOOPBACK}:{robot.port} here" in str(error)


@real
async def test_a_port_that_is_taken_there_is_waited_for(sshd: Sshd, robot: FaultyRobot) -> None:
    with socket.create_server((LOOPBACK, 0)) as holder:
        config = config_of(sshd, "remote", robot.port, port=holder.getsockname()[1])
        error = await failure(dataclasses.replace(config, timeout_s=1.0))
        assert type(error) is ForwardRefusedError
        assert "AllowTcpForwarding or PermitListen" in str(error)
        task = asyncio.create_task(asyncio.sleep(1.5))
        task.add_done_callback(lambda _: holder.close())
        async with held(config) as tunnel:
            assert tunnel.is_up
        await task


@real
async def test_sshd_that_forbids_forwarding_is_named(tmp_path: Path, robot: FaultyRobot) -> None:
    with Sshd(tmp_path / "strict", {"AllowTcpForwarding": "no"}) as sshd:
        error = await failure(config_of(sshd, "local", robot.port))
        assert type(error) is ForwardRefusedError
        assert "AllowTcpForwarding" in str(error)


@real
async def test_sshd_that_allows_only_the_way_back_is_enough_for_remote(
    tmp_path: Path, robot: FaultyRobot
) -> None:
    with Sshd(tmp_path / "strict", {"AllowTcpForwarding": "remote"}) as sshd:
        config = config_of(sshd, "remote", robot.port)
        async with held(config):
            await asyncio.to_thread(drive, config.port)


@real
@pytest.mark.parametrize("command", ["exit 3", "sleep 1"])
async def test_an_account_that_runs_no_command_of_ours_is_enough(
    tmp_path: Path, robot: FaultyRobot, command: str
) -> None:
    with Sshd(tmp_path / "forced", {"ForceCommand": command}) as sshd:
        config = config_of(sshd, "local", robot.port)
        async with held(config) as tunnel:
            await until(lambda: not tunnel.has_session and tunnel.is_up, "up without a command")
            await asyncio.to_thread(drive, config.port)


def is_idle_command(pid: int) -> bool:
    """Whether sshd started it: an account's start files may run a cat too, as pyenv's do."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        starter = psutil.Process(process.ppid())
        return process.cmdline() == ["cat"] and starter.name().startswith("sshd")
    return False


@real
async def test_nothing_of_ours_stays_over_there(sshd: Sshd, robot: FaultyRobot) -> None:
    def idle() -> list[int]:
        return [pid for pid in sshd.descendants if is_idle_command(pid)]

    async with held(config_of(sshd, "local", robot.port)) as tunnel:
        assert tunnel.has_session
        await until(idle, "the command over there runs")
        (command,) = idle()
    await until(lambda: not is_alive(command), "the command over there has ended")


@real
async def test_sshd_that_would_publish_the_port_does_not(
    tmp_path: Path, robot: FaultyRobot
) -> None:
    with Sshd(tmp_path / "open", {"GatewayPorts": "clientspecified"}) as sshd:
        config = config_of(sshd, "remote", robot.port)
        async with held(config):
            socket.create_connection((LOOPBACK, config.port), 5).close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", config.port), 5)


@real
async def test_no_sshd_is_waited_for_and_then_an_error(sshd: Sshd) -> None:
    sshd.kill()
    error = await failure(config_of(sshd, "local", 9090, timeout_s=1.0))
    assert type(error) is SshUnreachableError
    assert f"no process listens on port {sshd.port}" in str(error)


@real
async def test_no_ssh_program_is_said(sshd: Sshd) -> None:
    error = await failure(config_of(sshd, "local", 9090, program="no-such-ssh"))
    assert "openssh-client" in str(error)


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def command(sshd: Sshd, robot: FaultyRobot) -> list[str]:
    """`crane-x7-remote tunnel remote`, to a free port."""
    return [
        *(sys.executable, "-m", "crane_x7_remote", "tunnel", "remote", sshd.destination),
        *("-p", str(sshd.port), "-i", str(sshd.identity)),
        *("--known-hosts", str(sshd.known_hosts), "--rosbridge-port", str(robot.port)),
        *("--listen-port", str(free_port())),
    ]


@real
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_command_ends_in_order_and_leaves_no_ssh_behind(
    command: list[str], tmp_path: Path, end: signal.Signals
) -> None:
    process = Process(command, tmp_path / "log")
    wait_until(lambda: "up: rosbridge is at" in process.tail, 30, "the tunnel is up")
    (ssh,) = children(process.popen.pid)
    os.kill(process.popen.pid, end)
    assert process.popen.wait(10) == (-end if end == signal.SIGKILL else ExitCode.OK)
    wait_until(lambda: not is_alive(ssh), 10, "ssh is gone")


@real
def test_the_command_has_an_exit_code_and_one_line_per_cause(
    command: list[str], tmp_path: Path
) -> None:
    command[command.index("-i") + 1] = str(make_key(tmp_path / "stranger"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == ExitCode.SSH_AUTH, done.stderr
    assert done.stderr.splitlines()[-1].startswith("crane-x7-remote tunnel: ")
    assert "Traceback" not in done.stderr
