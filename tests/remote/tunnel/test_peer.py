"""Which machine of the tailnet is taken for the robot, from what `tailscale status` prints."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crane_x7_remote.errors import (
    PeerOfflineError,
    PeerUnknownError,
    PeerUnreachableError,
    RemoteError,
    SettingsError,
    TailnetDownError,
)
from crane_x7_remote.rosbridge.connection import LinkConfig
from crane_x7_remote.tunnel import peer
from crane_x7_remote.tunnel.peer import PeerSpec

NEVER = "0001-01-01T00:00:00Z"
SUFFIX = "tailnet.test"


def machine(
    name: str, *, online: bool = True, host_name: str = "", last: int = 1
) -> dict[str, Any]:
    """One entry of `Peer`, in the shape of tailscale 1.98 and with what is read of it."""
    return {
        "ID": str(last),
        "HostName": host_name or name,
        "DNSName": f"{name}.{SUFFIX}.",
        "OS": "linux",
        "TailscaleIPs": [f"100.64.0.{last}", f"fd7a:115c:a1e0::{last}"],
        "LastSeen": NEVER if online else "2026-11-20T18:03:11.4Z",
        "Online": online,
    }


def status(*peers: dict[str, Any], **changes: Any) -> dict[str, Any]:
    found = {
        "Version": "1.98.10",
        "TUN": False,
        "BackendState": "Running",
        "Self": machine("gpu", last=99),
        "Health": [],
        "MagicDNSSuffix": SUFFIX,
        "Peer": {f"nodekey:{number}": each for number, each in enumerate(peers)} or None,
    }
    return found | changes


def find(wanted: str, *peers: dict[str, Any]) -> peer.Peer:
    return peer.find(peer.read(status(*peers)), wanted)


ROBOT, OLD = machine("robot", last=2), machine("robot-old", online=False, last=3)


@pytest.mark.parametrize(
    "wanted", ["robot", "ROBOT", "robot.tailnet.test", "Robot.Tailnet.Test.", "100.64.0.2"]
)
def test_the_whole_name_in_any_case_finds_the_peer(wanted: str) -> None:
    found = find(wanted, OLD, ROBOT)
    assert (found.name, found.address) == ("robot", "100.64.0.2")
    assert found.dns_name == "robot.tailnet.test"


@pytest.mark.parametrize(
    "wanted", ["rob", "obot", "robot-", "robot.tailnet", "robot.other.test", "100.64.0", "*", ""]
)
def test_a_part_of_a_name_finds_nobody(wanted: str) -> None:
    with pytest.raises(PeerUnknownError):
        find(wanted, OLD, ROBOT)


def test_an_offline_peer_with_a_longer_name_is_never_taken_for_the_robot() -> None:
    with pytest.raises(PeerUnknownError) as caught:
        find("robot", OLD)
    text = str(caught.value)
    assert "robot-old (offline since 2026-11-20T18:03:11.4Z)" in text
    assert "--hostname=robot" in text


def test_an_online_peer_with_a_longer_name_is_never_taken_either() -> None:
    with pytest.raises(PeerUnknownError, match=r"robot-2 \(online\)"):
        find("robot", machine("robot-2"))


def test_offline_is_said_and_where_the_machine_is_now() -> None:
    back = machine("robot-1", host_name="robot", last=4)
    with pytest.raises(PeerOfflineError) as caught:
        find("robot", machine("robot", online=False), back)
    assert "ROSBRIDGE_HOST=robot-1" in str(caught.value)


def test_a_peer_whose_key_has_expired_counts_as_offline() -> None:
    with pytest.raises(PeerOfflineError):
        find("robot", ROBOT | {"Expired": True})


def test_an_empty_tailnet_is_said() -> None:
    with pytest.raises(PeerUnknownError, match="its machines: none"):
        find("robot")


def test_this_machine_is_not_its_own_robot() -> None:
    with pytest.raises(PeerUnknownError, match="is this machine; set"):
        find("gpu", ROBOT)


def test_a_short_name_that_two_tailnets_share_asks_for_the_whole() -> None:
    shared = ROBOT | {"DNSName": "robot.friends.test.", "TailscaleIPs": ["100.64.7.7"]}
    with pytest.raises(PeerUnknownError, match=r"robot\.tailnet\.test, robot\.friends\.test"):
        find("robot", ROBOT, shared)
    assert find("robot.friends.test", ROBOT, shared).address == "100.64.7.7"


def test_not_being_joined_is_an_error_of_its_own() -> None:
    away = status(ROBOT, BackendState="NeedsLogin", Health=["You are logged out."], Self={})
    with pytest.raises(TailnetDownError, match=r"NeedsLogin: You are logged out\.") as caught:
        peer.find(peer.read(away), "robot")
    assert "TS_AUTHKEY" in str(caught.value)


def test_output_of_another_shape_is_refused() -> None:
    with pytest.raises(TailnetDownError, match="version of tailscale"):
        peer.read({"Peers": []})


# --- asking the program --------------------------------------------------------------------------


def program(folder: Path, body: str) -> str:
    """A `tailscale` with prepared answers; test_tunnel_tailnet uses the real one."""
    path = folder / "tailscale"
    path.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_the_socket_is_handed_on_and_the_answer_read(tmp_path: Path) -> None:
    told = program(tmp_path, 'print(f\'{{"argv": "{" ".join(sys.argv[1:])}"}}\')')
    answer = peer.StatusCommand(Path("/run/ts.sock"), told)()
    assert answer["argv"] == "--socket /run/ts.sock status --json"


def test_a_tailscaled_that_does_not_run_is_named(tmp_path: Path) -> None:
    silent = program(tmp_path, "sys.exit('failed to connect to local tailscaled')")
    with pytest.raises(TailnetDownError, match="failed to connect to local tailscaled"):
        peer.StatusCommand(None, silent)()


def test_a_missing_program_is_named() -> None:
    with pytest.raises(TailnetDownError, match="install Tailscale"):
        peer.StatusCommand(None, "no-such-tailscale")()


# --- waiting -------------------------------------------------------------------------------------


class Hasty(threading.Event):
    """Nobody waits in a story."""

    def wait(self, timeout: float | None = None) -> bool:
        del timeout
        return self.is_set()


class Story:
    """What the tailnet and rosbridge answer, one chapter per look; a clock of 10 s per look."""

    def __init__(self, *chapters: dict[str, Any] | Exception) -> None:
        self._chapters: Iterator[dict[str, Any] | Exception] = iter(chapters)
        self._last: dict[str, Any] | Exception = chapters[-1]
        self.now_s = 0.0
        self.probed: list[LinkConfig] = []
        self.refusals = 0

    def status(self) -> dict[str, Any]:
        self.now_s += 10
        chapter = next(self._chapters, self._last)
        if isinstance(chapter, Exception):
            raise chapter
        return chapter

    def probe(self, link: LinkConfig) -> None:
        self.probed.append(link)
        if self.refusals:
            self.refusals -= 1
            raise PeerUnreachableError("connection refused")

    def wait(
        self,
        timeout_s: float = 60,
        proxy: str | None = "socks5h://127.0.0.1:1055",
        userspace_proxy: str | None = None,
    ) -> LinkConfig | None:
        spec = PeerSpec("robot", 9090, proxy, timeout_s, userspace_proxy)
        return peer.wait(spec, self.status, Hasty(), self.probe, lambda: self.now_s)


def test_waiting_outlasts_everything_that_may_still_come(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    story = Story(
        TailnetDownError("tailscaled does not answer"),
        status(OLD),
        status(OLD, ROBOT | {"Online": False}),
        status(OLD, ROBOT | {"Online": False}),
        status(OLD, ROBOT),
    )
    story.refusals = 1
    found = story.wait(timeout_s=100)
    assert found == LinkConfig("robot.tailnet.test", 9090, "socks5h://127.0.0.1:1055")
    assert len(story.probed) == 2
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 5, lines  # one per change, one for the end


def test_through_a_proxy_the_whole_name_is_called_and_else_the_address() -> None:
    own = "socks5h://127.0.0.1:1055"
    userspace, kernel = Story(status(ROBOT)), Story(status(ROBOT, TUN=True))
    assert userspace.wait(proxy=None, userspace_proxy=own) == LinkConfig(
        "robot.tailnet.test", 9090, own
    )
    assert kernel.wait(proxy=None, userspace_proxy=own) == LinkConfig("100.64.0.2", 9090)


def test_userspace_networking_without_a_proxy_is_a_mistake_in_the_settings() -> None:
    with pytest.raises(SettingsError, match="ROSBRIDGE_PROXY"):
        Story(status(ROBOT)).wait(proxy=None)


@pytest.mark.parametrize(
    ("last", "refusals", "kind"),
    [
        (status(OLD), 0, PeerUnknownError),
        (status(ROBOT | {"Online": False}), 0, PeerOfflineError),
        (status(ROBOT), 99, PeerUnreachableError),
        (TailnetDownError("tailscaled does not answer"), 0, TailnetDownError),
    ],
)
def test_each_cause_of_giving_up_has_its_own_error_and_exit_code(
    last: dict[str, Any] | Exception, refusals: int, kind: type[RemoteError]
) -> None:
    story = Story(last)
    story.refusals = refusals
    with pytest.raises(kind, match=r"robot:9090 after PEER_WAIT_TIMEOUT = 60 s") as caught:
        story.wait()
    assert type(caught.value) is kind
    assert 60 <= story.now_s <= 80


def test_a_signal_ends_the_waiting() -> None:
    stop = threading.Event()
    stop.set()
    spec = PeerSpec("robot", 9090, None, 60)
    assert peer.wait(spec, lambda: status(OLD), stop) is None


# --- why the loop does not reach it --------------------------------------------------------------

REFUSED = PeerUnreachableError("the proxy did not connect us")


@pytest.mark.parametrize(
    ("last", "must_be_peer", "kind"),
    [
        (status(OLD), True, PeerUnknownError),
        (status(OLD), False, PeerUnreachableError),
        (status(ROBOT | {"Online": False}), False, PeerOfflineError),
        (status(ROBOT), True, PeerUnreachableError),
        (TailnetDownError("tailscaled does not answer"), True, PeerUnreachableError),
    ],
)
def test_the_tailnet_is_asked_why_the_robot_cannot_be_reached(
    last: dict[str, Any] | Exception, must_be_peer: bool, kind: type[RemoteError]
) -> None:
    known = peer.TailnetDiagnosis("robot", Story(last).status, must_be_peer).explain(REFUSED)
    assert type(known) is kind
    assert "the proxy did not connect us" in str(known)


def test_what_the_tailnet_knows_is_said_once_per_change(caplog: pytest.LogCaptureFixture) -> None:
    clock = iter(range(100))
    chapters = Story(status(OLD), status(OLD), status(ROBOT | {"Online": False}), status(ROBOT))
    diagnosis = peer.TailnetDiagnosis("robot", chapters.status, True, lambda: next(clock))
    for _ in range(20):
        diagnosis.look(REFUSED)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2, lines
    assert "no machine of the tailnet" in lines[0]
    assert "is not connected" in lines[1]
    assert chapters.now_s < 100, "it asks at every turn"  # 10 per look
