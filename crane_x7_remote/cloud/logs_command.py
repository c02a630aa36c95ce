"""`cloud logs RUN`: what a training prints. The run's log here, or its machine's → lines.

While a process follows the run, its log file here grows; that is shown. Where that process was
killed, the machine itself is read, which counts as a sign of life to its watchdog.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from pathlib import Path
from typing import Final

from crane_x7_remote.cloud import accounts, find_run
from crane_x7_remote.cloud.follow import print_line
from crane_x7_remote.cloud.ledger import Entry, Ledger, Stage
from crane_x7_remote.cloud.plan import LOG
from crane_x7_remote.cloud.progress import Progress
from crane_x7_remote.cloud.ssh import Ssh
from crane_x7_remote.errors import CloudError

POLL_S: Final = 0.5
LINES: Final = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `cloud logs`."""
    parser.add_argument("run_id", metavar="RUN", help="run; see `cloud list`")
    parser.add_argument("--lines", type=int, default=LINES, metavar="N",
                        help="last lines to begin with (%(default)s)")  # fmt: skip
    parser.add_argument("--once", action="store_true", help="print them and end; do not follow")
    accounts.add_env_file(parser)


def run(args: argparse.Namespace) -> int:
    """Print the log until the training ends or Ctrl-C. Raises CloudError."""
    settings = accounts.configured(args)
    ledger = accounts.ledger(settings)
    entry = find_run.newest(ledger, args.run_id)
    try:
        if entry.stage is Stage.GONE or args.once or ledger.holder(args.run_id) is not None:
            here(entry, ledger, args.lines, args.once)
            return 0
        with accounts.opened(settings) as providers:
            host = find_run.host(entry, providers)
        print(
            f"run {args.run_id} was interrupted here; reading its machine. End it, its outputs"
            f" saved, with: crane-x7-remote cloud down {args.run_id}",
            file=sys.stderr,
        )
        with Ssh(host) as ssh:
            there(entry, ssh, args.lines)
    except KeyboardInterrupt:
        print(f"\nrun {args.run_id} continues", file=sys.stderr)
    return 0


def here(entry: Entry, ledger: Ledger, lines: int, once: bool) -> None:
    """Print the log file of this computer, and what is added while the run's process lives."""
    folder = entry.notes.get("folder")
    path = None if folder is None else Path(folder) / LOG
    if path is None or not path.exists():
        raise CloudError(f"run {entry.run_id} has printed nothing yet")
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in deque(file, maxlen=max(lines, 1)):
            print_line(line.rstrip("\n"))
        while not once:
            lives = ledger.holder(entry.run_id) is not None
            for line in file:
                print_line(line.rstrip("\n"))
            if not lives:
                return
            time.sleep(POLL_S)


def there(entry: Entry, ssh: Ssh, lines: int) -> None:
    """Print the machine's log until the training has ended."""
    session = find_run.session(entry, ssh)
    progress, offset = Progress(), 0
    begin: deque[str] | None = deque(maxlen=max(lines, 1))
    while True:
        look = session.look(offset)
        offset += len(look.log)
        fresh = progress.feed(look.log, time.monotonic())
        if begin is not None:
            begin.extend(fresh)
            fresh = []
            if offset >= look.size:
                fresh, begin = list(begin), None
        for line in fresh:
            print_line(line)
        if offset < look.size:
            continue
        if look.code is not None or look.vanished:
            print(f"the training has ended with code {look.code}", file=sys.stderr)
            return
        time.sleep(POLL_S * 2)
