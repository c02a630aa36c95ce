"""Tailscale's command lines and answers: settings → flags; `status --json` → text. Pure.

The auth key never appears here, only the name of a file that contains it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from crane_x7_remote.addresses import split_address
from crane_x7_remote.boot.files import Files
from crane_x7_remote.settings import Settings
from crane_x7_vla_rl.log_text import shown

NEW_KEY = (
    "create a new key (https://login.tailscale.com/admin/settings/keys, or your own control"
    " server's)"
    " and set TS_AUTHKEY to it"
)


def daemon_arguments(settings: Settings, files: Files) -> list[str]:
    """Return the flags of tailscaled."""
    words = [
        f"--socket={files.tailscale_socket}",
        f"--statedir={files.state or files.run / 'tailscale'}",
    ]
    if settings.ts_state_dir is None:
        # This requests an ephemeral node from the control server with any key. A killed tailscaled
        # would return as a new machine; a state file of this start alone avoids that.
        words += ["--state=mem:"]
    if settings.ts_userspace:
        words += ["--tun=userspace-networking"]
    if settings.ts_socks5_server is not None:
        words += [f"--socks5-server={settings.ts_socks5_server}"]
    if settings.ts_outbound_http_proxy_listen is not None:
        words += [f"--outbound-http-proxy-listen={settings.ts_outbound_http_proxy_listen}"]
    return words + shlex.split(settings.ts_tailscaled_extra_args)


def listening_ports(settings: Settings) -> set[int]:
    """Return the TCP ports on which tailscaled must listen."""
    proxies = (settings.ts_socks5_server, settings.ts_outbound_http_proxy_listen)
    ports = {split_address(address)[1] for address in proxies if address is not None}
    return ports | {
        int(port) for port in re.findall(r":(\d+)\b", settings.ts_tailscaled_extra_args)
    }


def up_arguments(settings: Settings, hostname: str, key: str | None) -> list[str]:
    """Return the arguments of `tailscale up`; `key` refers to a file and is never the key
    itself."""
    words = [
        "up",
        "--reset",  # without the flags of an earlier start
        f"--hostname={hostname}",
        f"--accept-dns={str(settings.ts_accept_dns).lower()}",
        f"--timeout={settings.ts_login_timeout:g}s",
    ]
    if key is not None:
        words.append(f"--auth-key={key}")
    return words + shlex.split(settings.ts_extra_args)


def describe(status: Mapping[str, Any]) -> str:
    """Return name and address on the tailnet, from `tailscale status --json`."""
    own = status.get("Self") or {}
    name = str(own.get("DNSName", "")).rstrip(".") or own.get("HostName", "?")
    return f"{name} ({', '.join(status.get('TailscaleIPs') or ['no address'])})"


def trouble(status: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return problem and remedy, from `tailscale status --json`; None if it is connected."""
    state = status.get("BackendState")
    if state == "NeedsLogin":
        return "logged out of the tailnet: " + _health(status), NEW_KEY + ", then restart"
    if state != "Running":
        return f"tailscaled is in state {state}: {_health(status)}", "see `tailscale status`"
    if not (status.get("Self") or {}).get("Online", False):
        return (
            f"no connection to the control server: {_health(status)}",
            "check the network of this machine; tailscaled keeps trying",
        )
    return None


def _health(status: Mapping[str, Any]) -> str:
    return shown("; ".join(status.get("Health") or ["no reason given"]))
