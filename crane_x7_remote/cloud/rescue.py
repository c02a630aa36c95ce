"""What an interrupted run's machine still has, brought home before it is deleted.

A ledger's entry and its machine → the training saves and ends, outputs here. After that its disk
need not be kept.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from crane_x7_remote.cloud import find_run
from crane_x7_remote.cloud.home import Home
from crane_x7_remote.cloud.ledger import Entry, Ledger
from crane_x7_remote.cloud.plan import OUTPUTS, Pace
from crane_x7_remote.cloud.ssh import Host, Ssh
from crane_x7_remote.cloud.types import Machine

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rescue:
    """See reconcile.Rescue."""

    ledger: Ledger
    pace: Pace
    heartbeat_s: float = 60.0

    def __call__(self, entry: Entry, machine: Machine) -> None:
        """Bring home what there is. Raises CloudError if that fails; then the disk's fate stays."""
        notes = entry.notes
        if not notes.get("started") or machine.address is None:
            return
        known = Path(notes["known_hosts"])
        if not known.exists():
            return
        logger.warning("%s: its training ends now, and its outputs come home first", entry.label)
        address = replace(machine.address, user=notes.get("user") or machine.address.user)
        host = Host(address, entry.label, known, Path(notes["identity"]))
        with Ssh(host) as ssh:
            session = find_run.session(entry, ssh)
            home = Home(
                session, notes["there"], Path(notes["folder"]) / OUTPUTS, self.heartbeat_s,
                self.pace.save_s, self.pace.home_s, self.pace.reach_s,
            )  # fmt: skip
            home.stop_training()
            home.bring()
        if entry.keep_volumes:
            self.ledger.change(entry.label, keep_volumes=False)
