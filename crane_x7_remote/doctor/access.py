"""Group `access`: the running boot, and sshd."""

from __future__ import annotations

import socket
from typing import Any, Final

from crane_x7_remote.boot import status
from crane_x7_remote.boot.status_board import PARTS
from crane_x7_remote.doctor.finding import Check, Context, Finding, failure, ok, skipped
from crane_x7_remote.errors import UnhealthyError
from crane_x7_vla_rl.file_errors import why

BANNER_S: Final = 5.0
LOG: Final = "crane-x7-remote status"


def _boot(context: Context) -> dict[str, Any] | None:
    try:
        return context.once("boot", lambda: status.ask(context.settings.boot_run_dir))
    except UnhealthyError:
        return None


def boot(context: Context) -> Finding:
    """Whether all parts of the running boot are up."""
    answer = _boot(context)
    if answer is None:
        return skipped("no boot runs here; only the image starts one")
    down = [name for name in PARTS if answer[name]["state"] == "down"]
    if down:
        said = "; ".join(
            f"{name}: {answer[name]['detail']}"
            + (f" ({answer[name]['advice']})" if answer[name]["advice"] else "")
            for name in down
        )
        return failure(said, LOG)
    states = ", ".join(f"{name} {answer[name]['state']}" for name in PARTS)
    return ok(states)


def sshd(context: Context) -> Finding:
    """Whether an ssh server answers on SSH_PORT."""
    settings = context.settings
    if not (settings.ssh_public_key or settings.public_key):
        return skipped("SSH_PUBLIC_KEY is not set, so boot starts no sshd")
    if _boot(context) is None:
        return skipped("no boot runs here; it starts sshd")
    host, port = settings.ssh_listen_address or "127.0.0.1", settings.ssh_port
    where = f"sshd on {host} port {port}"
    try:
        with socket.create_connection((host, port), timeout=BANNER_S) as link:
            link.settimeout(BANNER_S)
            banner = link.recv(255)
    except OSError as error:
        return failure(f"{where}: {why(error)}", f"{LOG} && ss -ltn")
    if not banner.startswith(b"SSH-2.0-"):
        return failure(f"{where}: another program answers there: {banner[:40]!r}", "ss -ltnp")
    return ok(f"{where}: {banner.decode(errors='replace').strip()}")


CHECKS = (Check("access", "boot", boot), Check("access", "sshd", sshd))
