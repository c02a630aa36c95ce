"""OpenSSH to a machine: login, pinned host key, files with mode 600, lost connections."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud_machine import CloudMachine
from sshd_rig import make_key

from crane_x7_remote.cloud import ssh_key
from crane_x7_remote.cloud.ssh import Host, HostKeyError, Ssh, SshLostError
from crane_x7_remote.cloud.types import SshAddress
from crane_x7_remote.errors import CloudError, CloudKeyError

pytestmark = pytest.mark.usefixtures("sshd")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[CloudMachine]:
    key = make_key(tmp_path / "key")
    with CloudMachine(tmp_path / "machine", key.with_name("key.pub").read_text()) as machine:
        yield machine


def host(machine: CloudMachine, tmp_path: Path) -> Host:
    return Host(machine.address, "crane-x7-test", tmp_path / "known hosts", tmp_path / "key")


def test_a_script_runs_there_and_its_code_output_and_errors_come_back(
    machine: CloudMachine, tmp_path: Path
) -> None:
    with Ssh(host(machine, tmp_path)) as ssh:
        ssh.wait_for_login(10)
        done = ssh.run("cat; echo bad >&2; exit 7", stdin=b"hello\0")
        assert (done.code, done.out, done.err.strip()) == (7, b"hello\0", "bad")
        with pytest.raises(CloudError, match=r"ended with 7: .*bad"):
            ssh.must("echo bad >&2; exit 7")


def test_commands_after_the_first_share_its_connection_and_close_ends_it(
    machine: CloudMachine, tmp_path: Path
) -> None:
    with Ssh(host(machine, tmp_path)) as ssh:
        ssh.wait_for_login(10)
        logins = machine.sshd.log.count("Accepted publickey")
        for _ in range(3):
            ssh.must("true")
        assert machine.sshd.log.count("Accepted publickey") == logins
        control = ssh._control
    assert not control.exists()


def test_files_are_private_whole_and_replace_older_ones(
    machine: CloudMachine, tmp_path: Path
) -> None:
    with Ssh(host(machine, tmp_path)) as ssh:
        ssh.wait_for_login(10)
        for content in (b"A=1\n", bytes(range(256)) * 1000):
            ssh.put({".env": content, "a/b.txt": b""}, machine.remote_dir)
            assert (machine.run_folder / ".env").read_bytes() == content
    assert (machine.run_folder / "a/b.txt").read_bytes() == b""
    assert stat.S_IMODE((machine.run_folder / ".env").stat().st_mode) == 0o600
    assert stat.S_IMODE(machine.run_folder.stat().st_mode) == 0o700
    assert not list(machine.run_folder.rglob("*.part"))


def test_a_machine_that_boots_late_is_waited_for(tmp_path: Path) -> None:
    key = make_key(tmp_path / "key")
    machine = CloudMachine(tmp_path / "machine", key.with_name("key.pub").read_text())
    machine.boot_after(1.0)
    ticks = []
    try:
        with Ssh(host(machine, tmp_path)) as ssh:
            ssh.wait_for_login(15, lambda: ticks.append(1))
            assert ssh.must("echo up") == b"up\n"
    finally:
        time.sleep(0.1)
        machine.kill()
    assert ticks


def test_a_login_that_never_comes_ends_with_its_cause(tmp_path: Path) -> None:
    key = make_key(tmp_path / "key")
    machine = CloudMachine(tmp_path / "machine", key.with_name("key.pub").read_text())
    with Ssh(host(machine, tmp_path)) as ssh, pytest.raises(CloudError) as caught:
        ssh.wait_for_login(0.5)
    assert "no login within 0.5 s" in str(caught.value)
    assert "no process listens" in str(caught.value)


def test_a_key_replaced_while_the_machine_boots_is_no_change(tmp_path: Path) -> None:
    key = make_key(tmp_path / "key")
    machine = CloudMachine(tmp_path / "machine", make_key(tmp_path / "other").read_text())
    with machine, Ssh(host(machine, tmp_path)) as ssh:
        with pytest.raises(CloudError, match="refused the login"):
            ssh.wait_for_login(0.3)  # cloud-init has not written the key yet
        machine.sshd.kill()
        machine.sshd.renew_host_key()
        (machine.folder / "authorized").write_text(key.with_name("key.pub").read_text())
        machine.sshd.start()
        ssh.wait_for_login(10)


def test_another_host_key_after_the_first_login_is_an_error(
    machine: CloudMachine, tmp_path: Path
) -> None:
    with Ssh(host(machine, tmp_path)) as ssh:
        ssh.wait_for_login(10)
        machine.sshd.kill()
        machine.sshd.renew_host_key()
        machine.sshd.start()
        with contextlib.suppress(SshLostError, HostKeyError):
            ssh.run("true")  # the shared connection may have to break first
        with pytest.raises(HostKeyError, match="not the one of its first login"):
            ssh.run("true")


def test_a_lost_connection_is_an_error_that_may_be_tried_again(
    machine: CloudMachine, tmp_path: Path
) -> None:
    with Ssh(host(machine, tmp_path)) as ssh:
        ssh.wait_for_login(10)
        machine.sshd.kill()
        with pytest.raises(SshLostError):
            ssh.run("true")
        machine.sshd.start()
        assert ssh.must("echo again") == b"again\n"


def test_a_command_that_hangs_is_lost_and_the_next_one_has_a_connection_of_its_own(
    machine: CloudMachine, tmp_path: Path
) -> None:
    with Ssh(host(machine, tmp_path)) as ssh:
        ssh.wait_for_login(10)
        with pytest.raises(SshLostError, match=r"no answer within 0\.5 s"):
            ssh.run("sleep 30", timeout_s=0.5)
        assert ssh.must("echo again") == b"again\n"


def test_a_missing_ssh_names_the_package(tmp_path: Path) -> None:
    ssh = Ssh(Host(SshAddress("127.0.0.1", 1), "x", tmp_path / "known"), program="no-such-ssh")
    with ssh, pytest.raises(CloudError, match="openssh-client"):
        ssh.run("true")


# --- keys ----------------------------------------------------------------------------------------


def test_without_a_variable_a_run_makes_its_own_key_once(tmp_path: Path) -> None:
    first = ssh_key.choose({}, tmp_path / "ssh")
    assert ssh_key.choose({}, tmp_path / "ssh") == first
    assert stat.S_IMODE(first.private.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "ssh").stat().st_mode) == 0o700
    assert first.public.startswith("ssh-ed25519 AAAA")


def test_the_key_of_a_variable_is_used_as_a_file_or_as_text(tmp_path: Path) -> None:
    key = make_key(tmp_path / "mine")
    public = key.with_name("mine.pub").read_text().split()[1]
    named = ssh_key.choose({"VERDA_SSH_PRIVATE_KEY": str(key)}, tmp_path / "a")
    assert named.private == key
    text = key.read_text().replace("\n", "\\n")
    pasted = ssh_key.choose({"SSH_PRIVATE_KEY": text}, tmp_path / "b")
    assert named.public.split()[1] == pasted.public.split()[1] == public
    assert stat.S_IMODE(pasted.private.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "missing", "there is no such file"),
        (lambda folder: make_key(folder / "k").with_name("k.pub"), "is a public key"),
        (lambda folder: _readable(make_key(folder / "k")), "chmod 600"),
        (lambda folder: _broken(folder / "k"), "cannot read it"),
    ],
)
def test_a_key_that_cannot_be_used_is_refused_before_anything_is_rented(
    make: object, says: str, tmp_path: Path
) -> None:
    assert callable(make)
    values = {"SSH_PRIVATE_KEY": str(make(tmp_path))}
    with pytest.raises(CloudKeyError, match=says) as caught:
        ssh_key.choose(values, tmp_path / "ssh")
    assert "SSH_PRIVATE_KEY" in str(caught.value)


def _readable(path: Path) -> Path:
    path.chmod(0o644)
    return path


def _broken(path: Path) -> Path:
    path.write_text("-----BEGIN nothing\n")
    os.chmod(path, 0o600)
    return path
