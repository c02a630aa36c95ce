"""tailscaled and its login. Variables have the same meaning as in Tailscale's own container.

The auth key reaches `tailscale up` in a temporary file. An error quotes the control server, with
the key masked.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crane_x7_remote.boot import landlock, tailscale_cli
from crane_x7_remote.boot.files import Files
from crane_x7_remote.boot.status_board import StatusBoard
from crane_x7_remote.boot.supervisor import Child, how_it_ended
from crane_x7_remote.errors import (
    ControlUnreachableError,
    RemoteError,
    SettingsError,
    TailnetKeyError,
    TailnetKeyExpiredError,
    TailscaledError,
)
from crane_x7_remote.settings import Settings
from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.log_text import shown
from crane_x7_vla_rl.secret_text import remember

logger = logging.getLogger(__name__)

SOCKET_TIMEOUT_S = 15.0
POLL_S = 0.02
COMMAND_TIMEOUT_S = 10.0
WATCH_S = 5.0
OUTPUT_CHARACTERS = 2000
"""Last characters of `tailscale up`'s output, which are searched for the cause."""
TUN = Path("/dev/net/tun")


@dataclass(frozen=True)
class CommandResult:
    """How a `tailscale` command ended."""

    code: int
    output: str
    """Both its outputs."""


class Tailscaled:
    """The daemon, for `Service`: ready once it has joined the tailnet."""

    part = "tunnel"

    def __init__(
        self, settings: Settings, files: Files, hostname: str, environ: Mapping[str, str]
    ) -> None:
        """`environ` is tailscaled's environment; it must not contain secrets."""
        self._settings = settings
        self._files = files
        self._hostname = hostname
        self._environ = {"TS_LOGS_DIR": str(files.run / "tailscale")} | dict(environ)
        # Landlock does not cover Multipath TCP, Go's default for listening.
        others = [word for word in (self._environ.get("GODEBUG"), "multipathtcp=0") if word]
        self._environ["GODEBUG"] = ",".join(others)
        self._programs = {name: shutil.which(name) for name in ("tailscaled", "tailscale")}

    def prepare(self) -> None:
        """Check everything that needs no network. Raises RemoteError."""
        missing = [name for name, path in self._programs.items() if path is None]
        if missing:
            raise TailscaledError(
                f"TS_AUTHKEY is set, but {' and '.join(missing)} is not on PATH; use the image, or"
                " install Tailscale"
            )
        if not self._settings.ts_userspace and not TUN.exists():
            raise TailscaledError(
                f"TS_USERSPACE=false, but {TUN} does not exist; start the container with --device"
                f" {TUN} --cap-add NET_ADMIN, or unset TS_USERSPACE"
            )
        key_file = self._key.removeprefix("file:")
        if key_file != self._key:
            try:
                remember(Path(key_file).read_text(errors="replace"))
            except OSError as error:
                raise SettingsError(
                    f"TS_AUTHKEY=file:{key_file}: the file cannot be read ({error.strerror})"
                ) from error
        try:
            shutil.rmtree(self._files.run / "tailscale", ignore_errors=True)
            (self._files.run / "tailscale").mkdir(mode=0o700)
            self._files.tailscale_socket.parent.mkdir(parents=True, exist_ok=True)
            if self._files.state is not None:
                self._link_socket(self._files.state / "tailscaled.sock")
        except OSError as error:
            raise TailscaledError(
                f"tailscaled's folders cannot be created: {why(error)}"
            ) from error

    @property
    def is_ephemeral(self) -> bool:
        """Whether its login is not kept, so it leaves the tailnet at the end."""
        return self._files.state is None

    async def launch(self) -> Child:
        """Start tailscaled."""
        argv = [
            str(self._programs["tailscaled"]),
            *tailscale_cli.daemon_arguments(self._settings, self._files),
        ]
        prepare = None
        if not self._settings.ts_userspace:
            pass  # its peer API then listens on the tailnet's own address
        elif landlock.is_supported():
            prepare = landlock.listen_only_on(tailscale_cli.listening_ports(self._settings))
        else:
            logger.info(
                "%s: this kernel has no Landlock for TCP (Linux 6.7): tailscaled's peer API listens"
                " on all addresses; it talks only to machines of the tailnet",
                self.part,
            )
        return await Child.start(
            "tailscaled", argv, self._environ, log_level=logging.DEBUG, prepare=prepare
        )

    async def ready(self, child: Child) -> str:
        """Wait for the socket, then log in. Raises RemoteError for every failure."""
        del child
        try:
            async with asyncio.timeout(SOCKET_TIMEOUT_S):
                while not await self._socket_answers():
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            raise TailscaledError(
                f"tailscaled did not open its socket {self._files.tailscale_socket} within"
                f" {SOCKET_TIMEOUT_S:g} s; see its output with `boot --log-level debug`"
            ) from error
        use_key = not (self._settings.ts_auth_once and await self._is_logged_in())
        await self._up(use_key)
        return tailscale_cli.describe(await self._status())

    def explain_end(self, code: int, last_lines: Sequence[str]) -> RemoteError:
        """Return its last words."""
        text = how_it_ended(code, last_lines)
        hint = ""
        if any("address already in use" in line for line in last_lines):
            hint = "; set TS_SOCKS5_SERVER and TS_OUTBOUND_HTTP_PROXY_LISTEN to free ports"
        if any("flag provided but not defined" in line for line in last_lines):
            hint = "; check TS_TAILSCALED_EXTRA_ARGS"
        return TailscaledError(f"tailscaled {text}{hint}")

    async def watch(self, board: StatusBoard) -> None:
        """Keep the board's `tunnel` up to date while tailscaled runs, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_S)
            if board[self.part].state == "starting":
                continue
            try:
                status = await self._status()
            except RemoteError as error:
                logger.debug("%s", error)  # `Service` notices when tailscaled ends
                continue
            problem = tailscale_cli.trouble(status)
            if problem is None:
                board.set(self.part, "up", tailscale_cli.describe(status))
            else:
                board.set(self.part, "down", *problem)

    async def log_out(self, until_s: float) -> None:
        """Leave the tailnet, so that its list keeps no dead node; `until_s` is monotonic."""
        answer = await self._tailscale("logout", timeout_s=max(0.1, until_s - time.monotonic()))
        if answer.code == 0:
            logger.info("%s: logged out of the tailnet", self.part)
        else:
            logger.warning("%s: could not log out: %s", self.part, shown(answer.output.strip()))

    async def _up(self, use_key: bool) -> None:
        key_file = self._files.run / "authkey"
        argument = self._key
        try:
            if use_key and not argument.startswith("file:"):
                _write_secret(key_file, argument)
                argument = f"file:{key_file}"
            words = tailscale_cli.up_arguments(
                self._settings, self._hostname, argument if use_key else None
            )
            timeout_s = self._settings.ts_login_timeout + 5.0
            answer = await self._tailscale(*words, timeout_s=timeout_s)
        finally:
            key_file.unlink(missing_ok=True)
        if answer.code != 0:
            raise await self._explain_refusal(answer)

    async def _explain_refusal(self, answer: CommandResult) -> RemoteError:
        status = await self._status()
        text = shown(answer.output.strip(), OUTPUT_CHARACTERS)
        if "backend error" in text:
            word = text.partition("backend error:")[2].strip()
            if "expired" in word.lower():
                return TailnetKeyExpiredError(
                    f"TS_AUTHKEY has expired ({word}); {tailscale_cli.NEW_KEY}"
                )
            return TailnetKeyError(
                f"the control server refused TS_AUTHKEY: {word}; {tailscale_cli.NEW_KEY}"
            )
        if status.get("BackendState") == "NeedsMachineAuth":
            return TailnetKeyError(
                f"{self._hostname} waits for approval; approve it in the tailnet's admin console,"
                " or use a pre-approved key"
            )
        if "timeout waiting" in text or answer.code == TIMED_OUT:
            seconds = f"TS_LOGIN_TIMEOUT={self._settings.ts_login_timeout:g} s"
            word = shown("; ".join(status.get("Health") or []))
            return ControlUnreachableError(
                f"not on the tailnet within {seconds}: {word or text}; check this machine's"
                " network, and --login-server in TS_EXTRA_ARGS"
            )
        return SettingsError(f"`tailscale up` failed; check TS_EXTRA_ARGS: {text}")

    async def _is_logged_in(self) -> bool:
        """Whether the kept state is still logged in; waits until tailscaled knows."""
        until_s = time.monotonic() + COMMAND_TIMEOUT_S
        while time.monotonic() < until_s:
            status = await self._status()
            if status["BackendState"] not in ("NoState", "Starting"):
                return bool(status["BackendState"] != "NeedsLogin")
            await asyncio.sleep(0.1)
        return True  # without an answer from the control server the kept login is valid

    async def _status(self) -> dict[str, Any]:
        answer = await self._tailscale("status", "--json", "--peers=false")
        try:
            status: dict[str, Any] = json.loads(answer.output)
        except ValueError as error:
            said = shown(answer.output.strip())
            raise TailscaledError(f"`tailscale status` failed: {said}") from error
        return status

    async def _tailscale(self, *words: str, timeout_s: float = COMMAND_TIMEOUT_S) -> CommandResult:
        process = await asyncio.create_subprocess_exec(
            str(self._programs["tailscale"]),
            f"--socket={self._files.tailscale_socket}",
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environ,
        )
        try:
            async with asyncio.timeout(timeout_s):
                output, _ = await process.communicate()
        except TimeoutError:
            return CommandResult(TIMED_OUT, f"it did not end within {timeout_s:g} s")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return CommandResult(process.returncode or 0, output.decode(errors="replace"))

    async def _socket_answers(self) -> bool:
        try:
            _, writer = await asyncio.open_unix_connection(self._files.tailscale_socket)
        except OSError:
            return False
        writer.close()
        return True

    def _link_socket(self, link: Path) -> None:
        """Keep the documented `tailscale --socket=$TS_STATE_DIR/tailscaled.sock` working."""
        if link != self._files.tailscale_socket:
            link.unlink(missing_ok=True)
            link.symlink_to(self._files.tailscale_socket)

    @property
    def _key(self) -> str:
        secret = self._settings.ts_authkey
        return "" if secret is None else secret.get_secret_value()


TIMED_OUT = -1


def _write_secret(path: Path, secret: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret)
