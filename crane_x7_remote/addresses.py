"""Addresses as people write them. Text of a variable → host, port or proxy, checked. Pure.

Raises ValueError that says what to write instead, before any connection attempt.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

from crane_x7_vla_rl.variables import bare

SCHEME: Final = re.compile(r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")
PLAIN: Final = ("ws", "http", "tcp", "rosbridge")
"""All mean the same here: a WebSocket over TCP."""
WITH_TLS: Final = ("wss", "https")
PROXIES: Final = ("socks5h", "socks5", "http")
"""What rosbridge.connection and tunnel.forward can dial through."""
TAILNET: Final = tuple(map(ipaddress.ip_network, ("100.64.0.0/10", "fd7a:115c:a1e0::/48")))
"""Addresses of a tailnet: https://tailscale.com/kb/1015/100.x-addresses."""
LABEL: Final = re.compile(r"(?!-)[\w-]{1,63}(?<!-)")
"""Of a host name; container names hold underscores, and \\w holds other scripts' letters."""


def read_host(text: str) -> tuple[str, int | None]:
    """Return host and, where it is named, port of "h", "h:9090", "[::1]:9090" or "ws://h:9090/".

    Raises ValueError for anything else.
    """
    address = bare(text)
    if found := SCHEME.match(address):
        if found["scheme"].lower() in WITH_TLS:
            raise ValueError(
                f"{found['scheme']}:// (TLS) is not supported; give only the host, and connect"
                f" through the tailnet or ssh, which encrypt"
            )
        if found["scheme"].lower() not in PLAIN:
            raise ValueError(f"{found['scheme']}:// is not a rosbridge scheme; give only the host")
        address = address[found.end() :]
        address, slash, path = address.partition("/")
        if slash and path:
            raise ValueError(f"names the path /{path[:40]}, but rosbridge has no paths; remove it")
    host, port = _host_and_port(address)
    _check_host(host)
    return host, port


def _host_and_port(address: str) -> tuple[str, int | None]:
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or ":" not in host:
            raise ValueError("expected an IPv6 address in brackets, such as [::1] or [::1]:9090")
        return host, read_port(rest[1:]) if rest else None
    if address.count(":") == 1:
        host, _, digits = address.partition(":")
        return host, read_port(digits)
    return address, None


def read_port(digits: str) -> int:
    """Return a port from its digits. Raises ValueError."""
    if not (digits.isascii() and digits.isdecimal() and 1 <= int(digits[:6]) <= 65535):
        raise ValueError(f"port {digits[:20]!r}, expected 1 to 65535")
    return int(digits)


def _check_host(host: str) -> None:
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError as error:
            raise ValueError(f"is not an IPv6 address ({error})") from error
        return
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(LABEL.fullmatch(label) for label in labels):
        raise ValueError(
            "is not a host name or address; expected a value such as crane-x7-local or 100.64.0.7"
        )
    if labels[-1].isdecimal():
        try:
            ipaddress.IPv4Address(host)
        except ValueError as error:
            raise ValueError(f"is not an IPv4 address ({error})") from error


def read_proxy(text: str) -> str:
    """Return the URL of a proxy, checked. Raises ValueError, which never shows its password."""
    url = bare(text)
    example = "expected a value such as socks5h://127.0.0.1:1055"
    found = SCHEME.match(url)
    if found is None:
        raise ValueError(f"has no scheme; {example}")
    if found["scheme"].lower() not in PROXIES:
        raise ValueError(f"{found['scheme']}:// is not a supported proxy scheme; {example}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(
            f"has no port from 1 to 65535, or a malformed address; {example}"
        ) from None
    if not host or not port:
        raise ValueError(f"has no {'port' if host else 'host'}; {example}")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"has text after the port; {example}")
    _check_host(host)
    return url.rstrip("/")


def without_password(url: str) -> str:
    """Return a URL as it may be shown."""
    return re.sub(r"://[^/@]*@", "://***@", url)


def split_address(value: str) -> tuple[str, int]:
    """Return host and port of "host:port"; "[::1]:1", ":1" are understood. Raises ValueError."""
    host, colon, port = value.rpartition(":")
    if not colon or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError("expected address:port, such as 127.0.0.1:1055")
    return host.strip("[]"), int(port)


def listen_addresses(value: str) -> list[tuple[str, int]]:
    """Return hosts and ports of "host:port,…"; port 0 picks a free one. Raises ValueError."""
    found = []
    for word in value.replace(",", " ").split():
        host, _, port = word.rpartition(":")
        found.append((host.strip("[]"), 0) if host and port == "0" else split_address(word))
    if not found or not all(host for host, _ in found):
        raise ValueError("expected address:port, such as 127.0.0.1:9091")
    return found


def is_loopback(host: str) -> bool:
    """Whether `host` can only mean this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_tailnet(host: str) -> bool:
    """Whether `host` is an address that Tailscale gives out."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in TAILNET)
