"""A small internet of network namespaces: sites that reach a hub, and nothing else.

The hub holds headscale with its relay at one address. Each site (the rented machine, the robot's
room) has a cable to the hub, which forwards nothing: sites meet through the tailnet or not at all.
A cable can be cut and mended.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from containers import Network
from tailnet_rig import Headscale

HUB = "10.79.255.1"
"""A private address: on a public one, tailscaled leaves plain HTTP for port 443 at a second try."""


class World:
    """Hub, headscale and sites; a context manager that leaves nothing behind."""

    def __init__(self, tools: Path, folder: Path) -> None:
        """`tools` holds headscale; its state goes to `folder`."""
        self._stack = ExitStack()
        self._cables: dict[str, str] = {}
        self._tools, self._folder = tools, folder

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._hub = stack.enter_context(Network())
            self._in_hub("ip", "addr", "add", f"{HUB}/32", "dev", "lo")
            self._in_hub("sysctl", "-qw", "net.ipv4.ip_forward=0")
            self.control = stack.enter_context(
                Headscale(self._tools, self._folder, HUB, self._hub.inside())
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def site(self) -> Network:
        """Return a new network with a cable to the hub."""
        site = self._stack.enter_context(Network())
        number = len(self._cables)
        near, far = f"10.79.{number}.1", f"10.79.{number}.2"
        cable = f"cable{number}"
        peer = ("type", "veth", "peer", "name", "eth0", "netns", site.name)
        self._in_hub("ip", "link", "add", cable, *peer)
        self._in_hub("ip", "addr", "add", f"{near}/24", "dev", cable)
        self._in_hub("ip", "link", "set", cable, "up")
        for words in (
            ("ip", "addr", "add", f"{far}/24", "dev", "eth0"),
            ("ip", "link", "set", "eth0", "up"),
            ("ip", "route", "add", "default", "via", near),
        ):
            subprocess.run(site.inside(*words), check=True)
        self._cables[site.name] = cable
        return site

    def address(self, site: Network) -> str:
        """Return the address of `site`, which no other site has a way to unless one is opened."""
        return f"10.79.{list(self._cables).index(site.name)}.2"

    @contextmanager
    def open_port_22_of(self, site: Network) -> Iterator[None]:
        """Let every site reach port 22 of `site`, as a provider's port map does."""
        forward = "add chain ip gate forward { type filter hook forward priority 0; policy drop; }"
        there = f"ip daddr {self.address(site)} tcp dport 22"
        back = f"ip saddr {self.address(site)} tcp sport 22"
        for line in (
            "add table ip gate",
            forward,
            f"add rule ip gate forward {there} accept",
            f"add rule ip gate forward {back} accept",
        ):
            self._in_hub("nft", line)
        self._in_hub("sysctl", "-qw", "net.ipv4.ip_forward=1")
        try:
            yield
        finally:
            self._in_hub("sysctl", "-qw", "net.ipv4.ip_forward=0")
            self._in_hub("nft", "delete table ip gate")

    def cut(self, site: Network) -> None:
        """Drop everything between `site` and the hub, as a dead link does: nobody is told."""
        cable = self._cables[site.name]
        self._in_hub("nft", "add", "table", "netdev", "cut")
        for hook in ("ingress", "egress"):
            chain = f"{{ type filter hook {hook} device {cable} priority 0; policy drop; }}"
            self._in_hub("nft", "add", "chain", "netdev", "cut", f"{hook}-{cable}", chain)

    def mend(self) -> None:
        """Undo every `cut`."""
        self._in_hub("nft", "delete", "table", "netdev", "cut")

    def _in_hub(self, *words: str) -> None:
        subprocess.run(self._hub.inside(*words), check=True)
