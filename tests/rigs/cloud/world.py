"""What a stand-in provider has rented out, and which faults it has: the part all three share.

Orders, deletions and evictions → machines and volumes that pass through their states in real time.
The three servers beside this file put it into each provider's words.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

LATE = 0.1
"""Seconds after which a machine of the fault "create_late" appears in lists."""


@dataclass
class Faults:
    """Which requests go wrong: `times` counts down, `rates` are probabilities."""

    times: Counter[str] = field(default_factory=Counter)
    rates: dict[str, float] = field(default_factory=dict)
    random: random.Random = field(default_factory=lambda: random.Random(0))

    def hit(self, name: str) -> bool:
        """Whether the fault `name` happens now."""
        if self.times[name] > 0:
            self.times[name] -= 1
            return True
        return self.random.random() < self.rates.get(name, 0.0)


@dataclass
class FakeVolume:
    """A disk that is billed until it is deleted for good."""

    volume_id: str
    name: str
    location: str
    size_gb: int = 200
    machine_id: str | None = None
    is_os: bool = True
    trashed: bool = False


@dataclass
class FakeMachine:
    """A machine that is billed until it is gone."""

    machine_id: str
    label: str
    price: float
    spot: bool = True
    location: str = "FIN-01"
    gpu_model: str = "H100"
    gpus: int = 1
    order: dict[str, object] = field(default_factory=dict)
    """The request that made it: what the provider's web page would show."""
    state: str = "starting"
    """starting, running, evicted, stopped, failed, ending."""
    word: str | None = None
    """Shown in place of the status."""
    visible_s: float = 0.0
    changes_s: float = 0.0
    """When the state before ends."""
    volume_id: str | None = None
    host: str | None = None
    port: int = 22


Hook = Callable[[FakeMachine], tuple[str, int] | None]


@dataclass
class World:
    """All that one account has."""

    has_volumes: bool = True
    """Whether a disk outlives its machine."""
    boot_s: float = 0.03
    end_s: float = 0.02
    faults: Faults = field(default_factory=Faults)
    on_start: Hook | None = None
    """Called when a machine starts to run; returns where its sshd answers."""
    on_end: Callable[[FakeMachine], None] | None = None
    """Called when a machine stops for any reason."""
    machines: dict[str, FakeMachine] = field(default_factory=dict)
    volumes: dict[str, FakeVolume] = field(default_factory=dict)
    made: Counter[str] = field(default_factory=Counter)
    """Label → machines that were ever made for it."""
    requests: list[str] = field(default_factory=list)
    """Method, path and body of each, without headers."""
    ssh_keys: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Id → name and public key."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    counter: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    number_ids: bool = False

    def create(self, machine: FakeMachine, boot_volume_id: str | None, size_gb: int) -> FakeMachine:
        """Rent `machine` out; its id is made here."""
        with self.lock:
            now = time.monotonic()
            machine.machine_id = self.new_id()
            machine.changes_s = now + self.boot_s
            machine.visible_s = now + (LATE if self.faults.hit("create_late") else 0.0)
            if self.faults.hit("no_capacity"):
                machine.state = "failed"
            if self.faults.hit("unknown_status"):
                machine.word = "hovering"
            self.made[machine.label] += 1
            self.machines[machine.machine_id] = machine
            if boot_volume_id is not None:
                self.volumes[boot_volume_id].machine_id = machine.machine_id
                machine.volume_id = boot_volume_id
            elif self.has_volumes:
                volume = FakeVolume(
                    self.new_id(), machine.label, machine.location, size_gb, machine.machine_id
                )
                self.volumes[volume.volume_id] = volume
                machine.volume_id = volume.volume_id
            return machine

    def new_id(self) -> str:
        number = next(self.counter)
        return str(1000 + number) if self.number_ids else str(uuid.UUID(int=number << 64 | number))

    def listed(self) -> list[FakeMachine]:
        """Return the machines that a list shows now."""
        with self.lock:
            self.tick()
            now = time.monotonic()
            return [each for each in self.machines.values() if each.visible_s <= now]

    def tick(self) -> None:
        """Let time pass."""
        with self.lock:
            now = time.monotonic()
            for machine in list(self.machines.values()):
                if machine.changes_s > now:
                    continue
                if machine.state == "starting":
                    place = self.on_start(machine) if self.on_start else ("127.0.0.1", 1)
                    if place is not None:
                        machine.host, machine.port = place
                    machine.state = "running"
                elif machine.state == "ending":
                    self._remove(machine)

    def end(self, machine_id: str, now: bool = False) -> None:
        """Accept the deletion of a machine."""
        with self.lock:
            machine = self.machines[machine_id]
            if machine.state == "ending":
                return
            if machine.state == "running" and self.on_end:
                self.on_end(machine)
            machine.state = "ending"
            machine.changes_s = time.monotonic() + self.end_s
            if now:
                self._remove(machine)

    def evict(self, machine_id: str, vanish: bool = False) -> None:
        """Take a machine away from whoever rents it."""
        with self.lock:
            self.tick()
            machine = self.machines.get(machine_id)
            if machine is None or machine.state not in ("starting", "running"):
                return
            if machine.state == "running" and self.on_end:
                self.on_end(machine)
            machine.state, machine.changes_s = "evicted", float("inf")
            if vanish:
                self._remove(machine)
            elif self.has_volumes:
                self._detach(machine)

    def _remove(self, machine: FakeMachine) -> None:
        self._detach(machine)
        self.machines.pop(machine.machine_id, None)

    def _detach(self, machine: FakeMachine) -> None:
        for volume in self.volumes.values():
            if volume.machine_id == machine.machine_id:
                volume.machine_id = None

    def billed(self) -> list[str]:
        """Return what costs money now: a discontinued machine with separate disks does not."""
        with self.lock:
            self.tick()
            machines = [
                f"machine {each.machine_id} {each.state} {each.label}"
                for each in self.machines.values()
                if not (each.state in ("evicted", "failed") and self.has_volumes)
            ]
            return machines + [
                f"volume {each.volume_id} {each.name}" for each in self.volumes.values()
            ]
