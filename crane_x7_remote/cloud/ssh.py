"""OpenSSH to a rented machine. Scripts and files → their output, over one connection that is kept.

OpenSSH's own programs are used, as by the tunnel, so that agents, hardware keys and ProxyCommand
work. The machine's host key is learned at the first login and pinned in the run's own file; another
key later ends the run. No secret is in an argument list: files go over SFTP, scripts hold none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from crane_x7_remote import settings
from crane_x7_remote.cloud.types import SshAddress
from crane_x7_remote.errors import CloudError, SshHostKeyError
from crane_x7_remote.system.parent_death import die_with
from crane_x7_remote.tunnel.ssh_cli import Patience, SshConfig, complaint
from crane_x7_vla_rl.log_text import shown

logger = logging.getLogger(__name__)

ENGLISH: Final = {"LC_ALL": "C"}
"""ssh_cli matches OpenSSH's messages in English."""
OWN_FAILURE: Final = 255
"""Exit code of ssh for its own failures; any other belongs to the command."""
CONNECT_S: Final = 15
PERSIST_S: Final = 60
"""How long the shared connection waits for the next command; it also outlives a killed process."""
RETRY_S: Final = 2.0
COMMAND_S: Final = 60.0


class SshLostError(CloudError):
    """The machine does not answer now; trying again may help."""


class HostKeyError(CloudError):
    """The machine answers with another host key than at its first login."""


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: bytes
    err: str


@dataclass(frozen=True)
class Host:
    """Where a machine is, and what opens it."""

    address: SshAddress
    alias: str
    """Name of the machine in known_hosts: the rental's label, since addresses are given again."""
    known_hosts: Path
    """The run's own file."""
    identity: Path | None = None
    """Private key; None: the keys of ~/.ssh and of the agent."""

    @property
    def destination(self) -> str:
        """user@host."""
        return f"{self.address.user}@{self.address.host}"


