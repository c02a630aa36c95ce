"""Delete what a rental has, until the provider lists none of it: ledger entry → Outcome.

Each round asks for the lists first and deletes what they show. Nothing here gives up early: a list
that does not parse, a refusal, or a bug in this program is logged, and the next round follows. What
is gone must be absent from two lists that parsed. A machine that was never listed may appear late,
so its label is looked for during `create_settle_s`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Final

from crane_x7_remote.cloud.ledger import Entry, Ledger, Stage
from crane_x7_remote.cloud.provider import Provider, ProviderError
from crane_x7_remote.cloud.types import Machine, State, Timing, Volume
from crane_x7_remote.errors import CloudError

logger = logging.getLogger(__name__)

ABSENT_LISTS: Final = 2
"""Lists that parsed, one after the other, which must not hold what is gone."""
REPEAT_ROUNDS: Final = 12
"""A deletion that was accepted is sent again after that number of rounds."""
ENDED_ANSWERS: Final = 2
"""Deletions answered with "it has ended already" that count, although the list shows it."""
FORGET_TRIES: Final = 5


@dataclass(frozen=True)
class Outcome:
    """What is left of a rental."""

    entry: Entry
    machines: tuple[str, ...] = ()
    """Ids that may still be rented."""
    volumes: tuple[str, ...] = ()
    """Ids that should be gone and are not."""
    kept: tuple[Volume, ...] = ()
    """Left on purpose."""
    problem: str = ""
    """Why something is left."""

    @property
    def is_gone(self) -> bool:
        """Whether nothing is left that was not kept."""
        return not self.machines and not self.volumes and not self.problem


def belongs(entry: Entry, machine: Machine) -> bool:
    """Whether the machine is the entry's: by its label, or by the id that `create` returned."""
    return machine.label == entry.label or machine.machine_id == entry.machine_id


def end(provider: Provider, entry: Entry, ledger: Ledger, timing: Timing) -> Outcome:
    """Delete the entry's machines, then its volumes unless `entry.keep_volumes`.

    Returns when they are gone, or after `timing.delete_s`. Never raises an Exception.
    """
    ending = _Ending(provider, _noted(ledger, entry, stage=Stage.ENDING), ledger)
    begun = time.monotonic()
    settle_s = 0.0 if entry.listed else timing.create_settle_s
    absent = rounds = 0
    while True:
        _round(ending, rounds)
        rounds += 1
        absent = absent + 1 if ending.nothing_left else 0
        passed_s = time.monotonic() - begun
        if absent >= ABSENT_LISTS and passed_s >= settle_s:
            return ending.gone()
        if passed_s > timing.delete_s:
            return ending.outcome()
        time.sleep(timing.poll_s)


def forget(provider: Provider, label: str) -> None:
    """Remove the order's login key; it costs nothing, so that a few tries are enough."""
    for _ in range(FORGET_TRIES):
        try:
            provider.forget(label)
            return
        except Exception as error:
            problem = error
    logger.warning("%s: its login key stays with the provider: %s", label, problem)


def _round(ending: _Ending, number: int) -> None:
    before = ending.problem
    try:
        ending.step(number)
    except ProviderError as error:
        ending.problem = str(error)
    except Exception as error:  # a provider's answer that this program does not understand
        ending.problem = f"{type(error).__name__}: {error}"
        logger.debug("while deleting %s", ending.entry.label, exc_info=True)
    if ending.problem and ending.problem != before:
        logger.warning("%s: %s; repeating", ending.entry.label, ending.problem)


