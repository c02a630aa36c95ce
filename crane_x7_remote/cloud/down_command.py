"""`cloud down RUN` and `--all`: a run's machine, disk and kept volumes → gone, as listed.

A run whose process lives here is told to end, so that it brings its outputs home; what is left then
is deleted from here. Kept volumes may hold checkpoints that are nowhere else: a question first.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import replace

from crane_x7_remote.cloud import accounts, ending
from crane_x7_remote.cloud.ledger import Entry, Ledger, Stage
from crane_x7_remote.cloud.plan import Pace
from crane_x7_remote.cloud.provider import Provider
from crane_x7_remote.cloud.question import agreed
from crane_x7_remote.cloud.reconcile import Report, reconcile
from crane_x7_remote.cloud.rental import left_line
from crane_x7_remote.cloud.rescue import Rescue
from crane_x7_remote.cloud.types import Timing
from crane_x7_remote.errors import CloudError, CloudLeftError, ExitCode

logger = logging.getLogger(__name__)

ORDERLY_S = 3600.0
"""How long a living process may take to save, bring home and delete."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `cloud down`."""
    parser.add_argument("run_id", nargs="?", metavar="RUN", help="run to end; see `cloud list`")
    parser.add_argument("--all", action="store_true", help="every run of this ledger")
    parser.add_argument("--yes", action="store_true", help="delete kept volumes without a question")
    accounts.add_env_file(parser)


def run(args: argparse.Namespace) -> int:
    """End the runs. Raises CloudError, and CloudLeftError if something is left."""
    if args.all == (args.run_id is not None):
        raise CloudError("name one RUN to end, or --all; `crane-x7-remote cloud list` shows them")
    settings = accounts.configured(args)
    ledger = accounts.ledger(settings)
    entries = ledger.entries() if args.all else ledger.runs(args.run_id)
    if not entries and not args.all:
        known = ", ".join(dict.fromkeys(each.run_id for each in ledger.entries())) or "none"
        raise CloudError(f"run {args.run_id!r} is not in {ledger.folder}; runs there: {known}")
    with accounts.opened(settings) as providers:
        report = end_runs(entries, providers, ledger, Timing(), args.yes)
    lines = [left_line(each) for each in report.left]
    lines += [f"{each.label}: {each.provider} has no key here" for each in report.without_key]
    lines += [f"{each.label}: run {each.run_id} has not ended yet" for each in report.running]
    if lines:
        raise CloudLeftError("\n".join(lines))
    print("all gone, as the providers list")
    return ExitCode.OK


def end_runs(
    entries: list[Entry],
    providers: Mapping[str, Provider],
    ledger: Ledger,
    timing: Timing,
    yes: bool,
) -> Report:
    """End these entries' runs, kept volumes after a question."""
    run_ids = frozenset(each.run_id for each in entries)
    open_runs = {each.run_id for each in entries if each.stage is not Stage.GONE}
    for run_id in sorted(open_runs):
        stop_process(run_id, ledger, ORDERLY_S, timing.poll_s)
    save = Rescue(ledger, Pace())
    report = reconcile(ledger, providers, timing, save, run_ids)
    kept = [each for each in ledger.entries() if each.run_id in run_ids and each.kept_volume_ids]
    volumes = [volume for each in kept for volume in each.kept_volume_ids]
    if kept and (
        yes
        or agreed(f"Delete {', '.join(volumes)}? Checkpoints there may be nowhere else.", "--yes")
    ):
        for entry in kept:
            _end_kept(entry, providers, ledger, timing, report)
    return report


def stop_process(run_id: str, ledger: Ledger, limit_s: float, poll_s: float) -> None:
    """Tell the run's process to end, and wait for it. Raises CloudError if it does not."""
    holder = ledger.holder(run_id)
    if holder is None:
        return
    if holder > 0:
        logger.warning("run %s: process %d ends it, saves and deletes; waiting", run_id, holder)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(holder, signal.SIGTERM)
    deadline = time.monotonic() + limit_s
    while ledger.holder(run_id) is not None:
        if time.monotonic() > deadline:
            raise CloudError(
                f"run {run_id}: process {holder} has not ended within {limit_s:g} s; kill it with"
                f" `kill -9 {holder}`, then repeat this command"
            )
        time.sleep(poll_s)


def _end_kept(
    entry: Entry,
    providers: Mapping[str, Provider],
    ledger: Ledger,
    timing: Timing,
    report: Report,
) -> None:
    provider = providers.get(entry.provider)
    if provider is None:
        report.without_key.append(entry)
        return
    known = (*entry.volume_ids, *entry.kept_volume_ids)
    whole = replace(entry, keep_volumes=False, listed=True, volume_ids=tuple(dict.fromkeys(known)))
    outcome = ending.end(provider, whole, ledger, timing)
    (report.ended if outcome.is_gone else report.left).append(outcome)
