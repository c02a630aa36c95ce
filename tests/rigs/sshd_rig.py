"""A real sshd on a high port of the loopback, with its own configuration, keys and host keys.

It serves the user who runs the tests. Nothing outlives its `with`, its sessions included.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from containers import MissingToolsError, wait_for
from processes import descendants
from tailnet_rig import LOOPBACK, Process, free_port

SETTINGS = {
    "ListenAddress": LOOPBACK,
    "AuthenticationMethods": "publickey",
    "PermitRootLogin": "prohibit-password",
    "StrictModes": "no",  # the folders of tests belong to whom they belong
    "UsePAM": "no",
    "PidFile": "none",
    "AllowTcpForwarding": "yes",
    "ClientAliveInterval": "1",
    "ClientAliveCountMax": "3",
    "LogLevel": "VERBOSE",
}


def find_sshd() -> str:
    """Return the path of sshd; raises MissingToolsError."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    found = shutil.which("sshd", path=path)
    if found is None or shutil.which("ssh") is None:
        raise MissingToolsError("no sshd or ssh on this machine; apt-get install openssh-server")
    return found


def make_key(path: Path) -> Path:
    """Make a key pair without passphrase at `path` and `path`.pub."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True)
    return path


class Sshd:
    """One sshd in `folder`; its one authorised key is `identity`."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        """`settings` are added to those of sshd_config above."""
        self._folder = folder
        folder.mkdir()
        self._program = find_sshd()
        self.port = free_port()
        self.user = getpass.getuser()
        self.identity = make_key(folder / "id")
        self.known_hosts = folder / "known_hosts"
        self._host_key = make_key(folder / "host_key")
        self._settings = SETTINGS | {
            "Port": str(self.port),
            "HostKey": str(self._host_key),
            "AuthorizedKeysFile": str(folder / "id.pub"),
        }
        self._settings |= settings or {}
        self._process: Process | None = None
        self._answered = False

    @property
    def destination(self) -> str:
        return f"{self.user}@{LOOPBACK}"

    @property
    def is_started(self) -> bool:
        """Whether it answers."""
        return self._process is not None and self._answered

    @property
    def host_key(self) -> str:
        """The public part."""
        return Path(f"{self._host_key}.pub").read_text().split()[1]

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    @property
    def descendants(self) -> list[int]:
        """Process ids of its sessions and all they run."""
        assert self._process is not None, "sshd is not started"
        return descendants(self._process.popen.pid)

    def start(self) -> None:
        """Serve; also after a kill, with the same port and host key."""
        config = self._folder / "sshd_config"
        config.write_text("".join(f"{name} {value}\n" for name, value in self._settings.items()))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it locks its children in
        command = [self._program, "-D", "-e", "-f", str(config)]
        self._process = process = Process(command, self._folder / "log")

        def answers() -> bool:
            process.check()
            with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, self.port), 1):
                return True
            return False

        wait_for(answers, "sshd answers")
        self._answered = True

    def kill(self) -> None:
        """End sshd and all its sessions at once, as when its machine is switched off."""
        if self._process is None:
            return
        for pid in [*self.descendants, self._process.popen.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.popen.wait()
        self._process = None

    def renew_host_key(self) -> None:
        """Become another host, as a machine that was installed again."""
        self._host_key.unlink()
        make_key(self._host_key)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            print(f"--- log of sshd\n{self.log[-4000:]}")
        self.kill()
