"""Which machine of the tailnet is the robot, and whether its rosbridge answers.

`tailscale status --json` → one `Peer`, or an error that lists the machines and says what to do.
Only a complete name matches: `robot` is never `robot-old`.
"""

from __future__ import annotations

import json
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crane_x7_remote.errors import (
    PeerOfflineError,
    PeerUnknownError,
    PeerUnreachableError,
    RemoteError,
    SettingsError,
    TailnetDownError,
)
from crane_x7_remote.rosbridge.connection import LinkConfig
from crane_x7_remote.tunnel.probe import probe_now
from crane_x7_vla_rl.log_text import shown

logger = logging.getLogger(__name__)

POLL_S = 1.0
LOOK_S = 3.0
STATUS_TIMEOUT_S = 10.0
KNOWN_CHARACTERS = 1000
"""Machines listed in a message."""
Status = Mapping[str, Any]


@dataclass(frozen=True)
class Peer:
    """One machine of the tailnet, this one or another."""

    dns_name: str
    """Its full MagicDNS name in lower case, without the last dot."""
    host_name: str
    """Its own host name; two machines may have the same."""
    addresses: tuple[str, ...]
    is_online: bool
    last_seen: str | None
    """When an offline machine was last seen, ISO 8601; None: not known."""

    @property
    def name(self) -> str:
        """The short name, unique in its tailnet."""
        return self.dns_name.partition(".")[0]

    @property
    def address(self) -> str:
        """The address to use where names are not resolved."""
        return self.addresses[0]

    def __str__(self) -> str:
        if self.is_online:
            return f"{self.name} (online)"
        return f"{self.name} (offline{f' since {self.last_seen}' if self.last_seen else ''})"


@dataclass(frozen=True)
class Tailnet:
    """This machine's view of its tailnet."""

    state: str
    """`Running` once joined."""
    health: tuple[str, ...]
    own: Peer
    peers: tuple[Peer, ...]
    has_tun: bool
    """Whether the kernel routes into it; else only tailscaled's proxy does."""


