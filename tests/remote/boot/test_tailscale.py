"""Boot on a tailnet: headscale as control server, tailscaled as in the image, or fake ones.

The machine that boots and a desk from which one looks at it share a network namespace, and no more;
what goes from one to the other by name goes through the tailnet.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from boot_rig import Machine, needs_root
from containers import Network, wait_for
from ssh_login import Login
from tailnet_rig import RELAY_WITHOUT_TLS, Headscale, Node, NodeConfig

from crane_x7_remote.errors import ExitCode

pytestmark = [pytest.mark.container, needs_root()]

PLUG = (
    "link add eth0 type veth peer name eth1",
    "addr add 192.0.2.1/24 dev eth0",
    "link set eth0 up",
    "link set eth1 up",
)
"""tailscaled does nothing in a network with a loopback alone."""
NAME = "gpu"


@dataclass(frozen=True)
class Tailnet:
    """A control server, a desk on its tailnet, and a machine to boot in."""

    tools: Path
    control: Headscale
    desk: Node
    machine: Machine

    def environ(self, key: str, **more: str) -> dict[str, str]:
        """What is set to join."""
        return {
            "PATH": f"{self.tools}:{os.environ['PATH']}",
            "TS_AUTHKEY": key,
            "TS_HOSTNAME": NAME,
            "TS_EXTRA_ARGS": f"--login-server={self.control.url}",
            "TS_LOGIN_TIMEOUT": "60",
            **RELAY_WITHOUT_TLS,
            **more,
        }

    def boot(self, key: str, *words: str, **more: str) -> None:
        """Boot with `key`, and wait until the role runs."""
        self.machine.boot(*(words or ("sleep", "600")), environ=self.environ(key, **more))
        self.machine.wait_for_log("role is up", 90)

    def login(self, folder: Path) -> Login:
        """Return a login through the desk's end of the tailnet."""
        login = Login.make(self.machine.network, folder)
        return login.on(host=NAME)

    def through(self) -> tuple[str, str]:
        """Return the flags of ssh that go through the tailnet."""
        words = self.machine.network.inside(str(self.tools / "tailscale"))
        return "-o", f"ProxyCommand={' '.join(words)} --socket {self.desk.socket} nc %h %p"


@pytest.fixture
def tailnet(tools: Path, network: Network, tmp_path: Path) -> Iterator[Tailnet]:
    for words in PLUG:
        subprocess.run(network.inside("ip", *words.split()), check=True)
    inside = tuple(network.inside())
    with (
        Headscale(tools, tmp_path, inside=inside) as control,
        Node(tools, tmp_path, "desk", NodeConfig(inside=inside)) as desk,
        Machine(network) as machine,
    ):
        desk.up(control.url, control.key())
        yield Tailnet(tools, control, desk, machine)


def test_machine_is_reached_by_name_over_the_tailnet(tailnet: Tailnet, tmp_path: Path) -> None:
    login = tailnet.login(tmp_path)
    key = tailnet.control.key()
    tailnet.boot(key, "sshd", SSH_PUBLIC_KEY=login.public_key, SSH_LISTEN_ADDRESS="127.0.0.1")
    tailnet.desk.wait_online(NAME)
    seen = login.run("cat /proc/self/environ", flags=tailnet.through())
    assert seen.returncode == 0, seen.stderr
    assert "ROSBRIDGE_PROXY=socks5h://127.0.0.1:1055" in seen.stdout.split("\0")
    assert key not in seen.stdout


def test_auth_key_is_seen_by_nobody(tailnet: Tailnet) -> None:
    key = tailnet.control.key()
    tailnet.boot(key, HF_TOKEN="hf_secret")
    machine = tailnet.machine
    assert [args for _, _, _, args in machine.processes() if key in args] == []
    (role,) = machine.pids(r"sleep 600$")[-1:]
    (daemon,) = machine.pids(r"tailscaled --")
    of_role, of_daemon = machine.variables_of(role), machine.variables_of(daemon)
    assert key not in " ".join(of_role.values())
    assert of_role["HF_TOKEN"] == "hf_secret"
    assert not {key, "hf_secret"} & set(of_daemon.values())
    assert key not in machine.log
    in_files = machine.run("grep", "-rl", key, "/run", "/home", "/var/lib", check=False).stdout
    assert in_files == ""


def test_only_sshd_and_the_proxies_listen_and_those_on_localhost(
    tailnet: Tailnet, tmp_path: Path
) -> None:
    login = tailnet.login(tmp_path)
    tailnet.boot(
        tailnet.control.key(),
        SSH_PUBLIC_KEY=login.public_key,
        TS_OUTBOUND_HTTP_PROXY_LISTEN="127.0.0.1:1056",
    )
    tailnet.desk.stop()
    shown = subprocess.run(
        tailnet.machine.network.inside("ss", "-Hlnt"), capture_output=True, text=True, check=True
    )
    addresses = {line.split()[3] for line in shown.stdout.splitlines()}
    public = {address for address in addresses if not address.startswith(("127.", "[::1]"))}
    assert public == {"0.0.0.0:22", "[::]:22"}
    assert {"127.0.0.1:1055", "127.0.0.1:1056", "127.0.0.1:9002"} <= addresses


