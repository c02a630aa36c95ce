"""`cloud list`: all machines and volumes at every provider with a key → a table, or JSON.

It asks and changes nothing. Exit code 44 if a provider's list did not arrive.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any, Final

from crane_x7_remote.cloud import accounts, inventory
from crane_x7_remote.cloud.http import Patience
from crane_x7_remote.cloud.inventory import Inventory, Owner, Thing
from crane_x7_remote.cloud.types import Machine, Volume
from crane_x7_remote.errors import CloudLeftError, ExitCode
from crane_x7_vla_rl import tables

PATIENCE: Final = Patience(request_s=15.0, attempts=2)
COLUMNS: Final = ("provider", "what", "id", "state", "$/h", "age", "run", "ledger")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `cloud list`."""
    accounts.add_env_file(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print what is rented. Raises CloudLeftError if a list did not arrive."""
    settings = accounts.configured(args)
    with accounts.opened(settings, PATIENCE) as providers:
        found = inventory.take(providers, accounts.ledger(settings))
    if args.json:
        print(json.dumps(as_json(found), indent=2))
    else:
        show(found.things)
    if found.problems:
        raise CloudLeftError("\n".join(found.problems.values()))
    return ExitCode.OK


def show(things: list[Thing], title: str = "rented now") -> None:
    """Print a table of things, and what they cost together."""
    if things:
        tables.show(title, COLUMNS, [_row(each) for each in things], right=("$/h", "age"))
    print(total(things))


def total(things: list[Thing]) -> str:
    """Return the line that adds everything up."""
    machines = sum(each.is_machine for each in things)
    volumes = sum(isinstance(each.item, Volume) for each in things)
    known = [each.price_per_hour for each in things if each.price_per_hour is not None]
    unknown = len(things) - len(known)
    note = f", and {unknown} without a stated price" if unknown else ""
    if not things:
        return "nothing is rented"
    return (
        f"{machines} machine{'s' * (machines != 1)}, {volumes} volume{'s' * (volumes != 1)}:"
        f" ${sum(known):.2f} per hour{note}"
    )


def as_json(found: Inventory) -> dict[str, Any]:
    """Return the inventory for a program."""
    return {
        "things": [dict(zip(COLUMNS, _row(each), strict=True)) for each in found.things],
        "per_hour": sum(each.price_per_hour or 0.0 for each in found.things),
        "problems": found.problems,
        "seconds": round(found.seconds, 3),
    }


def _row(thing: Thing) -> tuple[str, ...]:
    item, entry = thing.item, thing.entry
    what, state = "–", "not listed"
    if isinstance(item, Machine):
        what = "machine"
        state = f"{item.state}" if item.state == item.status else f"{item.state} ({item.status})"
    elif isinstance(item, Volume):
        what = "OS volume" if item.is_os else "volume"
        state = "in the trash, billed" if item.trashed else "detached"
        state = f"attached to {item.machine_id}" if item.machine_id else state
    price = thing.price_per_hour
    label = None if item is None else item.label
    run = entry.run_id if entry is not None else label or getattr(item, "name", "") or "–"
    known = "" if entry is None else f" ({entry.stage})"
    return (
        thing.provider,
        what,
        thing.name,
        state,
        "?" if price is None else f"{price:.4f}",
        _age(thing),
        run,
        f"{thing.owner}{known}" if thing.owner is not Owner.OTHER else thing.owner,
    )


def _age(thing: Thing) -> str:
    """Return hours by this computer's ledger, else by the provider; "?" for neither."""
    begun = thing.entry.intended_s if thing.entry is not None else None
    if begun is None and isinstance(thing.item, Machine):
        begun = thing.item.created_s
    if begun is None:
        return "?"
    hours = max(time.time() - begun, 0.0) / 3600
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.1f} h"
