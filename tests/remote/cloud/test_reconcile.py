"""The next start after an interrupted run: nothing stays rented, nothing else is touched."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cloud.clients import QUICK, billed
from cloud.server import FakeServer

from crane_x7_remote.cloud.ledger import Entry, Ledger, Stage
from crane_x7_remote.cloud.provider import Provider
from crane_x7_remote.cloud.reconcile import Report, reconcile
from crane_x7_remote.cloud.rental import Rental, rented
from crane_x7_remote.cloud.types import Budget, Machine, Order
from crane_x7_remote.errors import CloudError


def killed_at(
    server: FakeServer, ledger: Ledger, order: Order, moment: Callable[[Rental], None] | str
) -> None:
    """Rent in a child process and kill it with SIGKILL, within the block or at `moment`."""
    child = os.fork()
    if child == 0:
        provider = server.client()
        own = Ledger(ledger.folder)

        def die(*_: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        if moment == "before create":
            provider.create = die  # type: ignore[method-assign, assignment]
        elif moment == "after create":
            create = provider.create
            provider.create = lambda sent: die(create(sent))  # type: ignore[assignment, method-assign, arg-type, return-value]
        elif moment == "deletion":
            provider.delete_machine = die  # type: ignore[method-assign, assignment]
        with rented(provider, order, own, "first", QUICK, Budget()) as rental:
            if callable(moment):
                moment(rental)
                die()
            if moment in ("deletion", "running"):
                rental.wait_for_address()
            if moment != "deletion":
                die()
        os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def start(ledger: Ledger, provider: Provider, **words: object) -> Report:
    return reconcile(ledger, {provider.name: provider}, QUICK, **words)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "moment", ["before create", "after create", "created", "running", "deletion"]
)
def test_a_run_killed_at_any_moment_costs_nothing_after_the_next_start(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order, moment: str
) -> None:
    killed_at(server, ledger, order, moment)
    if moment != "before create":
        assert billed(server)
    report = start(ledger, provider)
    assert report.is_clean
    assert [each.entry.label for each in report.ended] == [order.label]
    assert billed(server) == []
    assert ledger.read(order.label).stage is Stage.GONE
    assert start(ledger, provider).ended == []


def test_a_machine_that_appears_after_the_kill_is_found(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    server.world.faults.times["create_late"] = 1
    killed_at(server, ledger, order, "after create")
    assert start(ledger, provider).is_clean
    assert billed(server) == []


@pytest.mark.parametrize("shift_s", [-1e6, 1e6])
def test_a_clock_that_was_set_changes_nothing(
    server: FakeServer,
    provider: Provider,
    ledger: Ledger,
    order: Order,
    monkeypatch: pytest.MonkeyPatch,
    shift_s: float,
) -> None:
    server.world.faults.times["create_late"] = 1
    killed_at(server, ledger, order, "after create")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + shift_s)
    assert start(ledger, provider).is_clean
    assert billed(server) == []


def test_a_run_that_lives_is_not_touched(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    with rented(provider, order, ledger, "first", QUICK, Budget()) as rental:
        rental.wait_for_address()
        read, write = os.pipe()
        child = os.fork()  # another process: this one's lock would let itself in
        if child == 0:
            other = server.client()
            report = start(Ledger(ledger.folder), other)
            os.write(write, b"1" if [each.label for each in report.running] else b"0")
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 1) == b"1"
        os.close(read)
        os.close(write)
        assert len(billed(server)) == 1 + server.world.has_volumes


def test_a_label_that_is_not_in_this_ledger_is_not_touched(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    provider.create(order)
    assert start(ledger, provider).is_clean
    assert len(billed(server)) == 1 + server.world.has_volumes


def test_a_provider_without_a_key_is_said(
    server: FakeServer, ledger: Ledger, order: Order, caplog: pytest.LogCaptureFixture
) -> None:
    killed_at(server, ledger, order, "running")
    report = reconcile(ledger, {}, QUICK)
    assert not report.is_clean
    assert [each.label for each in report.without_key] == [order.label]
    assert "has no key here" in caplog.text


def test_what_only_the_machine_has_is_saved_before_its_deletion(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    killed_at(server, ledger, order, "running")
    seen: list[tuple[str, bool]] = []

    def rescue(entry: Entry, machine: Machine) -> None:
        seen.append((entry.label, machine.address is not None and bool(billed(server))))

    assert start(ledger, provider, rescue=rescue).is_clean
    assert seen == [(order.label, True)]


def test_a_rescue_that_fails_does_not_stop_the_deletion(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    killed_at(server, ledger, order, "running")

    def rescue(entry: Entry, machine: Machine) -> None:
        raise RuntimeError(f"a bug with {entry.label} and {machine.machine_id}")

    assert start(ledger, provider, rescue=rescue).is_clean
    assert billed(server) == []


def test_checkpoints_that_are_nowhere_else_keep_their_volume(
    server: FakeServer,
    provider: Provider,
    ledger: Ledger,
    order: Order,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if not provider.keeps_volumes:
        assert provider.volumes() == []
        return

    def training(rental: Rental) -> None:
        rental.wait_for_address()
        rental.keep_volumes = True

    killed_at(server, ledger, order, training)
    report = start(ledger, provider)
    assert report.is_clean
    (kept,) = report.ended[0].kept
    assert billed(server) == [f"volume {kept.volume_id} {order.label}"]
    assert "is KEPT" in caplog.text
    assert ledger.read(order.label).kept_volume_ids == (kept.volume_id,)
    assert start(ledger, provider).ended == []


def test_a_damaged_entry_is_said_and_others_are_ended(
    server: FakeServer,
    provider: Provider,
    ledger: Ledger,
    order: Order,
    caplog: pytest.LogCaptureFixture,
) -> None:
    killed_at(server, ledger, order, "running")
    (ledger.folder / "crane-x7-other-000000000000.json").write_text('{"version": 1, "lab')
    assert start(ledger, provider).is_clean
    assert "crane-x7-other-000000000000.json is no JSON" in caplog.text
    assert billed(server) == []


def test_what_cannot_be_ended_is_reported_and_ended_at_the_start_after(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    killed_at(server, ledger, order, "running")
    server.world.faults.rates["delete_refused"] = 1.0
    hasty = replace(QUICK, delete_s=0.2)
    report = reconcile(ledger, {provider.name: provider}, hasty)
    assert not report.is_clean
    assert [each.entry.label for each in report.left] == [order.label]
    server.world.faults.rates.clear()
    assert start(ledger, provider).is_clean
    assert billed(server) == []


def test_an_entry_of_a_later_version_is_not_guessed(tmp_path: Path, order: Order) -> None:
    ledger = Ledger(tmp_path / "ledger")
    entry = ledger.begin("first", order)
    path = ledger.folder / f"{entry.label}.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(CloudError, match="version 2, expected 1"):
        ledger.read(entry.label)
    assert ledger.entries() == []
