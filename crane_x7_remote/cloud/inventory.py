"""Everything that all accounts have, beside what the ledger knows: providers, ledger → Inventory.

All providers answer side by side. A list that does not arrive is a problem with a name, never
an empty list.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum

from crane_x7_remote.cloud import ending
from crane_x7_remote.cloud.ledger import Entry, Ledger, Stage
from crane_x7_remote.cloud.provider import Provider
from crane_x7_remote.cloud.types import Machine, Volume
from crane_x7_remote.errors import CloudError


class Owner(StrEnum):
    """Whose something is."""

    RUNNING = "running"
    """A living process's, here."""
    INTERRUPTED = "interrupted"
    """A run's whose process has died, here."""
    KEPT = "kept"
    """Left on purpose: it may hold checkpoints that are nowhere else."""
    UNKNOWN = "another ledger"
    """It has a label of this program that is not in this ledger: perhaps another computer's."""
    OTHER = "not ours"
    """It has no label of this program."""


@dataclass(frozen=True)
class Thing:
    """A machine or a volume, or an entry of which neither is listed."""

    provider: str
    owner: Owner
    item: Machine | Volume | None
    entry: Entry | None

    @property
    def is_machine(self) -> bool:
        return isinstance(self.item, Machine)

    @property
    def name(self) -> str:
        """The provider's id, or the label of what is not listed."""
        match self.item:
            case Machine(machine_id=name) | Volume(volume_id=name):
                return name
        return "–" if self.entry is None else self.entry.label

    @property
    def price_per_hour(self) -> float | None:
        """USD; None where the provider does not say. Nothing for what it has ended itself."""
        if isinstance(self.item, Machine) and self.item.final:
            return 0.0
        return 0.0 if self.item is None else self.item.price_per_hour


@dataclass
class Inventory:
    """All things, and the providers of which nothing is known."""

    things: list[Thing] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    """Provider → why its lists did not arrive."""
    seconds: float = 0.0

    def of(self, *owners: Owner) -> list[Thing]:
        """Return the things of these owners."""
        return [each for each in self.things if each.owner in owners]


def take(providers: Mapping[str, Provider], ledger: Ledger) -> Inventory:
    """Ask every provider at once and return what they have."""
    begun = time.monotonic()
    found = Inventory()
    entries = ledger.entries()
    with ThreadPoolExecutor(max_workers=max(len(providers), 1)) as pool:
        asked = {name: pool.submit(_lists, each) for name, each in providers.items()}
    running = {each.run_id for each in entries if each.stage is not Stage.GONE}
    alive = {run_id for run_id in running if ledger.holder(run_id) is not None}
    for name, future in asked.items():
        try:
            machines, volumes = future.result()
        except CloudError as error:
            found.problems[name] = str(error)
            continue
        mine = [each for each in entries if each.provider == name]
        found.things += _things(name, machines, volumes, mine, alive)
    found.seconds = time.monotonic() - begun
    return found


def _lists(provider: Provider) -> tuple[list[Machine], list[Volume]]:
    return provider.machines(), provider.volumes()


def _things(
    provider: str,
    machines: list[Machine],
    volumes: list[Volume],
    entries: list[Entry],
    alive: set[str],
) -> Iterator[Thing]:
    seen: set[str] = set()
    for machine in machines:
        entry = next((each for each in entries if ending.belongs(each, machine)), None)
        owner = _owner(entry, machine.label, alive)
        seen |= set() if entry is None else {entry.label}
        yield Thing(provider, owner, machine, entry)
    for volume in volumes:
        entry = _entry_of(volume, entries)
        owner = _owner(entry, volume.label, alive)
        if entry is not None and volume.volume_id in entry.kept_volume_ids:
            owner = Owner.KEPT
        seen |= set() if entry is None else {entry.label}
        yield Thing(provider, owner, volume, entry)
    for entry in entries:
        if entry.stage is not Stage.GONE and entry.label not in seen:
            yield Thing(provider, _owner(entry, entry.label, alive), None, entry)


def _entry_of(volume: Volume, entries: list[Entry]) -> Entry | None:
    """Return the newest entry that has the volume: it may have started from an older one's."""
    for entry in reversed(entries):
        ids = (*entry.volume_ids, *entry.kept_volume_ids, entry.boot_volume_id)
        if volume.volume_id in ids or volume.label == entry.label:
            return entry
    return None


def _owner(entry: Entry | None, label: str | None, alive: set[str]) -> Owner:
    if entry is not None:
        return Owner.RUNNING if entry.run_id in alive else Owner.INTERRUPTED
    return Owner.OTHER if label is None else Owner.UNKNOWN