def read(status: Status) -> Tailnet:
    """Return the machines in the output of `tailscale status --json`.

    Raises TailnetDownError for any other text.
    """
    try:
        return Tailnet(
            state=str(status["BackendState"]),
            health=tuple(status.get("Health") or ()),
            own=_peer(status.get("Self") or {}),
            peers=tuple(_peer(peer) for peer in (status.get("Peer") or {}).values()),
            has_tun=bool(status.get("TUN", True)),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise TailnetDownError(
            "the output of `tailscale status --json` has an unknown format"
            f" ({type(error).__name__}: {error}); check the version of tailscale"
        ) from error


def _peer(fields: Mapping[str, Any]) -> Peer:
    last_seen = str(fields.get("LastSeen") or "")
    return Peer(
        dns_name=str(fields.get("DNSName") or fields.get("HostName") or "").rstrip(".").lower(),
        host_name=str(fields.get("HostName") or ""),
        addresses=tuple(fields.get("TailscaleIPs") or ()),
        is_online=bool(fields.get("Online")) and not fields.get("Expired"),
        last_seen=None if last_seen.startswith("0001") else last_seen or None,
    )


def find(tailnet: Tailnet, wanted: str) -> Peer:
    """Return the one online machine called `wanted`: short name, full name or tailnet address.

    Case is ignored; the name must be complete. Raises TailnetDownError, PeerUnknownError or
    PeerOfflineError, each with the available machines.
    """
    if tailnet.state != "Running":
        raise TailnetDownError(_why_down(tailnet))
    name = wanted.rstrip(".").lower()
    found = [peer for peer in tailnet.peers if _is_called(peer, name)]
    if not found and _is_called(tailnet.own, name):
        raise PeerUnknownError(
            f"{wanted!r} is this machine; set ROSBRIDGE_HOST to the robot's name:"
            f" {_known(tailnet.peers)}"
        )
    if not found:
        raise PeerUnknownError(
            f"no machine of the tailnet is called {wanted!r}; its machines:"
            f" {_known(tailnet.peers)}. Set ROSBRIDGE_HOST to the complete name of one of them, or"
            f" run on the robot: `tailscale up --hostname={wanted}`"
        )
    if len(found) > 1:
        names = ", ".join(peer.dns_name for peer in found)
        raise PeerUnknownError(
            f"{wanted!r} is the short name of several machines; set ROSBRIDGE_HOST to one of"
            f" {names}"
        )
    if not found[0].is_online:
        raise PeerOfflineError(_why_offline(found[0], tailnet))
    return found[0]


def _is_called(peer: Peer, name: str) -> bool:
    return bool(name) and name in (peer.name, peer.dns_name, *peer.addresses)


def _why_down(tailnet: Tailnet) -> str:
    what = shown(": ".join((f"state {tailnet.state}", *tailnet.health)))
    return (
        f"this machine is not on the tailnet ({what}); check TS_AUTHKEY, or join with"
        " `tailscale up`"
    )


def _why_offline(peer: Peer, tailnet: Tailnet) -> str:
    text = f"{peer} is not connected to the tailnet; check `tailscale status` on that machine"
    twins = [
        other
        for other in tailnet.peers
        if other.is_online and other.host_name.lower() == peer.name and other is not peer
    ]
    if twins:  # a machine that joins again gets a new name while its old entry exists
        names = " or ".join(other.name for other in twins)
        text += (
            f". The machine with host name {peer.name} now has the name {names}: set"
            f" ROSBRIDGE_HOST={twins[0].name}, or remove the old entry in the admin console"
        )
    return text


def _known(peers: Sequence[Peer]) -> str:
    known = ", ".join(str(peer) for peer in sorted(peers, key=lambda peer: peer.name))
    return shown(known, KNOWN_CHARACTERS) or "none"


@dataclass(frozen=True)
class StatusCommand:
    """Reads the state of the tailscaled behind `socket`."""

    socket: Path | None = None
    """None: tailscale's default."""
    program: str = "tailscale"

    def __call__(self) -> Status:
        """Return the output of `tailscale status --json`; raises TailnetDownError."""
        flags: Iterable[str] = () if self.socket is None else ("--socket", str(self.socket))
        try:
            done = subprocess.run(
                [self.program, *flags, "status", "--json"],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=STATUS_TIMEOUT_S,
            )
        except FileNotFoundError as error:
            raise TailnetDownError(
                f"program {self.program!r} does not exist; install Tailscale, or reach the robot"
                " through ssh with `crane-x7-remote tunnel local`"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise TailnetDownError(
                f"tailscaled did not answer within {STATUS_TIMEOUT_S:g} s; restart it"
            ) from error
        try:
            status: Status = json.loads(done.stdout)
        except ValueError as error:
            said = shown(" ".join(done.stderr.split())) or "nothing"
            raise TailnetDownError(
                f"tailscaled does not answer (tailscale status: {said}); check that it runs and"
                f" that its socket is {self.socket or 'the default one'} (TS_SOCKET)"
            ) from error
        return status


@dataclass(frozen=True)
class PeerSpec:
    """The machine to wait for."""

    name: str
    port: int
    proxy: str | None
    """Proxy into the tailnet; None: the kernel routes into it."""
    timeout_s: float
    userspace_proxy: str | None = None
    """The proxy to use if `proxy` is None and the kernel does not route into the tailnet."""

    def link_to(self, peer: Peer, tailnet: Tailnet) -> LinkConfig:
        """Address of its rosbridge: a name if a proxy is used, else an IP address.

        Raises SettingsError if no route exists.
        """
        proxy = self.proxy or (None if tailnet.has_tun else self.userspace_proxy)
        if proxy is None and not tailnet.has_tun:
            raise SettingsError(
                "tailscaled runs in userspace mode, where only its proxy leads to the tailnet; set"
                " ROSBRIDGE_PROXY to its --socks5-server, such as socks5h://127.0.0.1:1055"
            )
        return LinkConfig(peer.address if proxy is None else peer.dns_name, self.port, proxy)


def wait(
    spec: PeerSpec,
    read_status: Callable[[], Status],
    stop: threading.Event,
    probe: Callable[[LinkConfig], None] = probe_now,
    clock: Callable[[], float] = time.monotonic,
) -> LinkConfig | None:
    """Return the robot's address when its rosbridge answers there; None if `stop` came first.

    Every change of the missing condition is logged. After `spec.timeout_s` raises the condition
    that is still missing: TailnetDownError, PeerUnknownError, PeerOfflineError or
    PeerUnreachableError. Raises SettingsError at once if no route into the tailnet exists.
    """
    deadline_s = clock() + spec.timeout_s
    missing = ""
    while not stop.is_set():
        try:
            tailnet = read(read_status())
            peer = find(tailnet, spec.name)
            link = spec.link_to(peer, tailnet)
            probe(link)
        except (
            TailnetDownError,
            PeerUnknownError,
            PeerOfflineError,
            PeerUnreachableError,
        ) as error:
            left_s = deadline_s - clock()
            if left_s <= 0:
                raise _gave_up(error, spec) from error
            if str(error) != missing:
                missing = str(error)
                logger.info("waiting for %s: %s", spec.name, missing)
            stop.wait(min(POLL_S, left_s))
        else:
            logger.info("%s is online, and its rosbridge answers on port %d", peer, spec.port)
            return link
    return None


def _gave_up(error: RemoteError, spec: PeerSpec) -> RemoteError:
    return type(error)(
        f"gave up on {spec.name}:{spec.port} after PEER_WAIT_TIMEOUT = {spec.timeout_s:g} s:"
        f" {error}"
    )


class TailnetDiagnosis:
    """Explains by the tailnet's state why a robot cannot be reached, for callers without `wait`."""

    def __init__(
        self,
        name: str,
        read_status: Callable[[], Status],
        must_be_peer: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`must_be_peer`: whether `name` must be a machine of the tailnet, not any name of the
        DNS."""
        self._name = name
        self._read_status = read_status
        self._must_be_peer = must_be_peer
        self._clock = clock
        self._next_look_s = clock() + LOOK_S
        self._said = ""

    def explain(self, error: PeerUnreachableError) -> RemoteError:
        """Return the tailnet's explanation, or else `error`."""
        try:
            find(read(self._read_status()), self._name)
        except PeerOfflineError as known:
            return PeerOfflineError(f"{known} ({error})")
        except PeerUnknownError as known:
            return PeerUnknownError(f"{known} ({error})") if self._must_be_peer else error
        except TailnetDownError as down:
            logger.debug("state of the tailnet for %s: %s", self._name, down)
        return error

    def look(self, error: PeerUnreachableError) -> None:
        """Log the tailnet's explanation, one line per change."""
        if self._clock() < self._next_look_s:
            return
        self._next_look_s = self._clock() + LOOK_S
        known = self.explain(error)
        if known is not error and type(known).__name__ != self._said:
            self._said = type(known).__name__
            logger.warning("waiting: %s", known)
