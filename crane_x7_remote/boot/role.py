"""The role of a container: command line and settings → one command and its environment.

`infer`, `train`, `sft` and `evaluate` are commands of this project; `sshd` means sshd without
another process; anything else runs as a command. Without arguments the role is infer if policy and
robot are set, else sshd.
"""

from __future__ import annotations

import ipaddress
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from crane_x7_remote.addresses import is_loopback, is_tailnet, split_address
from crane_x7_remote.boot.account import Account
from crane_x7_remote.boot.files import Files
from crane_x7_remote.errors import RoleError
from crane_x7_remote.settings import OLD_NAMES, Settings

TRAINING = ("train", "sft", "evaluate")
SAVING = frozenset(("train", "sft"))
ROLES = ("infer", *TRAINING, "sshd")
NOT_FOR_ROLES = {"TS_AUTHKEY", *OLD_NAMES}
"""Anyone with the key can join the tailnet; no role needs it."""


@dataclass(frozen=True)
class Role:
    """A role by name; without `argv` only sshd runs."""

    name: str
    argv: tuple[str, ...] = ()
    metrics: Path | None = None
    """Metrics file of the loop; None: this role is not a loop."""

    @property
    def saves(self) -> bool:
        """Whether it trains, by our word or by a command such as `torchrun … train`; a training
        saves a checkpoint on SIGTERM."""
        return self.name != "infer" and not SAVING.isdisjoint(self.argv)


def choose(words: Sequence[str], settings: Settings, files: Files) -> Role:
    """Return the role that `words` name, or else the one that follows from the settings."""
    words = words[1:] if words[:1] == ["--"] else words
    if not words:
        has_policy = settings.vla_model_path is not None or settings.vla_policy is not None
        has_robot = "rosbridge_host" in settings.model_fields_set and settings.rosbridge_host != ""
        words = ["infer"] if has_policy and has_robot else ["sshd"]
    name, *rest = words
    if name == "infer":
        metrics = _flag(rest, "--metrics")
        if metrics is None:
            metrics = str(files.metrics)
            rest = ["--metrics", metrics, *rest]
        argv = (sys.executable, "-m", "crane_x7_remote", "infer", *rest)
        return Role(name, argv, Path(metrics))
    if name in TRAINING:
        return Role(name, (sys.executable, "-m", "crane_x7_vla_rl.training.cli", *words))
    if name == "sshd" and not rest:
        return Role(name)
    return Role(name, tuple(words))


def hostname(role: Role, settings: Settings) -> str:
    """Return the name on the tailnet."""
    if settings.ts_hostname is not None:
        return settings.ts_hostname
    return "crane-x7-inference" if role.name == "infer" else "crane-x7-vla-rl"


def environment(
    inherited: Mapping[str, str], settings: Settings, files: Files, account: Account
) -> dict[str, str]:
    """Return the environment of the role and of ssh sessions: boot's own without the tailnet's
    key."""
    environ = {name: value for name, value in inherited.items() if name not in NOT_FOR_ROLES}
    environ |= account.variables
    environ["BOOT_RUN_DIR"] = str(files.run)
    if settings.ts_authkey is not None:
        environ["TS_SOCKET"] = str(files.tailscale_socket)
        for variable, proxy in (
            ("ROSBRIDGE_PROXY", rosbridge_proxy(settings)),
            ("POLICY_PROXY", policy_proxy(settings)),
        ):
            if proxy is not None:
                environ[variable] = proxy
    return environ


def rosbridge_proxy(settings: Settings) -> str | None:
    """Return the proxy that leads to the robot through the tailnet, if one is needed."""
    return settings.rosbridge_proxy or _tailnet_proxy(settings, settings.rosbridge_host)


def policy_proxy(settings: Settings) -> str | None:
    """Return the proxy that leads to the policy server through the tailnet, if one is needed."""
    if settings.policy_server is None:
        return settings.policy_proxy
    # An address that is wrong is the loop's error, in its own words.
    server = settings.policy_server.strip()
    host = urlsplit(server if "://" in server else f"ws://{server}").hostname
    return settings.policy_proxy or (None if host is None else _tailnet_proxy(settings, host))


def _tailnet_proxy(settings: Settings, host: str) -> str | None:
    """Return the SOCKS5 proxy of tailscaled, if `host` is reached through it alone."""
    if settings.ts_socks5_server is None:
        return None
    knows_names = not settings.ts_userspace and settings.ts_accept_dns
    if is_loopback(host) or knows_names or not _may_be_on_tailnet(host):
        return None
    address, port = split_address(settings.ts_socks5_server)
    return f"socks5h://{f'[{address}]' if ':' in address else address}:{port}"


def resolve(role: Role, environ: Mapping[str, str]) -> Role:
    """Return the role with its program's path. Raises RoleError if the program does not exist."""
    if not role.argv:
        return role
    program = shutil.which(role.argv[0], path=environ.get("PATH"))
    if program is None:
        raise RoleError(
            f"role {role.name!r}: this program is not on PATH; expected"
            f" {', '.join(ROLES)}, or a command"
        )
    return replace(role, argv=(program, *role.argv[1:]))


def _may_be_on_tailnet(host: str) -> bool:
    bare = host.strip("[]")
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        return True  # a name
    return is_tailnet(bare)


def _flag(words: Sequence[str], flag: str) -> str | None:
    """Return the value of `flag`, written as `flag value` or `flag=value`."""
    for index, word in enumerate(words):
        if word == flag and index + 1 < len(words):
            return words[index + 1]
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return None
