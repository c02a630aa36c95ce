"""A whole run against a provider's stand-in whose machines are real: order to deletion.

The trainer is a stand-in of the same lines, files and signals; test_whole_circle.py has LeRobot's.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud_farm import HUB_REPO, PACE, QUICK, Farm, FolderHub
from containers import wait_for

from crane_x7_remote.cloud import outputs
from crane_x7_remote.cloud.follow import EvictedError
from crane_x7_remote.cloud.home import Home
from crane_x7_remote.cloud.hub_state import HubSilentError
from crane_x7_remote.cloud.job import Job
from crane_x7_remote.cloud.outputs import NoRoomError, Outputs
from crane_x7_remote.cloud.progress import Progress
from crane_x7_remote.cloud.reconcile import reconcile
from crane_x7_remote.cloud.rental import BudgetError
from crane_x7_remote.cloud.rescue import Rescue
from crane_x7_remote.cloud.run import Attempt
from crane_x7_remote.cloud.session import Look
from crane_x7_remote.cloud.ssh import HostKeyError
from crane_x7_remote.cloud.types import Budget
from crane_x7_remote.errors import CloudError, CloudOfferError, CloudTrainingError

pytestmark = pytest.mark.usefixtures("sshd")

OVERHEAD_S = 20
"""From the order's answer to the start of the training, without an installation."""
RUN = "outputs/train/act_example"


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    with Farm(tmp_path / "farm") as farm:
        yield farm


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("checkpoints/0*"))


