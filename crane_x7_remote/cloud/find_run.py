"""A run's machine, from its name: the ledger and the provider's list → where to log in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from crane_x7_remote.cloud import ending
from crane_x7_remote.cloud.ledger import Entry, Ledger, Stage
from crane_x7_remote.cloud.provider import Provider
from crane_x7_remote.cloud.session import Session
from crane_x7_remote.cloud.ssh import Host, Ssh
from crane_x7_remote.errors import CloudError


def newest(ledger: Ledger, run_id: str) -> Entry:
    """Return the newest rental of a run. Raises CloudError."""
    entries = ledger.runs(run_id)
    if not entries:
        known = ", ".join(dict.fromkeys(each.run_id for each in ledger.entries())) or "none"
        raise CloudError(f"run {run_id!r} is not in {ledger.folder}; runs there: {known}")
    return entries[-1]


def host(entry: Entry, providers: Mapping[str, Provider]) -> Host:
    """Return the login of a machine that a run has already logged in to. Raises CloudError."""
    if entry.stage is Stage.GONE:
        raise CloudError(
            f"run {entry.run_id} has no machine any more; its results are in its folder"
        )
    if entry.provider not in providers:
        raise CloudError(f"{entry.provider} has no key here; give --env-file")
    if "known_hosts" not in entry.notes:
        raise CloudError(f"run {entry.run_id}: its machine is still starting; try again later")
    for machine in providers[entry.provider].machines():
        if ending.belongs(entry, machine) and machine.address is not None:
            address = replace(machine.address, user=entry.notes.get("user") or "root")
            known, key = Path(entry.notes["known_hosts"]), Path(entry.notes["identity"])
            return Host(address, entry.label, known, key)
    raise CloudError(f"run {entry.run_id}: {entry.provider} lists no machine of it with an address")


def session(entry: Entry, ssh: Ssh) -> Session:
    """Return the session of a rental on its machine."""
    return Session(ssh, session_id(entry.label), entry.notes["remote_dir"])


def session_id(label: str) -> str:
    """Return the name of a rental's session: the part of its label that no other has."""
    return label.rpartition("-")[2]
