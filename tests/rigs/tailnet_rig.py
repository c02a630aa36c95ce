"""A real tailnet on this machine: headscale as control server and relay, tailscaled as nodes.

Keys and addresses come out of `Headscale`, one joined machine with its SOCKS5 proxy out of `Node`.
Nothing needs the internet: the relay and STUN are headscale's own. All of it listens on 127.0.0.1,
or, with `inside` (such as `nsenter --net=…`), on any address of a network namespace. Nothing
outlives its `with`, not even a test that is killed.

    with Headscale(tools, folder) as control, Node(tools, folder, "robot") as robot:
        robot.up(control.url, control.key())
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from containers import MissingToolsError, wait_for

DOMAIN = "tailnet.test"
LOOPBACK = "127.0.0.1"
PROGRAMS = ("tailscale", "tailscaled", "headscale")
RELAY_WITHOUT_TLS = {"TS_DEBUG_USE_DERP_HTTP": "1"}
"""The environment of every tailscaled that joins, also in a container: the relay speaks plain HTTP,
since no public authority would sign a certificate for it."""


def find_tools() -> Path:
    """Return the folder with tailscale, tailscaled and headscale.

    It is TAILSCALE_BIN_DIR, or else where PATH finds them. Raises MissingToolsError.
    """
    folder = os.environ.get("TAILSCALE_BIN_DIR")
    if folder is None:
        found = shutil.which("headscale")
        folder = "" if found is None else str(Path(found).parent)
    missing = [name for name in PROGRAMS if shutil.which(name, path=folder) is None]
    if missing:
        raise MissingToolsError(
            f"no {', '.join(missing)} in {folder or 'PATH'}; build them with"
            " scripts/setup-containers, or name their folder in TAILSCALE_BIN_DIR"
        )
    return Path(folder)


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Return a port of the loopback that nothing uses at the moment."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


class Process:
    """A program whose output goes to a file; it ends with us, however we end."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environ: dict[str, str] | None = None,
        base: Mapping[str, str] = os.environ,
    ) -> None:
        """Its environment is `base` and `environ`."""
        self.log = log
        libc, parent = ctypes.CDLL(None), os.getpid()

        def die_with_us() -> None:
            libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:
                os._exit(1)

        with log.open("ab") as file:
            self.popen = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**base, **(environ or {})},
                preexec_fn=die_with_us,
            )

    @property
    def tail(self) -> str:
        """The end of its output, for the message of a test that fails."""
        return self.log.read_text(errors="replace")[-3000:]

    def check(self) -> None:
        code = self.popen.poll()
        assert code is None, f"{self.popen.args!r} ended with {code}:\n{self.tail}"

    def kill(self) -> None:
        """End it without a chance to say goodbye."""
        self.popen.kill()
        self.popen.wait()

    def stop(self, timeout_s: float = 10.0) -> int:
        """SIGTERM, SIGKILL for what does not listen; return the exit code."""
        if self.popen.poll() is None:
            self.popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.popen.wait(timeout_s)
            self.kill()
        return int(self.popen.returncode)


class _Context:
    """Whatever is started by `start` and ended by `stop`."""

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class Headscale(_Context):
    """A control server with one user, in `folder`."""

    def __init__(
        self,
        tools: Path,
        folder: Path,
        address: str = LOOPBACK,
        inside: Sequence[str] = (),
        port: int | None = None,
    ) -> None:
        """`address` is what nodes call; `inside` is put before every command."""
        self._program = [*inside, str(tools / "headscale")]
        self._folder = folder / "headscale"
        self._address = address
        self._port = port or free_port()
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """The login server of `tailscale up`."""
        return f"http://{self._address}:{self._port}"

    def start(self) -> None:
        """Serve; also after `stop`, with all it knew."""
        self._folder.mkdir(parents=True, exist_ok=True)
        is_new = not self._config.exists()
        if is_new:
            self._config.write_text(self._configuration())
        self._process = process = Process(
            [*self._program, "-c", str(self._config), "serve"], self._folder / "log"
        )

        def answers() -> bool:
            process.check()
            return self._run("health", check=False).returncode == 0

        wait_for(answers, "headscale answers")
        if is_new:
            self.command("users", "create", "rig")

    def stop(self) -> None:
        """Stop serving; nodes keep what they know."""
        if self._process is not None:
            self._process.stop()

    def key(self, *, reusable: bool = True, ephemeral: bool = False, expires: str = "1h") -> str:
        """Return a new auth key."""
        flags = ["--reusable"] * reusable + ["--ephemeral"] * ephemeral
        made = self.command("preauthkeys", "create", "-u", "1", "-e", expires, *flags)
        return str(made["key"])

    def expired_key(self) -> str:
        """Return a key whose time is over."""
        made = self.command("preauthkeys", "create", "-u", "1", "-e", "1h")
        self.command("preauthkeys", "expire", "--id", str(made["id"]))
        return str(made["key"])

    def nodes(self) -> list[dict[str, Any]]:
        """Return what the control server knows of every node, such as `given_name`, `online`."""
        found: list[dict[str, Any]] = self.command("nodes", "list") or []
        return found

    def node(self, name: str) -> dict[str, Any] | None:
        """Return one node by the name that the tailnet gives it; None if it is gone."""
        return next((node for node in self.nodes() if node["given_name"] == name), None)

    def command(self, *words: str) -> Any:
        """Run a command of headscale's and return its answer."""
        done = self._run(*words, "-o", "json")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def _run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self._program, "-c", str(self._config), "--force", *words],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert not check or done.returncode == 0, f"headscale {words}: {done.stderr}{done.stdout}"
        return done

    @property
    def _config(self) -> Path:
        return self._folder / "config.yaml"

    def _configuration(self) -> str:
        stun_port = free_port(socket.SOCK_DGRAM)
        folder = str(self._folder)
        values = {
            "server_url": self.url,
            "listen_addr": f"{self._address}:{self._port}",
            "metrics_listen_addr": "",
            "grpc_listen_addr": f"{LOOPBACK}:{free_port()}",
            "noise": {"private_key_path": f"{folder}/noise.key"},
            "prefixes": {"v4": "100.64.0.0/10", "v6": "fd7a:115c:a1e0::/48"},
            "derp": {
                "server": {
                    "enabled": True,
                    "region_id": 999,
                    "region_code": "rig",
                    "region_name": "rig",
                    "verify_clients": True,
                    "stun_listen_addr": f"{self._address}:{stun_port}",
                    "private_key_path": f"{folder}/relay.key",
                    "ipv4": self._address,
                    # Not an empty string: nodes would wait 3 s for an answer over IPv6.
                    "ipv6": "none",
                },
                "urls": [],
                "paths": [],
                "auto_update_enabled": False,
            },
            "disable_check_updates": True,
            "ephemeral_node_inactivity_timeout": "30m",
            "database": {"type": "sqlite", "sqlite": {"path": f"{folder}/db.sqlite"}},
            "dns": {
                "magic_dns": True,
                "base_domain": DOMAIN,
                "override_local_dns": False,
                "nameservers": {"global": []},
            },
            "unix_socket": f"{folder}/sock",
            "unix_socket_permission": "0700",
            "logtail": {"enabled": False},
            # What a control server of thousands of nodes collects before it answers, in one go.
            "tuning": {"batch_change_delay": "50ms", "node_store_batch_timeout": "20ms"},
        }
        return json.dumps(values)  # JSON is YAML


