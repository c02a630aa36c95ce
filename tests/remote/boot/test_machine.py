"""Boot as root on a separate machine: process 1, user vla, the state volume, its end."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator

import pytest
from boot_rig import Machine, needs_root
from containers import wait_for

from crane_x7_remote.errors import ExitCode

pytestmark = [pytest.mark.container, needs_root()]

DOCKERS_PATIENCE_S = 10
ASK = (
    'my $boot = IO::Socket::UNIX->new("/run/crane-x7/status.sock") or die $!;'
    ' print $boot "GET /healthz HTTP/1.1\r\n\r\n"; $boot->flush; print <$boot>'
)


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as machine:
        yield machine


def test_role_runs_as_vla_in_its_home_without_roots_groups(machine: Machine) -> None:
    script = 'echo "$(id -u) [$(id -G)] $HOME $USER $SHELL"; touch "$HOME/mine"; exit 3'
    in_groups = 'set -- setpriv --groups 4,27 "$@"'
    machine.boot("sh", "-c", script, shell_first=in_groups)
    assert machine.wait() == 3
    assert "1000 [1000] /home/vla vla /bin/bash" in machine.log.splitlines()


def test_sigterm_to_process_1_ends_the_role_and_boot(machine: Machine) -> None:
    script = 'trap "echo bye; exit 7" TERM; echo ready; while :; do sleep 0.1; done'
    machine.boot("sh", "-c", script)
    machine.wait_for_log("ready")
    assert machine.stop() == 7
    assert "bye" in machine.log


def test_sigterm_before_the_role_has_begun_ends_boot_in_order(machine: Machine) -> None:
    machine.boot("sleep", "600")
    machine.wait_for_log("role is starting")
    assert machine.stop() in (ExitCode.OK, 128 + signal.SIGTERM)


def test_deaf_role_is_gone_before_docker_loses_patience(machine: Machine) -> None:
    machine.boot("sh", "-c", 'trap "" TERM; echo deaf; while :; do sleep 0.1; done')
    machine.wait_for_log("deaf")
    before_s = time.monotonic()
    assert machine.stop() == 128 + signal.SIGKILL
    assert time.monotonic() - before_s < DOCKERS_PATIENCE_S


def test_orphans_are_reaped(machine: Machine) -> None:
    machine.boot("sh", "-c", "for i in 1 2 3; do (sleep 0.2 & ); done; echo left; exec sleep 600")
    machine.wait_for_log("left")
    wait_for(lambda: not machine.pids(r"^sleep 0\.2"), "the orphans have ended")
    wait_for(
        lambda: not [row for row in machine.processes() if row[2].startswith("Z")],
        "no zombie is left",
    )


def test_all_wrong_settings_are_named_at_once(machine: Machine) -> None:
    environ = {"ROSBRIDGE_PORT": "none", "SSH_PORT": "99999", "TS_AUTHKYE": "x"}
    machine.boot(environ=environ)
    assert machine.wait() == ExitCode.SETTINGS
    for name in (*environ, "TS_AUTHKEY"):
        assert name in machine.log


def test_sshd_without_a_key_is_a_clear_error(machine: Machine) -> None:
    machine.boot("sshd")
    assert machine.wait() == ExitCode.SETTINGS
    assert "SSH_PUBLIC_KEY is not set" in machine.log


def test_unknown_role_has_its_own_code(machine: Machine) -> None:
    machine.boot("infre")
    assert machine.wait() == ExitCode.ROLE
    assert "expected infer, train, sft, evaluate, sshd, or a command" in machine.log


def test_cache_under_root_is_refused_before_hours_are_lost(machine: Machine) -> None:
    environ = {"HF_HOME": "/root/.cache/huggingface", "WANDB_DIR": "/root/outputs"}
    machine.boot("true", environ=environ)
    assert machine.wait() == ExitCode.SETTINGS
    assert "HF_HOME=/root/.cache/huggingface: user vla cannot write there" in machine.log
    assert "WANDB_DIR=/root/outputs: user vla cannot write there" in machine.log


def test_fresh_volume_of_roots_is_given_to_vla_but_not_what_is_in_it(machine: Machine) -> None:
    made = "mkdir -p /run/outputs/old && touch /run/outputs/old/theirs"
    script = 'touch "$WANDB_DIR/mine" && stat -c "%U %n" "$WANDB_DIR"/*'
    machine.boot("sh", "-c", script, environ={"WANDB_DIR": "/run/outputs"}, shell_first=made)
    assert machine.wait() == 0
    assert {"vla /run/outputs/mine", "root /run/outputs/old"} <= set(machine.log.splitlines())


@pytest.mark.parametrize(
    ("mount", "cause"),
    [
        ("mount -t tmpfs -o size=16k tmpfs", "No space left on device"),
        ("mount -t tmpfs -o ro tmpfs", "Read-only file system"),
    ],
)
def test_volume_that_cannot_be_written_ends_boot_with_its_own_code(
    machine: Machine, mount: str, cause: str
) -> None:
    first = f"mkdir /var/lib/tailscale && {mount} /var/lib/tailscale"
    machine.boot("true", shell_first=first)
    assert machine.wait() == ExitCode.STATE
    assert "TS_STATE_DIR: folder /var/lib/tailscale cannot be written" in machine.log
    assert cause in machine.log


def test_status_can_be_asked_by_vla_and_says_what_is_up(machine: Machine) -> None:
    machine.boot("sleep", "600")
    machine.wait_for_state("role", "up")
    done = machine.run(sys.executable, "-m", "crane_x7_remote", "status")
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["tunnel", "off"], ["sshd", "off"], ["role", "up"], ["robot", "off"],
    ]  # fmt: skip
    # vla may not enter the folder of every checkout, so it asks with what the system has.
    asked = machine.shell(f"perl -MIO::Socket::UNIX -e '{ASK}'")
    assert asked.stdout.startswith("HTTP/1.1 200 OK"), asked.stderr


def test_status_without_a_boot_is_unhealthy_and_says_where_it_looked(machine: Machine) -> None:
    machine.boot("sleep", "600")
    machine.wait_for_log("role is up")
    done = machine.run(
        *("env", "BOOT_RUN_DIR=/run/elsewhere", sys.executable, "-m", "crane_x7_remote", "status"),
        check=False,
    )
    assert done.returncode == ExitCode.UNHEALTHY
    assert "/run/elsewhere/status.sock" in done.stderr


def test_nothing_but_health_on_localhost_listens_without_key_and_tailnet(machine: Machine) -> None:
    machine.boot("sleep", "600")
    machine.wait_for_log("role is up")
    assert {(host, port) for host, port, _ in machine.network.listeners()} == {("127.0.0.1", 9002)}
