"""The sshd that boot runs, with OpenSSH's client: who gets in, what a session sees and may do."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from boot_rig import Machine, needs_root
from containers import wait_for
from ssh_login import Login

from crane_x7_remote.errors import ExitCode

pytestmark = [pytest.mark.container, needs_root()]

AWKWARD = {
    "VLA_TASK_INSTRUCTION": """say "hi" to 'bob' for $5 & `date` # no comment \\n""",
    "WANDB_API_KEY": "k-$(hostname)-#-'\"",
    "HF_TOKEN": "hf_abc=def==",
    "MY_OWN": "  spaces kept  ",
    "EMPTY": "",
}
"""Values that a shell, PAM or a careless writer would damage."""


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as machine:
        yield machine


@pytest.fixture
def login(machine: Machine, tmp_path: Path) -> Login:
    return Login.make(machine.network, tmp_path)


def _boot(machine: Machine, login: Login, *words: str, **environ: str) -> None:
    machine.boot(*words, environ={"SSH_PUBLIC_KEY": login.public_key} | environ)
    machine.wait_for_log("role is up")
    login.wait()


def test_key_opens_a_session_as_vla(machine: Machine, login: Login) -> None:
    _boot(machine, login, "sshd")
    done = login.run("id -un; pwd")
    assert done.stdout.split() == ["vla", "/home/vla"]


def test_keys_of_both_variables_and_of_every_line_open(
    machine: Machine, login: Login, tmp_path: Path
) -> None:
    logins = []
    for name in ("second", "third"):
        (tmp_path / name).mkdir()
        logins.append(Login.make(machine.network, tmp_path / name))
    second, third = logins
    keys = f"# two keys\n\n{login.public_key}\n{second.public_key}\n"
    _boot(machine, login, SSH_PUBLIC_KEY=keys, PUBLIC_KEY=third.public_key)
    for one in (login, second, third):
        assert one.run("true").returncode == 0


@pytest.mark.parametrize("between", [" ", "\t", ",", ";", "\\n", "\xa0"])
def test_keys_that_a_platform_joined_all_open(
    machine: Machine, login: Login, tmp_path: Path, between: str
) -> None:
    (tmp_path / "second").mkdir()
    second = Login.make(machine.network, tmp_path / "second")
    keys = between.join((login.public_key, second.public_key))
    _boot(machine, login, "sshd", SSH_PUBLIC_KEY="null", PUBLIC_KEY=keys)
    for one in (login, second):
        assert one.run("true").returncode == 0


@pytest.mark.parametrize("injected", ["null", "None", "undefined", '""', "rubbish"])
def test_an_injected_value_that_is_no_key_keeps_nobody_out(
    machine: Machine, login: Login, injected: str
) -> None:
    _boot(machine, login, "sshd", PUBLIC_KEY=injected)
    assert login.run("true").returncode == 0
    warned = "PUBLIC_KEY: line 1 is not a public key" in machine.log
    assert warned == (injected == "rubbish")


def test_sessions_are_handed_secrets_as_they_were_meant(machine: Machine, login: Login) -> None:
    given = {"HF_TOKEN": "hf_abcdefgh\n", "WANDB_API_KEY": '"wandbkey"', "WANDB_DIR": "null"}
    _boot(machine, login, "sshd", **given)
    seen = login.run("cat /proc/self/environ").stdout.split("\0")
    assert {"HF_TOKEN=hf_abcdefgh", "WANDB_API_KEY=wandbkey"} <= set(seen)
    assert not [entry for entry in seen if entry.startswith("WANDB_DIR=")]
    assert "not in ssh sessions" not in machine.log


def test_root_password_and_strange_key_are_refused(
    machine: Machine, login: Login, tmp_path: Path
) -> None:
    (tmp_path / "stranger").mkdir()
    stranger = Login.make(machine.network, tmp_path / "stranger")
    _boot(machine, login)
    by_password = ("-o", "PubkeyAuthentication=no", "-o", "BatchMode=no")
    for attempt in (
        stranger.run("true"),
        login.on(user="root").run("true"),
        login.on(user="nobody").run("true"),
        login.run("true", flags=by_password),
    ):
        assert attempt.returncode == 255
        assert "Permission denied (publickey)" in attempt.stderr


