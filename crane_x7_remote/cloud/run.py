"""One machine of a run, from the order to its deletion. A plan → outputs here, nothing rented.

rented → address → login → watchdog → upload → setup_env.sh → training followed → outputs home →
deleted. Whatever goes wrong, `rented` deletes; this file decides what comes home before that, and
whether a disk with the only checkpoints is kept.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

from crane_x7_remote.cloud import bundle, env_file
from crane_x7_remote.cloud.find_run import session_id
from crane_x7_remote.cloud.follow import TAKEN, EvictedError, Follower, Safety, print_line
from crane_x7_remote.cloud.home import Home
from crane_x7_remote.cloud.job import LEROBOT
from crane_x7_remote.cloud.ledger import Ledger
from crane_x7_remote.cloud.plan import KNOWN_HOSTS, LOG, SSH_FOLDER, Plan
from crane_x7_remote.cloud.progress import Progress
from crane_x7_remote.cloud.provider import Provider
from crane_x7_remote.cloud.rental import BudgetError, Rental, rented
from crane_x7_remote.cloud.session import Limits, Look, Session
from crane_x7_remote.cloud.ssh import Host as SshHost
from crane_x7_remote.cloud.ssh import HostKeyError, Ssh, SshLostError
from crane_x7_remote.cloud.types import Budget, Machine, Offer, Order, new_label
from crane_x7_remote.errors import CloudError, CloudTrainingError
from crane_x7_vla_rl.log_text import shown, tell

logger = logging.getLogger(__name__)

T = TypeVar("T")

FULL_MB: Final = 200
"""Less free room on the machine's disk explains a failure."""
SHOWN: Final = 15
"""Last lines of a training that failed."""
PROBE: Final = "PATH=/opt/venv/bin:$PATH; crane-x7-vla-rl --version 2>/dev/null || echo none"
"""What of this project is there."""
PROBE_LEROBOT: Final = (
    '[ -x /opt/venv-lerobot/bin/python ] || [ -x "${LEROBOT_VENV:-/none}/bin/python" ]'
    f" || {{ echo none; exit 0; }}; {PROBE}"
)
"""The same for a training by LeRobot, which needs its environment, too; as in setup_env.sh."""


@dataclass(frozen=True)
class Ended:
    """How a machine's training ended."""

    cost: float
    """USD of the run so far, earlier machines included."""


