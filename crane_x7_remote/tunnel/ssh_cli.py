"""OpenSSH's command line and messages: `SshConfig` → arguments; lines of ssh → `Complaint`. Pure.

The tunnel runs the program `ssh` instead of a library such as asyncssh, because ~/.ssh/config,
agents, ProxyCommand, hardware keys and -X then work as in the user's own shell. It needs a table of
OpenSSH's messages; `tunnel.ssh` sets LC_ALL=C, so that they are English.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

from crane_x7_remote.errors import (
    ForwardRefusedError,
    RemoteError,
    SshAuthError,
    SshHostKeyError,
    SshUnreachableError,
)
from crane_x7_remote.tunnel.forward import LISTEN_HOST
from crane_x7_vla_rl.log_text import shown

ALIVE_INTERVAL_S, ALIVE_COUNT = 2, 3
"""A connection that is silent for 6 s is closed: later than the loop closes its own link, so that a
short disturbance needs no new login."""
CONNECT_TIMEOUT_S = 10


@dataclass(frozen=True)
class SshConfig:
    """One tunnel."""

    direction: Literal["local", "remote"]
    """local: rosbridge is at the other end (ssh -L); remote: it is on this side (ssh -R)."""
    destination: str
    """user@host, or a name of ~/.ssh/config."""
    port: int
    """Port of 127.0.0.1 to open: on this machine (local) or at the other end (remote)."""
    rosbridge_host: str = "127.0.0.1"
    """Address of rosbridge, seen from the machine next to the robot."""
    rosbridge_port: int = 9090
    ssh_port: int | None = None
    """None: the port of ~/.ssh/config, else 22."""
    identity: Path | None = None
    """Private key; None: the keys that ssh finds."""
    known_hosts: Path | None = None
    """File of the host keys; None: the user's own file."""
    timeout_s: float = 300.0
    """Deadline of the first success."""
    program: str = "ssh"

    @property
    def opened(self) -> str:
        """The port that the tunnel opens, in words."""
        where = "here" if self.direction == "local" else f"at {self.destination}"
        return f"{LISTEN_HOST}:{self.port} {where}"

    @property
    def rosbridge(self) -> str:
        """Where rosbridge should answer, in words."""
        where = f"at {self.destination}" if self.direction == "local" else "here"
        return f"{self.rosbridge_host}:{self.rosbridge_port} {where}"


IDLE_COMMAND = "exec cat"
"""Runs at the other end until its input ends, at the latest with the connection. Without a command
sshd leaves Nagle's algorithm on, and the last bytes of an image wait for an acknowledgement: in a
measurement a quarter of the frames came 40 ms late."""


def arguments(config: SshConfig, probe_port: int, with_session: bool = True) -> list[str]:
    """Return the command line; its standard input must be held open.

    With `remote`, the local `probe_port` leads to the port at the other end, and so back to
    rosbridge. `with_session` False is for accounts that may not run commands.
    """
    options = {
        "BatchMode": "yes",  # no user can answer
        "ExitOnForwardFailure": "yes",
        "ServerAliveInterval": str(ALIVE_INTERVAL_S),
        "ServerAliveCountMax": str(ALIVE_COUNT),
        "ConnectTimeout": str(CONNECT_TIMEOUT_S),
        "StrictHostKeyChecking": "accept-new",
        "GatewayPorts": "no",
        "ControlMaster": "no",
        "ControlPath": "none",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "Compression": "no",  # images are already compressed
        "RemoteCommand": "none",
        "LogLevel": "VERBOSE",  # reports the login
    }
    if config.known_hosts is not None:
        options["UserKnownHostsFile"] = str(config.known_hosts)
    if config.identity is not None:
        options |= {"IdentityFile": str(config.identity), "IdentitiesOnly": "yes"}
    words = [config.program, "-T"] if with_session else [config.program, "-T", "-N"]
    for name, value in options.items():
        words += ["-o", f"{name}={value}"]
    if config.ssh_port is not None:
        words += ["-p", str(config.ssh_port)]
    host = f"[{config.rosbridge_host}]" if ":" in config.rosbridge_host else config.rosbridge_host
    opened, rosbridge = f"{LISTEN_HOST}:{config.port}", f"{host}:{config.rosbridge_port}"
    if config.direction == "local":
        words += ["-L", f"{opened}:{rosbridge}"]
    else:
        words += ["-R", f"{opened}:{rosbridge}", "-L", f"{LISTEN_HOST}:{probe_port}:{opened}"]
    words += ["--", config.destination]
    return [*words, IDLE_COMMAND] if with_session else words


LOGGED_IN = re.compile(r"^Authenticated to ")
PROHIBITED = re.compile(r"open failed: administratively prohibited")
NO_SESSION = re.compile(r"exec request failed|shell request failed|session: .*open failed")
NOTHING_BEHIND = re.compile(r"open failed: connect failed: (.*)|connect_to (.* port \d+: failed)")


