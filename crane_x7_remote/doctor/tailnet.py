"""Group `tailnet`: login, the robot's entry, and the path to it."""

from __future__ import annotations

import re
import shutil
import socket
from pathlib import Path
from typing import Final

from crane_x7_remote.addresses import is_loopback, is_tailnet
from crane_x7_remote.boot import files, tailscale_cli
from crane_x7_remote.doctor import child
from crane_x7_remote.doctor.child import ChildError
from crane_x7_remote.doctor.finding import (
    Check,
    Context,
    Finding,
    Stop,
    failure,
    ok,
    skipped,
    warning,
)
from crane_x7_remote.errors import PeerOfflineError, PeerUnknownError, TailnetDownError
from crane_x7_remote.tunnel import peer
from crane_x7_remote.tunnel.peer import Peer, Status, StatusCommand

PROGRAM: Final = "tailscale"
PONG: Final = re.compile(r"pong from (?P<name>\S+) .*via (?P<way>\S+) in (?P<time>[\d.]+m?s)")
PINGS, PING_S = 3, 3
"""Pings of the path, and seconds that each may take."""
SLOW_MS: Final = 150.0
"""Half a second of MAX_FRAME_AGE has no room for more, there and back."""
LOG_IN: Final = "sudo tailscale up"


def tailscale_socket(context: Context) -> Path | None:
    """Return the socket of tailscaled that boot or the settings name; None: tailscale's own."""
    if context.settings.ts_socket is not None:
        return Path(context.settings.ts_socket)
    folders = files.run_dirs(context.settings.boot_run_dir)
    sockets = [folder / "tailscaled.sock" for folder in folders]
    return next((path for path in sockets if path.exists()), None)


def _status(context: Context) -> Status:
    """Return the tailnet's state; ends the check if no tailnet is in use, or it is down."""
    wanted = context.is_set("ts_authkey", "ts_socket") or _is_on_tailnet(context)
    if not wanted and shutil.which(PROGRAM) is None:
        raise Stop(skipped("no tailnet is in use: neither TS_AUTHKEY nor tailscale"))
    command = StatusCommand(tailscale_socket(context))
    try:
        return context.once("tailscale status", command)
    except TailnetDownError as error:
        if not wanted:
            raise Stop(skipped("no tailnet is in use: tailscaled does not run")) from error
        raise Stop(failure(str(error), "sudo systemctl restart tailscaled")) from error


def _is_on_tailnet(context: Context) -> bool:
    host = context.settings.rosbridge_host
    return context.is_set("rosbridge_host") and (is_tailnet(host) or host.endswith(".ts.net"))


def login(context: Context) -> Finding:
    """Whether this machine is logged in and connected, and its name."""
    status = _status(context)
    trouble = tailscale_cli.trouble(status)
    if trouble is None:
        return ok(f"this machine is {tailscale_cli.describe(status)}")
    if not context.is_set("ts_authkey", "ts_socket") and not _is_on_tailnet(context):
        return skipped(f"no tailnet is in use: {trouble[0]}")
    return failure(f"{trouble[0]}; {trouble[1]}", LOG_IN)


def _peer(context: Context) -> Peer:
    """Return the robot's entry; ends the check if there is none to look for."""
    host = context.settings.rosbridge_host
    if not context.is_set("rosbridge_host") or is_loopback(host):
        raise Stop(skipped("ROSBRIDGE_HOST names no machine of the tailnet"))
    tailnet = peer.read(_status(context))
    try:
        return peer.find(tailnet, host)
    except TailnetDownError as error:
        raise Stop(skipped("this machine is not on the tailnet; see login")) from error
    except PeerOfflineError as error:
        cure = "sudo systemctl restart tailscaled && sudo tailscale up"
        raise Stop(failure(f"{error}. On the robot:", cure)) from error
    except PeerUnknownError as error:
        if not is_tailnet(host) and context.settings.rosbridge_proxy is None and _resolves(host):
            raise Stop(skipped(f"{host} is not on the tailnet; DNS knows it")) from error
        raise Stop(failure(str(error), "tailscale status")) from error


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def robot(context: Context) -> Finding:
    """Whether the machine that ROSBRIDGE_HOST names is on the tailnet and online."""
    found = _peer(context)
    return ok(f"{found} has the address {found.address}")


def path(context: Context) -> Finding:
    """Whether packets to the robot go directly or through a relay, and their round trip."""
    found = _peer(context)
    place = tailscale_socket(context)
    flags = () if place is None else ("--socket", str(place))
    words = ("ping", f"--c={PINGS}", f"--timeout={PING_S}s", "--until-direct=false", found.address)
    ping = f"tailscale ping {found.name}"
    try:
        _, output, errors = child.call((PROGRAM, *flags, *words), context.left_s)
    except ChildError as error:
        return warning(f"`tailscale ping` gave no result: {error}", ping)
    pongs = list(PONG.finditer(output))
    if not pongs:
        return warning(f"{found.name} does not answer pings: {(errors or output).strip()}", ping)
    best_ms, way = min((_milliseconds(pong["time"]), pong["way"]) for pong in pongs)
    said = f"{found.name} answers in {best_ms:.0f} ms via {way}"
    if way.startswith("DERP") or "relay" in way:
        return warning(f"{said}, a relay: slower than a direct path", "tailscale netcheck")
    if best_ms > SLOW_MS:
        return warning(f"{said}: a long way for a control loop", ping)
    return ok(f"{said}, directly")


def _milliseconds(text: str) -> float:
    return float(text[:-2]) if text.endswith("ms") else 1000 * float(text[:-1])


CHECKS = (
    Check("tailnet", "login", login),
    Check("tailnet", "robot", robot),
    Check("tailnet", "path", path),
)
