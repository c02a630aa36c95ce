"""The ledger: what a write promises, and one process per run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cloud.clients import order_for

from crane_x7_remote.cloud.ledger import Ledger, Stage
from crane_x7_remote.cloud.types import LABEL, Offer, new_label, own_label
from crane_x7_remote.errors import CloudError, ExitCode

OFFER = Offer("verda", "1H100", "H100", 1, 2.0, True, "FIN-01")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def test_file_and_folder_are_synced_and_the_file_is_whole_before_a_write_returns(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    replaced: list[int] = []
    rename = os.replace
    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(
        os, "replace", lambda old, new: (replaced.append(len(synced)), rename(old, new))
    )
    entry = ledger.begin("first", order_for(OFFER))
    assert [Path(each).suffix for each in synced] == [".new", ""]
    assert synced[1] == str(ledger.folder)
    assert replaced == [1]  # after the file's sync, before the folder's
    assert ledger.read(entry.label) == entry


def test_an_entry_comes_back_as_it_was(ledger: Ledger) -> None:
    entry = ledger.begin("first", order_for(OFFER))
    changed = ledger.change(
        entry.label, stage=Stage.CREATED, machine_id="m", volume_ids=("a", "b"), notes={"x": 1}
    )
    assert ledger.read(entry.label) == changed
    assert ledger.entries() == [changed]
    assert ledger.runs("first") == [changed]
    assert ledger.runs("other") == []


def test_a_label_is_used_once(ledger: Ledger) -> None:
    order = order_for(OFFER)
    ledger.begin("first", order)
    with pytest.raises(CloudError, match="make a new one"):
        ledger.begin("first", order)


def test_a_folder_that_cannot_be_written_is_said_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CloudError, match="CLOUD_LEDGER") as caught:
        Ledger(tmp_path / "file" / "ledger")
    assert caught.value.exit_code is ExitCode.CLOUD
    assert "nothing is rented" in str(caught.value)


@pytest.mark.parametrize("run_id", ["", "../up", "a b", "x" * 65, "läuft"])
def test_a_run_id_that_could_leave_the_folder_is_refused(ledger: Ledger, run_id: str) -> None:
    with pytest.raises(CloudError, match="run id"), ledger.locked(run_id):
        raise AssertionError


def test_a_lock_is_free_after_its_block_and_counts_within_a_process(ledger: Ledger) -> None:
    with ledger.locked("first"):
        with ledger.locked("first"):
            pass
        other = Ledger(ledger.folder)
        assert other.holder("first") == os.getpid()
    assert other.holder("first") is None


@pytest.mark.parametrize("run_id", ["first_run", "Ünï?", "x" * 80, "---"])
def test_labels_are_unique_and_fit_a_hostname(run_id: str) -> None:
    labels = {new_label(run_id) for _ in range(100)}
    assert len(labels) == 100
    for label in labels:
        assert len(label) <= 63
        assert LABEL.fullmatch(label)
        assert own_label(label) == label


@pytest.mark.parametrize("text", [None, "", "my-machine", "crane-x7", "crane-x7-run-1234", 7])
def test_other_names_are_no_labels(text: object) -> None:
    assert own_label(text) is None
