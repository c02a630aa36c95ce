"""`cloud logs` and `cloud ssh` of a run that still trains, was interrupted, or is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud_farm import Farm
from containers import wait_for

from crane_x7_remote import cli
from crane_x7_remote.cloud import find_run
from crane_x7_remote.errors import CloudError

pytestmark = pytest.mark.usefixtures("sshd")


@pytest.fixture
def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    monkeypatch.chdir(tmp_path)
    with Farm(tmp_path / "farm") as farm:
        monkeypatch.setenv("DATACRUNCH_CLIENT_ID", "client")
        monkeypatch.setenv("DATACRUNCH_CLIENT_SECRET", farm.server.key)
        monkeypatch.setenv("VERDA_BASE_URL", farm.server.url)
        monkeypatch.setenv("CLOUD_LEDGER", str(farm.ledger.folder))
        yield farm


def interrupted(farm: Farm) -> None:
    """Start a run in a process, and kill that once it trains."""
    log = farm.plan().folder / "log.txt"
    farm.killed_when(lambda: log.exists() and "step 2" in log.read_text())


@pytest.mark.slow
def test_a_machine_whose_process_was_killed_is_read_and_entered_from_elsewhere(
    farm: Farm, capfd: pytest.CaptureFixture[str]
) -> None:
    farm.trainer |= {"TRAINER_STEPS": "15", "TRAINER_STEP_S": "0.2"}
    interrupted(farm)
    assert cli.main(["cloud", "ssh", "first", "--", "pwd"]) == 0
    assert capfd.readouterr().out.strip() == farm.remote_dir
    assert cli.main(["cloud", "logs", "first"]) == 0
    out, err = capfd.readouterr()
    assert "step 1 of 15" in out
    assert "step 15 of 15" in out
    assert "was interrupted here" in err
    assert "ended with code 0" in err
    assert cli.main(["cloud", "down", "first", "--yes"]) == 0
    assert farm.left() == []
    assert (farm.plan().outputs / "checkpoints/000014").is_dir()


def test_the_log_of_a_run_that_is_over_is_here_and_its_machine_is_not(
    farm: Farm, capsys: pytest.CaptureFixture[str]
) -> None:
    farm.run(farm.plan())
    capsys.readouterr()
    assert cli.main(["cloud", "logs", "first", "--lines", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "End of training"
    assert cli.main(["cloud", "ssh", "first"]) == 40
    assert "has no machine any more" in capsys.readouterr().err
    assert cli.main(["cloud", "logs", "other"]) == 40
    assert "runs there: first" in capsys.readouterr().err


def test_a_run_that_has_not_logged_in_yet_is_said(farm: Farm) -> None:
    farm.boot_s = float("inf")
    over = threading.Event()

    def run() -> None:
        try:
            farm.run(farm.plan())
        except CloudError:
            over.set()

    threading.Thread(target=run, daemon=True).start()
    wait_for(lambda: farm.ledger.runs("first"), "it is in the ledger")
    entry = find_run.newest(farm.ledger, "first")
    with pytest.raises(CloudError, match="still starting"):
        find_run.host(entry, {"verda": farm.provider})
    time.sleep(0.1)
    for machine_id in list(farm.world.machines):
        farm.world.evict(machine_id)
    assert over.wait(20)
