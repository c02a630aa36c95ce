"""One schedule of faults: seed → starts that are killed, a last one that is not, and the account.

Every start is a separate process; SIGKILL comes at a random moment. After the last start nothing
may be rented and no complete checkpoint may be lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cloud import fake_runpod, fake_vast, fake_verda
from cloud.server import FakeServer
from cloud.world import Faults

from cloud_bench.local_side import Local
from cloud_bench.stand_in import STEPS, Account, Disks, with_machines
from crane_x7_remote.cloud.ledger import Ledger, Stage

PROVIDERS = {
    "verda": (fake_verda._Verda, fake_verda.fake_verda),
    "vast": (fake_vast._Vast, fake_vast.fake_vast),
    "runpod": (fake_runpod._Runpod, fake_runpod.fake_runpod),
}
ORDER_FAULTS = (
    "create_made", "create_unmade", "create_lost", "create_late", "create_quoted",
    "create_refused", "no_capacity", "unknown_status", "low_bid", "no_offer",
)  # fmt: skip
LIST_FAULTS = (
    "list_html", "list_truncated", "list_429", "list_502", "list_slow", "list_reset",
    "token_expired",
)  # fmt: skip
DELETE_FAULTS = ("delete_refused", "delete_lost", "delete_207", "volume_refused")
MACHINE_FAULTS = ("ssh_never", "ssh_drop")
SECRETS = {"HF_TOKEN": "hf_schedulesecret0123456789", "WANDB_API_KEY": "wandbschedule0123456789ab"}
KILLED_STARTS = 3
LIMIT_S = 60.0
LOG_CHARACTERS = 20_000
"""Of the log of a schedule that went wrong."""


@dataclass
class Result:
    """What one schedule shows."""

    seed: int
    provider: str
    left: list[str] = field(default_factory=list)
    """Machines and volumes that are billed after the last start."""
    doubles: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)
    """Places with a secret."""
    unfinished: bool = False
    """The last start did not end with the last step at home."""
    kills: int = 0
    machines: int = 0
    faults: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        return not (self.left or self.doubles or self.lost or self.secrets or self.unfinished)


def run(seed: int) -> Result:
    """Run one schedule."""
    chance = random.Random(seed)
    provider = chance.choice(sorted(PROVIDERS))
    rates = {
        name: chance.uniform(0.05, 0.4)
        for name in (*ORDER_FAULTS, *LIST_FAULTS, *DELETE_FAULTS, *MACHINE_FAULTS)
        if chance.random() < 0.25
    }
    result = Result(seed, provider, faults=tuple(rates))
    folder = Path(tempfile.mkdtemp(prefix="cloud_bench_"))
    account = Account(faults=Faults(rates=dict(rates), random=random.Random(seed + 1)))
    account.vanishes = chance.random() < 0.5
    account.every_save = chance.random() < 0.5
    if chance.random() < 0.2:
        account.fails_at = chance.randrange(STEPS)
    handler, make = PROVIDERS[provider]
    server = make(account)
    disks = Disks(account.volumes)
    disks.account = account
    account.volumes = disks
    server._server.RequestHandlerClass = type(
        "Handler", (with_machines(handler),), {"world": account, "key": server.key}
    )
    try:
        with server:
            for _ in range(chance.randrange(KILLED_STARTS + 1)):
                account.evict_s = chance.uniform(0.02, 0.6) if chance.random() < 0.5 else None
                result.kills += _start(server, folder, chance)
                time.sleep(chance.choice((0.0, 0.0, 0.0, 0.05, 0.05, 2.5)))
            account.evict_s, account.fails_at = None, STEPS
            for name in (*ORDER_FAULTS, *MACHINE_FAULTS, "token_expired"):
                account.faults.rates.pop(name, None)
            _start(server, folder, None)
            _judge(result, account, server, folder)
    finally:
        shutil.rmtree(folder)
    return result


def _start(server: FakeServer, folder: Path, chance: random.Random | None) -> int:
    """Run the local side in a child; with `chance` it may be ended. Returns 1 if it was killed."""
    child = os.fork()
    if child == 0:
        _child(server, folder)
    plan = list(_signals(chance))
    begun = time.monotonic()
    for delay_s, number in plan:
        _wait(child, delay_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
    if not _wait(child, LIMIT_S):
        os.kill(child, signal.SIGKILL)
        raise TimeoutError(f"the local side has not ended after {time.monotonic() - begun:.0f} s")
    _, status = os.waitpid(child, 0)
    return int(os.WIFSIGNALED(status))


def _signals(chance: random.Random | None) -> Iterator[tuple[float, int]]:
    if chance is None:
        return
    kind = chance.random()
    if kind < 0.3:
        yield (
            chance.uniform(0.0, 1.5),
            chance.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
        )
    if kind < 0.9:
        yield chance.uniform(0.0, 1.2), signal.SIGKILL


def _wait(child: int, limit_s: float) -> bool:
    """Wait until the child has ended, without taking its status."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(0.005)
    return False


def _child(server: FakeServer, folder: Path) -> None:
    """Be the local side, and never return."""
    code = 1
    try:
        with open(folder / "log", "a") as log:
            os.dup2(log.fileno(), sys.stderr.fileno())
        logging.basicConfig(level=logging.DEBUG, force=True)
        for name in ("httpcore2", "httpx2"):
            logging.getLogger(name).setLevel(logging.WARNING)
        base = server.url.removesuffix("/v1")
        Local(server.client(), Ledger(folder / "ledger"), base, SECRETS).start()
        code = 0
    except BaseException:
        logging.exception("the local side ends")
    finally:
        os._exit(code)


def _judge(result: Result, account: Account, server: FakeServer, folder: Path) -> None:
    result.left = account.billed()
    ledger = Ledger(folder / "ledger")
    result.left += [f"ledger: {each}" for each in ledger.entries() if each.stage is not Stage.GONE]
    result.left += [f"login key {name}" for name, _ in account.ssh_keys.values()]
    result.doubles = account.doubles
    result.lost = account.lost
    result.unfinished = account.home < STEPS
    result.machines = account.made.total()
    texts = {"the provider's pages": "\n".join(account.orders), "log": (folder / "log").read_text()}
    texts |= {path.name: path.read_text() for path in (folder / "ledger").glob("*.json")}
    for place, text in texts.items():
        if any(secret in text for secret in (server.key, *SECRETS.values())):
            result.secrets.append(place)
    if not result.is_good:
        print(f"seed {result.seed}:\n{texts['log'][-LOG_CHARACTERS:]}", file=sys.stderr)
