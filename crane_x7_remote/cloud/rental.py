"""One rented machine from order to deletion: provider, order → a Rental within a block.

The intent is in the ledger before the order is sent. However the block ends, by success, failure,
Ctrl-C, SIGTERM or SIGHUP, the machine and its volumes are deleted, and that is repeated until the
provider lists none of them. `reconcile` does the same after a process that died.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from crane_x7_remote.cloud import ending
from crane_x7_remote.cloud.ending import Outcome
from crane_x7_remote.cloud.ledger import Entry, Ledger, Stage
from crane_x7_remote.cloud.provider import (
    CreateRefusedError,
    CreateUnclearError,
    Provider,
    ProviderError,
)
from crane_x7_remote.cloud.self_end import SelfEnd
from crane_x7_remote.cloud.stop_signals import StopSignals
from crane_x7_remote.cloud.types import Budget, Machine, Order, State, Timing
from crane_x7_remote.errors import CloudError, CloudKeyError, CloudLeftError, CloudOfferError

logger = logging.getLogger(__name__)

ABSENT_LOOKS: Final = 2
"""Lists without a machine that was listed before, until it counts as evicted."""
OVER: Final = (State.EVICTED, State.FAILED, State.GONE)
"""States in which no address will come."""


class BudgetError(CloudError):
    """The rental has reached --max-hours or --max-cost."""


@dataclass(frozen=True)
class DeadMan:
    """What the machine's own watchdog needs. Durations, so that its clock may differ from ours."""

    deadline_s: float | None
    """It ends itself after this time from now; None: no limit."""
    silence_s: float
    """And after this time without a sign of life from here."""
    self_end: SelfEnd


