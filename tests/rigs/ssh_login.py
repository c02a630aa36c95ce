"""OpenSSH's client as a user of the image runs it, in a network of the tests' own."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from containers import Network, wait_for

CONNECT_TIMEOUT_S = 10  # three lost SYNs: a machine is online before packets find the way


@dataclass(frozen=True)
class Login:
    """Who logs in where: `key` is a private key's file, `known_hosts` a file that may be absent."""

    network: Network
    key: Path
    known_hosts: Path
    user: str = "vla"
    host: str = "127.0.0.1"
    port: int = 22
    options: tuple[str, ...] = ()
    """More of ssh_config, such as ProxyCommand=…"""

    @classmethod
    def make(cls, network: Network, folder: Path) -> Login:
        """Make a key pair in `folder`; known hosts are kept there too."""
        key = folder / "id_ed25519"
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(key)],
            check=True,
        )
        return cls(network, key, folder / "known_hosts")

    @property
    def public_key(self) -> str:
        return self.key.with_suffix(".pub").read_text().strip()

    def on(self, **changes: object) -> Login:
        """Return the same login with another port, user, host or options."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def command(self, *words: str, flags: tuple[str, ...] = ()) -> list[str]:
        """Return the command line of `ssh`; asks nobody anything, uses this key and no other."""
        options = (
            f"UserKnownHostsFile={self.known_hosts}",
            "GlobalKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=accept-new",
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            f"ConnectTimeout={CONNECT_TIMEOUT_S}",
            *self.options,
        )
        return self.network.inside(
            *("ssh", "-F", "none", "-i", str(self.key), "-p", str(self.port)),
            *(word for option in options for word in ("-o", option)),
            *(*flags, f"{self.user}@{self.host}", *words),
        )

    def run(
        self,
        *words: str,
        flags: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run `ssh … words` to its end, whatever its exit code."""
        return subprocess.run(
            self.command(*words, flags=flags),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=environ,
            check=False,
        )

    def wait(self, timeout_s: float = 30.0) -> None:
        """Return once a login works; AssertionError after `timeout_s`."""
        last = ""

        def works() -> bool:
            nonlocal last
            done = self.run("true")
            last = done.stderr
            return done.returncode == 0

        try:
            wait_for(works, "ssh lets us in", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; the last attempt said: {last}") from None

    def host_keys(self) -> set[str]:
        """Return the host's public keys, as "type base64"."""
        done = subprocess.run(
            self.network.inside("ssh-keyscan", "-p", str(self.port), self.host),
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        lines = (line.split() for line in done.stdout.splitlines() if not line.startswith("#"))
        return {f"{columns[1]} {columns[2]}" for columns in lines}
