"""`cloud ssh RUN`: a shell on a run's machine, with the run's own key and its pinned host key."""

from __future__ import annotations

import argparse
import shlex
import subprocess

from crane_x7_remote.cloud import accounts, find_run
from crane_x7_remote.cloud.ssh import Ssh


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `cloud ssh`."""
    parser.add_argument("run_id", metavar="RUN", help="run; see `cloud list`")
    parser.add_argument("words", nargs="*", metavar="WORD", help="command to run there, after --")
    accounts.add_env_file(parser)


def run(args: argparse.Namespace) -> int:
    """Open the shell, and return its exit code. Raises CloudError."""
    settings = accounts.configured(args)
    entry = find_run.newest(accounts.ledger(settings), args.run_id)
    with accounts.opened(settings) as providers:
        host = find_run.host(entry, providers)
    script = f"cd {shlex.quote(entry.notes['remote_dir'])} && "
    script += shlex.join(args.words) if args.words else 'exec "${SHELL:-/bin/sh}" -l'
    with Ssh(host) as ssh:
        command = ssh.shell_command(script, terminal=not args.words)
        return subprocess.run(command, env=ssh.environment(), check=False).returncode
