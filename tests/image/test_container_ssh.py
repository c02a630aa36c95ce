"""sshd in the container: who gets in, what a session sees, and what it may forward."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from containers import Container, Network, Workshop, wait_for
from ssh_login import Login

pytestmark = pytest.mark.container

AWKWARD = {
    "VLA_TASK_INSTRUCTION": """say "hi" to 'bob' for $5 & `date` # not a comment \\n""",
    "WANDB_API_KEY": "k-$(hostname)-#-'\"",
    "HF_TOKEN": "hf_abc=def==",
    "MY_OWN": "  spaces kept  ",
}
"""Values that a shell, PAM or a careless writer would damage."""


@pytest.fixture
def login(network: Network, tmp_path: Path) -> Login:
    return Login.make(network, tmp_path)


@contextmanager
def _booted(
    workshop: Workshop,
    image: str,
    login: Login,
    *command: str,
    options: tuple[str, ...] = (),
    **environ: str,
) -> Iterator[Container]:
    """A container that lets `login` in."""
    environ = {"SSH_PUBLIC_KEY": login.public_key} | environ
    with Container(workshop, image, login.network, command, environ, options) as container:
        login.wait()
        yield container


def test_key_opens_a_session_as_vla(workshop: Workshop, image: str, login: Login) -> None:
    with _booted(workshop, image, login):
        done = login.run("id -un; id -u; pwd; command -v python; command -v crane-x7-remote")
    assert done.stdout.split() == [
        *("vla", "1000", "/home/vla"),
        *("/opt/venv/bin/python", "/opt/venv/bin/crane-x7-remote"),
    ]


def test_a_login_shell_finds_our_programs(workshop: Workshop, image: str, login: Login) -> None:
    """Debian's /etc/profile forgets the PATH that the session came with."""
    with _booted(workshop, image, login):
        done = login.run("bash -lc 'command -v python; command -v crane-x7-remote; command -v ls'")
    assert done.stdout.split() == [
        *("/opt/venv/bin/python", "/opt/venv/bin/crane-x7-remote", "/usr/bin/ls"),
    ]


def test_runpods_name_for_the_key_works_too_and_many_keys_in_one(
    workshop: Workshop, image: str, login: Login, tmp_path: Path
) -> None:
    others = [Login.make(login.network, _folder(tmp_path, name)) for name in ("a", "b")]
    with _booted(
        workshop,
        image,
        login,
        SSH_PUBLIC_KEY=f"{others[0].public_key}\n\n{login.public_key}\n",
        PUBLIC_KEY=others[1].public_key,
    ):
        for other in others:
            assert other.run("whoami").stdout == "vla\n"


def test_root_password_and_strange_key_are_refused(
    workshop: Workshop, image: str, login: Login, tmp_path: Path
) -> None:
    stranger = Login.make(login.network, _folder(tmp_path, "stranger"))
    by_password = ("-o", "PubkeyAuthentication=no", "-o", "BatchMode=no")
    with _booted(workshop, image, login):
        for attempt in (
            stranger.run("true"),
            login.on(user="root").run("true"),
            login.run("true", flags=by_password),
        ):
            assert attempt.returncode == 255
            assert "Permission denied (publickey)" in attempt.stderr


def test_ssh_port_is_obeyed(workshop: Workshop, image: str, login: Login) -> None:
    there = login.on(port=2201)
    with _booted(workshop, image, there, SSH_PORT="2201"):
        assert login.run("true").returncode == 255
        ports = {port for _, port, program in login.network.listeners() if program == "sshd"}
    assert ports == {2201}


