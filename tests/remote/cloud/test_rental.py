"""A rental: whatever happens in it, nothing is billed after it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from cloud.clients import QUICK, billed, order_of
from cloud.fake_verda import DISK_PRICE
from cloud.server import FakeServer

from crane_x7_remote.cloud.ledger import Entry, Ledger, RunningError, Stage
from crane_x7_remote.cloud.provider import CreateRefusedError, CreateUnclearError, Provider
from crane_x7_remote.cloud.rental import BudgetError, Rental, rented
from crane_x7_remote.cloud.stop_signals import Stopped
from crane_x7_remote.cloud.types import Budget, Order, State, Timing
from crane_x7_remote.errors import CloudError, CloudLeftError, CloudOfferError, ExitCode

FREE = Budget()
Block = Callable[[Rental], object]


def rent(
    provider: Provider,
    order: Order,
    ledger: Ledger,
    block: Block,
    timing: Timing = QUICK,
    budget: Budget = FREE,
) -> None:
    """Run `block` in a rental."""
    with rented(provider, order, ledger, "first", timing, budget) as rental:
        block(rental)


def must_not_begin(rental: Rental) -> None:
    raise AssertionError(f"the block began with {rental.record}")


def wait(rental: Rental) -> None:
    rental.wait_for_address()


def fail(rental: Rental) -> None:
    rental.wait_for_address()
    raise CloudError("ssh never came")


def test_the_intent_is_on_disk_before_the_order_is_sent(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    seen: list[Stage] = []
    create = provider.create

    def watched(sent: Order) -> str:
        seen.append(Ledger(ledger.folder).read(sent.label).stage)
        return create(sent)

    provider.create = watched  # type: ignore[method-assign]
    with rented(provider, order, ledger, "first", QUICK, FREE) as rental:
        assert ledger.read(order.label).machine_id == rental.record.machine_id
    assert seen == [Stage.INTENDED]
    assert ledger.read(order.label).stage is Stage.GONE
    assert billed(server) == []


def test_success_leaves_nothing_and_notes_the_cost(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    with rented(provider, order, ledger, "first", QUICK, FREE) as rental:
        machine = rental.wait_for_address()
        assert machine.address is not None
        assert rental.record.listed
        assert len(billed(server)) == 1 + server.world.has_volumes
    assert billed(server) == []
    entry = ledger.read(order.label)
    assert entry.cost is not None
    assert 0 < entry.cost < 0.01
    assert entry.kept_volume_ids == ()


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("waits", [False, True])
def test_every_error_ends_with_nothing_billed(
    server: FakeServer,
    provider: Provider,
    ledger: Ledger,
    order: Order,
    error: BaseException,
    waits: bool,
) -> None:
    def failing(rental: Rental) -> None:
        if waits:
            rental.wait_for_address()
        raise error

    with pytest.raises(type(error)):
        rent(provider, order, ledger, failing)
    assert billed(server) == []
    assert ledger.read(order.label).stage is Stage.GONE


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_block_and_further_ones_wait_for_the_deletion(
    server: FakeServer,
    provider: Provider,
    ledger: Ledger,
    order: Order,
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.world.end_s = 0.6
    sent = []

    def again() -> None:
        """Send more signals while the machine is on its way out, and surely not later."""
        machines = server.world.machines.values()
        while not (ending := [each for each in machines if each.state == "ending"]):
            time.sleep(0.01)
        while ending[0].changes_s - time.monotonic() > 0.3:
            os.kill(os.getpid(), getattr(signal, name))
            sent.append(name)
            time.sleep(0.05)

    thread = threading.Thread(target=again)

    def interrupted(rental: Rental) -> None:
        rental.wait_for_address()
        thread.start()
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(5)

    with pytest.raises(Stopped, match=name):
        rent(provider, order, ledger, interrupted)
    thread.join()
    assert sent
    assert billed(server) == []
    assert "still ending" in caplog.text
    assert "cloud down first" in caplog.text


def test_a_signal_while_no_address_has_come_ends_it_at_once(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    server.world.boot_s = 0.5
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))

    def waiting(rental: Rental) -> None:
        timer.start()
        rental.wait_for_address()

    with pytest.raises(Stopped, match="SIGTERM"):
        rent(provider, order, ledger, waiting)
    timer.join()
    assert billed(server) == []


def test_a_clock_that_is_set_changes_neither_cost_nor_hours(
    provider: Provider, ledger: Ledger, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    with rented(provider, order, ledger, "first", QUICK, Budget(max_hours=1.0)) as rental:
        monkeypatch.setattr(time, "time", lambda: now() + 1e6)
        assert rental.hours() < 0.01
        rental.check_budget()
        monkeypatch.setattr(time, "time", lambda: now() - 1e6)
        assert (rental.dead_man().deadline_s or 0) == pytest.approx(3600, abs=30)


def test_a_signal_during_the_order_waits_for_its_answer(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    create = provider.create

    def slow(sent: Order) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return create(sent)

    provider.create = slow  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        rent(provider, order, ledger, must_not_begin)
    assert server.world.made[order.label] == 1
    assert billed(server) == []
    assert ledger.read(order.label).machine_id is not None


@pytest.mark.parametrize("fault", ["create_made", "create_lost"])
def test_a_machine_behind_a_lost_answer_is_used_not_rented_again(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order, fault: str
) -> None:
    server.world.faults.times[fault] = 1
    with rented(provider, order, ledger, "first", QUICK, FREE) as rental:
        assert rental.wait_for_address().label == order.label
    assert server.world.made[order.label] == 1
    assert billed(server) == []


def test_a_machine_that_shows_up_late_behind_a_lost_answer_is_found(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    server.world.faults.times["create_lost"] = 1
    server.world.faults.times["create_late"] = 1
    with rented(provider, order, ledger, "first", QUICK, FREE) as rental:
        assert rental.wait_for_address().state is State.RUNNING
    assert billed(server) == []


def test_a_machine_ended_before_any_list_shows_it_is_gone_all_the_same(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    server.world.faults.times["create_late"] = 1
    with (
        pytest.raises(RuntimeError),
        rented(provider, order, ledger, "first", QUICK, FREE),
    ):
        raise RuntimeError
    assert billed(server) == []


def test_an_order_that_made_nothing_ends_with_its_cause(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    server.world.faults.times["create_unmade"] = 1
    with pytest.raises(CreateUnclearError, match=r"502|went wrong"):
        rent(provider, order, ledger, must_not_begin)
    assert ledger.read(order.label).stage is Stage.GONE
    assert server.world.made.total() == 0


def test_a_refused_order_is_noted_as_gone_at_once(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    server.world.faults.times["create_refused"] = 1
    begun = time.monotonic()
    with pytest.raises(CreateRefusedError):
        rent(provider, order, ledger, must_not_begin)
    assert time.monotonic() - begun < QUICK.create_settle_s
    entry = ledger.read(order.label)
    assert (entry.stage, entry.cost) == (Stage.GONE, 0.0)
    assert not server.world.ssh_keys


def test_a_key_refused_at_the_order_is_noted_as_gone(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    server.expect("changed-meanwhile")
    with pytest.raises(CloudError):
        rent(provider, order, ledger, must_not_begin)
    assert ledger.read(order.label).stage is Stage.GONE
    assert server.world.made.total() == 0


def test_lists_that_fail_are_asked_until_the_machine_is_gone(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    with rented(provider, order, ledger, "first", QUICK, FREE) as rental:
        rental.wait_for_address()
        server.world.faults.rates |= {"list_html": 0.3, "list_502": 0.3, "delete_refused": 0.5}
    server.world.faults.rates.clear()
    assert billed(server) == []


def test_what_cannot_be_deleted_is_said_with_its_price_and_the_way_out(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    hasty = replace(QUICK, delete_s=0.2)

    def refusing(rental: Rental) -> None:
        rental.wait_for_address()
        server.world.faults.rates["delete_refused"] = 1.0

    with pytest.raises(CloudLeftError) as caught:
        rent(provider, order, ledger, refusing, hasty)
    text, entry = str(caught.value), ledger.read(order.label)
    assert caught.value.exit_code is ExitCode.CLOUD_LEFT
    assert entry.machine_id is not None
    assert f"machine {entry.machine_id}" in text
    assert f"${entry.price_per_hour + entry.volumes_per_hour:.2f} per hour" in text
    assert "cloud down first" in text
    assert entry.stage is Stage.ENDING


def test_a_full_disk_stops_the_order_but_never_the_deletion(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    def full(entry: Entry) -> Entry:
        raise CloudError(f"{entry.label} cannot be written: no space left on device")

    with rented(provider, order, ledger, "first", QUICK, FREE):
        ledger.write = full  # type: ignore[method-assign]
    assert billed(server) == []
    other = order_of(provider, "second")
    with pytest.raises(CloudError, match="no space"):
        rent(provider, other, ledger, must_not_begin)
    assert server.world.made[other.label] == 0


def test_two_runs_of_one_id_at_once_are_refused_before_anything_is_rented(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with Ledger(ledger.folder).locked("first"):
            os.write(write, b"!")
            time.sleep(30)
        os._exit(0)
    try:
        os.read(read, 1)
        with pytest.raises(RunningError, match=rf"process {child}.*cloud down first"):
            rent(provider, order, ledger, must_not_begin)
        assert ledger.holder("first") == child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)
    assert server.world.made.total() == 0
    assert ledger.holder("first") is None  # the kernel has freed it


def test_eviction_is_seen_by_status(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    with rented(provider, order, ledger, "first", QUICK, FREE) as rental:
        machine = rental.wait_for_address()
        server.world.evict(machine.machine_id)
        assert rental.look().state is State.EVICTED
    assert billed(server) == []


def test_a_vanished_machine_is_evicted_after_two_lists_without_it(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    with rented(provider, order, ledger, "first", QUICK, FREE) as rental:
        machine = rental.wait_for_address()
        server.world.evict(machine.machine_id, vanish=True)
        assert rental.look().state is State.UNKNOWN
        assert rental.look().state is State.EVICTED
    assert billed(server) == []


def test_an_unreadable_list_keeps_the_last_state_and_says_so(
    server: FakeServer,
    provider: Provider,
    ledger: Ledger,
    order: Order,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with rented(provider, order, ledger, "first", QUICK, FREE) as rental:
        rental.wait_for_address()
        server.world.faults.rates["list_html"] = 1.0
        for _ in range(3):
            assert rental.look().state is State.RUNNING
        server.world.faults.rates.clear()
    assert caplog.text.count("state unknown, as before") == 1


def test_an_unknown_status_is_waited_for_not_forgotten(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    server.world.faults.times["unknown_status"] = 1
    hasty = replace(QUICK, start_s=0.2)

    def waiting(rental: Rental) -> None:
        assert rental.look().state is State.UNKNOWN
        rental.wait_for_address()

    with pytest.raises(CloudError, match="hovering"):
        rent(provider, order, ledger, waiting, hasty)
    assert billed(server) == []


def test_no_capacity_after_the_order_is_an_error_at_once(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    server.world.faults.times["no_capacity"] = 1
    with pytest.raises(CloudError, match="did not start"):
        rent(provider, order, ledger, wait)
    assert server.world.machines == {}
    assert billed(server) == []


def test_a_price_above_the_cap_rents_nothing(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    capped = replace(order, max_price_per_hour=0.5 * order.offer.price_per_hour)
    with pytest.raises(CloudOfferError, match="--max-price"):
        rent(provider, capped, ledger, must_not_begin)
    assert server.world.made.total() == 0


def test_a_machine_that_is_billed_above_the_cap_is_ended(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    capped = replace(order, max_price_per_hour=order.offer.price_per_hour)

    def doubling(rental: Rental) -> None:
        (machine,) = server.world.machines.values()
        machine.price *= 2
        rental.wait_for_address()

    with pytest.raises(CloudOfferError, match="bills"):
        rent(provider, capped, ledger, doubling)
    assert billed(server) == []


def test_a_kept_volume_stays_is_said_loudly_and_is_in_the_ledger(
    provider: Provider,
    server: FakeServer,
    ledger: Ledger,
    order: Order,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if not provider.keeps_volumes:
        with pytest.raises(CloudError, match="no volumes"):
            rent(provider, order, ledger, lambda rental: setattr(rental, "keep_volumes", True))
        assert billed(server) == []
        return
    with rented(provider, order, ledger, "first", QUICK, FREE) as rental:
        machine = rental.wait_for_address()
        rental.keep_volumes = True
        server.world.evict(machine.machine_id)
    (kept,) = ledger.read(order.label).kept_volume_ids
    assert billed(server) == [f"volume {kept} {order.label}"]
    assert f"volume {kept} of run first is KEPT" in caplog.text
    assert f"${DISK_PRICE:.4f} per hour" in caplog.text
    again = replace(order_of(provider), boot_volume_id=kept)
    with rented(provider, again, ledger, "first", QUICK, FREE) as rental:
        assert rental.wait_for_address().volume_ids == (kept,)
        rental.keep_volumes = False  # as after its checkpoints have come home
    assert billed(server) == []
    assert [each.kept_volume_ids for each in ledger.entries()] == [(), ()]


@pytest.mark.parametrize("fault", ["no_capacity", "create_unmade", "create_lost", "create_refused"])
def test_a_kept_volume_survives_a_machine_that_did_not_start_from_it(
    provider: Provider, server: FakeServer, ledger: Ledger, order: Order, fault: str
) -> None:
    if not provider.keeps_volumes:
        assert provider.volumes() == []
        return
    with rented(provider, order, ledger, "first", QUICK, FREE) as rental:
        rental.wait_for_address()
        rental.keep_volumes = True
    (kept,) = ledger.read(order.label).kept_volume_ids
    again = replace(order_of(provider), boot_volume_id=kept)
    server.world.faults.times[fault] = 1
    with pytest.raises(CloudError):
        rent(provider, again, ledger, fail)
    assert billed(server) == [f"volume {kept} {order.label}"]
    held = [each for each in ledger.entries() if kept in each.kept_volume_ids]
    assert len(held) == 1


def test_somebodys_own_disk_is_never_deleted(
    provider: Provider, server: FakeServer, ledger: Ledger, order: Order
) -> None:
    if not provider.keeps_volumes:
        assert provider.volumes() == []
        return
    from cloud.world import FakeVolume

    server.world.volumes["precious"] = FakeVolume("precious", "my checkpoints", "FIN-01")
    booted = replace(order, boot_volume_id="precious")
    with rented(provider, booted, ledger, "first", QUICK, FREE) as rental:
        rental.wait_for_address()
    assert billed(server) == ["volume precious my checkpoints"]


def test_hours_and_cost_of_the_budget_end_a_rental(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    budget = Budget(max_hours=0.3 / 3600)

    def long(rental: Rental) -> None:
        assert 0 < (rental.seconds_left() or 0) <= 0.3
        time.sleep(0.31)
        rental.check_budget()

    with pytest.raises(BudgetError, match="max-hours"):
        rent(provider, order, ledger, long, budget=budget)
    assert billed(server) == []


def test_the_cost_limit_counts_earlier_machines_of_the_run(
    provider: Provider, ledger: Ledger, order: Order
) -> None:
    price = order.offer.price_per_hour
    budget = Budget(max_cost=price, spent=0.5 * price)
    with rented(provider, order, ledger, "first", QUICK, budget) as rental:
        left = rental.seconds_left()
        assert left == pytest.approx(1800, abs=5)
        assert rental.dead_man().deadline_s == pytest.approx(left, abs=1)
        assert rental.cost() == pytest.approx(0.5 * price, abs=0.01)
    spent = Budget(max_cost=1, spent=1)
    with pytest.raises(BudgetError, match="nothing is rented"):
        rent(provider, order_of(provider), ledger, must_not_begin, budget=spent)


def test_the_ledger_holds_no_key(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    with rented(provider, order, ledger, "first", QUICK, FREE) as rental:
        rental.note(known_hosts="/home/me/known_hosts")
    (path,) = ledger.folder.glob("*.json")
    text = path.read_text()
    assert server.key not in text
    assert json.loads(text)["notes"] == {"known_hosts": "/home/me/known_hosts"}
    assert path.stat().st_mode & 0o077 == 0


def test_double_labels_end_the_run_and_both_machines(
    server: FakeServer, provider: Provider, ledger: Ledger, order: Order
) -> None:
    def doubled(rental: Rental) -> None:
        provider.create(order)
        rental.look()

    with pytest.raises(CloudError, match="2 machines"):
        rent(provider, order, ledger, doubled)
    assert billed(server) == []