class Rental:
    """A machine that costs money."""

    def __init__(
        self, provider: Provider, entry: Entry, ledger: Ledger, timing: Timing, budget: Budget
    ) -> None:
        self.record = entry
        """The ledger's entry, as on disk."""
        self._provider = provider
        self._ledger = ledger
        self._timing = timing
        self._budget = budget
        self._begun = time.monotonic()
        self._last: Machine | None = None
        self._missed = 0
        self._unreadable = False
        self._max_price: float | None = None

    @property
    def keep_volumes(self) -> bool:
        """Whether its volumes stay when it ends, also if this process dies.

        Starts as False, and as True for a machine that started from a kept volume: until its
        checkpoints are elsewhere, a failure must not delete them.
        """
        return self.record.keep_volumes

    @keep_volumes.setter
    def keep_volumes(self, keep: bool) -> None:
        if keep and not self._provider.keeps_volumes:
            raise CloudError(f"{self._provider.name} has no volumes that outlive a machine")
        self._note(keep_volumes=keep)

    def note(self, **values: Any) -> None:
        """Add to the ledger what a later process needs to come back: paths and names, no secret."""
        self._note(notes=self.record.notes | values)

    def hours(self) -> float:
        """Return the time since the order."""
        return (time.monotonic() - self._begun) / 3600

    def cost(self) -> float:
        """Return USD so far, earlier machines of this run included."""
        per_hour = self.record.price_per_hour + self.record.volumes_per_hour
        return self._budget.spent + per_hour * self.hours()

    def seconds_left(self) -> float | None:
        """Return the time until the budget is used up; None without a limit."""
        limits = []
        if self._budget.max_hours is not None:
            limits.append((self._budget.max_hours - self.hours()) * 3600)
        per_hour = self.record.price_per_hour + self.record.volumes_per_hour
        if self._budget.max_cost is not None and per_hour > 0:
            limits.append((self._budget.max_cost - self.cost()) / per_hour * 3600)
        return min(limits, default=None)

    def check_budget(self) -> None:
        """Raise BudgetError if nothing of the budget is left."""
        left = self.seconds_left()
        if left is not None and left <= 0:
            raise BudgetError(
                f"{self.record.label}: the budget is used up after {self.hours():.2f} h and"
                f" ${self.cost():.2f} (--max-hours {_or_none(self._budget.max_hours)}, --max-cost"
                f" {_or_none(self._budget.max_cost)}); the machine is deleted"
            )

    def dead_man(self) -> DeadMan:
        """Return what the machine's watchdog needs."""
        return DeadMan(self.seconds_left(), self._timing.dead_man_s, self._provider.self_end)

    def look(self) -> Machine:
        """Return the machine's state now.

        A list that does not arrive changes nothing: the last state is returned. A machine that was
        listed and is absent from two lists has been evicted.
        """
        try:
            machines = self._provider.machines()
        except (ProviderError, CloudKeyError) as error:
            if not self._unreadable:
                logger.warning("%s: state unknown, as before: %s", self.record.label, error)
            self._unreadable = True
            return self._known(State.UNKNOWN if self._last is None else self._last.state)
        self._unreadable = False
        mine = [each for each in machines if ending.belongs(self.record, each)]
        if len(mine) > 1:
            ids = ", ".join(each.machine_id for each in mine)
            raise CloudError(f"{self.record.label}: there are {len(mine)} machines with it: {ids}")
        if not mine:
            self._missed += 1
            is_gone = self.record.listed and self._missed >= ABSENT_LOOKS
            return self._known(State.EVICTED if is_gone else State.UNKNOWN)
        self._missed = 0
        (machine,) = mine
        if self._last is None or machine.status != self._last.status:
            logger.info("%s: %s (%s)", self.record.label, machine.state, machine.status)
        self._last = machine
        self._note_listed(machine)
        return machine

    def wait_for_address(self) -> Machine:
        """Return the machine once sshd has an address. Raises CloudError, CloudOfferError."""
        deadline = time.monotonic() + self._timing.start_s
        while True:
            machine = self.look()
            self._check_price(machine)
            if machine.state in OVER:
                raise CloudError(
                    f"{self.record.label}: the machine did not start: {machine.state}"
                    f" ({machine.status}); try again, another --location or another GPU"
                )
            if machine.state is State.RUNNING and machine.address is not None:
                self._note_volumes(machine)
                return machine
            self.check_budget()
            if time.monotonic() > deadline:
                raise CloudError(
                    f"{self.record.label}: no address within {self._timing.start_s:g} s, state"
                    f" {machine.state} ({machine.status}); try again or another offer"
                )
            time.sleep(self._timing.poll_s)

    def _known(self, state: State) -> Machine:
        machine_id = self.record.machine_id or self.record.label
        last = self._last or Machine(machine_id, self.record.label, state, "not listed")
        return replace(last, state=state)

    def _check_price(self, machine: Machine) -> None:
        price, cap = machine.price_per_hour, self._max_price
        if price is not None and cap is not None and price > cap + 0.005:
            raise CloudOfferError(
                f"{self.record.label}: the provider bills ${price:.2f}/h, and --max-price is"
                f" ${cap:.2f}/h; the machine is deleted"
            )

    def _note_listed(self, machine: Machine) -> None:
        """Write down, once, what the list shows of it."""
        changes: dict[str, Any] = {}
        if not self.record.listed:
            changes |= {"listed": True, "machine_id": machine.machine_id}
        disk = machine.volume_ids[:1]
        if disk and disk[0] not in self.record.volume_ids:
            changes["volume_ids"] = (*self.record.volume_ids, *disk)
        price = machine.price_per_hour
        if price is not None and price != self.record.price_per_hour:
            changes["price_per_hour"] = price
        if machine.location and machine.location != self.record.location:
            changes["location"] = machine.location
        if changes:
            self._note(**changes)

    def _note_volumes(self, machine: Machine) -> None:
        """Add the disk's own price, if the provider states one."""
        if not machine.volume_ids:
            return
        try:
            volumes = self._provider.volumes()
        except ProviderError as error:
            logger.warning("%s: the disk's price is unknown: %s", self.record.label, error)
            return
        prices = [
            each.price_per_hour or 0.0
            for each in volumes
            if each.volume_id in self.record.volume_ids or each.label == self.record.label
        ]
        self._note(volumes_per_hour=sum(prices))

    def _note(self, **changes: Any) -> None:
        """Write changes down. A full disk is said: the label alone is enough to find all again."""
        self.record = replace(self.record, **changes)
        try:
            self._ledger.write(self.record)
        except CloudError as error:
            logger.warning("%s", error)

    def _create(self, order: Order) -> None:
        """Send the order once. Raises CreateRefusedError after noting that nothing was made."""
        self._max_price = order.max_price_per_hour
        try:
            machine_id = self._provider.create(order)
        except (CreateRefusedError, CloudKeyError):
            self._note(stage=Stage.GONE, ended_s=time.time(), cost=0.0)
            ending.forget(self._provider, order.label)
            raise
        except CreateUnclearError as error:
            if error.machine_id is not None:
                self._note(stage=Stage.CREATED, machine_id=error.machine_id)
                raise
            self._adopt(error)
            return
        self._note(stage=Stage.CREATED, machine_id=machine_id)
        logger.info("%s: machine %s ordered", order.label, machine_id)

    def _adopt(self, error: CreateUnclearError) -> None:
        """Take the machine that an unclear answer has made; raise `error` if none appears."""
        logger.warning("%s: %s; looking for its label", self.record.label, error)
        deadline = time.monotonic() + self._timing.create_settle_s
        while time.monotonic() < deadline:
            time.sleep(self._timing.poll_s)
            try:
                machines = self._provider.machines()
            except (ProviderError, CloudKeyError):
                continue
            for machine in machines:
                if machine.label == self.record.label:
                    self._note(stage=Stage.CREATED, machine_id=machine.machine_id, listed=True)
                    logger.info("%s: it is machine %s", machine.label, machine.machine_id)
                    return
        raise error

    def _end(self) -> Outcome:
        cost = self.cost()
        outcome = ending.end(self._provider, self.record, self._ledger, self._timing)
        self.record = outcome.entry
        if outcome.is_gone:
            self._note(cost=cost)
        return outcome


