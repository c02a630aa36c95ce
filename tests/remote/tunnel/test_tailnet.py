"""The way through a tailnet: headscale, two tailscaled in userspace mode, and rosbridge.

Real ones (marked `container`) and the fake ones of fake_tailnet.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from loop_rig import FaultyRobot, RunningLoop, wait_until
from tailnet_rig import DOMAIN, LOOPBACK, Headscale, Node, Process, free_port

from crane_x7_remote.errors import ExitCode, PeerOfflineError, PeerUnknownError, TailnetDownError
from crane_x7_remote.rosbridge.client import ClientConfig, RosbridgeClient
from crane_x7_remote.tunnel import peer


@dataclass
class Site:
    """A tailnet with the robot, a rented machine, and the robot's predecessor, which is off."""

    tools: Path
    robot: Node
    gpu: Node

    def status(self) -> peer.Status:
        return peer.StatusCommand(self.gpu.socket, str(self.tools / "tailscale"))()


@pytest.fixture(scope="module")
def site(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("tailnet")
    with (
        Headscale(tools, folder) as control,
        Node(tools, folder, "robot") as robot,
        Node(tools, folder, "gpu") as gpu,
    ):
        with Node(tools, folder, "robot-old") as old:
            for node in (old, robot, gpu):
                node.up(control.url, control.key())
        gpu.wait_online("robot")
        gpu.wait_online("robot-old", online=False)
        yield Site(tools, robot, gpu)


@pytest.fixture
def robot() -> Iterator[FaultyRobot]:
    with FaultyRobot() as robot:
        yield robot


def tunnel(site: Site, host: str, port: int, listen_port: int, timeout_s: float = 60) -> list[str]:
    return [
        *(sys.executable, "-m", "crane_x7_remote", "tunnel", "tailnet", "--rosbridge-host", host),
        *("--rosbridge-port", str(port), "--listen-port", str(listen_port)),
        *("--ts-socket", str(site.gpu.socket), "--peer-wait-timeout", str(timeout_s)),
        *("--ts-socks5-server", f"{LOOPBACK}:{site.gpu.socks_port}"),
    ]


def environ(site: Site) -> dict[str, str]:
    return os.environ | {"PATH": f"{site.tools}:{os.environ['PATH']}"}


def test_the_robot_is_found_by_name_and_its_predecessor_is_offline(site: Site) -> None:
    tailnet = peer.read(site.status())
    assert not tailnet.has_tun
    found = peer.find(tailnet, "Robot")
    assert found == peer.find(tailnet, f"robot.{DOMAIN}") == peer.find(tailnet, found.address)
    with pytest.raises(PeerOfflineError, match="robot-old"):
        peer.find(tailnet, "robot-old")
    with pytest.raises(PeerUnknownError):
        peer.find(tailnet, "robot-o")


def test_the_client_goes_through_the_userspace_proxy_without_a_forwarder(
    site: Site, robot: FaultyRobot
) -> None:
    spec = peer.PeerSpec("robot", robot.port, site.gpu.proxy, timeout_s=60)
    link = peer.wait(spec, site.status, threading.Event())
    assert link is not None
    with RosbridgeClient(ClientConfig(link.host, link.port, link.proxy)) as client:
        client.wait_connected(30)
        frame = client.wait_frame(None, 10)
        assert frame is not None
        assert client.wait_frame(frame, 10) is not None


def test_the_loop_drives_through_the_forwarder_and_outlives_a_restart_of_tailscaled(
    site: Site, robot: FaultyRobot, tmp_path: Path
) -> None:
    port = free_port()
    process = Process(tunnel(site, "robot", robot.port, port), tmp_path / "log", environ(site))
    try:
        wait_until(lambda: f"is at {LOOPBACK}:{port}" in process.tail, 30, "the tunnel is up")
        with RunningLoop(port) as running:
            running.wait_driving()
            site.gpu.process.kill()
            wait_until(lambda: not running.client.link.connected, 20, "the loop notices")
            site.gpu.start()
            running.wait_driving(timeout_s=60)
    finally:
        code = process.stop()
    assert code == ExitCode.OK, process.tail
    robot.assert_nothing_bad_arrived(refused=("expired",))


@pytest.mark.parametrize(
    ("host", "code", "words"),
    [
        ("nobody", ExitCode.PEER_UNKNOWN, "robot (online), robot-old (offline since"),
        ("robot-old", ExitCode.PEER_OFFLINE, "is not connected to the tailnet"),
        ("robot", ExitCode.PEER_UNREACHABLE, "robot.tailnet.test:"),
    ],
)
def test_each_way_to_miss_the_robot_has_one_message_and_an_exit_code(
    site: Site, host: str, code: ExitCode, words: str
) -> None:
    command = tunnel(site, host, free_port(), free_port(), timeout_s=2)
    done = subprocess.run(
        command, env=environ(site), capture_output=True, text=True, timeout=60, check=False
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode == code, done.stderr
    assert words in last
    assert "after PEER_WAIT_TIMEOUT = 2 s" in last


@pytest.mark.parametrize(
    ("host", "code", "words"),
    [
        ("nobody", ExitCode.PEER_UNKNOWN, "robot-old (offline since"),
        ("robot-old", ExitCode.PEER_OFFLINE, "is not connected to the tailnet"),
        ("robot", ExitCode.PEER_UNREACHABLE, "rosbridge at robot:"),
    ],
)
def test_the_loop_itself_tells_these_apart_where_boot_has_joined(
    site: Site, host: str, code: ExitCode, words: str
) -> None:
    command = [
        *(sys.executable, "-m", "crane_x7_remote", "infer", "--vla-policy", "color-servo"),
        *("--rosbridge-host", host, "--rosbridge-port", str(free_port())),
        *("--rosbridge-proxy", site.gpu.proxy, "--peer-wait-timeout", "3"),
    ]
    variables = environ(site) | {"TS_SOCKET": str(site.gpu.socket)}
    done = subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("crane-x7-remote ")]
    assert len(said) == 1, done.stderr
    assert words in said[0]


def test_a_machine_that_never_joined_is_told_so(tools: Path, tmp_path: Path) -> None:
    with Node(tools, tmp_path, "stranger") as stranger:
        command = peer.StatusCommand(stranger.socket, str(tools / "tailscale"))
        with pytest.raises(TailnetDownError, match="NeedsLogin"):
            peer.find(peer.read(command()), "robot")
    with pytest.raises(TailnetDownError, match="tailscaled does not answer"):
        command()
