"""What interrupted runs left: ledger × the providers' lists → nothing of it, and a Report.

Every start of `cloud` calls it. An entry whose run is locked belongs to a living process and is not
touched. A machine with a label of this program that is not in this ledger may be another
computer's: only `sweep` removes it, after a question.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from crane_x7_remote.cloud import ending
from crane_x7_remote.cloud.ending import Outcome
from crane_x7_remote.cloud.ledger import Entry, Ledger, RunningError, Stage
from crane_x7_remote.cloud.provider import Provider
from crane_x7_remote.cloud.rental import kept_line, left_line
from crane_x7_remote.cloud.types import Machine, State, Timing
from crane_x7_remote.errors import CloudError

logger = logging.getLogger(__name__)

Rescue = Callable[[Entry, Machine], None]
"""Saves what only a machine has, before it is deleted; what it raises is logged."""


@dataclass
class Report:
    """What a reconciliation found and did."""

    ended: list[Outcome] = field(default_factory=list)
    left: list[Outcome] = field(default_factory=list)
    """What could not be ended."""
    running: list[Entry] = field(default_factory=list)
    """Of processes that live."""
    without_key: list[Entry] = field(default_factory=list)
    """Nothing can be said about these: the key of their provider is missing."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing of an interrupted run can still cost money unnoticed."""
        return not self.left and not self.without_key


def reconcile(
    ledger: Ledger,
    providers: Mapping[str, Provider],
    timing: Timing,
    rescue: Rescue | None = None,
    run_ids: frozenset[str] | None = None,
) -> Report:
    """End what interrupted runs left; `run_ids` limits it to some runs.

    `rescue` is called for each machine that still runs, before its deletion.
    """
    report = Report()
    for entry in ledger.entries():
        if entry.stage is Stage.GONE or (run_ids is not None and entry.run_id not in run_ids):
            continue
        provider = providers.get(entry.provider)
        if provider is None:
            logger.warning("%s: %s has no key here, look at its page", entry.label, entry.provider)
            report.without_key.append(entry)
            continue
        try:
            with ledger.locked(entry.run_id):
                _end(ledger.read(entry.label), provider, ledger, timing, rescue, report)
        except RunningError:
            report.running.append(entry)
    return report


def _end(
    entry: Entry,
    provider: Provider,
    ledger: Ledger,
    timing: Timing,
    rescue: Rescue | None,
    report: Report,
) -> None:
    if entry.stage is Stage.GONE:  # by another process, since the list was read
        return
    logger.warning("%s: run %s was interrupted; ending its rental", entry.label, entry.run_id)
    if rescue is not None and entry.stage is Stage.CREATED:
        _rescue(entry, provider, rescue, timing)
        entry = ledger.read(entry.label)
    outcome = ending.end(provider, entry, ledger, timing)
    if not outcome.is_gone:
        logger.error("%s", left_line(outcome))
        report.left.append(outcome)
        return
    for volume in outcome.kept:
        logger.warning("%s", kept_line(outcome.entry, volume.volume_id, volume.price_per_hour))
    report.ended.append(outcome)


def _rescue(entry: Entry, provider: Provider, rescue: Rescue, timing: Timing) -> None:
    """Let `rescue` look at each machine that runs; nothing it does may stop the deletion."""
    for machine in _machines_of(entry, provider, timing):
        if machine.state not in (State.RUNNING, State.UNKNOWN) or machine.address is None:
            continue
        try:
            rescue(entry, machine)
        except Exception as error:
            logger.warning("%s: nothing could be saved from it: %s", entry.label, error)


def _machines_of(entry: Entry, provider: Provider, timing: Timing) -> list[Machine]:
    """Return the entry's machines; a list that does not arrive is tried again during `ssh_s`."""
    deadline = time.monotonic() + timing.ssh_s
    while True:
        try:
            return [each for each in provider.machines() if ending.belongs(entry, each)]
        except CloudError as error:
            if time.monotonic() > deadline:
                logger.warning("%s: nothing can be saved from it: %s", entry.label, error)
                return []
        time.sleep(timing.poll_s)