class Attempt:
    """One machine."""

    def __init__(self, plan: Plan, provider: Provider, ledger: Ledger, budget: Budget) -> None:
        self._plan, self._provider, self._ledger = plan, provider, ledger
        self._budget = budget
        self.safety = Safety(plan.job, plan.hub, plan.pace.hub_s)
        self.cost = budget.spent
        """USD so far, earlier machines included."""
        self.kept: tuple[str, ...] = ()
        """Disks that stay because a checkpoint may be on them alone."""
        self._log = _Log(plan.folder / LOG)

    def run(self, offer: Offer, mode: str, boot_volume_id: str | None) -> Ended:
        """Rent, train, bring home, delete.

        Raises EvictedError, CloudTrainingError, BudgetError and other CloudErrors; a signal's
        Stopped passes once everything is home and deleted.
        """
        plan = self._plan
        order = Order(
            label=new_label(plan.run_id),
            offer=offer,
            image=plan.image,
            ssh_public_key=plan.key.public,
            disk_gb=plan.wanted.disk_gb,
            boot_volume_id=boot_volume_id,
            command=plan.command,
            max_price_per_hour=plan.wanted.max_price_per_hour,
        )
        rental = None
        try:
            with rented(
                self._provider, order, self._ledger, plan.run_id, plan.timing, self._budget
            ) as rental:
                if boot_volume_id is not None:
                    rental.keep_volumes = self.safety.doubt = True
                self._train(rental, mode)
                return Ended(rental.cost())
        finally:
            if rental is not None:
                self.cost = rental.cost()
                self.kept = rental.record.kept_volume_ids

    def _train(self, rental: Rental, mode: str) -> None:
        plan = self._plan
        machine = self._address(rental)
        assert machine.address is not None
        address = replace(machine.address, user=plan.ssh_user or machine.address.user)
        host = SshHost(
            address, rental.record.label,
            plan.folder / SSH_FOLDER / f"{KNOWN_HOSTS}-{rental.record.label}", plan.key.private,
        )  # fmt: skip
        rental.note(
            folder=str(plan.folder.absolute()), remote_dir=plan.remote_dir, there=plan.there,
            user=address.user,
            identity=str(plan.key.private.absolute()), known_hosts=str(host.known_hosts.absolute()),
        )  # fmt: skip
        with Ssh(host) as ssh:
            logger.info("logging in at %s:%d", machine.address.host, machine.address.port)
            watch = _Watch(rental, plan.timing.poll_s)
            ssh.wait_for_login(plan.timing.ssh_s, watch)
            session = Session(ssh, session_id(rental.record.label), plan.remote_dir)
            self._start(session, rental, mode, watch)
            follower = Follower(
                session, rental, self.safety, plan.pace, plan.timing, self._log.write,
                self._provider.keeps_volumes, self._budget.max_cost,
            )  # fmt: skip
            with self._ending(session, rental, follower):
                look = follower.until_end()
            self._judge(look, follower.progress)

    @staticmethod
    def _address(rental: Rental) -> Machine:
        """Wait for the address. Raises EvictedError if the machine is taken away before."""
        try:
            return rental.wait_for_address()
        except CloudError as error:
            if rental.look().state in TAKEN:
                raise EvictedError(str(error)) from error
            raise

    def _start(self, session: Session, rental: Rental, mode: str, watch: _Watch) -> None:
        """Bring everything, the watchdog first, and start; each step is harmless when repeated."""
        plan, dead_man = self._plan, rental.dead_man()
        limits = Limits(dead_man.silence_s, dead_man.deadline_s, plan.pace.save_s)
        patience_s = plan.timing.ssh_s
        watch.again(
            lambda: session.guard(limits, dead_man.self_end.shell(), plan.job.outputs), patience_s
        )
        files = plan.job.files() | {".env": env_file.text(plan.secrets).encode()}
        probe = PROBE_LEROBOT if plan.job.kind == LEROBOT else PROBE
        there = watch.again(lambda: session.ssh.must(probe), patience_s).decode().strip()
        if there == "none":
            files["package.tar.gz"] = bundle.pack()
        elif not there.endswith(f" {bundle.version()}"):
            logger.warning("the image has %s, here is %s", shown(there), bundle.version())
        watch.again(lambda: session.ssh.put(files, session.folder), patience_s)
        watch.again(lambda: session.start(plan.job.mode(mode)), patience_s)
        rental.note(started=True)

    @contextlib.contextmanager
    def _ending(self, session: Session, rental: Rental, follower: Follower) -> Iterator[None]:
        """Bring home what there is, however the training ends."""
        home = self._home(session, _Watch(rental, self._plan.timing.poll_s))
        try:
            yield
        except (EvictedError, HostKeyError) as error:
            self._lost(rental, error)
            raise
        except (KeyboardInterrupt, BudgetError) as error:
            logger.warning(
                "%s: the training saves and ends, and its outputs come home first",
                error,
            )
            try:
                look = home.stop_training()
            except CloudError as lost:
                self._lost(rental, lost)
                raise error from lost
            if look is not None and look.saved is not None:
                self.safety.saved = look.saved
            self._bring(home, rental)
            raise
        except BaseException as error:
            self._lost(rental, error)
            raise
        else:
            assert follower.last is not None
            self._bring(home, rental)

    def _home(self, session: Session, watch: _Watch) -> Home:
        plan = self._plan
        return Home(
            session, plan.there, plan.outputs, plan.timing.heartbeat_s, plan.pace.save_s,
            plan.pace.home_s, plan.pace.reach_s, watch.look,
        )  # fmt: skip

    def _bring(self, home: Home, rental: Rental) -> None:
        """Bring outputs home; if that fails, keep the disk that has them where that is possible."""
        interrupt = None
        try:
            try:
                home.bring()
            except KeyboardInterrupt as error:  # the first; later ones only say why it takes time
                logger.warning(
                    "%s: first the outputs come home, then the machine is deleted", error
                )
                interrupt = error
                home.bring()
        except CloudError as error:
            self._lost(rental, error)
            raise
        self.safety.is_home()
        if self._provider.keeps_volumes:
            rental.keep_volumes = False
        if interrupt is not None:
            raise interrupt

    def _lost(self, rental: Rental, error: BaseException) -> None:
        """The machine cannot be read any more: keep its disk if a checkpoint is on it alone."""
        self.safety.ask()
        if not self.safety.unsafe:
            if self._provider.keeps_volumes and rental.keep_volumes:
                rental.keep_volumes = False
            return
        step = self.safety.saved
        if self._provider.keeps_volumes:
            rental.keep_volumes = True
            logger.warning(
                "checkpoint %s may be on the machine's disk alone: the disk is kept", step
            )
        else:
            logger.error(
                "checkpoint %s may be on the machine alone, and %s keeps no disk: it is lost (%s)",
                step, self._provider.name, type(error).__name__,
            )  # fmt: skip

    def _judge(self, look: Look, progress: Progress) -> None:
        """Raise CloudTrainingError if the training failed."""
        if look.code == 0 and look.ended in (None, "stopped"):
            return
        lines = list(progress.tail)[-SHOWN:]
        said = tell("\n".join(lines) or "it printed nothing")
        if look.ended not in (None, "stopped"):
            raise CloudTrainingError(
                f"the machine's watchdog ended the training ({look.ended}); the outputs are in"
                f" {self._plan.outputs}"
            )
        why = f"\nthe machine's disk is full ({look.free_mb} MB free): rent more with --disk-gb"
        raise CloudTrainingError(
            f"{'the training' if look.phase == 'training' else 'setting up the machine'} ended with"
            f" code {look.code}; its last lines:\n  {said}"
            f"{why if look.free_mb < FULL_MB else ''}"
            f"\nits outputs are in {self._plan.outputs}, the whole log in {self._log.path}"
        )


@dataclass
class _Watch:
    """Looks after machine and budget while something else is waited for."""

    rental: Rental
    every_s: float
    _asked_s: float = field(default_factory=time.monotonic)

    def __call__(self) -> None:
        """Raise EvictedError or BudgetError where waiting cannot help."""
        self.rental.check_budget()
        self.look()

    def look(self) -> None:
        """Raise EvictedError if the machine was taken away."""
        if time.monotonic() - self._asked_s < self.every_s:
            return
        machine = self.rental.look()
        self._asked_s = time.monotonic()
        if machine.state in TAKEN:
            raise EvictedError(
                f"the provider took the machine away: {machine.state} ({machine.status})"
            )

    def again(self, act: Callable[[], T], patience_s: float) -> T:
        """Repeat what a lost connection interrupts."""
        deadline_s = time.monotonic() + patience_s
        while True:
            try:
                return act()
            except SshLostError as error:
                if time.monotonic() > deadline_s:
                    raise
                logger.warning("%s; it is tried again", error)
                self()
                time.sleep(min(2.0, patience_s / 10))


class _Log:
    """The log as it arrives: on the terminal, and in a file here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, line: str) -> None:
        """Take a line."""
        print_line(line)
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
