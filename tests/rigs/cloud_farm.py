"""A provider whose machines are real: its stand-in's world starts an sshd for each order.

A disk is a folder, named by its volume, so that a machine that starts from a kept volume finds what
the one before it wrote.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cloud.fake_verda import fake_verda
from cloud.world import FakeMachine, World
from cloud_machine import CloudMachine
from containers import wait_for

from crane_x7_remote.cloud import ssh_key
from crane_x7_remote.cloud.attempts import run as run_plan
from crane_x7_remote.cloud.hub_state import HubState
from crane_x7_remote.cloud.job import Job
from crane_x7_remote.cloud.ledger import Ledger
from crane_x7_remote.cloud.plan import Pace, Plan
from crane_x7_remote.cloud.types import Timing, Wanted

QUICK = Timing(
    poll_s=0.1, request_s=5.0, create_settle_s=0.5, start_s=20.0, ssh_s=20.0, delete_s=20.0,
    heartbeat_s=0.5, dead_man_s=60.0,
)  # fmt: skip
PACE = Pace(follow_s=0.2, tell_s=0.1, hub_s=0.1, save_s=10.0, reach_s=5.0, home_s=10.0)
HUB_REPO = "me/checkpoints"


class FolderHub(HubState):
    """The Hub as a folder, to which cloud_trainer.py uploads."""

    def __init__(self, folder: Path) -> None:
        super().__init__(None)
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def newest(self, repo_id: str) -> int | None:
        del repo_id
        steps = [int(path.parent.name) for path in self.folder.glob("*/complete.json")]
        return max(steps, default=None)


def plan_in(folder: Path) -> Plan:
    """Return the plan of a farm's folder."""
    run = folder / "runs/first"
    return Plan(
        "first", Job(config=b"{}\n", outputs="outputs/train/act_example"), "train",
        Wanted("H100"), "ubuntu-24.04-cuda-12.8-open-docker", ssh_key.choose({}, run / "ssh"), run,
        timing=QUICK, pace=PACE, remote_dir=str(folder / "root/lerobot_run"),
    )  # fmt: skip


@dataclass
class Farm:
    """An account at the stand-in for Verda, with machines."""

    folder: Path
    trainer: dict[str, str] = field(default_factory=dict)
    """Variables of every machine; see cloud_trainer.py."""
    real: bool = False
    """Whether machines train with this checkout's own trainer."""
    boot_s: float = 0.0
    """Until sshd answers; infinity: never."""
    machines: dict[str, CloudMachine] = field(default_factory=dict)
    on_start: Callable[[CloudMachine], None] | None = None
    _closed: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self.folder.mkdir(exist_ok=True)
        self.world = World(on_start=self._start, on_end=self._end)
        self.server = fake_verda(self.world)
        self.server.__enter__()
        self.provider: Any = self.server.client()
        self.ledger = Ledger(self.folder / "ledger")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        for machine in self.machines.values():
            if error is not None:
                for log in machine.run_folder.glob("sessions/*/*log"):
                    print(f"--- {log}\n{log.read_text(errors='replace')[-3000:]}")
            machine.kill()
        self.server.__exit__(kind, error, trace)

    @property
    def remote_dir(self) -> str:
        """The working folder of every machine: the same path, as on real ones."""
        return str(self.folder / "root/lerobot_run")

    @property
    def newest(self) -> CloudMachine:
        """The machine that was started last."""
        return list(self.machines.values())[-1]

    def plan(self, **values: Any) -> Plan:
        """Return a plan that fits this account."""
        return dataclasses.replace(plan_in(self.folder), **values)

    def killed_when(self, condition: Callable[[], object]) -> None:
        """Run the plan in its own process, and kill that once the condition holds."""
        words = [str(self.folder), self.server.url, self.server.key]
        rigs = Path(__file__).parent
        with (
            (self.folder / "child.log").open("wb") as log,
            subprocess.Popen(
                [sys.executable, str(rigs / "cloud_child.py"), *words], stdout=log, stderr=log,
                env=os.environ | {"PYTHONPATH": f"{rigs.parents[1]}{os.pathsep}{rigs}"},
            ) as child,
        ):  # fmt: skip
            try:
                wait_for(condition, "the moment to kill it")
            except AssertionError:
                print((self.folder / "child.log").read_text(errors="replace")[-3000:])
                raise
            finally:
                child.kill()

    def run(self, plan: Plan) -> None:
        """Run a plan with this account and ledger."""
        run_plan(plan, self.provider, self.ledger)

    def evict(self, vanish: bool = False) -> None:
        """Take the newest machine away."""
        (machine_id,) = self.world.machines
        self.world.evict(machine_id, vanish)

    def evict_when(self, condition: Callable[[], object], vanish: bool = False) -> threading.Thread:
        """Take it away once the condition holds."""

        def wait() -> None:
            end_s = time.monotonic() + 400
            while not condition() and time.monotonic() < end_s and not self._closed.is_set():
                time.sleep(0.02)
            with contextlib.suppress(ValueError):  # it has ended already; the test looks for that
                self.evict(vanish)

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return thread

    def left(self) -> list[str]:
        """Return what still costs money."""
        return self.world.billed()

    def _start(self, machine: FakeMachine) -> tuple[str, int]:
        keys = "\n".join(key for _, key in self.world.ssh_keys.values())
        disk = self.folder / "disks" / str(machine.volume_id)
        self._mount(disk)
        made = CloudMachine(
            self.folder / f"machine-{len(self.machines) + 1}", keys, disk, self.trainer, self.real
        )
        made.remote_dir = self.remote_dir
        self.machines[machine.machine_id] = made
        if self.on_start is not None:
            self.on_start(made)
        if self.boot_s < 1e6:
            made.boot_after(self.boot_s)
            if self.boot_s == 0:
                wait_for(lambda: made.sshd.is_started, "sshd has started", 20, 0.01)
        return made.address.host, made.address.port

    def _mount(self, disk: Path) -> None:
        """Let the machines' common path lead to this disk."""
        disk.mkdir(parents=True, exist_ok=True)
        root = self.folder / "root"
        root.unlink(missing_ok=True)
        root.symlink_to(disk)

    def _end(self, machine: FakeMachine) -> None:
        with contextlib.suppress(KeyError):
            self.machines[machine.machine_id].kill()
