"""`crane-x7-remote tunnel`: keep the robot's rosbridge at a port of 127.0.0.1 until a signal.

    tunnel tailnet            on the rented machine: through the tailnet, for programs that know no
                              proxy
    tunnel local USER@ROBOT   on the rented machine: forward it here through ssh (as ssh -L)
    tunnel remote USER@GPU    next to the robot: forward it to the rented machine (as ssh -R)

SIGTERM, SIGINT and SIGHUP end it with exit code 0; every other end has its own exit code, see
errors.ExitCode.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from crane_x7_remote import settings as settings_module
from crane_x7_remote.errors import ExitCode, SettingsError
from crane_x7_remote.rosbridge.connection import LinkConfig
from crane_x7_remote.settings import Settings
from crane_x7_remote.system import signals
from crane_x7_remote.tunnel import peer
from crane_x7_remote.tunnel.forward import ForwardConfig, Forwarder
from crane_x7_remote.tunnel.ssh import SshTunnel
from crane_x7_remote.tunnel.ssh_cli import SshConfig

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the three subcommands and their flags."""
    ways = parser.add_subparsers(dest="way", metavar="WAY", required=True)
    tailnet = ways.add_parser("tailnet", help="through the tailnet, to the machine ROSBRIDGE_HOST")
    settings_module.add_flags(
        tailnet, ("rosbridge_host", "rosbridge_proxy", "ts_socket", "ts_socks5_server")
    )
    local = ways.add_parser(
        "local", help="through ssh, run on this machine: open the robot's rosbridge here"
    )
    remote = ways.add_parser(
        "remote", help="through ssh, run next to the robot: open its rosbridge on a rented machine"
    )
    for way in (local, remote):
        _add_ssh_arguments(way)
    for way in (tailnet, local, remote):
        settings_module.add_flags(way, ("rosbridge_port", "peer_wait_timeout"))
        way.add_argument(
            "--listen-port",
            type=_port,
            metavar="PORT",
            help="port to open on 127.0.0.1; with `remote`, on the rented machine [ROSBRIDGE_PORT]",
        )


def _add_ssh_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("destination", metavar="USER@HOST", type=_destination)
    parser.add_argument("-p", "--ssh-port", type=_port, metavar="PORT", help="port of sshd")
    parser.add_argument("-i", "--identity", type=Path, metavar="FILE", help="private key")
    parser.add_argument(
        "--known-hosts", type=Path, metavar="FILE", help="host keys [~/.ssh/known_hosts]"
    )
    parser.add_argument(
        "--to",
        default="127.0.0.1",
        metavar="HOST",
        help="address of rosbridge, seen from the machine next to the robot [%(default)s]",
    )


def run(args: argparse.Namespace) -> int:
    """Hold the tunnel until a signal; raises RemoteError for every expected failure."""
    settings = settings_module.from_args(args)
    if args.way == "tailnet":
        asyncio.run(_until_signal(partial(_forward, args, settings)))
    else:
        asyncio.run(_until_signal(SshTunnel(_ssh_config(args, settings)).run))
    return ExitCode.OK


async def _until_signal(work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run `work` with an event that the ending signals set."""
    stop = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        logger.info("stopping on %s", number.name)
        stop.set()

    for number in signals.ending():
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    await work(stop)


async def _forward(args: argparse.Namespace, settings: Settings, stop: asyncio.Event) -> None:
    spec = peer.PeerSpec(
        settings.rosbridge_host,
        settings.rosbridge_port,
        settings.rosbridge_proxy,
        settings.peer_wait_timeout,
        settings.ts_socks5_server and f"socks5h://{settings.ts_socks5_server}",
    )
    socket = None if settings.ts_socket is None else Path(settings.ts_socket)
    robot = await _wait_for_peer(spec, peer.StatusCommand(socket), stop)
    if robot is None:
        return
    forwarder = Forwarder(ForwardConfig(robot, args.listen_port or settings.rosbridge_port))
    await forwarder.start()
    logger.info("up: rosbridge of %s is at 127.0.0.1:%d here", robot.host, forwarder.port)
    try:
        await stop.wait()
    finally:
        await forwarder.stop()


async def _wait_for_peer(
    spec: peer.PeerSpec, read_status: peer.StatusCommand, stop: asyncio.Event
) -> LinkConfig | None:
    given_up = threading.Event()
    watcher = asyncio.create_task(stop.wait())
    watcher.add_done_callback(lambda _: given_up.set())
    try:
        return await asyncio.to_thread(peer.wait, spec, read_status, given_up)
    finally:
        watcher.cancel()


def _ssh_config(args: argparse.Namespace, settings: Settings) -> SshConfig:
    for path in (args.identity, None if args.known_hosts is None else args.known_hosts.parent):
        if path is not None and not path.exists():
            raise SettingsError(f"{path} does not exist; check --identity and --known-hosts")
    return SshConfig(
        direction=args.way,
        destination=args.destination,
        port=args.listen_port or settings.rosbridge_port,
        rosbridge_host=args.to,
        rosbridge_port=settings.rosbridge_port,
        ssh_port=args.ssh_port,
        identity=args.identity,
        known_hosts=args.known_hosts,
        timeout_s=settings.peer_wait_timeout,
    )


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a port from 1 to 65535")
    return int(text)


def _destination(text: str) -> str:
    if not text or text.startswith("-") or any(letter.isspace() for letter in text):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a value such as vla@203.0.113.7")
    return text