@contextlib.contextmanager
def rented(
    provider: Provider,
    order: Order,
    ledger: Ledger,
    run_id: str,
    timing: Timing,
    budget: Budget,
) -> Iterator[Rental]:
    """Rent a machine for the block, and delete it however the block ends.

    Raises RunningError, CreateRefusedError (nothing was rented), CreateUnclearError (nothing is
    rented any more), and CloudLeftError if something is left after `timing.delete_s`.
    """
    stop = StopSignals(
        f"still ending {order.label}, which costs ${order.offer.price_per_hour:.2f} per hour until"
        f" it is gone; wait, or kill this process and run `crane-x7-remote cloud down {run_id}`"
    )
    with ledger.locked(run_id), stop.installed():
        _check_affordable(order, budget)
        rental = Rental(provider, ledger.begin(run_id, order), ledger, timing, budget)
        try:
            try:
                with stop.deferred():
                    rental._create(order)
                yield rental
            finally:
                stop.unstoppable()
        finally:  # a second one, because a signal may come within the first
            if rental.record.stage is not Stage.GONE:
                _tell(rental._end(), provider)


def _check_affordable(order: Order, budget: Budget) -> None:
    if budget.max_cost is not None and budget.spent >= budget.max_cost:
        raise BudgetError(
            f"${budget.spent:.2f} of --max-cost {budget.max_cost:g} are spent; nothing is rented"
        )
    price, cap = order.offer.price_per_hour, order.max_price_per_hour
    if cap is not None and price > cap:
        raise CloudOfferError(
            f"the offer costs ${price:.2f}/h, and --max-price is ${cap:.2f}/h; nothing is rented"
        )


def _tell(outcome: Outcome, provider: Provider) -> None:
    """Say what was kept. Raises CloudLeftError if something is left."""
    for volume in outcome.kept:
        logger.warning("%s", kept_line(outcome.entry, volume.volume_id, volume.price_per_hour))
    if outcome.is_gone:
        logger.info("%s: gone, as %s lists", outcome.entry.label, provider.name)
        return
    raise CloudLeftError(left_line(outcome))


def kept_line(entry: Entry, volume_id: str, price_per_hour: float | None) -> str:
    """Return what to say about a volume that stays."""
    price = "an unknown price" if price_per_hour is None else f"${price_per_hour:.4f} per hour"
    return (
        f"volume {volume_id} of run {entry.run_id} is KEPT in {entry.location} and costs {price}:"
        f" continue with `crane-x7-remote cloud resume_local --os-volume-id {volume_id} …`,"
        f" or delete it with `crane-x7-remote cloud down {entry.run_id}`"
    )


def left_line(outcome: Outcome) -> str:
    """Return what to say about a rental that could not be ended."""
    entry = outcome.entry
    what = ", ".join(
        [f"machine {each}" for each in outcome.machines]
        + [f"volume {each}" for each in outcome.volumes]
    )
    return (
        f"{entry.label}: {what or 'a machine or volume'} at {entry.provider} may still be rented,"
        f" up to ${entry.price_per_hour + entry.volumes_per_hour:.2f} per hour:"
        f" {outcome.problem}. Run `crane-x7-remote cloud down {entry.run_id}` until it says that"
        f" all is gone, or delete it on {entry.provider}'s page"
    )


def _or_none(value: float | None) -> str:
    return "unset" if value is None else f"{value:g}"
