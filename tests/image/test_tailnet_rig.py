"""What every tailnet of the rig's holds, be it real or fake: keys, names, comings and goings.

The other tests build on this; where the fake one were to differ here, they would prove little.
"""

from __future__ import annotations

import queue
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from containers import wait_for
from tailnet_rig import DOMAIN, LOOPBACK, Headscale, Node, NodeConfig, free_port

FAILED = bytes([5, 1, 0, 1, *bytes(6)])
"""SOCKS5's "general failure": tailscaled says no more than that."""
GRANTED = 0


@dataclass(frozen=True)
class Pair:
    """A control server, and a node on its tailnet to look from."""

    tools: Path
    control: Headscale
    desk: Node

    def node(self, folder: Path, name: str, state: str | None = None) -> Node:
        return Node(self.tools, folder, name, NodeConfig(state=state))


@pytest.fixture(scope="module")
def pair(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("rig")
    with Headscale(tools, folder) as control, Node(tools, folder, "desk") as desk:
        desk.up(control.url, control.key())
        yield Pair(tools, control, desk)


MESSAGE = bytes(range(256)) * 4096


class Backwards(socketserver.BaseRequestHandler):
    """Answers MESSAGE with the same bytes backwards and ends; a message cut short with nothing."""

    def handle(self) -> None:
        received = b""
        while len(received) < len(MESSAGE) and (chunk := self.request.recv(65536)):
            received += chunk
        if received == MESSAGE:
            self.request.sendall(received[::-1])


class Ends(socketserver.BaseRequestHandler):
    """Ends its own way when told by END, and puts into `heard` what comes after the first byte."""

    END, WAIT = b"e", b"w"
    heard: queue.Queue[bytes] = queue.Queue()

    def handle(self) -> None:
        told = self.request.recv(1)
        if told == self.END:
            self.request.shutdown(socket.SHUT_WR)
        if told:
            self.heard.put(self.request.recv(1))


@contextmanager
def serving(kind: type[socketserver.BaseRequestHandler]) -> Iterator[int]:
    """Serve on a port of the loopback, which is given.

    Begin it before the node that leads there: a connection that the other side gave up is ended by
    the node's end alone, and at the end of this one all are waited for.
    """
    with socketserver.ThreadingTCPServer((LOOPBACK, 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def through_socks(node: Node, host: str, port: int) -> Iterator[tuple[socket.socket, bytes]]:
    """Give a connection that asked the node's proxy for host and port, and the answer."""
    with socket.create_connection((LOOPBACK, node.socks_port), timeout=30) as client:
        client.sendall(bytes([5, 1, 0]))
        assert client.recv(2, socket.MSG_WAITALL) == bytes([5, 0])
        client.sendall(bytes([5, 1, 0, 3, len(host)]) + host.encode() + port.to_bytes(2, "big"))
        yield client, client.recv(10, socket.MSG_WAITALL)


@contextmanager
def connected(node: Node, host: str, port: int) -> Iterator[socket.socket]:
    """Give a connection through the node's proxy.

    The first packet to a node that has only just joined may be lost, which WireGuard finds out
    after 5 s, and the proxy gives up before: the test asks it again.
    """
    with ExitStack() as stack:

        def is_granted() -> socket.socket | None:
            stack.close()  # what was refused
            client, answer = stack.enter_context(through_socks(node, host, port))
            return client if answer[1] == GRANTED else None

        yield wait_for(is_granted, f"{host}:{port} is reached through the proxy", 60)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "not of this tailnet",
            "backend error: handling register with auth key: auth-key not found",
        ),
        ("expired", "backend error: authkey expired"),
        ("used", "backend error: authkey already used"),
    ],
)
def test_a_key_that_does_not_hold_is_refused_and_nobody_joins(
    pair: Pair, tmp_path: Path, kind: str, words: str
) -> None:
    key = "hskey-auth-" + "0" * 12 + "-" + "0" * 64
    if kind == "expired":
        key = pair.control.expired_key()
    if kind == "used":
        key = pair.control.key(reusable=False)
        with pair.node(tmp_path, "first") as first:
            first.up(pair.control.url, key)
    (tmp_path / "key").write_text(key)
    with pair.node(tmp_path, "guest") as guest:
        done = guest.cli(
            *("up", f"--login-server={pair.control.url}", f"--auth-key=file:{tmp_path / 'key'}"),
            *("--hostname=guest", "--timeout=30s"),
            check=False,
        )
        assert done.returncode == 1
        assert words in done.stderr
        assert guest.status()["BackendState"] == "NeedsLogin"
        assert words.rpartition(": ")[2] in " ".join(guest.status()["Health"])
    assert pair.control.node("guest") is None


