"""`--dashboard`: a page of the running training, in its own process. Folder → a child process.

The page belongs to the other package, which this one does not know: it is started as a command, if
it is installed. It can neither delay nor end a training, and ends after it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from crane_x7_vla_rl.training import settings
from crane_x7_vla_rl.training.errors import ConfigError

logger = logging.getLogger(__name__)

PACKAGE: Final = "crane_x7_remote"
PORT: Final = 8686
END_S: Final = 10.0


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--dashboard`."""
    parser.add_argument(
        "--dashboard", type=int, nargs="?", const=PORT, metavar="PORT",
        help="show the run on a page at 127.0.0.1:PORT (%(const)s)",
    )  # fmt: skip


@contextlib.contextmanager
def shown(port: int | None, run: Path) -> Iterator[None]:
    """Show the run in this folder while the context lasts; None: no page.

    Raises ConfigError if the page cannot be there. Of several processes the first one shows it.
    """
    if port is None or not settings.is_first_process():
        yield
        return
    if not 1 <= port <= 65535:
        raise ConfigError(f"--dashboard is {port}, expected a port from 1 to 65535")
    if importlib.util.find_spec(PACKAGE) is None:
        raise ConfigError(f"--dashboard needs the package {PACKAGE}, which is not installed")
    command = [
        sys.executable, "-m", PACKAGE, "dashboard", "--run", str(run), "--until-stdin-closes",
        "--dashboard-listen", f"127.0.0.1:{port}", "--log-level", "warning",
    ]  # fmt: skip
    # Its own session: Ctrl-C saves and ends the training, and then the page.
    child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        assert child.stdin is not None
        child.stdin.close()
        try:
            child.wait(END_S)
        except subprocess.TimeoutExpired:
            logger.warning("the dashboard did not end within %g s; ending it", END_S)
            child.kill()
            child.wait()