class _Ending:
    """One rental on its way out."""

    def __init__(self, provider: Provider, entry: Entry, ledger: Ledger) -> None:
        self.entry = entry
        self.problem = ""
        self._provider = provider
        self._ledger = ledger
        self._machines: tuple[str, ...] = () if entry.machine_id is None else (entry.machine_id,)
        self._volumes: tuple[str, ...] = entry.volume_ids
        self._kept: tuple[Volume, ...] = ()
        self._kept_earlier = {id_ for each in ledger.entries() for id_ in each.kept_volume_ids}
        self._sent: dict[str, int] = {}
        """Machine → round in which its deletion was accepted."""
        self._said_ended: Counter[str] = Counter()
        """Machine → deletions to which the provider said that it has ended already."""

    @property
    def nothing_left(self) -> bool:
        return not self._machines and not self._volumes and not self.problem

    def step(self, number: int) -> None:
        """Ask for the lists and delete what they show."""
        self.problem = "the list of machines has not arrived"
        mine = [each for each in self._provider.machines() if belongs(self.entry, each)]
        self.problem = ""
        self._note(mine)
        alive: dict[str, Machine | None] = {
            each.machine_id: each for each in mine if not self._is_over(each)
        }
        unseen = self.entry.machine_id
        asked = unseen in self._sent or unseen in self._said_ended
        if unseen is not None and not self.entry.listed and not asked:
            alive.setdefault(unseen, None)
        self._machines = tuple(alive)
        for machine_id, machine in alive.items():
            self._delete(machine_id, machine, number)
        if not alive and not self.problem:
            self._end_volumes()

    def _is_over(self, machine: Machine) -> bool:
        """Whether it costs nothing more: as listed, or as two deletions were answered.

        An ended machine may stay in the list, under a word that this program does not know.
        """
        said = self._said_ended[machine.machine_id] >= ENDED_ANSWERS
        return machine.final or machine.state is State.GONE or said

    def _note(self, mine: list[Machine]) -> None:
        """Write down the ids that the list shows: later ones may lack them."""
        changes: dict[str, Any] = {}
        if mine and not self.entry.listed:
            changes |= {"listed": True, "machine_id": mine[0].machine_id}
        disks = [each.volume_ids[0] for each in mine if each.volume_ids]
        if new := [each for each in disks if each not in self.entry.volume_ids]:
            changes["volume_ids"] = (*self.entry.volume_ids, *new)
        if changes:
            self.entry = _noted(self._ledger, self.entry, **changes)

    def _delete(self, machine_id: str, machine: Machine | None, number: int) -> None:
        if machine is not None and machine.state is State.ENDING:
            self._sent.setdefault(machine_id, number)
        if number - self._sent.get(machine_id, -REPEAT_ROUNDS) < REPEAT_ROUNDS:
            return
        try:
            has_ended = self._provider.delete_machine(machine_id)
        except ProviderError as error:
            self.problem = str(error)
            return
        if has_ended:
            self._said_ended[machine_id] += 1
            return
        self._sent[machine_id] = number
        logger.info("%s: deletion of machine %s accepted", self.entry.label, machine_id)

    def _end_volumes(self) -> None:
        self.problem = "the list of volumes has not arrived"
        found = [each for each in self._provider.volumes() if self._is_own(each)]
        self.problem = ""
        self._kept = tuple(each for each in found if self._is_kept(each))
        ending = [each for each in found if not self._is_kept(each)]
        self._volumes = tuple(each.volume_id for each in ending)
        for volume in ending:
            try:
                self._provider.delete_volume(volume.volume_id)
            except ProviderError as error:
                self.problem = str(error)

    def _is_own(self, volume: Volume) -> bool:
        ids = (*self.entry.volume_ids, self.entry.boot_volume_id)
        return volume.label == self.entry.label or volume.volume_id in ids

    def _is_kept(self, volume: Volume) -> bool:
        """Whether it stays: as wanted, or because the run only started from somebody's own disk."""
        own_boot = volume.label is not None or volume.volume_id in self._kept_earlier
        is_foreign = volume.volume_id == self.entry.boot_volume_id and not own_boot
        return self.entry.keep_volumes or is_foreign

    def gone(self) -> Outcome:
        """Return the end of it, after writing it down."""
        forget(self._provider, self.entry.label)
        kept = tuple(each.volume_id for each in self._kept)
        boot = self.entry.boot_volume_id
        known = {*self.entry.volume_ids, *kept, *(() if boot is None else (boot,))}
        try:
            self._ledger.no_longer_kept(tuple(known))
        except (CloudError, OSError) as error:
            logger.warning("%s", error)
        ended_s = time.time()
        self.entry = _noted(
            self._ledger, self.entry, stage=Stage.GONE, ended_s=ended_s, kept_volume_ids=kept
        )
        return Outcome(self.entry, kept=self._kept)

    def outcome(self) -> Outcome:
        """Return what is left."""
        problem = self.problem or "the provider has accepted the deletion and still lists it"
        return Outcome(self.entry, self._machines, self._volumes, self._kept, problem)


def _noted(ledger: Ledger, entry: Entry, **changes: Any) -> Entry:
    """Write changes down; a full disk must not stop a deletion."""
    entry = replace(entry, **changes)
    try:
        return ledger.write(entry)
    except (CloudError, OSError) as error:
        logger.warning("%s", error)
        return entry