def test_a_control_server_that_does_not_answer_is_told_by_status(
    pair: Pair, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("any")
    with pair.node(tmp_path, "lost") as lost:
        done = lost.cli(
            *("up", f"--login-server=http://{LOOPBACK}:{free_port()}"),
            *(f"--auth-key=file:{tmp_path / 'key'}", "--hostname=lost", "--timeout=1s"),
            check=False,
        )
        assert done.returncode == 1
        assert "timeout waiting for Tailscale service" in done.stderr
        assert "connect: connection refused" in " ".join(lost.status()["Health"])


def test_an_ephemeral_node_is_forgotten_when_it_logs_out_and_another_is_not(
    pair: Pair, tmp_path: Path
) -> None:
    with pair.node(tmp_path, "guest-stays") as stays, pair.node(tmp_path, "guest-goes") as goes:
        stays.up(pair.control.url, pair.control.key())
        goes.up(pair.control.url, pair.control.key(ephemeral=True))
        pair.desk.wait_online("guest-goes")
        for node in (stays, goes):
            node.cli("logout")
            assert node.status()["BackendState"] == "NeedsLogin"
        wait_for(lambda: pair.control.node("guest-goes") is None, "the guest is forgotten")
        wait_for(lambda: pair.desk.peer("guest-goes") is None, "so it is by the other nodes")
    assert pair.control.node("guest-stays") is not None


def test_a_node_that_was_killed_is_seen_offline_and_comes_back_as_itself(
    pair: Pair, tmp_path: Path
) -> None:
    with pair.node(tmp_path, "phoenix") as phoenix:
        phoenix.up(pair.control.url, pair.control.key(reusable=False))
        pair.desk.wait_online("phoenix")
        before = pair.desk.peer("phoenix")
        phoenix.process.kill()
        pair.desk.wait_online("phoenix", online=False, timeout_s=60)
        phoenix.start()
        pair.desk.wait_online("phoenix")
        after = pair.desk.peer("phoenix")
    assert before is not None
    assert after is not None
    assert after["TailscaleIPs"] == before["TailscaleIPs"]


def test_a_state_in_memory_does_not_outlive_its_tailscaled(pair: Pair, tmp_path: Path) -> None:
    with pair.node(tmp_path, "brief", state="mem:") as brief:
        brief.up(pair.control.url, pair.control.key())
        brief.process.kill()
        brief.start()
        assert brief.status()["BackendState"] == "NeedsLogin"


def test_a_second_machine_of_one_name_gets_another(pair: Pair, tmp_path: Path) -> None:
    with pair.node(tmp_path / "a", "twin") as first, pair.node(tmp_path / "b", "twin") as second:
        for node in (first, second):
            node.up(pair.control.url, pair.control.key())
        own = second.status()["Self"]
        assert own["HostName"] == "twin"
        assert own["DNSName"].startswith("twin-")
        assert own["DNSName"].endswith(f".{DOMAIN}.")
        assert first.status()["Self"]["DNSName"] == f"twin.{DOMAIN}."


def test_bytes_and_their_end_go_through_the_proxy_by_each_name_of_a_node(
    pair: Pair, tmp_path: Path
) -> None:
    with serving(Backwards) as port, pair.node(tmp_path, "server") as server:
        server.up(pair.control.url, pair.control.key())
        pair.desk.wait_online("server")
        address = server.status()["TailscaleIPs"][0]
        for name in ("server", "Server", f"server.{DOMAIN}", address):
            with connected(pair.desk, name, port) as client:
                client.sendall(MESSAGE)
                with client.makefile("rb") as incoming:
                    assert incoming.read() == MESSAGE[::-1], name


def test_what_cannot_be_reached_has_the_same_answer_from_the_proxy(
    pair: Pair, tmp_path: Path
) -> None:
    with pair.node(tmp_path, "closed") as closed:
        closed.up(pair.control.url, pair.control.key())
        pair.desk.wait_online("closed")
        for name in ("closed", f"nobody.{DOMAIN}"):
            with through_socks(pair.desk, name, free_port()) as (_, answer):
                assert answer == FAILED, name
        done = pair.desk.cli("nc", "closed", str(free_port()), check=False)
        assert done.returncode == 1
        assert "connection was refused" in done.stderr


def test_the_end_of_one_way_is_the_end_of_both(pair: Pair, tmp_path: Path) -> None:
    with serving(Ends) as port, pair.node(tmp_path, "ends") as ends:
        ends.up(pair.control.url, pair.control.key())
        pair.desk.wait_online("ends")
        for told in (Ends.WAIT, Ends.END):
            with connected(pair.desk, "ends", port) as client:
                client.sendall(told)
                if told == Ends.WAIT:
                    client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
                assert Ends.heard.get(timeout=30) == b""


def test_a_lost_control_server_shows_in_status_and_heals(tools: Path, tmp_path: Path) -> None:
    with Headscale(tools, tmp_path) as control, Node(tools, tmp_path, "lonely") as lonely:
        lonely.up(control.url, control.key())
        control.stop()
        wait_for(lambda: not lonely.status()["Self"]["Online"], "the loss is seen", 60)
        assert lonely.status()["BackendState"] == "Running"
        control.start()
        wait_for(lambda: lonely.status()["Self"]["Online"], "it is healed", 90)
        assert control.node("lonely") is not None
        assert "lonely" in lonely.cli("status").stdout
