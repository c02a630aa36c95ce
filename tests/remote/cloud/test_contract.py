"""The contract of every provider: each client passes it against a stand-in of its provider.

With a key it could run against the real one: `server` is used only to look at what is billed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import pytest
from cloud.clients import PUBLIC_KEY, billed, order_for, order_of
from cloud.server import PATIENCE, FakeServer

from crane_x7_remote.cloud.provider import (
    CreateRefusedError,
    CreateUnclearError,
    DeleteRefusedError,
    ListUnreadableError,
    Provider,
)
from crane_x7_remote.cloud.types import Machine, State, Wanted
from crane_x7_remote.errors import CloudKeyError, ExitCode


def until(
    provider: Provider, label: str, fits: Callable[[list[Machine]], bool], limit_s: float = 3.0
) -> list[Machine]:
    deadline = time.monotonic() + limit_s
    while True:
        mine = [each for each in provider.machines() if each.label == label]
        if fits(mine):
            return mine
        assert time.monotonic() < deadline, mine
        time.sleep(0.01)


def delete(provider: Provider, machine_id: str) -> None:
    deadline = time.monotonic() + 3
    while True:
        try:
            provider.delete_machine(machine_id)
            return
        except DeleteRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_machine_from_offer_to_nothing(server: FakeServer, provider: Provider) -> None:
    provider.check_key()
    order = order_of(provider)
    machine_id = provider.create(order)
    (machine,) = until(provider, order.label, lambda all_: bool(all_ and all_[0].address))
    assert machine.machine_id == machine_id
    assert machine.state is State.RUNNING
    assert machine.price_per_hour == pytest.approx(order.offer.price_per_hour)
    delete(provider, machine_id)
    until(provider, order.label, lambda all_: not all_)
    provider.delete_machine(machine_id)  # gone already is no error
    for volume in provider.volumes():
        assert volume.label == order.label
        provider.delete_volume(volume.volume_id)
        provider.delete_volume(volume.volume_id)
    provider.forget(order.label)
    assert billed(server) == []
    assert not server.world.ssh_keys


def test_offers_are_of_the_exact_model_and_cheapest_first(provider: Provider) -> None:
    offers = provider.offers(Wanted("L40", spot=False))
    assert {each.gpu_model.split()[-1] for each in offers} == {"L40"}
    offers = provider.offers(Wanted("H100"))
    assert len(offers) > 1
    prices = [each.price_per_hour for each in offers]
    assert prices == sorted(prices)


def test_four_gpus_cost_the_price_of_the_whole_machine(provider: Provider) -> None:
    (one, *_), (four, *_) = (provider.offers(Wanted("H100", gpus=gpus)) for gpus in (1, 4))
    assert four.gpus == 4
    assert four.price_per_hour > 3 * one.price_per_hour


def test_the_cap_and_an_unknown_model_leave_nothing(provider: Provider) -> None:
    cheapest = provider.offers(Wanted("H100"))[0]
    assert provider.offers(Wanted("H100", max_price_per_hour=0.5 * cheapest.price_per_hour)) == []
    assert provider.offers(Wanted("H1000")) == []


def test_a_place_without_machines_rents_nothing(server: FakeServer, provider: Provider) -> None:
    """Runpod tells only when it gets the order."""
    for offer in provider.offers(Wanted("H100", location="nowhere")):
        with pytest.raises(CreateRefusedError, match="refused"):
            provider.create(order_for(offer))
    assert server.world.made.total() == 0


def test_a_place_keeps_the_offers_there(provider: Provider) -> None:
    place = {"verda": "ICE-01", "vast": "SE", "runpod": "US-KS-2"}[provider.name]
    offers = provider.offers(Wanted("H100", location=place))
    assert offers
    assert all(each.location == place or each.location.endswith(f", {place}") for each in offers)


def test_spot_is_cheaper_than_on_demand(provider: Provider) -> None:
    spot, fixed = (provider.offers(Wanted("H100", spot=spot))[0] for spot in (True, False))
    assert spot.price_per_hour < fixed.price_per_hour
    assert (spot.spot, fixed.spot) == (True, False)


def test_a_wrong_key_is_said_before_anything_is_rented(server: FakeServer) -> None:
    right, server.key = server.key, "not-the-key"
    provider = server.client()
    server.key = right
    with pytest.raises(CloudKeyError) as caught:
        provider.check_key()
    provider.close()
    assert caught.value.exit_code is ExitCode.CLOUD_KEY
    assert "not-the-key" not in str(caught.value)
    assert server.world.made.total() == 0


def test_no_offer_is_an_empty_list(server: FakeServer, provider: Provider) -> None:
    server.world.faults.times["no_offer"] = 1
    assert provider.offers(Wanted("H100")) == []


def test_a_quota_refuses_the_order_for_sure(server: FakeServer, provider: Provider) -> None:
    order = order_of(provider)
    server.world.faults.times["create_refused"] = 1
    with pytest.raises(CreateRefusedError, match=r"refused.*(funds|credit|balance)") as caught:
        provider.create(order)
    assert caught.value.exit_code is ExitCode.CLOUD_OFFER
    assert billed(server) == []


@pytest.mark.parametrize("fault", ["create_made", "create_unmade", "create_lost"])
def test_an_order_without_a_clear_answer_is_sent_once(
    server: FakeServer, provider: Provider, fault: str
) -> None:
    order = order_of(provider)
    server.world.faults.times[fault] = 1
    with pytest.raises(CreateUnclearError):
        provider.create(order)
    made = 0 if fault == "create_unmade" else 1
    assert server.world.made[order.label] == made


@pytest.mark.parametrize(
    "fault", ["list_html", "list_truncated", "list_502", "list_reset", "list_429"]
)
def test_a_list_that_stays_unreadable_is_an_error_never_empty(
    server: FakeServer, provider: Provider, fault: str
) -> None:
    provider.create(order_of(provider))
    server.world.faults.rates[fault] = 1.0
    with pytest.raises(ListUnreadableError):
        provider.machines()


@pytest.mark.parametrize("fault", ["list_html", "list_502", "list_reset", "list_429"])
def test_a_list_that_fails_once_is_asked_again(
    server: FakeServer, provider: Provider, fault: str
) -> None:
    order = order_of(provider)
    provider.create(order)
    server.world.faults.times[fault] = PATIENCE.attempts - 1
    assert [each.label for each in provider.machines()] == [order.label]


def test_an_unknown_status_is_alive(server: FakeServer, provider: Provider) -> None:
    order = order_of(provider)
    server.world.faults.times["unknown_status"] = 1
    provider.create(order)
    (machine,) = provider.machines()
    assert machine.state is State.UNKNOWN
    assert machine.status == "hovering"
    assert not machine.final


def test_a_machine_of_somebody_else_has_no_label(server: FakeServer, provider: Provider) -> None:
    machine_id = provider.create(order_of(provider))
    server.world.machines[machine_id].label = "my-own-machine"
    server.world.machines[machine_id].order.clear()
    (machine,) = provider.machines()
    assert machine.label is None


def test_an_evicted_machine_is_evicted_not_gone(server: FakeServer, provider: Provider) -> None:
    order = order_of(provider)
    machine_id = provider.create(order)
    until(provider, order.label, lambda all_: all_[0].state is State.RUNNING)
    server.world.evict(machine_id)
    (machine,) = provider.machines()
    assert machine.state is State.EVICTED


def test_every_page_of_a_long_list_is_read(provider: Provider) -> None:
    offer = order_of(provider).offer
    orders = [order_for(offer, f"run{number}") for number in range(60)]
    for order in orders:
        provider.create(order)
    assert {each.label for each in provider.machines()} == {each.label for each in orders}


def test_the_order_shows_no_key_of_the_account(server: FakeServer, provider: Provider) -> None:
    machine_id = provider.create(order_of(provider))
    seen = str(server.world.machines[machine_id].order)
    assert server.key not in seen
    assert PUBLIC_KEY.split()[1] in seen + str(server.world.ssh_keys)


def test_a_deletion_whose_answer_is_lost_happened(server: FakeServer, provider: Provider) -> None:
    order = order_of(provider)
    machine_id = provider.create(order)
    until(provider, order.label, lambda all_: all_[0].state is State.RUNNING)
    server.world.faults.times["delete_lost"] = 1
    with contextlib.suppress(DeleteRefusedError):  # or a repetition has found it gone
        provider.delete_machine(machine_id)
    until(provider, order.label, lambda all_: not all_)
