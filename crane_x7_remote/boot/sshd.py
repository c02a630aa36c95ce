"""sshd for user vla: only keys, forwarding only to localhost, one host key per container.

The host key is created at the first start and kept in the state folder; sshd reads a copy, since
some volumes cannot keep it private. A session gets the role's environment through
~/.ssh/environment, the only way that leaves quotes, `$`, backticks and `#` unchanged and also works
for `ssh host command`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crane_x7_remote.boot.account import Account
from crane_x7_remote.boot.supervisor import Child, how_it_ended
from crane_x7_remote.errors import RemoteError, SshdError, StateError
from crane_x7_vla_rl.log_text import shown

logger = logging.getLogger(__name__)

PLACES = "/usr/sbin:/usr/local/sbin:/sbin"
"""Where sshd is if it is not on PATH."""
READY_TIMEOUT_S = 10.0
POLL_S = 0.02
KEY_NAME = "ssh_host_ed25519_key"
OF_THE_SESSION = {
    "HOME", "USER", "LOGNAME", "SHELL", "MAIL", "PWD", "OLDPWD", "SHLVL", "TERM", "HOSTNAME", "_",
    "DISPLAY", "XAUTHORITY", "SSH_AUTH_SOCK", "SSH_CLIENT", "SSH_CONNECTION", "SSH_TTY",
    "SSH_PUBLIC_KEY", "PUBLIC_KEY",
}  # fmt: skip
"""Variables that sshd sets, and those that are useless in a session."""
WRITE_ENVIRONMENT = """
umask 077 && mkdir -p "$HOME/.ssh" && cat > "$HOME/.ssh/environment.new" \
    && mv "$HOME/.ssh/environment.new" "$HOME/.ssh/environment"
"""


@dataclass(frozen=True)
class SshdConfig:
    """Who may log in, and where sshd listens."""

    account: Account
    keys: tuple[str, ...]
    """Lines of authorized_keys."""
    port: int
    listen_address: str | None
    run: Path
    """Folder for generated files; no other program writes there."""
    state: Path
    """Folder of the host key."""


class Sshd:
    """The daemon, for `Service`."""

    part = "sshd"

    def __init__(self, config: SshdConfig, environ: Mapping[str, str]) -> None:
        """`environ` is the environment of sessions."""
        self._config = config
        self._environ = environ
        self._program = ""
        self._fingerprint = ""

    def prepare(self) -> None:
        """Write all files that sshd reads. Raises SshdError, StateError."""
        config = self._config
        self._program = _find("sshd")
        config.run.mkdir(mode=0o755, exist_ok=True)
        self._fingerprint = _host_key(config.state, config.run)
        authorized_keys = config.run / "authorized_keys"
        authorized_keys.write_text("\n".join(config.keys) + "\n")
        _count_keys(authorized_keys, config.keys)
        names = write_environment(self._environ, config.account)
        (config.run / "sshd_config").write_text(render(config, names))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd locks itself in there
        check = [self._program, "-t", "-f", str(config.run / "sshd_config")]
        done = subprocess.run(check, capture_output=True, text=True, timeout=20, check=False)
        if done.returncode != 0:
            raise SshdError(f"sshd refuses its settings: {shown(done.stderr.strip())}")

    async def launch(self) -> Child:
        """Start sshd. Raises SshdError if its port is in use."""
        _check_port(self._config)
        argv = [self._program, "-D", "-e", "-f", str(self._config.run / "sshd_config")]
        environ = {"PATH": os.defpath}  # sessions get theirs from the file, sshd needs none
        return await Child.start("sshd", argv, environ, log_level=logging.INFO)

    async def ready(self, child: Child) -> str:
        """Return when sshd sends its greeting. Raises SshdError."""
        del child
        host, port = self._config.listen_address or "127.0.0.1", self._config.port
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not await _greets(host, port):
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            raise SshdError(
                f"sshd did not answer on {host}:{port} within {READY_TIMEOUT_S:g} s; see the log"
            ) from error
        return f"user {self._config.account.name}, port {port}, host key {self._fingerprint}"

    def explain_end(self, code: int, last_lines: Sequence[str]) -> RemoteError:
        """Return why it ended, with its last lines."""
        return SshdError(f"sshd {how_it_ended(code, last_lines)}")


def render(config: SshdConfig, environment_names: Sequence[str]) -> str:
    """Return sshd_config. See sshd_config(5)."""
    listen = [f"ListenAddress {config.listen_address}"] if config.listen_address else []
    local = "localhost:* 127.0.0.1:* [::1]:*"
    lines = [
        f"Port {config.port}",
        *listen,
        f"HostKey {config.run / KEY_NAME}",
        "PidFile none",
        f"AuthorizedKeysFile {config.run / 'authorized_keys'}",
        f"AllowUsers {config.account.name}",
        "AuthenticationMethods publickey",
        "PubkeyAuthentication yes",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitEmptyPasswords no",
        "PermitRootLogin no",
        "UsePAM no",
        # It would refuse a folder below a /run that is a tmpfs, world-writable but sticky. It would
        # check only one file, which boot wrote.
        "StrictModes no",
        "LoginGraceTime 30",
        "X11Forwarding yes",
        "X11UseLocalhost yes",
        # Both directions: a robot behind a router forwards its rosbridge with ssh -R.
        "AllowTcpForwarding yes",
        f"PermitOpen {local}",
        f"PermitListen {local}",
        "GatewayPorts no",
        "AllowStreamLocalForwarding no",
        "AllowAgentForwarding no",
        "PermitTunnel no",
        f"PermitUserEnvironment {','.join(environment_names) or 'no'}",
        "Subsystem sftp internal-sftp",
        "PrintMotd no",
        # The forwarded port of a dead client is free again after 10 s.
        "ClientAliveInterval 5",
        "ClientAliveCountMax 2",
        "LogLevel INFO",
    ]
    return "\n".join(lines) + "\n"


def session_environment(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables that a session can get, and the names of the others.

    In the file a line break ends a value, so a value that contains one is skipped.
    """
    wanted = {name: value for name, value in environ.items() if name not in OF_THE_SESSION}
    fits = {
        name: value
        for name, value in wanted.items()
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and not re.search(r"[\n\0]", value)
    }
    return fits, sorted(wanted.keys() - fits.keys())


