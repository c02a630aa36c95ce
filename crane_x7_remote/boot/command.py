"""`crane-x7-remote boot [ROLE …]`: settings → tailnet and sshd → role → one exit code.

sshd does not wait for the tailnet, so that a login through a port of the host works while the
tailnet is down. The role waits for both. SIGTERM ends role, login, sshd and tailscaled in this
order within STOP_BUDGET_S. A training that needs longer to save is not killed: boot leaves the
tailnet, then waits for it. The container runtime ends this wait (`docker stop -t SECONDS`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import math
import signal
import sys
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crane_x7_remote import settings as settings_module
from crane_x7_remote.addresses import split_address
from crane_x7_remote.boot import files as files_module
from crane_x7_remote.boot import health, output_volume, robot_link
from crane_x7_remote.boot import role as role_module
from crane_x7_remote.boot.account import Account, hand_over, role_account
from crane_x7_remote.boot.files import Files
from crane_x7_remote.boot.init import become_init_if_first
from crane_x7_remote.boot.role import Role
from crane_x7_remote.boot.sshd import Sshd, SshdConfig
from crane_x7_remote.boot.status_board import State, StatusBoard
from crane_x7_remote.boot.supervisor import Child, Service
from crane_x7_remote.boot.tailscale import Tailscaled
from crane_x7_remote.errors import ExitCode, RemoteError, RoleError, SettingsError
from crane_x7_remote.settings import Settings

logger = logging.getLogger(__name__)

STOP_BUDGET_S = 9.0
"""`docker stop` kills after 10 s."""
ROLE_SHARE_S, LOGOUT_SHARE_S, SSHD_SHARE_S = 5.0, 2.5, 0.7
"""Share of the budget per part; tailscaled gets the rest. A training may take longer than its
share."""
TAILSCALED_SHARE_S = 0.8
"""Its least share, after a training that took longer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `boot`."""
    parser.add_argument(
        "role",
        nargs=argparse.REMAINDER,
        metavar="ROLE",
        help=f"{', '.join(role_module.ROLES)}, each with its flags, or any command [infer if"
        " ROSBRIDGE_HOST and one of VLA_MODEL_PATH and VLA_POLICY are set; else sshd]",
    )


def run(args: argparse.Namespace) -> int:
    """Boot, run the role, return its exit code; raises RemoteError only before the role starts."""
    become_init_if_first()
    plan = make_plan(args.role, settings_module.load())
    return asyncio.run(Boot(plan).run())


@dataclass(frozen=True)
class BootPlan:
    """Everything that is decided before a process starts."""

    settings: Settings
    files: Files
    account: Account
    role: Role
    environ: dict[str, str]
    """Environment of the role and of ssh sessions."""
    daemon_environ: dict[str, str]
    """Environment of tailscaled, without secrets."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Public keys that may log in."""
        both = f"{self.settings.ssh_public_key or ''}\n{self.settings.public_key or ''}"
        return tuple(line for line in both.splitlines() if line)


def make_plan(words: Sequence[str], settings: Settings) -> BootPlan:
    """Decide and check everything that needs no process. Raises RemoteError."""
    for note in settings.notes:
        logger.warning("%s", note)
    account = role_account()
    files = files_module.prepare(settings)
    inherited = settings_module.inherited()
    environ = role_module.environment(inherited, settings, files, account)
    role = role_module.resolve(role_module.choose(words, settings, files), environ)
    secrets = settings_module.secret_variables()
    daemon_environ = {name: value for name, value in inherited.items() if name not in secrets}
    plan = BootPlan(settings, files, account, role, environ, daemon_environ)
    folders = {
        "HF_HOME": settings.hf_home,
        "WANDB_DIR": settings.wandb_dir,
        "OUTPUT_ROOT": settings.output_root,
    }
    problems = hand_over(folders | {"BOOT_RUN_DIR": str(files.for_role)}, account)
    if not role.argv and not plan.keys:
        problems.append(
            "SSH_PUBLIC_KEY is not set, so no one could log in: set it to your public key,"
            " or give boot a role (infer: set VLA_MODEL_PATH or VLA_POLICY, and ROSBRIDGE_HOST)"
        )
    if problems:
        raise SettingsError("settings are wrong:\n" + "\n".join(f"  {line}" for line in problems))
    _warn_of_lost_results(plan)
    return plan


def _warn_of_lost_results(plan: BootPlan) -> None:
    """Return a warning for results that are lost with the container; `infer` writes none."""
    root = plan.settings.output_root
    if root is None or plan.role.name == "infer":
        return
    with contextlib.suppress(OSError):  # without /proc the mounts are unknown
        text = output_volume.warning(Path(root).resolve(), output_volume.MOUNTS.read_text())
        if text is not None:
            logger.warning("%s", text)