class Patience(Enum):
    """Whether a retry makes sense."""

    NONE = "needs a user"
    IF_IT_EVER_WORKED = "wrong from the start, or temporary"
    ALWAYS = "temporary"


@dataclass(frozen=True)
class Complaint:
    """Why the tunnel is down."""

    kind: type[RemoteError]
    text: str
    patience: Patience = Patience.ALWAYS


Wording = Callable[[SshConfig, "re.Match[str]"], str]


def _host_key(config: SshConfig, found: re.Match[str]) -> str:
    del found
    file = "" if config.known_hosts is None else f" -f {config.known_hosts}"
    host = config.destination.rpartition("@")[2]
    name = host if config.ssh_port is None else f"[{host}]:{config.ssh_port}"
    return (
        "its host key is not the known one: the machine was set up again, or someone intercepts"
        f" the connection. If it is new, remove the old key with `ssh-keygen -R '{name}'{file}`"
    )


def _auth(config: SshConfig, found: re.Match[str]) -> str:
    key = "the keys of ~/.ssh and of the agent" if config.identity is None else config.identity
    return (
        f"sshd refused the login ({shown(found[0])}); tried {key}. Check the user's name, that the"
        " public key is in authorized_keys there (SSH_PUBLIC_KEY in this project's image), and that"
        " the private key has mode 600 and no passphrase, or is in the agent"
    )


def _port_here(config: SshConfig, found: re.Match[str]) -> str:
    why = shown(found[0])
    return (
        f"cannot open {config.opened} ({why}); end the program that uses it, or choose another port"
    )


def _port_there(config: SshConfig, found: re.Match[str]) -> str:
    del found
    return (
        f"sshd does not open {config.opened}: the port is in use, possibly by an earlier tunnel"
        " whose end sshd has not noticed yet, or AllowTcpForwarding or PermitListen of sshd_config"
        " forbids it"
    )


def _forbidden(config: SshConfig, found: re.Match[str]) -> str:
    del found
    return (
        f"sshd forbids connections to {config.rosbridge}; allow them with AllowTcpForwarding and"
        " PermitOpen in its sshd_config"
    )


_UNREACHABLE, _REFUSED = SshUnreachableError, ForwardRefusedError
_FINAL, _AT_FIRST, _MAY_PASS = Patience.NONE, Patience.IF_IT_EVER_WORKED, Patience.ALWAYS
_TABLE: list[tuple[str, type[RemoteError], Patience, Wording | str]] = [
    (
        r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED",
        *(SshHostKeyError, _FINAL, _host_key),
    ),
    (
        r"bind \[?.*: .*|.*cannot listen to port.*|Could not request local forwarding",
        *(_REFUSED, _AT_FIRST, _port_here),
    ),
    (r"remote port forwarding failed", _REFUSED, _MAY_PASS, _port_there),
    (
        r"[^\n]*Permission denied[^\n]*|Too many authentication failures",
        *(SshAuthError, _AT_FIRST, _auth),
    ),
    (PROHIBITED.pattern, _REFUSED, _AT_FIRST, _forbidden),
    (
        r"Could not resolve hostname (\S+?):",
        *(_UNREACHABLE, _MAY_PASS, "host name {0} is unknown; check it and the DNS"),
    ),
    (
        r"^ssh: connect to host .* port (\d+): Connection refused",
        *(_UNREACHABLE, _MAY_PASS, "no process listens on port {0}; check sshd and its port"),
    ),
    (
        r"^ssh: connect to host .*: (.*)|(Connection timed out during banner exchange)",
        *(_UNREACHABLE, _MAY_PASS, "no connection ({0}); check address, port and firewall"),
    ),
    (
        r"Timeout, server .* not responding",
        *(_UNREACHABLE, _MAY_PASS, "the connection is silent; check the network"),
    ),
    (
        r"[^\n]*(?:closed by|reset by|Broken pipe|kex_exchange_identification)[^\n]*",
        *(_UNREACHABLE, _MAY_PASS, "the connection broke ({match}); check that sshd runs"),
    ),
    (
        r"[^\n]*(?:Bad configuration option|Bad (?:local|remote) forwarding|command-line:)[^\n]*",
        *(_UNREACHABLE, _FINAL, "ssh does not understand its command line ({match})"),
    ),
]
"""Pattern of ssh's output → error, whether to retry, and wording; the first match counts."""


def complaint(lines: Sequence[str], config: SshConfig) -> Complaint:
    """Return the meaning of the last lines of an ended client."""
    said = "\n".join(lines)
    for pattern, kind, patience, wording in _TABLE:
        if found := re.search(pattern, said, re.MULTILINE):
            if isinstance(wording, str):
                groups = [shown(group) for group in found.groups() if group is not None]
                text = wording.format(*groups, match=shown(found[0].strip()))
            else:
                text = wording(config, found)
            return Complaint(kind, text, patience)
    last = lines[-1] if lines else "nothing"
    return Complaint(SshUnreachableError, f"ssh ended; its last line: {shown(last)}")