@dataclass(frozen=True)
class NodeConfig:
    """How one tailscaled is started."""

    inside: tuple[str, ...] = ()
    state: str | None = None
    """For --state, such as "mem:"; default: kept in the node's folder."""


class Node(_Context):
    """One tailscaled in userspace mode; `start` begins it, `up` joins."""

    def __init__(
        self, tools: Path, folder: Path, name: str, config: NodeConfig | None = None
    ) -> None:
        """`name` is the host name it asks for."""
        self.name = name
        self.folder = folder / f"node-{name}"
        self.socket = self.folder / "sock"
        self.socks_port = free_port()
        self._tools = tools
        self._config = config or NodeConfig()
        self._process: Process | None = None

    @property
    def proxy(self) -> str:
        """For ROSBRIDGE_PROXY: names are resolved by the tailnet."""
        return f"socks5h://{LOOPBACK}:{self.socks_port}"

    @property
    def process(self) -> Process:
        assert self._process is not None, "the node is not started"
        return self._process

    def start(self) -> None:
        """Start tailscaled; also after `stop` or a kill, with the state it had."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = self._config.state or str(self.folder / "tailscaled.state")
        command = [
            *(*self._config.inside, str(self._tools / "tailscaled")),
            *("--statedir", str(self.folder), "--state", state, "--socket", str(self.socket)),
            *("--tun", "userspace-networking", "--socks5-server", f"{LOOPBACK}:{self.socks_port}"),
            *("--no-logs-no-support", "--port", "0"),
        ]
        environ = RELAY_WITHOUT_TLS | {"TS_LOGS_DIR": str(self.folder)}
        self._process = process = Process(command, self.folder / "log", environ)

        def answers() -> bool:
            process.check()
            return self.cli("status", "--json", check=False).returncode == 0

        wait_for(answers, f"tailscaled of {self.name} answers")

    def stop(self) -> None:
        """End tailscaled; the tailnet still knows the node, as offline."""
        if self._process is not None:
            self._process.stop()

    def up(self, url: str, key: str, timeout_s: float = 30.0) -> None:
        """Join the tailnet of the control server at `url`."""
        secret = self.folder / "authkey"
        secret.write_text(key)
        self.cli(
            *("up", f"--login-server={url}", f"--auth-key=file:{secret}"),
            *(f"--hostname={self.name}", f"--timeout={timeout_s:g}s"),
            timeout_s=timeout_s + 5,
        )

    def cli(
        self, *words: str, check: bool = True, timeout_s: float = 30.0
    ) -> subprocess.CompletedProcess[str]:
        """Run the `tailscale` command of this node."""
        program = [*self._config.inside, str(self._tools / "tailscale"), "--socket"]
        done = subprocess.run(
            [*program, str(self.socket), *words],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"{self.name}: tailscale {' '.join(words)} ended with {done.returncode}:\n"
            f"{done.stdout}{done.stderr}{self.process.tail}"
        )
        return done

    def status(self) -> dict[str, Any]:
        """Return `tailscale status --json`."""
        status: dict[str, Any] = json.loads(self.cli("status", "--json").stdout)
        return status

    def peer(self, name: str) -> dict[str, Any] | None:
        """Return one peer by its name in the tailnet; None if it is not known."""
        peers: list[dict[str, Any]] = list((self.status().get("Peer") or {}).values())
        return next((peer for peer in peers if peer["DNSName"].partition(".")[0] == name), None)

    def wait_online(self, name: str, online: bool = True, timeout_s: float = 30.0) -> None:
        """Wait until the peer called `name` is seen as online, or offline."""
        wait_for(
            lambda: (peer := self.peer(name)) is not None and peer["Online"] is online,
            f"{self.name} sees {name} {'online' if online else 'offline'}",
            timeout_s,
        )
