"""A training on a stand-in's machine, and the Hub: time → checkpoints on disk, on the Hub, at home.

The provider's stand-in of tests/rigs/cloud rents the machines out. This file adds what runs on
them, reached by HTTP in place of SSH: a training that makes checkpoints, uploads them one after the
other, and is watched by a dead-man's switch. It counts every deletion of the only copy of one.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cloud.server import Answer, Reply
from cloud.world import FakeMachine, World

STEPS = 12
SAVE_EVERY = 3
STEP_S = 0.05
UPLOAD_S = 0.1
DEAD_MAN_S = 2.0


@dataclass
class Training:
    """What runs on one machine."""

    begun_s: float
    from_step: int
    limit: int
    """Step at which it fails; STEPS: never."""
    heard_s: float
    stopped_s: float | None = None
    """Told to save and end, or the machine is gone."""
    saves_at_end: bool = False
    every_save: bool = True
    """Whether each checkpoint goes to the Hub; else the last one alone."""

    def step(self, now: float) -> int:
        """Return the last step that was made by `now`."""
        end = min(now, self.stopped_s or now, self.heard_s + DEAD_MAN_S)
        made = self.from_step + int(max(end - self.begun_s, 0.0) / STEP_S)
        return min(made, STEPS, self.limit)

    def complete(self, now: float) -> int:
        """Return the newest complete checkpoint on its disk."""
        step = self.step(now)
        if step >= STEPS or (self.stopped_s is not None and self.saves_at_end):
            return step
        return max(step - step % SAVE_EVERY, self.from_step)

    def uploaded(self, now: float) -> int:
        """Return the newest checkpoint that is whole on the Hub."""
        end = min(now, self.stopped_s if self.stopped_s and not self.saves_at_end else now)
        ends = self.step(end) >= STEPS or (self.stopped_s is not None and self.saves_at_end)
        if not self.every_save and not ends:
            return 0
        return self.complete(max(end - UPLOAD_S, self.begun_s))

    def state(self, now: float) -> str:
        step = self.step(now)
        if step >= STEPS:
            return "done"
        return "failed" if step >= self.limit else "running"


@dataclass
class Account(World):
    """The stand-in's account, with the trainings on its machines."""

    trainings: dict[str, Training] = field(default_factory=dict)
    disks: dict[str, int] = field(default_factory=dict)
    """Disk → newest complete checkpoint on it."""
    hub: int = 0
    """Newest complete checkpoint on the Hub."""
    home: int = 0
    """Newest complete checkpoint that came home."""
    lost: list[str] = field(default_factory=list)
    """Only copies of complete checkpoints that were deleted by order of the local side."""
    doubles: list[str] = field(default_factory=list)
    orders: list[str] = field(default_factory=list)
    """What providers' pages show."""
    evict_s: float | None = None
    """Time from an order to its eviction; None: never."""
    vanishes: bool = False
    deaf: set[str] = field(default_factory=set)
    """Machines whose sshd never answers."""
    fails_at: int = STEPS
    every_save: bool = True
    secrets_there: Counter[str] = field(default_factory=Counter)
    _evictions: dict[str, float] = field(default_factory=dict)

    def create(self, machine: FakeMachine, boot_volume_id: str | None, size_gb: int) -> FakeMachine:
        with self.lock:
            alive = [
                each for each in self.machines.values() if each.state in ("starting", "running")
            ]
            if alive:
                self.doubles.append(f"{machine.label} beside {alive[0].label}")
            machine = super().create(machine, boot_volume_id, size_gb)
            self.orders.append(repr(machine.order))
            if self.evict_s is not None:
                self._evictions[machine.machine_id] = time.monotonic() + self.evict_s
                self.evict_s = None
            if self.faults.hit("ssh_never"):
                self.deaf.add(machine.machine_id)
            return machine

    def tick(self) -> None:
        with self.lock:
            super().tick()
            now = time.monotonic()
            for machine_id, when in list(self._evictions.items()):
                if when <= now:
                    self._evictions.pop(machine_id, None)  # two requests may come at once
                    self.evict(machine_id, self.vanishes)
            for machine_id, training in self.trainings.items():
                self.hub = max(self.hub, training.uploaded(now))
                machine = self.machines.get(machine_id)
                if machine is None or machine.state != "running":
                    continue
                if now > training.heard_s + DEAD_MAN_S:
                    self._die_alone(machine)

    def _die_alone(self, machine: FakeMachine) -> None:
        """Do what the dead-man's switch does: save, upload, end itself where that is possible."""
        training = self.trainings[machine.machine_id]
        if training.stopped_s is None:
            training.stopped_s, training.saves_at_end = training.heard_s + DEAD_MAN_S, True
        self.hub = max(self.hub, training.complete(time.monotonic()))
        if not self.has_volumes:
            super().end(machine.machine_id)
            return
        self._to_disk(machine)
        machine.state, machine.changes_s = "stopped", float("inf")

    def _to_disk(self, machine: FakeMachine) -> int:
        """Freeze what the machine's disk holds, and return its newest complete checkpoint."""
        now = time.monotonic()
        training = self.trainings.get(machine.machine_id)
        disk = machine.volume_id or machine.machine_id
        if training is not None:
            self.hub = max(self.hub, training.uploaded(now))
            if training.stopped_s is None:
                training.stopped_s = now
            self.disks[disk] = max(self.disks.get(disk, 0), training.complete(now))
        return self.disks.get(disk, 0)

    def evict(self, machine_id: str, vanish: bool = False) -> None:
        with self.lock:
            if (machine := self.machines.get(machine_id)) is not None:
                self._to_disk(machine)
            super().evict(machine_id, vanish)

    def end(self, machine_id: str, now: bool = False) -> None:
        """Delete by order: without a disk that stays, this may delete the only copy."""
        with self.lock:
            machine = self.machines[machine_id]
            was = machine.state
            newest = self._to_disk(machine)
            if not self.has_volumes:
                self.disks.pop(machine_id, None)  # its disk goes with it
                if was == "running" and machine_id not in self.deaf:
                    self._check_only_copy(newest, f"machine {machine_id}")
            super().end(machine_id, now)

    def volume_gone(self, volume_id: str) -> None:
        """Note the deletion of a disk by order."""
        with self.lock:
            self._check_only_copy(self.disks.pop(volume_id, 0), f"disk {volume_id}")

    def _check_only_copy(self, newest: int, where: str) -> None:
        safe = max(self.hub, self.home, *self.disks.values(), 0)
        if newest > safe:
            self.lost.append(f"{where}: step {newest}, safe is {safe}")


