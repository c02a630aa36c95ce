"""`cloud sweep`: what interrupted runs left anywhere → its cost, and its end after a question.

Three kinds, each with its own question and its own flag: what this ledger knows as interrupted
(--yes), kept volumes (--kept), and labels that are not in this ledger, which may belong to a run of
another computer (--others). What has no label of this program is never touched.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Mapping
from dataclasses import replace

from crane_x7_remote.cloud import accounts, ending, inventory, list_command
from crane_x7_remote.cloud.ending import Outcome
from crane_x7_remote.cloud.inventory import Inventory, Owner, Thing
from crane_x7_remote.cloud.ledger import Entry, Ledger, RunningError, Stage
from crane_x7_remote.cloud.provider import Provider
from crane_x7_remote.cloud.question import agreed
from crane_x7_remote.cloud.rental import left_line
from crane_x7_remote.cloud.types import Machine, Timing, Volume
from crane_x7_remote.errors import CloudLeftError, ExitCode

logger = logging.getLogger(__name__)

FOUND_RUN = "found"
"""Run id of entries that `sweep` makes for labels which are in no entry."""
KINDS = {
    Owner.INTERRUPTED: ("yes", "left by interrupted runs", "Delete these?"),
    Owner.KEPT: (
        "kept",
        "kept volumes: checkpoints there may be nowhere else",
        "Delete these, with their checkpoints?",
    ),
    Owner.UNKNOWN: (
        "others",
        "labels of this program that are not in this ledger",
        "Another computer may be using these. Delete them?",
    ),
}
"""Whose → flag, title, question."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `cloud sweep`."""
    add = parser.add_argument
    add("--yes", action="store_true", help="delete what interrupted runs left, without a question")
    add("--kept", action="store_true", help="also delete kept volumes, without a question")
    add("--others", action="store_true",
        help="also delete what has a label of this program and is not in this ledger, without a"
        " question")  # fmt: skip
    accounts.add_env_file(parser)


def run(args: argparse.Namespace) -> int:
    """Show and remove what is left. Raises CloudError, CloudLeftError."""
    settings = accounts.configured(args)
    ledger = accounts.ledger(settings)
    with accounts.opened(settings) as providers:
        found = inventory.take(providers, ledger)
        chosen = _chosen(found, args)
        left = sweep(chosen, providers, ledger, Timing())
    lines = [left_line(each) for each in left] + list(found.problems.values())
    if lines:
        raise CloudLeftError("\n".join(lines))
    if chosen:
        print("deleted: the providers list none of it any more")
    return ExitCode.OK


def _chosen(found: Inventory, args: argparse.Namespace) -> list[Thing]:
    """Show each kind and return what may be deleted."""
    chosen: list[Thing] = []
    some_flag = any(getattr(args, flag) for flag, _, _ in KINDS.values())
    for owner, (flag, title, question) in KINDS.items():
        things = found.of(owner)
        if not things:
            continue
        list_command.show(things, title)
        if getattr(args, flag):
            chosen += things
        elif some_flag:
            print(f"not deleted: add --{flag}")
        elif agreed(question, f"--{flag}"):
            chosen += things
    if not found.of(*KINDS) and not found.problems:
        print("nothing is left over")
    return chosen


def sweep(
    things: list[Thing], providers: Mapping[str, Provider], ledger: Ledger, timing: Timing
) -> list[Outcome]:
    """Delete these things, and return what could not be deleted."""
    outcomes = []
    for entry in _entries(things, ledger):
        try:
            with ledger.locked(entry.run_id):
                outcomes.append(ending.end(providers[entry.provider], entry, ledger, timing))
        except RunningError as error:
            logger.warning("%s", error)
            outcomes.append(Outcome(entry, (entry.machine_id or entry.label,), problem=str(error)))
    return [each for each in outcomes if not each.is_gone]


def _entries(things: list[Thing], ledger: Ledger) -> list[Entry]:
    """Return one entry for each label, as it must be for its deletion."""
    found: dict[str, Entry] = {}
    for thing in things:
        entry = thing.entry or _new_entry(thing)
        entry = found.get(entry.label, entry)
        if thing.owner is Owner.KEPT:
            volumes = (*entry.volume_ids, *entry.kept_volume_ids)
            entry = replace(entry, keep_volumes=False, listed=True, volume_ids=volumes)
        found[entry.label] = entry
    known = {each.label for each in ledger.entries()}
    return [each if each.label in known else ledger.write(each) for each in found.values()]


def _new_entry(thing: Thing) -> Entry:
    """Return an entry for something that is in none, so that its deletion survives a crash."""
    item = thing.item
    assert item is not None
    assert item.label is not None
    machine = item if isinstance(item, Machine) else None
    volume = item if isinstance(item, Volume) else None
    return Entry(
        label=item.label,
        run_id=FOUND_RUN,
        provider=thing.provider,
        stage=Stage.CREATED,
        gpu_model="?",
        gpus=0,
        spot=False,
        location=item.location or "?",
        price_per_hour=(None if machine is None else machine.price_per_hour) or 0.0,
        intended_s=time.time(),
        machine_id=None if machine is None else machine.machine_id,
        listed=True,
        volume_ids=() if volume is None else (volume.volume_id,),
    )