def test_key_may_come_from_a_file(tailnet: Tailnet, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(tailnet.control.key() + "\n")
    tailnet.boot(f"file:{tmp_path / 'key'}")
    assert tailnet.machine.status()["tunnel"]["detail"].startswith(f"{NAME}.tailnet.test (100.")


def test_killed_tailscaled_comes_back_as_the_same_machine(tailnet: Tailnet) -> None:
    tailnet.boot(tailnet.control.key(reusable=False, ephemeral=True))
    machine = tailnet.machine
    before = machine.status()["tunnel"]["detail"]
    (first,) = machine.pids(r"tailscaled --")
    machine.kill(first)
    machine.wait_for_log("tunnel is down: tailscaled was ended by SIGKILL")
    assert machine.wait_for_state("tunnel", "up", 60)["detail"] == before
    assert machine.pids(r"tailscaled --") != [first]
    assert [node["given_name"] for node in tailnet.control.nodes()].count(NAME) == 1


def test_machine_without_a_volume_leaves_the_tailnet_in_order(tailnet: Tailnet) -> None:
    tailnet.boot(tailnet.control.key(ephemeral=True), SSH_PUBLIC_KEY=_some_key(tailnet))
    assert tailnet.control.node(NAME) is not None
    before_s = time.monotonic()
    assert tailnet.machine.stop() == 128 + 15
    assert time.monotonic() - before_s < 10
    wait_for(lambda: tailnet.control.node(NAME) is None, "the control server forgot the node")
    log = tailnet.machine.log
    ends = [
        "role: sleep ended",
        "logged out of the tailnet",
        "sshd: sshd ended",
        "tunnel: tailscaled",
    ]
    places = [log.rindex(end) for end in ends]
    assert places == sorted(places)


def test_machine_with_a_volume_is_the_same_after_a_restart(
    tailnet: Tailnet, tmp_path: Path
) -> None:
    kept = {"TS_STATE_DIR": str(tmp_path / "state")}
    once = tailnet.control.key(reusable=False)
    tailnet.boot(once, "sh", "-c", "sleep 1", **kept)
    assert tailnet.machine.wait() == 0
    first = tailnet.control.node(NAME)
    assert first is not None
    with Machine(tailnet.machine.network) as again:
        again.boot("sleep", "600", environ=tailnet.environ(once, TS_AUTH_ONCE="true", **kept))
        again.wait_for_log("role is up", 90)
        second = tailnet.control.node(NAME)
        assert second is not None
        assert second["id"] == first["id"]
        documented = [
            str(tailnet.tools / "tailscale"),
            f"--socket={tmp_path}/state/tailscaled.sock",
        ]
        assert NAME in again.run(*documented, "status").stdout


@pytest.mark.parametrize("wrong", ["tskey-auth-xxxxx", "hskey-auth-" + "0" * 12 + "-" + "0" * 64])
def test_wrong_key_has_its_own_code_and_message(tailnet: Tailnet, wrong: str) -> None:
    machine = tailnet.machine
    machine.boot("sleep", "600", environ=tailnet.environ(wrong))
    assert machine.wait(90) == ExitCode.TAILNET_KEY
    assert "the control server refused TS_AUTHKEY" in machine.log
    assert "create a new key" in machine.log
    assert wrong not in machine.log
    assert "role is up" not in machine.log


def test_expired_key_has_its_own_code_and_message(tailnet: Tailnet) -> None:
    machine = tailnet.machine
    machine.boot("sleep", "600", environ=tailnet.environ(tailnet.control.expired_key()))
    assert machine.wait(90) == ExitCode.TAILNET_KEY_EXPIRED
    assert "TS_AUTHKEY has expired" in machine.log


def test_unreachable_control_server_has_its_own_code_and_sshd_answers_meanwhile(
    tailnet: Tailnet, tmp_path: Path
) -> None:
    key = tailnet.control.key()
    tailnet.control.stop()
    login = Login.make(tailnet.machine.network, tmp_path)
    environ = tailnet.environ(key, TS_LOGIN_TIMEOUT="15", SSH_PUBLIC_KEY=login.public_key)
    tailnet.machine.boot("sleep", "600", environ=environ)
    tailnet.machine.wait_for_log("sshd is up")
    login.wait(10)
    assert tailnet.machine.wait(90) == ExitCode.CONTROL_UNREACHABLE
    log = tailnet.machine.log
    assert "not on the tailnet within TS_LOGIN_TIMEOUT=15 s" in log
    assert "connection refused" in log
    assert "role is up" not in log


def test_wrong_flag_for_tailscale_up_is_a_settings_error(tailnet: Tailnet) -> None:
    environ = tailnet.environ(tailnet.control.key(), TS_EXTRA_ARGS="--no-such-flag")
    tailnet.machine.boot("sleep", "600", environ=environ)
    assert tailnet.machine.wait(60) == ExitCode.SETTINGS
    assert "check TS_EXTRA_ARGS" in tailnet.machine.log


def test_taken_proxy_port_is_named(tailnet: Tailnet) -> None:
    taken = f"127.0.0.1:{tailnet.desk.socks_port}"
    environ = tailnet.environ(tailnet.control.key(), TS_SOCKS5_SERVER=taken)
    tailnet.machine.boot("sleep", "600", environ=environ)
    assert tailnet.machine.wait(60) == ExitCode.TAILSCALED
    assert "set TS_SOCKS5_SERVER" in tailnet.machine.log


def test_lost_control_server_shows_in_health_and_heals(tailnet: Tailnet) -> None:
    tailnet.boot(tailnet.control.key())
    tailnet.control.stop()
    down = tailnet.machine.wait_for_state("tunnel", "down", 120)
    assert "tailscaled keeps trying" in down["advice"]
    assert tailnet.machine.status()["healthy"] is False
    tailnet.control.start()
    tailnet.machine.wait_for_state("tunnel", "up", 120)


def _some_key(tailnet: Tailnet) -> str:
    return Login.make(tailnet.machine.network, tailnet.machine.folder).public_key
