"""`crane-x7-remote guard`: the gate in front of rosbridge, next to the robot, until a signal.

Prints one line that starts with `ready` and contains the addresses it listens on. SIGUSR1 stops the
arm, SIGUSR2 resumes; SIGTERM, SIGINT and SIGHUP brake, wait until the arm is at rest (1 s at most)
and end with exit code 0.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import ipaddress
import json
import logging
import resource
import signal
import socket
from collections.abc import Iterator

from crane_x7_remote import addresses, settings_values
from crane_x7_remote import settings as settings_module
from crane_x7_remote.errors import ExitCode, GuardError, SettingsError
from crane_x7_remote.guard.core import CoreConfig, GuardCore
from crane_x7_remote.guard.door import DoorConfig
from crane_x7_remote.guard.gate import Gate, GateConfig
from crane_x7_remote.guard.rules import AllowList, Names
from crane_x7_remote.rosbridge.connection import LinkConfig
from crane_x7_remote.settings import Settings
from crane_x7_remote.system import signals
from crane_x7_remote.system.logs import unblocked
from crane_x7_remote.system.real_time import ask_for_real_time

logger = logging.getLogger(__name__)

FLAGS = (
    "guard_listen", "guard_upstream", "guard_token", "guard_link_timeout", "guard_max_clients",
    "guard_topics", "guard_pass_action", "camera_topic", "wrist_camera_topic",
    "joint_states_topic", "instruction_topic", "arm_topic", "trajectory_topic", "action_topic",
    "gripper_action",
)  # fmt: skip
IP_FREEBIND = 15
"""From linux/in.h: listen on an address that this machine does not have yet."""
BACKLOG = 128
OPEN_FILES = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `guard`."""
    settings_module.add_flags(parser, FLAGS)
    parser.add_argument("--rules", action="store_true", help="print the allow-list, and exit")
    parser.add_argument("--json", action="store_true", help="with --rules: one JSON document")


def run(args: argparse.Namespace) -> int:
    """Guard until a signal; raises SettingsError and GuardError."""
    settings = settings_module.from_args(args)
    rules = AllowList(_names(settings))
    if args.rules:
        print(json.dumps(rules.as_json(), indent=2) if args.json else "\n".join(rules.lines()))
        return ExitCode.OK
    config = _config(settings)
    core = GuardCore(CoreConfig(
        arm_topic=settings.arm_topic,
        trajectory_topic=settings.trajectory_topic,
        link_timeout_s=settings.guard_link_timeout,
    ))  # fmt: skip
    _allow_open_files()
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(one) for one in _listeners(settings)]
        stack.enter_context(unblocked())
        for line in rules.lines():
            logger.info("passes: %s", line)
        asyncio.run(_guard(config, rules, core, listeners))
    return ExitCode.OK


async def _guard(
    config: GateConfig, rules: AllowList, core: GuardCore, listeners: list[socket.socket]
) -> None:
    gate = Gate(config, rules, core)
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[str] = loop.create_future()

    def end(name: str) -> None:
        if not ended.done():
            ended.set_result(name)

    for number in signals.ending():
        loop.add_signal_handler(number, end, number.name)
    loop.add_signal_handler(signal.SIGUSR1, gate.stop, "SIGUSR1")
    loop.add_signal_handler(signal.SIGUSR2, gate.resume, "SIGUSR2")
    await gate.start(listeners)
    places = ", ".join(_place(listener) for listener in listeners)
    print(f"ready: guard on {places}, in front of {config.upstream.uri}", flush=True)
    ask_for_real_time()
    gc.collect()
    gc.freeze()  # collections skip everything imported so far, so they are short
    name = await ended
    logger.info("ending on %s", name)
    await gate.end(f"the guard is ending ({name})")


def _names(settings: Settings) -> Names:
    return Names(
        camera=settings.camera_topic,
        wrist_camera=settings.wrist_camera_topic,
        joint_states=settings.joint_states_topic,
        instruction=settings.instruction_topic,
        arm=settings.arm_topic,
        trajectory=settings.trajectory_topic,
        action=settings.action_topic,
        gripper_action=settings.gripper_action,
        passes_action=settings.guard_pass_action,
        more=settings_values.topic_types(settings.guard_topics),
    )


def _config(settings: Settings) -> GateConfig:
    token = settings_values.token_text(settings.guard_token, "GUARD_TOKEN")
    places = addresses.listen_addresses(settings.guard_listen)
    ((host, port), *others) = addresses.listen_addresses(settings.guard_upstream)
    if others or port == 0:
        raise SettingsError(f"GUARD_UPSTREAM={settings.guard_upstream}: expected one host:port")
    if (host, port) in places:
        raise SettingsError(f"GUARD_UPSTREAM and GUARD_LISTEN are both {host}:{port}")
    open_places = [host for host, _ in places if not is_private(host)]
    if open_places and token is None:
        raise SettingsError(
            f"GUARD_LISTEN: {', '.join(open_places)} can be reached from outside this machine and"
            " the tailnet; set GUARD_TOKEN, or listen on 127.0.0.1 or a tailnet address"
        )
    return GateConfig(
        upstream=LinkConfig(host, port),
        joint_states_topic=settings.joint_states_topic,
        arm_topic=settings.arm_topic,
        door=DoorConfig(token, settings.guard_max_clients),
    )


def is_private(host: str) -> bool:
    """Whether only this machine or a tailnet can reach an address."""
    return addresses.is_loopback(host) or addresses.is_tailnet(host)


def _listeners(settings: Settings) -> Iterator[socket.socket]:
    """Yield bound sockets; raises GuardError that names the address."""
    for host, port in addresses.listen_addresses(settings.guard_listen):
        try:
            yield _listener("127.0.0.1" if host == "localhost" else host, port)
        except OSError as error:
            raise GuardError(
                f"cannot listen on {host}:{port} (GUARD_LISTEN): {error.strerror or error}"
            ) from error


def _listener(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError as error:
        raise GuardError(
            f"GUARD_LISTEN: {host} is not an IP address; expected e.g. 127.0.0.1 or 100.64.0.5"
        ) from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if addresses.is_tailnet(host):  # tailscaled may start after the guard
            listener.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _place(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"{host} port {port}"


def _allow_open_files() -> None:
    """Raise the limit, so that a flood of connections leaves file descriptors for `stop`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