class Boot:
    """One boot, from the first process to the last."""

    def __init__(self, plan: BootPlan) -> None:
        self._plan = plan
        self._board = StatusBoard(time.monotonic, time.time)
        self._tailscaled: Tailscaled | None = None
        self._tailnet: Service | None = None
        self._sshd: Service | None = None
        self._role: Child | None = None

    async def run(self) -> int:
        """Return the role's exit code; 0 if a signal came before it was started."""
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, number, stopped)
        settings = self._plan.settings
        address = None
        if settings.ts_enable_health_check:
            address = split_address(settings.ts_local_addr_port)
        socket = files_module.status_socket(self._plan.files.run)
        async with health.served(self._board, socket, address):
            code, ended_with = None, 0
            try:
                self._prepare()
                code = await _unless(stopped, self._live())
            finally:
                ended_with = await self._end()
            return ended_with if code is None else code

    def _prepare(self) -> None:
        plan, settings = self._plan, self._plan.settings
        self._board.set("role", "starting", "waits for tunnel and sshd")
        if plan.role.metrics is not None:
            self._board.set("robot", "starting", "waits for the role")
        if settings.ts_authkey is not None:
            name = role_module.hostname(plan.role, settings)
            self._tailscaled = Tailscaled(settings, plan.files, name, plan.daemon_environ)
            self._tailscaled.prepare()
            self._tailnet = Service(self._tailscaled, self._board)
        if plan.keys:
            config = SshdConfig(
                account=plan.account,
                keys=plan.keys,
                port=settings.ssh_port,
                listen_address=settings.ssh_listen_address,
                run=plan.files.run / "sshd",
                state=plan.files.ssh_state,
            )
            sshd = Sshd(config, plan.environ)
            sshd.prepare()
            self._sshd = Service(sshd, self._board)

    async def _live(self) -> int:
        """Start everything, then return the role's exit code."""
        services = [service for service in (self._tailnet, self._sshd) if service is not None]
        await _all(service.start() for service in services)
        keepers = [asyncio.create_task(service.keep()) for service in services]
        if self._tailscaled is not None:
            keepers.append(asyncio.create_task(self._tailscaled.watch(self._board)))
        try:
            return await self._run_role(keepers)
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)

    async def _run_role(self, keepers: list[asyncio.Task[None]]) -> int:
        plan = self._plan
        if not plan.role.argv:
            self._board.set("role", "up", "only sshd, until a signal")
            await asyncio.Event().wait()
        try:
            self._role = await Child.start(
                plan.role.name,
                plan.role.argv,
                plan.environ,
                account=plan.account,
                own_session=not sys.stdin.isatty(),  # a shell needs the terminal
            )
        except OSError as error:
            raise RoleError(
                f"role {plan.role.name}: {plan.role.argv[0]}: {error.strerror}"
            ) from error
        self._board.set("role", "up", f"{plan.role.name}, pid {self._role.pid}")
        if plan.role.metrics is not None:
            watch = robot_link.watch(plan.role.metrics, plan.settings, self._board)
            keepers.append(asyncio.create_task(watch))
        code = await self._role.wait()
        state: State = "off" if code == 0 else "down"
        self._board.set("role", state, f"{plan.role.name} ended with exit code {code}")
        return code

    async def _end(self) -> int:
        """Stop all parts in order, each within its share of the budget.

        Returns the role's exit code, 0 if it never started.
        """
        until_s = time.monotonic() + STOP_BUDGET_S
        ending = asyncio.create_task(self._end_role())
        await asyncio.wait({ending}, timeout=ROLE_SHARE_S if self._plan.role.saves else None)
        if not ending.done():
            logger.info(
                "role: %s has not ended yet; boot waits until it has saved its checkpoint. For more"
                " time: docker stop -t SECONDS",
                self._plan.role.name,
            )
        await self._log_out()
        code = await ending
        if self._sshd is not None:
            await self._sshd.stop(time.monotonic() + SSHD_SHARE_S)
        if self._tailnet is not None:
            await self._tailnet.stop(max(until_s, time.monotonic() + TAILSCALED_SHARE_S))
        return code

    async def _end_role(self) -> int:
        """Stop the role; a training is never killed."""
        if self._role is None:
            return ExitCode.OK
        saves = self._plan.role.saves
        code = await self._role.stop(math.inf if saves else time.monotonic() + ROLE_SHARE_S)
        logger.info("role: %s ended with %d", self._role.name, code)
        return code

    async def _log_out(self) -> None:
        """Leave the tailnet if the node is ephemeral."""
        if (
            self._tailscaled is not None
            and self._tailscaled.is_ephemeral
            and self._board["tunnel"].state in ("up", "down")
        ):
            await self._tailscaled.log_out(time.monotonic() + LOGOUT_SHARE_S)

    def _on_signal(self, number: int, stopped: asyncio.Event) -> None:
        if not stopped.is_set():
            logger.info("stopping on %s", signal.Signals(number).name)
        stopped.set()


async def _unless(stopped: asyncio.Event, live: Coroutine[Any, Any, int]) -> int | None:
    """Return the result of `live`, or None if `stopped` is set first; then `live` is cancelled."""
    living, stopping = asyncio.create_task(live), asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait({living, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return living.result() if living.done() else None
    finally:
        living.cancel()
        stopping.cancel()
        await asyncio.gather(living, stopping, return_exceptions=True)


async def _all(starts: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all concurrently; on the first RemoteError cancel the others and raise it."""
    try:
        async with asyncio.TaskGroup() as group:
            for start in starts:
                group.create_task(start)
    except BaseExceptionGroup as failed:
        expected = [error for error in failed.exceptions if isinstance(error, RemoteError)]
        raise (expected[0] if expected else failed) from None
