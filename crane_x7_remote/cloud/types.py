"""What a provider rents: offers, orders, machines, volumes.

Plain values without I/O. Prices are US dollars per hour, times are seconds since the epoch.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

LABEL: Final = re.compile(r"crane-x7-[a-z0-9-]*-[0-9a-f]{12}")
"""How every label of this program looks; what has another one is never touched."""
LABEL_RUN_LETTERS: Final = 24
"""Of the run id in a label: Verda's hostnames have at most 63 letters."""


def new_label(run_id: str) -> str:
    """Return a label that no other rental has, and that shows which run it belongs to."""
    run = re.sub("[^a-z0-9]+", "-", run_id.lower()).strip("-")[:LABEL_RUN_LETTERS].strip("-")
    return f"crane-x7-{run or 'run'}-{secrets.token_hex(6)}"


def own_label(text: object) -> str | None:
    """Return `text` if it is a label of this program, else None."""
    return text if isinstance(text, str) and LABEL.fullmatch(text) else None


class State(StrEnum):
    """What a machine does. Every state but GONE may cost money."""

    STARTING = "starting"
    """Ordered, provisioning, booting."""
    RUNNING = "running"
    STOPPED = "stopped"
    """Switched off; the provider still bills its disk, or all of it."""
    EVICTED = "evicted"
    """The provider took it away. Its volumes may be left."""
    FAILED = "failed"
    """The provider could not start it. Deleted like any other."""
    ENDING = "ending"
    """Deletion was accepted and has not finished."""
    GONE = "gone"
    """The provider lists it as deleted."""
    UNKNOWN = "unknown"
    """A word that this program does not know: treated as alive, never forgotten."""


@dataclass(frozen=True)
class Wanted:
    """What to look for."""

    gpu_model: str
    """Exact name such as H100 or L40S; L40 is not L40S."""
    gpus: int = 1
    spot: bool = True
    location: str | None = None
    """None: anywhere."""
    max_price_per_hour: float | None = None
    """Of the whole machine, USD."""
    disk_gb: int = 200


@dataclass(frozen=True)
class Offer:
    """A machine that can be rented now."""

    provider: str
    offer_id: str
    """Verda: instance type; Vast: ask id; Runpod: GPU type id."""
    gpu_model: str
    gpus: int
    price_per_hour: float
    """Of the whole machine, USD."""
    spot: bool
    location: str
    """Verda's location code, a country, a data centre."""


@dataclass(frozen=True)
class Order:
    """What is sent with `create`. Holds no secret: providers show it in their web pages."""

    label: str
    """Unique; written to the ledger before the order is sent."""
    offer: Offer
    image: str
    ssh_public_key: str
    """OpenSSH's line of the key that may log in."""
    disk_gb: int = 200
    boot_volume_id: str | None = None
    """Verda: start from this kept OS volume instead of `image`."""
    command: tuple[str, ...] = ()
    """Words after the image, such as sshd for this project's; (): what the image starts anyway."""
    max_price_per_hour: float | None = None
    """The machine is ended at once if the provider bills more than this."""


@dataclass(frozen=True)
class SshAddress:
    """Where sshd answers."""

    host: str
    port: int = 22
    user: str = "root"


@dataclass(frozen=True)
class Machine:
    """A rented machine, as the provider lists it."""

    machine_id: str
    label: str | None
    """The order's label; None: not one of this program's."""
    state: State
    status: str
    """The provider's own word."""
    address: SshAddress | None = None
    """None until the provider names one."""
    price_per_hour: float | None = None
    volume_ids: tuple[str, ...] = ()
    """The OS volume first, where it is a separate volume."""
    location: str | None = None
    created_s: float | None = None
    final: bool = False
    """The provider has ended it and bills it no longer: only its volumes are left to delete."""


@dataclass(frozen=True)
class Volume:
    """A disk that outlives its machine."""

    volume_id: str
    label: str | None
    """The label of the order that made it, where the provider keeps one."""
    is_os: bool
    location: str
    size_gb: int
    machine_id: str | None = None
    """The machine that it is attached to."""
    price_per_hour: float | None = None
    trashed: bool = False
    """In the trash, and still billed."""
    name: str = ""


@dataclass(frozen=True)
class Timing:
    """Waits, seconds. Tests shorten them."""

    poll_s: float = 5.0
    """Between two questions to the provider."""
    request_s: float = 30.0
    """Limit of one HTTP request."""
    create_settle_s: float = 120.0
    """After an unclear answer to `create`: how long its label is looked for."""
    start_s: float = 1200.0
    """From `create` to an address."""
    ssh_s: float = 600.0
    """From an address to a login."""
    delete_s: float = 1800.0
    """How long deletion is repeated before the command ends and says what is left."""
    heartbeat_s: float = 60.0
    """Between two signs of life to the machine."""
    dead_man_s: float = 1800.0
    """The machine ends itself after this time without a sign of life."""


@dataclass(frozen=True)
class Budget:
    """When a rental ends at the latest; None: no limit."""

    max_hours: float | None = None
    max_cost: float | None = None
    """USD, all machines of the run together."""
    spent: float = field(default=0.0)
    """USD, by earlier machines of this run."""
