"""The local side of one run, with HTTP in place of SSH: what a schedule kills and starts again.

It uses the packages' own ledger, rental, reconciliation and providers. Only what happens on the
machine is a stand-in.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

import httpx2

from crane_x7_remote.cloud.ledger import Entry, Ledger
from crane_x7_remote.cloud.provider import CreateRefusedError, Provider
from crane_x7_remote.cloud.reconcile import reconcile
from crane_x7_remote.cloud.rental import Rental, rented
from crane_x7_remote.cloud.stop_signals import Stopped
from crane_x7_remote.cloud.types import Budget, Machine, Order, State, Timing, Wanted, new_label
from crane_x7_remote.errors import CloudError

RUN_ID = "schedule"
TIMING = Timing(
    poll_s=0.01,
    request_s=2.0,
    create_settle_s=0.2,
    start_s=0.8,
    ssh_s=0.3,
    delete_s=20.0,
    heartbeat_s=0.05,
)
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0sNkqJYW5vdGhlciBrZXkgZm9yIHRlc3Rz bench"
SAVING_TRIES = 20
"""Before the only copy of a checkpoint is given up."""


class EvictedError(CloudError):
    """The provider took the machine away."""


class SshError(CloudError):
    """The machine does not answer."""


@dataclass
class Remote:
    """One machine, by its id."""

    base: str
    machine_id: str

    def ask(self, verb: str, body: Any = None, tries: int = 4) -> dict[str, Any]:
        """Return the machine's answer. Raises SshError after a few tries."""
        for attempt in range(tries):
            with contextlib.suppress(httpx2.HTTPError, ValueError):
                url = f"{self.base}/machine/{self.machine_id}/{verb}"
                answer = httpx2.post(url, json=body, timeout=1.0, verify=False)
                if answer.status_code == 200:
                    return dict(answer.json())
            time.sleep(0.01 * attempt)
        raise SshError(f"{self.machine_id}: no answer to {verb}")

    def connect(self, body: Any) -> None:
        """Upload until it works, at most ssh_s."""
        deadline = time.monotonic() + TIMING.ssh_s
        while True:
            try:
                self.ask("upload", body)
                return
            except SshError:
                if time.monotonic() > deadline:
                    raise


@dataclass
class Local:
    """One start of the command."""

    provider: Provider
    ledger: Ledger
    machines: str
    """Address of the machines."""
    secrets: dict[str, str]

    def start(self, machines: int = 3) -> None:
        """Reconcile, then train to the end on at most `machines` machines."""
        with self.ledger.locked(RUN_ID):
            reconcile(self.ledger, {self.provider.name: self.provider}, TIMING, self.rescue)
            for left in range(machines - 1, -1, -1):
                try:
                    self.rent()
                except (EvictedError, CreateRefusedError):
                    if left == 0:
                        raise
                else:
                    return

    def rent(self) -> None:
        """Train on one machine."""
        volume_id, place = self.kept()
        wanted = Wanted("H100", location=place)
        offers = self.provider.offers(wanted)
        if not offers:
            raise CloudError("no offer")
        order = Order(
            new_label(RUN_ID), offers[0], "an-image", PUBLIC_KEY, boot_volume_id=volume_id
        )
        with rented(self.provider, order, self.ledger, RUN_ID, TIMING, Budget()) as rental:
            self.train(rental)

    def kept(self) -> tuple[str | None, str | None]:
        """Return the disk that an earlier machine left on purpose, and its place."""
        entries = [each for each in self.ledger.runs(RUN_ID) if each.kept_volume_ids]
        if not entries:
            return None, None
        return entries[-1].kept_volume_ids[0], entries[-1].location

    def train(self, rental: Rental) -> None:
        machine = rental.wait_for_address()
        remote = Remote(self.machines, machine.machine_id)
        remote.connect({"env": self.secrets})
        rental.keep_volumes = self.provider.keeps_volumes
        remote.ask("start")
        try:
            self.follow(rental, remote)
        except EvictedError:
            raise  # nothing can be saved from it: the disk is kept
        except (Stopped, CloudError):
            self.save(rental, remote)
            raise
        self.save(rental, remote)

    def follow(self, rental: Rental, remote: Remote) -> None:
        misses = 0
        while True:
            state = rental.look().state
            if state in (State.EVICTED, State.GONE, State.STOPPED, State.FAILED):
                raise EvictedError(f"{remote.machine_id}: {state}")
            try:
                answer = remote.ask("status")
                misses = 0
            except SshError:
                misses += 1
                if misses > 20:
                    raise
                continue
            if answer["state"] == "done":
                return
            if answer["state"] == "failed":
                raise CloudError("the training failed")
            time.sleep(TIMING.poll_s)

    def save(self, rental: Rental, remote: Remote) -> None:
        """Let it save, and bring home what it has; then its disk need not stay."""
        remote.ask("stop", tries=SAVING_TRIES)
        remote.ask("home", tries=SAVING_TRIES)
        if self.provider.keeps_volumes:
            rental.keep_volumes = False

    def rescue(self, entry: Entry, machine: Machine) -> None:
        """Bring home what an interrupted run's machine has."""
        remote = Remote(self.machines, machine.machine_id)
        remote.ask("stop", tries=SAVING_TRIES)
        remote.ask("home", tries=SAVING_TRIES)
        if entry.keep_volumes:
            self.ledger.change(entry.label, keep_volumes=False)