def test_environment_reaches_a_command_over_ssh_intact(
    workshop: Workshop, image: str, login: Login
) -> None:
    with _booted(workshop, image, login, **AWKWARD):
        seen = login.run("cat /proc/self/environ").stdout.split("\0")
        login_shell = login.run("bash -lc 'cat /proc/self/environ'").stdout.split("\0")
        interactive = subprocess.run(
            login.command(flags=("-tt",)),
            input='printf "<%s>" "$MY_OWN"; exit\n',
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    for key, value in {**AWKWARD, "NVIDIA_VISIBLE_DEVICES": "all"}.items():
        assert f"{key}={value}" in seen
        assert f"{key}={value}" in login_shell
    assert f"<{AWKWARD['MY_OWN']}>" in interactive.stdout


def test_secrets_are_readable_by_vla_alone(workshop: Workshop, image: str, login: Login) -> None:
    secret = "tokenthatnobodymaysee"
    search = f"grep -rl --exclude-dir=proc --exclude-dir=sys {secret} / 2>/dev/null; true"
    with _booted(workshop, image, login, HF_TOKEN=secret, WANDB_API_KEY=secret) as container:
        files = container.exec("sh", "-c", search).stdout.split()
        assert files, "vla's sessions need it somewhere"
        for file in files:
            owner, mode = container.exec("stat", "-c", "%U %a", file).stdout.split()
            assert owner in ("vla", "root"), file
            assert mode in ("600", "400"), file
        as_nobody = container.exec("sh", "-c", search, user="nobody").stdout
        assert as_nobody == ""
        assert secret not in container.logs()


def test_each_container_has_its_own_host_keys_and_keeps_them(
    workshop: Workshop, image: str, login: Login, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    volume = ("--volume", f"{state}:/var/lib/tailscale")
    with _booted(workshop, image, login, options=volume) as container:
        first = login.host_keys()
        container.stop()
        container.start_again()
        login.wait()
        assert login.host_keys() == first
    with _booted(workshop, image, login, options=volume):
        assert login.host_keys() == first, "a new container on the same volume is the same host"
    login.known_hosts.unlink()
    with _booted(workshop, image, login):
        assert first
        assert not login.host_keys() & first


def test_x11_window_comes_through_ssh_and_x11_listens_on_localhost(
    workshop: Workshop, image: str, login: Login, tmp_path: Path
) -> None:
    with _x_server(login.network, tmp_path) as environ, _booted(workshop, image, login):
        shown = login.run("echo $DISPLAY", flags=("-X",), environ=environ).stdout.strip()
        assert shown.startswith("localhost:"), shown
        eyes = subprocess.Popen(login.command("xeyes", flags=("-X",)), env=environ)
        try:
            wait_for(lambda: "xeyes" in _windows(environ), "xeyes shows a window on our display")
            x11 = {host for host, port, _ in login.network.listeners() if 6010 <= port < 6100}
        finally:
            eyes.terminate()
            eyes.wait(10)
    assert x11
    assert x11 <= {"127.0.0.1", "::1"}


def test_forwarding_reaches_localhost_alone(workshop: Workshop, image: str, login: Login) -> None:
    subprocess.run(
        login.network.inside("ip", "addr", "add", "192.0.2.7/32", "dev", "lo"), check=True
    )
    with _booted(workshop, image, login):
        allowed = login.run(flags=("-W", "127.0.0.1:22")).stdout
        refused = login.run(flags=("-W", "192.0.2.7:22"))
        tunnel = login.run("true", flags=("-w", "0:0"))
    assert allowed.startswith("SSH-2.0-")
    assert refused.returncode == 255
    assert "administratively prohibited" in refused.stderr
    assert tunnel.returncode != 0 or "tun" in tunnel.stderr.lower()


def test_custom_command_runs_beside_sshd_with_its_own_exit_code(
    workshop: Workshop, image: str, login: Login
) -> None:
    command = ("sh", "-c", 'while [ ! -e "$HOME/go" ]; do sleep 0.1; done; whoami; exit 37')
    with _booted(workshop, image, login, *command) as container:
        assert login.run("touch go").returncode == 0
        assert container.wait() == 37
        assert "vla" in container.logs().split()


def test_killed_sshd_comes_back(workshop: Workshop, image: str, login: Login) -> None:
    with _booted(workshop, image, login) as container:
        before = _pids(container, "sshd")
        container.exec("sh", "-c", f"kill -9 {before[0]}")
        wait_for(lambda: _pids(container, "sshd")[:1] not in ([], before[:1]), "a new sshd")
        login.wait()


def test_without_a_key_no_sshd_listens(workshop: Workshop, image: str, network: Network) -> None:
    with Container(workshop, image, network, ("sleep", "infinity")) as container:
        wait_for(container.is_healthy, "boot reports health")
        assert not {entry for entry in network.listeners() if entry[2] == "sshd"}


@contextmanager
def _x_server(network: Network, folder: Path) -> Iterator[dict[str, str]]:
    """A virtual display with an X authority, as a user's desktop has; yields its environment."""
    with socket.socket(socket.AF_UNIX) as probe:
        number = next(n for n in range(40, 99) if probe.connect_ex(f"/tmp/.X11-unix/X{n}") != 0)
    environ = os.environ | {"DISPLAY": f":{number}", "XAUTHORITY": str(folder / "xauthority")}
    subprocess.run(["xauth", "add", f":{number}", ".", "00112233445566778899aabbccddeeff"],
                   env=environ, check=True, capture_output=True)  # fmt: skip
    # -noreset: without it the display forgets the ticket of `ssh -X` whenever its last client goes.
    server = subprocess.Popen(
        network.inside("Xvfb", f":{number}", "-auth", environ["XAUTHORITY"], "-nolisten", "tcp",
                       "-noreset"),
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: _windows(environ), "Xvfb answers")
        yield environ
    finally:
        server.terminate()
        server.wait(10)


def _windows(environ: dict[str, str]) -> str:
    done = subprocess.run(
        ["xwininfo", "-root", "-tree"], env=environ, capture_output=True, text=True, check=False
    )
    return done.stdout


def _folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def _pids(container: Container, program: str) -> list[str]:
    done = container.exec("pgrep", "-o", "-x", program, check=False)
    return done.stdout.split()