@dataclass
class Ssh:
    """Commands and files on one machine; close it, or use it as a context manager."""

    host: Host
    program: str = "ssh"
    _control: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="cx7-")))

    def __enter__(self) -> Ssh:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the shared connection."""
        if (self._control / "c").exists():
            command = [self.program, *self._options(), "-O", "exit", self.host.destination]
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                _run(command, b"", 10.0)
        shutil.rmtree(self._control, ignore_errors=True)

    def wait_for_login(self, timeout_s: float, tick: Callable[[], None] = lambda: None) -> None:
        """Log in, however long the machine boots, and pin its host key.

        `tick` is called between two tries; it may raise. Raises CloudError after `timeout_s`.
        """
        deadline_s = time.monotonic() + timeout_s
        said = ""
        while True:
            # While it boots, cloud-init may still replace the key: only that of a login counts.
            self.host.known_hosts.unlink(missing_ok=True)
            try:
                self.run("true", timeout_s=CONNECT_S * 2)
                return
            except SshLostError as error:
                if time.monotonic() > deadline_s:
                    raise CloudError(
                        f"no login within {timeout_s:g} s: {error}; the machine is deleted"
                    ) from error
                if str(error) != said:  # one line per change
                    said = str(error)
                    logger.info("waiting for sshd: %s", said)
            tick()
            time.sleep(min(RETRY_S, max(timeout_s / 10, 0.05)))

    def run(self, script: str, stdin: bytes = b"", timeout_s: float = COMMAND_S) -> Done:
        """Run a line of shell there; its own exit code is in the result.

        Raises SshLostError if the connection fails, HostKeyError for another host key.
        """
        command = [self.program, "-T", *self._options(), self.host.destination, script]
        return self._checked(command, stdin, timeout_s)

    def must(self, script: str, stdin: bytes = b"", timeout_s: float = COMMAND_S) -> bytes:
        """Run a line of shell there and return its output. Raises CloudError if it fails."""
        done = self.run(script, stdin, timeout_s)
        if done.code != 0:
            last = shown(done.err.strip().splitlines()[-1:] or ["no message"])
            raise CloudError(
                f"on the machine, `{shown(script, 80)}` ended with {done.code}: {last}"
            )
        return done.out

    def sftp(self, batch: Sequence[str], timeout_s: float) -> Done:
        """Run a batch of sftp; the first line that fails ends it with code 1."""
        command = ["sftp", "-q", *self._options(port="-P"), "-b", "-", self.host.destination]
        return self._checked(command, "\n".join([*batch, ""]).encode(), timeout_s)

    def rsync(self, there: str, here: Path, names: Sequence[str], timeout_s: float) -> Done:
        """Fetch files (paths below `there`) to the same paths below `here`."""
        command = [
            "rsync", "--times", "--partial-dir=.rsync-part", "--from0", "--files-from=-",
            "--protect-args", "--ignore-times", "-e", self.rsync_shell(),
            f"{self.host.destination}:{there}/", f"{here}/",
        ]  # fmt: skip
        stdin = b"".join(name.encode("utf-8", "surrogateescape") + b"\0" for name in names)
        return self._checked(command, stdin, timeout_s)

    def put(self, files: Mapping[str, bytes], folder: str, timeout_s: float = 600.0) -> None:
        """Write files (path below `folder` → content) with mode 600, each as a whole.

        They are private from their first byte on, here and there. Raises CloudError.
        """
        folders = sorted({str(Path(f"{folder}/{name}").parent) for name in files})
        quoted = " ".join(map(shlex.quote, folders))
        self.must(f"umask 077; mkdir -p {quoted} && chmod 700 {shlex.quote(folder)}")
        with tempfile.TemporaryDirectory(dir=self._control) as staged:  # mode 700
            batch = []
            for number, (name, content) in enumerate(files.items()):
                here = Path(staged) / str(number)
                with open(here, "wb", opener=lambda p, f: os.open(p, f, 0o600)) as file:
                    file.write(content)
                there = f"{folder}/{name}"
                batch += [f'put "{here}" "{there}.part"', f'rename "{there}.part" "{there}"']
            done = self.sftp(batch, timeout_s)
        if done.code != 0:
            raise CloudError(
                f"upload to {folder} failed: {shown(done.err.strip() or 'no message')}; is the"
                " machine's disk full? more room: --disk-gb"
            )

    def shell_command(self, script: str, terminal: bool = True) -> list[str]:
        """Return the command of a session whose output is not read here."""
        way = "-t" if terminal else "-T"
        return [self.program, way, *self._options(shared=False), self.host.destination, script]

    def rsync_shell(self) -> str:
        """Return what rsync's option -e needs."""
        return shlex.join([self.program, "-T", *self._options()])

    def environment(self) -> dict[str, str]:
        """Return the environment of OpenSSH's programs."""
        return settings.inherited() | ENGLISH

    def _options(self, port: str = "-p", shared: bool = True) -> list[str]:
        host, file = self.host, self.host.known_hosts
        pinned = file.exists() and file.stat().st_size > 0
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes" if pinned else "accept-new",
            "UserKnownHostsFile": f'"{file}"',
            "GlobalKnownHostsFile": "/dev/null",
            "HostKeyAlias": host.alias,
            "UpdateHostKeys": "no",
            "ConnectTimeout": str(CONNECT_S),
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "6",
            "ControlMaster": "auto" if shared else "no",
            "ControlPath": f'"{self._control}/c"' if shared else "none",
            "ControlPersist": str(PERSIST_S),
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "ClearAllForwardings": "yes",
            "PermitLocalCommand": "no",
            "RemoteCommand": "none",
            "SendEnv": "-*",  # nothing of this environment
            "LogLevel": "INFO",
        }
        if host.identity is not None:
            options |= {"IdentityFile": f'"{host.identity}"', "IdentitiesOnly": "yes"}
        words = [port, str(host.address.port)]
        for name, value in options.items():
            words += ["-o", f"{name}={value}"]
        return words

    def _checked(self, command: Sequence[str], stdin: bytes, timeout_s: float) -> Done:
        try:
            done = _run(command, stdin, timeout_s, self.environment())
        except FileNotFoundError as error:
            raise CloudError(
                f"program {command[0]!r} does not exist; install OpenSSH's client (openssh-client)"
            ) from error
        except subprocess.TimeoutExpired as error:
            self._drop_connection()
            raise SshLostError(
                f"{self.host.destination}: no answer within {timeout_s:g} s"
            ) from error
        if done.code == OWN_FAILURE:
            self._raise(done)
        return done

    def _drop_connection(self) -> None:
        """Let the next command open its own connection instead of waiting on a silent one."""
        (self._control / "c").unlink(missing_ok=True)

    def _raise(self, done: Done) -> None:
        host = self.host
        config = SshConfig(
            "local", host.destination, 0, ssh_port=host.address.port, identity=host.identity,
            known_hosts=host.known_hosts,
        )  # fmt: skip
        why = complaint(done.err.splitlines(), config)
        if why.kind is SshHostKeyError:
            raise HostKeyError(
                f"{host.destination}: the machine's host key is not the one of its first login:"
                " it was set up again, or someone intercepts the connection; nothing more is sent"
                " to it, and it is deleted"
            )
        if why.patience is Patience.NONE:
            raise CloudError(f"{host.destination}: {why.text}")
        raise SshLostError(f"{host.destination}: {why.text}")


def _run(
    command: Sequence[str],
    stdin: bytes,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
) -> Done:
    """Run a program in its own session, so that Ctrl-C here does not end it halfway.

    Its errors go to a file: the shared connection keeps a pipe open after the command has ended.
    """
    with (
        tempfile.TemporaryFile() as errors,
        _Process(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            env=environment, start_new_session=True, preexec_fn=die_with(os.getpid()),
        ) as process,
    ):  # fmt: skip
        try:
            out, _ = process.communicate(stdin, timeout_s)
        except BaseException:
            process.kill()
            raise
        errors.seek(0)
        return Done(process.returncode, out, errors.read().decode(errors="replace"))


class _Process(subprocess.Popen[bytes]):
    """A process that does not outlive a signal's exception, even one during its start."""

    def __init__(self, command: list[str], **options: Any) -> None:
        try:
            super().__init__(command, **options)
        except BaseException:
            if getattr(self, "pid", None) is not None:
                self.kill()
                self.wait()
            raise