class Disks(dict[str, Any]):
    """An account's volumes, which tells it of each deletion."""

    account: Account

    def __delitem__(self, key: str) -> None:
        self.account.volume_gone(key)
        super().__delitem__(key)


def machine_reply(account: Account, path: str, body: Any) -> Reply:
    """Answer as the machine would: `path` is /machine/<id>/<verb>."""
    _, _, machine_id, verb = path.split("/")
    with account.lock:
        account.tick()
        machine = account.machines.get(machine_id)
        if machine is None or machine.state != "running" or machine_id in account.deaf:
            raise ConnectionResetError
        if account.faults.hit("ssh_drop"):
            raise ConnectionResetError
        now = time.monotonic()
        training = account.trainings.get(machine_id)
        if training is not None:
            training.heard_s = now
        if verb == "upload":
            account.secrets_there[machine_id] += 1
            return Reply(200, {"received": len(body["env"])})
        if verb == "start":
            return Reply(200, _start(account, machine, now))
        if training is None:
            return Reply(404, {"message": "nothing runs"})
        if verb == "stop" and training.stopped_s is None:
            training.stopped_s, training.saves_at_end = now, True
        if verb == "home":
            account.home = max(account.home, training.complete(now))
        return Reply(
            200,
            {
                "state": training.state(now),
                "step": training.step(now),
                "complete": training.complete(now),
                "hub": training.uploaded(now),
            },
        )


def _start(account: Account, machine: FakeMachine, now: float) -> dict[str, Any]:
    """Start once: from the newest of the Hub and this machine's disk."""
    if machine.machine_id not in account.trainings:
        disk = account.disks.get(machine.volume_id or "", 0)
        begin = max(account.hub, account.home, disk)
        limit = account.fails_at if account.fails_at > begin else STEPS
        account.trainings[machine.machine_id] = Training(
            now, begin, limit, now, every_save=account.every_save
        )
    return {"from": account.trainings[machine.machine_id].from_step}


def with_machines(handler: type[Answer]) -> type[Answer]:
    """Return the provider's stand-in with its machines beside it."""

    class WithMachines(handler):  # type: ignore[misc, valid-type]
        def respond(self, method: str, path: str, query: dict[str, str], body: Any) -> Reply:
            if path.startswith("/machine/"):
                return machine_reply(self.world, path, body)
            return super().respond(method, path, query, body)

    return WithMachines