def test_a_training_comes_home_whole_and_nothing_is_left_rented(
    farm: Farm, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    plan = farm.plan(secrets={"HF_TOKEN": "hf_se cret'$HOME"})
    farm.run(plan)
    ordered, trains = (
        next(each.created for each in caplog.records if each.message.endswith(said))
        for said in ("ordered", "training")
    )
    assert trains - ordered < OVERHEAD_S
    assert farm.left() == []
    assert steps(plan.outputs) == [2, 4, 6]
    assert (plan.outputs / "checkpoints/last").resolve().name == "000006"
    assert "step 6 of 6" in capsys.readouterr().out
    assert "step 6 of 6" in (plan.folder / "log.txt").read_text()
    assert '"HF_TOKEN": "hf_se cret\'$HOME"' in (plan.outputs / "environ.json").read_text()
    assert not farm.newest.processes()
    assert not (Path(farm.remote_dir) / ".env").exists()


def test_a_training_that_ends_at_once_shows_its_last_lines_and_its_machine_is_deleted(
    farm: Farm,
) -> None:
    farm.trainer |= {"TRAINER_STEPS": "0", "TRAINER_EXIT": "3", "TRAINER_SAYS": "policy.typ is no"}
    with pytest.raises(CloudTrainingError, match=r"(?s)code 3; its last lines:.*policy\.typ is no"):
        farm.run(farm.plan())
    assert farm.left() == []
    assert (farm.plan().outputs / "words.json").exists()


@pytest.mark.slow
def test_outputs_come_home_when_the_training_fails_late(farm: Farm) -> None:
    farm.trainer |= {"TRAINER_EXIT": "1"}
    plan = farm.plan()
    with pytest.raises(CloudTrainingError):
        farm.run(plan)
    assert steps(plan.outputs) == [2, 4, 6]
    assert farm.left() == []


@pytest.mark.parametrize("vanish", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_evicted_run_goes_on_from_the_hub_on_another_machine(
    vanish: bool, farm: Farm, tmp_path: Path
) -> None:
    hub = tmp_path / "hub"
    farm.trainer |= {"TRAINER_HUB": str(hub), "TRAINER_STEP_S": "0.5"}
    job = Job(config=b"{}", outputs=RUN, repo_id=HUB_REPO, every_save=True)
    plan = farm.plan(job=job, hub=FolderHub(hub), auto_resume=1)
    farm.evict_when(lambda: (hub / "000002/complete.json").exists(), vanish)
    farm.run(plan)
    assert len(farm.machines) == 2
    assert farm.left() == []
    begun = re.findall(r"begun at (\d)", (plan.folder / "log.txt").read_text())
    assert begun in (["0", "2"], ["0", "4"])  # the newest checkpoint when it was taken away
    assert steps(plan.outputs) == [2, 4, 6]


@pytest.mark.slow
def test_an_evicted_run_without_the_hub_goes_on_from_its_kept_disk(farm: Farm) -> None:
    farm.trainer |= {"TRAINER_STEP_S": "0.8"}
    plan = farm.plan(auto_resume=1)
    farm.evict_when(lambda: _disk_is_needed(farm))
    farm.run(plan)
    assert len(farm.machines) == 2
    assert farm.left() == []
    begun = re.findall(r"begun at (\d)", (plan.folder / "log.txt").read_text())
    assert begun in (["0", "2"], ["0", "4"])  # the newest checkpoint when it was taken away
    assert steps(plan.outputs) == [2, 4, 6]


def _disk_is_needed(farm: Farm) -> bool:
    """Whether the ledger says that a disk must be kept, which a look at a checkpoint causes."""
    return any(entry.keep_volumes for entry in farm.ledger.entries())


@pytest.mark.slow
def test_an_eviction_without_further_machines_keeps_the_disk_and_says_how_to_go_on(
    farm: Farm, caplog: pytest.LogCaptureFixture
) -> None:
    farm.trainer |= {"TRAINER_STEP_S": "0.2"}
    plan = farm.plan()
    farm.evict_when(lambda: _disk_is_needed(farm))
    with pytest.raises(EvictedError, match="resume_local --os-volume-id") as caught:
        farm.run(plan)
    (kept,) = farm.left()
    volume = kept.split()[1]
    assert volume in str(caught.value)
    assert "costs $" in caplog.text
    farm.trainer["TRAINER_STEP_S"] = "0.01"
    farm.run(farm.plan(mode="resume_local", os_volume_id=volume))
    assert farm.left() == []
    assert steps(plan.outputs) == [2, 4, 6]


@pytest.mark.slow
def test_an_eviction_before_any_checkpoint_leaves_nothing(farm: Farm) -> None:
    farm.trainer |= {"TRAINER_STEP_S": "30"}
    farm.evict_when(lambda: farm.machines and farm.newest.trainers())
    with pytest.raises(EvictedError, match="no checkpoint was saved"):
        farm.run(farm.plan())
    assert farm.left() == []


def test_sshd_that_never_answers_ends_the_rental(farm: Farm) -> None:
    farm.boot_s = float("inf")
    timing = dataclasses.replace(QUICK, ssh_s=1.0)
    with pytest.raises(CloudError, match="no login within 1 s"):
        farm.run(farm.plan(timing=timing))
    assert farm.left() == []


@pytest.mark.slow
def test_another_host_key_ends_the_run_and_its_machine(farm: Farm) -> None:
    farm.trainer |= {"TRAINER_STEP_S": "30"}

    def change() -> None:
        wait_for(lambda: farm.machines and farm.newest.trainers(), "it trains")
        sshd = farm.newest.sshd
        sshd.kill()
        sshd.renew_host_key()
        sshd.start()
        time.sleep(20)

    threading.Thread(target=change, daemon=True).start()
    with pytest.raises(HostKeyError, match="host key"):
        farm.run(farm.plan())
    assert farm.left() == []


@pytest.mark.slow
def test_a_lost_connection_neither_stops_the_training_nor_loses_a_line(farm: Farm) -> None:
    farm.trainer |= {"TRAINER_STEP_S": "0.2"}
    plan = farm.plan()
    over = threading.Event()

    def cut() -> None:
        wait_for(lambda: farm.machines and farm.newest.trainers(), "it trains")
        machine = farm.newest
        machine.sshd.kill()  # its connections with it; the training has its own session
        time.sleep(0.5)
        machine.sshd.start()
        over.wait(30)

    threading.Thread(target=cut, daemon=True).start()
    farm.run(plan)
    over.set()
    lines = (plan.folder / "log.txt").read_text().splitlines()
    told = [line.split("step ")[1].split()[0] for line in lines if " of 6" in line]
    assert told == ["1", "2", "3", "4", "5", "6"]
    assert farm.left() == []


@pytest.mark.parametrize(
    "phase",
    [
        "create", "boot", "upload",
        *(pytest.param(phase, marks=pytest.mark.slow) for phase in ("training", "home")),
    ],
)  # fmt: skip
def test_ctrl_c_in_each_phase_leaves_nothing_and_saves_what_there_is(
    phase: str, farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crane_x7_remote.cloud.session import Session

    farm.trainer |= {"TRAINER_STEP_S": "0.2" if phase == "training" else "0.01"}
    if phase == "boot":
        farm.boot_s = 1.0
    plan = farm.plan()
    interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
    done: list[int] = []

    def once(owner: type, name: str) -> None:
        real = getattr(owner, name)

        def wrapped(self: object, *words: object) -> object:
            if not done:
                done.append(1)
                interrupt()
                interrupt()
            return real(self, *words)

        monkeypatch.setattr(owner, name, wrapped)

    if phase == "create":
        once(type(farm.provider), "create")
    elif phase == "upload":
        once(Session, "guard")
    elif phase == "home":
        once(Home, "bring")
    else:

        def later() -> None:
            if phase == "boot":
                wait_for(lambda: farm.machines, "it boots")
            else:
                wait_for(lambda: _disk_is_needed(farm), "it has saved")
            interrupt()

        threading.Thread(target=later, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        farm.run(plan)
    assert farm.left() == []
    if phase == "training":
        assert 2 in steps(plan.outputs)
    if phase == "home":
        assert steps(plan.outputs) == [2, 4, 6]


@pytest.mark.slow
def test_the_budget_ends_the_run_saved_and_home(farm: Farm) -> None:
    farm.trainer |= {"TRAINER_STEPS": "1000", "TRAINER_SAVE": "1000"}
    plan = farm.plan(budget=Budget(max_hours=6 / 3600))
    with pytest.raises(BudgetError, match="--max-hours"):
        farm.run(plan)
    assert farm.left() == []
    assert len(steps(plan.outputs)) == 1


def test_auto_resume_shares_one_budget(farm: Farm) -> None:
    farm.trainer |= {"TRAINER_STEP_S": "0.2"}
    farm.evict_when(lambda: _disk_is_needed(farm))
    plan = farm.plan(auto_resume=1, budget=Budget(max_cost=1e-9))
    with pytest.raises(BudgetError):
        farm.run(plan)
    assert farm.left() == []


def test_a_process_that_is_killed_is_ended_by_the_next_start_and_loses_nothing(
    farm: Farm,
) -> None:
    farm.trainer |= {"TRAINER_STEPS": "1000", "TRAINER_SAVE": "2", "TRAINER_STEP_S": "0.1"}
    plan = farm.plan()
    farm.killed_when(lambda: _disk_is_needed(farm))
    saved = steps(Path(farm.remote_dir) / RUN)
    assert farm.left()
    report = reconcile(farm.ledger, {"verda": farm.provider}, QUICK, Rescue(farm.ledger, PACE, 0.5))
    assert report.is_clean
    assert farm.left() == []
    assert set(saved) <= set(steps(plan.outputs))


@pytest.mark.slow
def test_no_secret_is_in_any_command_line_log_ledger_or_order(
    farm: Farm, caplog: pytest.LogCaptureFixture
) -> None:
    import psutil

    secret = "hf_neverShownAnywhere"
    farm.trainer |= {"TRAINER_STEP_S": "0.1", "TRAINER_SAYS": f"the token is {secret}"}
    seen: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for process in psutil.process_iter():
                try:
                    seen.append(" ".join(process.cmdline()))
                except psutil.Error:
                    continue
            time.sleep(0.02)

    from crane_x7_vla_rl import secret_text

    secret_text.remember(secret)
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    plan = farm.plan(secrets={"HF_TOKEN": secret})
    farm.run(plan)
    over.set()
    thread.join()
    assert any("session.sh" in line for line in seen)
    assert not [line for line in seen if secret in line]
    texts = [caplog.text, (plan.folder / "log.txt").read_text(), "\n".join(farm.world.requests)]
    texts += [path.read_text() for path in (farm.folder / "ledger").glob("*.json")]
    private = plan.key.private.read_text()
    for text in texts:
        assert secret not in text
        assert private.split("\n")[1] not in text


@pytest.mark.slow
def test_a_full_disk_here_is_waited_for_and_then_the_machines_disk_is_kept(
    farm: Farm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    monkeypatch.setattr(outputs, "RESERVE_BYTES", shutil.disk_usage(farm.folder).total)
    plan = farm.plan(pace=dataclasses.replace(PACE, home_s=1.0))
    with pytest.raises(NoRoomError, match="make room"):
        farm.run(plan)
    assert "waiting for room" in caplog.text
    (kept,) = farm.left()
    assert kept.startswith("volume")


@pytest.mark.slow
def test_a_hub_that_is_silent_ends_no_training_and_lets_the_disk_be_kept(
    farm: Farm, tmp_path: Path
) -> None:
    class Silent(FolderHub):
        def newest(self, repo_id: str) -> int | None:
            raise HubSilentError(f"the Hub answers 503 for {repo_id}")

    farm.trainer |= {"TRAINER_STEP_S": "0.2"}
    job = Job(config=b"{}", outputs=RUN, repo_id=HUB_REPO, every_save=True)
    plan = farm.plan(job=job, hub=Silent(tmp_path / "hub"))
    farm.evict_when(lambda: _disk_is_needed(farm))
    with pytest.raises(EvictedError, match="resume_local"):
        farm.run(plan)
    (kept,) = farm.left()
    hub = Silent(tmp_path / "hub")
    farm.run(farm.plan(job=job, hub=hub, mode="resume_local", os_volume_id=kept.split()[1]))
    assert farm.left() == []
    assert steps(plan.outputs) == [2, 4, 6]


def test_auto_resume_with_nothing_to_resume_from_is_refused_before_renting(farm: Farm) -> None:
    farm.provider.keeps_volumes = False
    with pytest.raises(CloudError, match=r"checkpoint\.upload_every_save"):
        farm.run(farm.plan(auto_resume=1))
    assert not farm.machines


def test_no_offer_is_said_with_what_could_be_changed(farm: Farm) -> None:
    farm.world.faults.times["no_offer"] = 1
    with pytest.raises(CloudOfferError, match=r"no spot machine with 1 × H100.*--on-demand"):
        farm.run(farm.plan())
    farm.world.faults.times["create_refused"] = 10
    with pytest.raises(CloudOfferError, match="insufficient"):
        farm.run(farm.plan())
    assert not farm.machines


@pytest.mark.parametrize(
    ("look", "says"),
    [
        (
            Look("training", 1, False, 0, 50, None, None, True),
            r"disk is full \(50 MB free\).*--disk",
        ),
        (Look("installing", 1, False, 0, 9000, None, None, True), "setting up the machine ended"),
        (Look("training", 0, False, 0, 9000, 5, "deadline", True), r"watchdog ended.*deadline"),
    ],
)
def test_a_failure_says_what_failed(look: Look, says: str, farm: Farm) -> None:
    attempt = Attempt(farm.plan(), farm.provider, farm.ledger, Budget())
    with pytest.raises(CloudTrainingError, match=rf"(?s){says}"):
        attempt._judge(look, Progress())


@pytest.mark.slow
def test_a_machine_taken_away_while_outputs_come_home_is_noticed_and_its_disk_kept(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, done = Outputs.listing, []

    def evicted(self: Outputs) -> object:
        if not done:
            done.append(1)
            farm.evict()
        return real(self)

    monkeypatch.setattr(Outputs, "listing", evicted)
    plan = farm.plan(pace=dataclasses.replace(PACE, home_s=60.0))
    begun = time.monotonic()
    with pytest.raises(EvictedError, match="resume_local"):
        farm.run(plan)
    assert time.monotonic() - begun < 40
    (kept,) = farm.left()
    farm.run(farm.plan(mode="resume_local", os_volume_id=kept.split()[1]))
    assert farm.left() == []
    assert steps(plan.outputs) == [2, 4, 6]


@pytest.mark.slow
def test_ctrl_c_while_the_machine_is_unreachable_ends_the_rental_soon(
    farm: Farm,
) -> None:
    farm.trainer |= {"TRAINER_STEP_S": "0.3"}
    plan = farm.plan(pace=dataclasses.replace(PACE, save_s=60.0, home_s=60.0, reach_s=1.0))

    def cut() -> None:
        wait_for(lambda: _disk_is_needed(farm), "it has saved")
        farm.newest.sshd.kill()
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=cut, daemon=True).start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        farm.run(plan)
    assert time.monotonic() - begun < 40
    (kept,) = farm.left()
    assert kept.startswith("volume")