def write_environment(environ: Mapping[str, str], account: Account) -> list[str]:
    """Write ~/.ssh/environment as `account`, readable only by it; return the names in it.

    Raises SshdError if the home cannot be written.
    """
    fits, left_out = session_environment(environ)
    if left_out:
        logger.warning(
            "not in ssh sessions (line break in the value, or invalid name): %s",
            ", ".join(left_out),
        )
    text = "".join(f"{name}={value}\n" for name, value in sorted(fits.items()))
    done = account.run(WRITE_ENVIRONMENT, stdin=text)
    if done.returncode != 0:
        raise SshdError(
            f"{account.home}/.ssh/environment cannot be written by {account.name}"
            f" ({shown(done.stderr.strip())}); check the owner of {account.home} and its free space"
        )
    return sorted(fits)


def _host_key(state: Path, run: Path) -> str:
    """Create a host key in `state` if absent, copy it to `run`, return its fingerprint."""
    keygen = _find("ssh-keygen")
    kept = state / KEY_NAME
    if not kept.exists():
        new = state / f".{KEY_NAME}.{os.getpid()}"
        _keygen(keygen, "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(new))
        new.with_name(new.name + ".pub").replace(kept.with_name(KEY_NAME + ".pub"))
        new.replace(kept)
    copy = run / KEY_NAME
    copy.unlink(missing_ok=True)
    descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(kept.read_bytes())
    return _keygen(keygen, "-l", "-f", str(copy)).split()[1]


def _count_keys(authorized_keys: Path, keys: Sequence[str]) -> None:
    """Raise SshdError for keys that OpenSSH cannot read, which sshd would skip silently. The
    message names a key by its position and type and never shows it.
    """
    keygen = _find("ssh-keygen")
    read = _run(keygen, "-l", "-f", str(authorized_keys)).stdout.splitlines()
    if len(read) == len(keys):
        return
    wrong = [
        f"key {number} ({key.split()[0]})"
        for number, key in enumerate(keys, 1)
        if _run(keygen, "-l", "-f", "/dev/stdin", stdin=key + "\n").returncode != 0
    ]
    raise SshdError(
        f"OpenSSH reads {len(read)} of the {len(keys)} keys in SSH_PUBLIC_KEY and PUBLIC_KEY; it"
        f" cannot read {', '.join(wrong) or 'all of them together'}: copy the complete lines again,"
        " each on its own line"
    )


def _run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        input=stdin,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=20,
        check=False,
    )


def _keygen(program: str, *words: str) -> str:
    done = _run(program, *words)
    if done.returncode != 0:
        raise StateError(
            "ssh-keygen could not create or read the host key"
            f" {words[-1]} ({shown(done.stderr.strip())});"
            f" free space in SSH_STATE_DIR, or delete its {KEY_NAME} for a new identity"
        )
    return done.stdout


def _find(program: str) -> str:
    found = shutil.which(program) or shutil.which(program, path=PLACES)
    if found is None:
        raise SshdError(f"{program} is not on PATH; install openssh-server, or use the image")
    return found


def _check_port(config: SshdConfig) -> None:
    host = config.listen_address or ""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, config.port))
        except OSError as error:
            raise SshdError(
                f"sshd cannot listen on {host or 'port'}:{config.port} ({error.strerror}); set"
                " SSH_PORT to a free port, above 1023 unless boot is root"
            ) from error


async def _greets(host: str, port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    try:
        return (await reader.readline()).startswith(b"SSH-2.0-")
    except ConnectionError:
        return False
    finally:
        writer.close()
