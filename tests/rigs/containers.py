"""The image, built from docker/Dockerfile and run with podman in networks of the tests' own.

`Workshop` is podman and buildah with their own storage (scripts/setup-containers). `Network`
is a namespace in which nothing but the loopback exists, so that a test can look at every open port
and use port 22. `Container` is one running image in such a network. Nothing outlives its `with`.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from places import ROOT

BASE = "localhost/crane-x7-base:bookworm"
_numbers = itertools.count()


class MissingToolsError(Exception):
    """This machine cannot run containers; the message says why."""


def wait_for(
    holds: Callable[[], object], what: str, timeout_s: float = 30.0, poll_s: float = 0.1
) -> Any:
    """Return the first true value of `holds`; AssertionError with `what` after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if value := holds():
            return value
        time.sleep(poll_s)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


@dataclass(frozen=True)
class Workshop:
    """Podman, buildah and the tailnet's programs in `folder`; shared by all checkouts."""

    folder: Path

    @classmethod
    def set_up(cls) -> Workshop:
        """Return the workshop, made on the first call; raises MissingToolsError."""
        if os.geteuid() != 0:
            raise MissingToolsError("containers and network namespaces are made by root here")
        script = str(ROOT / "scripts" / "setup-containers")
        done = subprocess.run([script], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise MissingToolsError(f"scripts/setup-containers failed: {done.stderr[-800:]}")
        return cls(Path(done.stdout.splitlines()[-1]))

    @property
    def tools(self) -> Path:
        """The folder with tailscale, tailscaled and headscale; raises MissingToolsError."""
        missing = self.folder / "tools" / "missing"
        if missing.exists():
            raise MissingToolsError(missing.read_text())
        return self.folder / "tools"

    @property
    def environ(self) -> dict[str, str]:
        return os.environ | {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "DISABLE_HC_SYSTEMD": "true",
        }

    def run(
        self, *command: str, check: bool = True, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` (podman …, buildah …) on this workshop's storage, output as text."""
        done = subprocess.run(
            command,
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{' '.join(command)} ended with {done.returncode}:\n"
                f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            )
        return done

    def build(self, extras: str = "", base: str = BASE, timeout_s: float = 1800.0) -> str:
        """Build the image of this checkout as CI does, return its name.

        `extras` are those of pyproject.toml, by commas; with "" there is no torch inside.
        """
        name = image_name(extras)
        with (self.folder / "lock").open() as lock:  # that of scripts/setup-containers
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                self.run(*build_command(name, extras, base), timeout_s=timeout_s)
            finally:
                # buildah 1.28 leaves one behind, mounted, for a stage that it takes from the cache.
                self.run("buildah", "rm", "--all")
        return name

    def inspect(self, kind: str, name: str) -> dict[str, Any]:
        """Return what podman knows of an image or a container."""
        found: list[dict[str, Any]] = json.loads(
            self.run("podman", "inspect", "-t", kind, name).stdout
        )
        return found[0]


def image_name(extras: str) -> str:
    """One name per checkout and extras, so that two checkouts do not test each other's image."""
    checkout = hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]
    return f"localhost/crane-x7-remote:{checkout}-{extras.replace(',', '-') or 'slim'}"


def build_command(name: str, extras: str, base: str = BASE, archive: str = "") -> list[str]:
    """docker/Dockerfile as it is; only what a user may choose as well is handed in.

    `archive` is that of the GPU PhysX library, which the tests do not download.
    """
    dockerfile = ROOT / "docker" / "Dockerfile"
    version = next(
        line.rpartition(":")[2]
        for line in dockerfile.read_text().splitlines()
        if line.startswith("ARG TAILSCALE_IMAGE=")
    )
    return [
        *("buildah", "build", "--isolation", "chroot", "--layers", "--format", "docker"),
        *("--jobs", "2", "--file", str(dockerfile), "--tag", name),
        *("--build-arg", f"BASE_IMAGE={base}"),
        *("--build-arg", f"TAILSCALE_IMAGE=localhost/crane-x7-tailscale:{version}"),
        *("--build-arg", f"PHYSX_ARCHIVE={archive}"),
        *("--build-arg", f"EXTRAS={extras}", str(ROOT)),
    ]


class Network:
    """A network namespace with a loopback and nothing else; removed at the end of `with`."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name or f"x7-{os.getpid()}-{next(_numbers)}"

    def __enter__(self) -> Self:
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        subprocess.run(self.inside("ip", "link", "set", "lo", "up"), check=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=True)

    def inside(self, *command: str) -> list[str]:
        """Return `command` as it runs in this network, with the files of the host."""
        return ["nsenter", f"--net=/run/netns/{self.name}", *command]

    def listeners(self, udp: bool = True) -> set[tuple[str, int, str]]:
        """Return (address, port, program) of all that waits for connections, or for packets."""
        done = subprocess.run(
            self.inside("ss", "-Hlntup" if udp else "-Hlntp"),
            capture_output=True,
            text=True,
            check=True,
        )
        found = set()
        for line in done.stdout.splitlines():
            local = line.split()[4 if udp else 3]  # with one protocol alone, ss does not name it
            address, _, port = local.rpartition(":")
            program = line.partition('(("')[2].partition('"')[0]
            found.add((address.strip("[]").partition("%")[0], int(port), program))
        return found


@dataclass
class Container:
    """One container of `image`, started by `with`; removed with its own volumes at the end."""

    workshop: Workshop
    image: str
    network: Network
    command: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[str] = ()
    """More flags of `podman run`, such as --volume."""
    name: str = ""

    def __enter__(self) -> Self:
        self.name = self.name or f"x7-{os.getpid()}-{next(_numbers)}"
        settings = [
            word for key, value in self.environ.items() for word in ("-e", f"{key}={value}")
        ]
        self.workshop.run(
            *("podman", "run", "--detach", "--name", self.name),
            *("--network", f"ns:/run/netns/{self.network.name}"),
            *settings,
            *self.options,
            self.image,
            *self.command,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            print(f"--- log of {self.name}\n{self.logs()[-6000:]}")
        remove = ("podman", "rm", "--force", "--time", "1", "--volumes", self.name)
        # One that ends between podman's SIGTERM and its SIGKILL is an error to it, and is left.
        if self.workshop.run(*remove, check=False).returncode != 0:
            self.workshop.run(*remove)

    def exec(
        self, *command: str, user: str = "root", check: bool = True, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` inside, as `podman exec` does: with the container's own environment."""
        return self.workshop.run(
            "podman", "exec", "--user", user, self.name, *command, check=check, timeout_s=timeout_s
        )

    def logs(self) -> str:
        done = self.workshop.run("podman", "logs", self.name, check=False)
        return done.stdout + done.stderr

    @property
    def is_running(self) -> bool:
        return bool(self.workshop.inspect("container", self.name)["State"]["Running"])

    def stop(self, grace_s: int = 10) -> None:
        """SIGTERM, then SIGKILL after `grace_s`: what `docker stop` does."""
        self.workshop.run("podman", "stop", "--time", str(grace_s), self.name)

    def start_again(self) -> None:
        self.workshop.run("podman", "start", self.name)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Return the exit code once the container has ended."""
        wait_for(lambda: not self.is_running, f"{self.name} ends\n{self.logs()[-3000:]}", timeout_s)
        return self.exit_code

    @property
    def exit_code(self) -> int:
        return int(self.workshop.inspect("container", self.name)["State"]["ExitCode"])

    def is_healthy(self) -> bool:
        """Run the image's HEALTHCHECK once; nothing schedules it on a machine without systemd."""
        return (
            self.workshop.run("podman", "healthcheck", "run", self.name, check=False).returncode
            == 0
        )
