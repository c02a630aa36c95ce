"""`crane-x7-remote boot` on a separate machine, without an image: namespaces of this one.

As root, boot gets its own processes (it is process 1), a network with a loopback alone, its own
/run, /home, /var/lib, and /etc/passwd with a user vla; so port 22 is free, and nothing of this
machine is touched. Without root it runs as it is, in folders of the test's; there is no sshd then.
Nothing outlives the `with`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from containers import Network, wait_for
from processes import children

IS_ROOT = os.geteuid() == 0
PASSWD = """\
root:*:0:0:root:/root:/bin/bash
sshd:*:100:65534::/run/sshd:/usr/sbin/nologin
nobody:*:65534:65534::/nonexistent:/usr/sbin/nologin
vla:*:1000:1000::/home/vla:/bin/bash
"""
ENTER = """
set -e
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /home
mount -t tmpfs -o mode=755 tmpfs /var/lib
mkdir /home/vla
chown 1000:1000 /home/vla
cp "$RIG/passwd" /run/passwd
mount --bind /run/passwd /etc/passwd
unset RIG
exec "$@"
"""
PASSED_ON = ("PATH", "LANG", "COVERAGE_PROCESS_START")


class Machine:
    """A place to boot in; `folder` is one that all its users may enter."""

    def __init__(self, network: Network | None = None) -> None:
        """`network` is one shared with others; default: a new one."""
        self._own = Network() if IS_ROOT and network is None else None
        self._network = network or self._own
        self.folder = Path(tempfile.mkdtemp(prefix="crane-x7-boot-"))
        self.folder.chmod(0o755)
        (self.folder / "passwd").write_text(PASSWD)
        (self.folder / "home").mkdir()
        self.log_path = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if self._own is not None:
            self._own.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()  # and with it, as process 1 of its namespace, all others
            self._process.wait()
        if self._own is not None:
            self._own.__exit__(kind, error, trace)
        if error is not None:
            print(f"--- log of boot\n{self.log[-6000:]}")
        shutil.rmtree(self.folder)

    def boot(
        self,
        *words: str,
        environ: Mapping[str, str] | None = None,
        flags: Sequence[str] = (),
        shell_first: str = "",
    ) -> None:
        """Start boot with the role `words`. `shell_first` is run as root on the machine before."""
        base = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        base |= {"HOME": str(self.folder / "home"), "TS_LOCAL_ADDR_PORT": "127.0.0.1:9002"}
        command = [sys.executable, "-m", "crane_x7_remote", "boot", *flags, *words]
        if IS_ROOT:
            script = ENTER.replace("exec", f"{shell_first}\nexec")
            command = self.network.inside(
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *("sh", "-c", script, "sh", *command),
            )
            base["RIG"] = str(self.folder)
        else:
            base |= {"BOOT_RUN_DIR": str(self.folder / "run"), "TS_ENABLE_HEALTH_CHECK": "false"}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=base | dict(environ or {}),
            )

    @property
    def network(self) -> Network:
        """The machine's network; only as root is there one."""
        assert self._network is not None
        return self._network

    @property
    def log(self) -> str:
        """Everything that boot and its role have said."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def pid(self) -> int:
        """Process id of boot's first process, as this machine counts."""
        assert self._process is not None
        if not IS_ROOT:
            return self._process.pid
        unshare = self._process.pid
        return wait_for(lambda: children(unshare), "unshare has a child")[0]

    def inside(self, *command: str) -> list[str]:
        """Return `command` as root on the machine, with the network, files and processes there."""
        if not IS_ROOT:
            return list(command)
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", "--", *command]

    def run(
        self, *command: str, check: bool = True, timeout_s: float = 30.0
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` inside to its end."""
        environ = os.environ | {"BOOT_RUN_DIR": str(self.folder / "run")}
        if IS_ROOT:
            del environ["BOOT_RUN_DIR"]
        return subprocess.run(
            self.inside(*command),
            capture_output=True,
            text=True,
            env=environ,
            check=check,
            timeout=timeout_s,
        )

    def wait_for_log(self, text: str, timeout_s: float = 30.0) -> None:
        """Return once the log holds `text`."""

        def said() -> bool:
            assert self._process is not None
            ended = self._process.poll() is not None
            if text in self.log:
                return True
            assert not ended, f"boot ended without saying {text!r}:\n{self.log[-3000:]}"
            return False

        wait_for(said, f"boot says {text!r}", timeout_s)

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send what `docker stop` sends, to the first process."""
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Return boot's exit code once it has ended."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def stop(self, timeout_s: float = 20.0) -> int:
        """SIGTERM, and the exit code."""
        self.signal()
        return self.wait(timeout_s)

    @property
    def _status_socket(self) -> str:
        return "/run/crane-x7/status.sock" if IS_ROOT else str(self.folder / "run/status.sock")

    def status(self) -> dict[str, Any]:
        """Return what `crane-x7-remote status --json` says."""
        done = self.run(sys.executable, "-m", "crane_x7_remote", "status", "--json", check=False)
        assert done.stdout, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def wait_for_state(self, part: str, state: str, timeout_s: float = 30.0) -> dict[str, Any]:
        """Return the part's entry once it is in `state`."""

        def reached() -> dict[str, Any] | None:
            if self.run("test", "-S", self._status_socket, check=False).returncode != 0:
                return None  # boot has only begun
            entry = self.status()[part]
            return entry if entry["state"] == state else None

        found: dict[str, Any] = wait_for(reached, f"{part} is {state}", timeout_s, poll_s=0.3)
        return found

    def processes(self) -> list[tuple[int, int, str, str]]:
        """Return (pid, parent, state, command line) of all, as the machine counts."""
        done = self.run("ps", "-wweo", "pid=,ppid=,stat=,args=")
        rows = (line.split(None, 3) for line in done.stdout.splitlines())
        return [(int(pid), int(parent), state, args) for pid, parent, state, args in rows]

    def pids(self, pattern: str) -> list[int]:
        """Return the processes whose command line matches, oldest first; ourselves left out."""
        return sorted(
            pid
            for pid, _, _, args in self.processes()
            if re.search(pattern, args) and not args.startswith("ps ")
        )

    def kill(self, pid: int) -> None:
        """Kill a process of the machine's without a chance to say goodbye."""
        self.run("kill", "-9", str(pid))

    def variables_of(self, pid: int) -> dict[str, str]:
        """Return the environment that a process was started with."""
        text = self.run("cat", f"/proc/{pid}/environ").stdout
        return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)

    def shell(self, script: str, user: str = "vla") -> subprocess.CompletedProcess[str]:
        """Run a script on the machine as `user`."""
        words = ["setpriv", "--reuid", user, "--clear-groups", "sh", "-c", script]
        return self.run(*words, check=False)


def needs_root() -> pytest.MarkDecorator:
    """Skip where there is no root to make a machine with sshd and a user vla."""
    return pytest.mark.skipif(
        not IS_ROOT or shutil.which("unshare") is None,
        reason="needs root: sshd logs user vla in on a machine of the test's own",
    )