def test_ssh_port_and_address_are_obeyed(machine: Machine, login: Login) -> None:
    there = login.on(port=2201)
    _boot(machine, there, SSH_PORT="2201", SSH_LISTEN_ADDRESS="127.0.0.1")
    listeners = {entry[:2] for entry in machine.network.listeners() if entry[2] == "sshd"}
    assert listeners == {("127.0.0.1", 2201)}


def test_port_in_use_is_named_and_has_its_own_code(machine: Machine, login: Login) -> None:
    other = subprocess.Popen(
        machine.network.inside("python3", "-c", "import socket, time\n"
        "s = socket.create_server(('', 22)); print('listens', flush=True); time.sleep(60)"),
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"listens\n"
        machine.boot("sshd", environ={"SSH_PUBLIC_KEY": login.public_key})
        assert machine.wait() == ExitCode.SSHD
    finally:
        other.kill()
        other.communicate()
    assert "set SSH_PORT to a free port" in machine.log


def test_environment_reaches_sessions_intact(machine: Machine, login: Login) -> None:
    _boot(machine, login, **AWKWARD, TWO_LINES="a\nb", TS_HOSTNAME="gpu")
    of_command = login.run("cat /proc/self/environ").stdout.split("\0")
    of_login_shell = login.run("bash -lc 'cat /proc/self/environ'").stdout.split("\0")
    for name, value in (AWKWARD | {"TS_HOSTNAME": "gpu"}).items():
        assert f"{name}={value}" in of_command
        assert f"{name}={value}" in of_login_shell
    assert f"PATH={os.environ['PATH']}" in of_command
    assert "HOME=/home/vla" in of_command
    assert not [entry for entry in of_command if entry.startswith(("TWO_LINES", "b=", "RIG="))]
    assert "not in ssh sessions (line break in the value, or invalid name): TWO_LINES" in (
        machine.log
    )


def test_session_may_not_set_variables_of_its_own_for_the_next(
    machine: Machine, login: Login
) -> None:
    _boot(machine, login)
    login.run("echo LD_PRELOAD=/tmp/evil.so >>~/.ssh/environment")
    assert "LD_PRELOAD" not in login.run("cat /proc/self/environ").stdout


def test_secrets_are_readable_by_vla_alone(machine: Machine, login: Login) -> None:
    secret = "tokenthatnobodymaysee"
    _boot(machine, login, HF_TOKEN=secret, WANDB_API_KEY=secret)
    search = f"grep -rl {secret} /run /home /tmp/crane-x7-boot-* 2>/dev/null"
    files = machine.run("sh", "-c", search, check=False).stdout.split()
    assert files == ["/home/vla/.ssh/environment"]
    assert machine.run("stat", "-c", "%U %a", *files).stdout.split() == ["vla", "600"]
    assert machine.shell(search, user="nobody").stdout == ""
    assert secret not in machine.log


def test_link_that_vla_planted_does_not_lead_root_astray(machine: Machine, login: Login) -> None:
    planted = "ln -s /run/target /home/vla/.ssh; mkdir -m 700 /run/target"
    machine.boot("sshd", environ={"SSH_PUBLIC_KEY": login.public_key}, shell_first=planted)
    assert machine.wait() == ExitCode.SSHD
    assert "cannot be written by vla" in machine.log


def test_each_machine_has_its_own_host_key_and_keeps_it_in_the_volume(
    tmp_path: Path,
) -> None:
    state = tmp_path / "state"
    seen = []
    for kept in (str(state), str(state), ""):
        with Machine() as machine:
            (tmp_path / str(len(seen))).mkdir()
            login = Login.make(machine.network, tmp_path / str(len(seen)))
            _boot(machine, login, TS_STATE_DIR=kept)
            seen.append(login.host_keys())
            assert machine.stop() == ExitCode.OK
    assert all(seen)
    assert seen[0] == seen[1]
    assert not seen[0] & seen[2]
    private = state / "ssh" / "ssh_host_ed25519_key"
    assert private.stat().st_mode & 0o777 == 0o600


def test_volume_that_cannot_keep_a_key_private_still_serves(
    machine: Machine, login: Login, tmp_path: Path
) -> None:
    """Some network volumes show every file as 0777; sshd refuses a host key like that."""
    state = tmp_path / "state" / "ssh"
    state.mkdir(parents=True)
    key = state / "ssh_host_ed25519_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    key.chmod(0o777)
    _boot(machine, login, TS_STATE_DIR=str(state.parent))
    assert login.host_keys() == {" ".join(key.with_suffix(".pub").read_text().split()[:2])}


def test_damaged_host_key_is_a_state_error(machine: Machine, login: Login, tmp_path: Path) -> None:
    (tmp_path / "ssh").mkdir()
    (tmp_path / "ssh" / "ssh_host_ed25519_key").write_text("")
    machine.boot(
        "sshd", environ={"SSH_PUBLIC_KEY": login.public_key, "TS_STATE_DIR": str(tmp_path)}
    )
    assert machine.wait() == ExitCode.STATE
    assert "delete its ssh_host_ed25519_key for a new identity" in machine.log


def test_x11_listens_on_localhost_alone(machine: Machine, login: Login) -> None:
    _boot(machine, login)
    environ = os.environ | {"DISPLAY": "127.0.0.1:99"}  # nothing there; it need not be used
    command = login.command("echo $DISPLAY; sleep 600", flags=("-Y",))
    session = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
    try:
        assert session.stdout is not None
        assert session.stdout.readline().startswith("localhost:10")
        x11 = {entry[0] for entry in machine.network.listeners() if 6010 <= entry[1] < 6100}
    finally:
        session.terminate()
        session.communicate()
    assert x11
    assert x11 <= {"127.0.0.1", "::1"}


def test_forwarding_begins_and_ends_on_localhost(machine: Machine, login: Login) -> None:
    subprocess.run(
        machine.network.inside("ip", "addr", "add", "192.0.2.7/32", "dev", "lo"), check=True
    )
    _boot(machine, login)
    allowed = login.run(flags=("-W", "127.0.0.1:22")).stdout
    refused = login.run(flags=("-W", "192.0.2.7:22"))
    assert allowed.startswith("SSH-2.0-")
    assert "administratively prohibited" in refused.stderr
    session = subprocess.Popen(
        login.command("sleep 600", flags=("-R", "0.0.0.0:19090:127.0.0.1:22")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    brought = subprocess.Popen(
        login.command("sleep 600", flags=("-R", "9090:127.0.0.1:22")), stdout=subprocess.PIPE
    )
    try:
        hosts = wait_for(
            lambda: {host for host, port, _ in machine.network.listeners() if port == 9090},
            "the robot's end has brought its rosbridge",
        )
        public = {host for host, port, _ in machine.network.listeners() if port == 19090}
    finally:
        for process in (session, brought):
            process.terminate()
            process.communicate()
    assert hosts <= {"127.0.0.1", "::1"}
    assert public <= {"127.0.0.1", "::1"}


def test_sshd_runs_beside_any_command(machine: Machine, login: Login) -> None:
    script = 'while [ ! -e "$HOME/go" ]; do sleep 0.1; done; exit 37'
    _boot(machine, login, "sh", "-c", script)
    assert login.run("touch go").returncode == 0
    assert machine.wait() == 37


def test_killed_sshd_comes_back_and_a_session_lives_on(machine: Machine, login: Login) -> None:
    _boot(machine, login)
    session = subprocess.Popen(
        login.command("echo here; while [ ! -e go ]; do sleep 0.1; done; echo survived"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert session.stdout is not None
    assert session.stdout.readline() == "here\n"
    first = machine.pids(r"sshd: .*\[listener\]")[0]
    machine.kill(first)
    wait_for(lambda: machine.pids(r"sshd: .*\[listener\]")[:1] not in ([], [first]), "a new sshd")
    login.wait()
    assert machine.status()["sshd"]["state"] == "up"
    login.run("touch go")
    output, _ = session.communicate(timeout=30)
    assert output == "survived\n"


def test_files_can_be_copied(machine: Machine, login: Login, tmp_path: Path) -> None:
    _boot(machine, login)
    (tmp_path / "batch").write_text(f"put {login.key}.pub copied\n")
    command = login.command()
    sftp = ["sftp" if word == "ssh" else word for word in command]
    sftp[sftp.index("-p")] = "-P"
    sftp[-1:-1] = ["-b", str(tmp_path / "batch")]
    subprocess.run(sftp, check=True, capture_output=True, timeout=30)
    assert login.run("cat copied").stdout.strip() == login.public_key


def test_stop_ends_sshd_alone_in_time(machine: Machine, login: Login) -> None:
    _boot(machine, login, "sshd")
    before_s = time.monotonic()
    assert machine.stop() == ExitCode.OK
    assert time.monotonic() - before_s < 10
