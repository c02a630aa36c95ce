"""What is particular to each provider: words, errors, prices, and faults that were public bugs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cloud.clients import QUICK, billed, order_for, order_of
from cloud.fake_runpod import fake_runpod
from cloud.fake_vast import fake_vast
from cloud.fake_verda import fake_verda
from cloud.server import FakeServer

from crane_x7_remote.cloud import runpod, vast, verda
from crane_x7_remote.cloud.gpu_names import is_model
from crane_x7_remote.cloud.ledger import Ledger
from crane_x7_remote.cloud.provider import (
    CreateRefusedError,
    CreateUnclearError,
    DeleteRefusedError,
    ListUnreadableError,
)
from crane_x7_remote.cloud.rental import rented
from crane_x7_remote.cloud.self_end import SelfEnd
from crane_x7_remote.cloud.types import Budget, State, Wanted


@pytest.mark.parametrize(
    ("name", "wanted", "fits"),
    [
        ("L40S", "L40", False),
        ("L40", "L40", True),
        ("NVIDIA L40S", "L40S", True),
        ("NVIDIA H100 80GB HBM3", "H100", True),
        ("H100_PCIE", "H100", True),
        ("H100 SXM", "H100 SXM", True),
        ("H100 PCIe", "H100 SXM", False),
        ("H100", "H100 SXM", False),
        ("GH200 480GB", "H200", False),
        ("RTX 4090", "4090", True),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", True),
        ("RTX 4090 D", "RTX 4090", False),
        ("RTX 6000 Ada", "RTX 6000", False),
        ("A1000", "A100", False),
        ("A100 SXM4 80GB", "a100", True),
        ("B200", "", False),
    ],
)
def test_gpu_names_are_exact(name: str, wanted: str, fits: bool) -> None:
    assert is_model(name, wanted) is fits


# --- Verda ----------------------------------------------------------------------------------------


@pytest.fixture
def at_verda() -> Iterator[tuple[FakeServer, verda.Verda]]:
    with fake_verda() as server:
        client = server.client()
        assert isinstance(client, verda.Verda)
        yield server, client
        client.close()


VerdaPair = tuple[FakeServer, verda.Verda]


@pytest.mark.parametrize("word", ["new", "ordered", "validating", "provisioning", "pending"])
def test_verdas_words_before_running_are_starting(word: str) -> None:
    assert verda.STATES[word] is State.STARTING


@pytest.mark.parametrize(
    "text",
    [
        "0d3f3f2a-1111-4222-8333-123456789abc",
        '"0d3f3f2a-1111-4222-8333-123456789abc"',
        "0d3f3f2a-1111-4222-8333-123456789abc\n",
        ' "0d3f3f2a-1111-4222-8333-123456789abc" \r\n',
        '{"id": "0d3f3f2a-1111-4222-8333-123456789abc"}',
    ],
)
def test_the_id_of_an_order_comes_in_several_forms(text: str) -> None:
    assert verda._machine_id(text) == "0d3f3f2a-1111-4222-8333-123456789abc"


@pytest.mark.parametrize("text", ["", "<html>", "null", "{}", "[1]", "a b"])
def test_an_order_that_names_no_machine_is_unclear(text: str) -> None:
    with pytest.raises(CreateUnclearError):
        verda._machine_id(text)


def test_on_spot_discontinue_is_sent_with_spot_alone(at_verda: VerdaPair) -> None:
    server, client = at_verda
    client.create(order_for(client.offers(Wanted("H100", spot=True))[0]))
    client.create(order_for(client.offers(Wanted("H100", spot=False))[0]))
    spot, fixed = (each.order for each in server.world.machines.values())
    assert spot["os_volume"]["on_spot_discontinue"] == "keep_detached"  # type: ignore[index]
    assert "on_spot_discontinue" not in str(fixed)
    assert (spot["contract"], fixed["contract"]) == ("SPOT", "PAY_AS_YOU_GO")


def test_deletion_while_provisioning_is_refused_and_repeated(
    at_verda: VerdaPair, tmp_path: Path
) -> None:
    server, client = at_verda
    server.world.boot_s = 0.2
    order = order_of(client)
    machine_id = client.create(order)
    with pytest.raises(DeleteRefusedError, match="provisioning"):
        client.delete_machine(machine_id)
    ledger = Ledger(tmp_path / "ledger")
    with rented(client, order_of(client), ledger, "second", QUICK, Budget()):
        pass  # ends while it still is provisioning
    assert billed(server) == [
        f"machine {machine_id} running {order.label}",
        f"volume {server.world.machines[machine_id].volume_id} {order.label}",
    ]


def test_an_error_for_one_machine_within_207_is_no_success(at_verda: VerdaPair) -> None:
    server, client = at_verda
    server.world.boot_s = 0.0
    machine_id = client.create(order_of(client))
    client.machines()
    server.world.faults.times["delete_207"] = 1
    with pytest.raises(DeleteRefusedError, match="internal"):
        client.delete_machine(machine_id)
    client.delete_machine(machine_id)


def test_an_ended_machine_under_an_unknown_word_does_not_keep_its_disk_alive(
    at_verda: VerdaPair, tmp_path: Path
) -> None:
    server, client = at_verda
    server.world.faults.times["unknown_status"] = 1
    with rented(
        client, order_of(client), Ledger(tmp_path / "ledger"), "first", QUICK, Budget()
    ) as rental:
        server.world.evict(rental.look().machine_id)  # listed as "hovering" for ever
        assert rental.look().state is State.UNKNOWN
    assert billed(server) == []


def test_a_disk_in_the_trash_is_listed_and_deleted_for_good(at_verda: VerdaPair) -> None:
    server, client = at_verda
    server.world.boot_s = 0.0
    machine_id = client.create(order_of(client))
    client.machines()
    client._api.repeat("PUT", "/instances", {"id": [machine_id], "action": "delete"})
    (volume,) = client.volumes()
    assert volume.trashed
    server.world.tick()
    while client.machines():
        pass
    client.delete_volume(volume.volume_id)
    assert client.volumes() == []
    assert billed(server) == []


def test_an_expired_token_is_replaced_once(at_verda: VerdaPair) -> None:
    server, client = at_verda
    assert client.machines() == []
    server.world.faults.times["token_expired"] = 1
    assert client.machines() == []
    logins = [each for each in server.world.requests if "/oauth2/token" in each]
    assert len(logins) == 2


def test_a_login_key_that_exists_is_used_again(at_verda: VerdaPair) -> None:
    server, client = at_verda
    order = order_of(client)
    server.world.ssh_keys["key-0001"] = ("mine", order.ssh_public_key + " comment")
    client.create(order)
    (machine,) = server.world.machines.values()
    assert machine.order["ssh_key_ids"] == ["key-0001"]
    client.forget(order.label)
    assert list(server.world.ssh_keys) == ["key-0001"]  # it is not the order's


# --- Vast.ai --------------------------------------------------------------------------------------


@pytest.fixture
def at_vast() -> Iterator[tuple[FakeServer, vast.Vast]]:
    with fake_vast() as server:
        client = server.client()
        assert isinstance(client, vast.Vast)
        yield server, client
        client.close()


VastPair = tuple[FakeServer, vast.Vast]


def test_a_low_bid_that_made_a_contract_is_destroyed(at_vast: VastPair, tmp_path: Path) -> None:
    server, client = at_vast
    order = order_of(client)
    server.world.faults.times["low_bid"] = 1
    with (
        pytest.raises(CreateUnclearError, match="insufficient bid"),
        rented(client, order, Ledger(tmp_path / "ledger"), "first", QUICK, Budget()),
    ):
        raise AssertionError("the block must not begin")
    assert server.world.made[order.label] == 1
    assert billed(server) == []


def test_an_outbid_machine_is_destroyed_not_only_stopped(at_vast: VastPair, tmp_path: Path) -> None:
    server, client = at_vast
    with rented(
        client, order_of(client), Ledger(tmp_path / "ledger"), "first", QUICK, Budget()
    ) as rental:
        machine = rental.wait_for_address()
        server.world.evict(machine.machine_id)
        assert rental.look().state is State.EVICTED
        assert billed(server)  # its disk
    assert billed(server) == []


@pytest.mark.parametrize(
    "page",
    [
        {},
        {"instances": None},
        {"instances": {}},
        [],
        {"instances": [{"label": "x"}]},
        {"instances": [], "next_token": "1"},
    ],
)
def test_a_page_of_another_form_is_unreadable(
    at_vast: VastPair, page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client = at_vast
    monkeypatch.setattr(client._api, "repeat", lambda *_, **__: page)
    with pytest.raises(ListUnreadableError):
        client.machines()


def test_the_deprecated_list_that_shows_no_machine_is_not_used(at_vast: VastPair) -> None:
    server, client = at_vast
    client.create(order_of(client))
    assert len(client.machines()) == 1
    assert not any("/api/v0/instances/?" in each for each in server.world.requests)


def test_the_key_that_may_log_in_survives_quotes(tmp_path: Path) -> None:
    key = 'ssh-ed25519 AAAA it\'s "me" $HOME `id`'
    script = vast._authorise(key)
    subprocess.run(["sh", "-c", script], check=True, env={"HOME": str(tmp_path), "PATH": "/bin"})
    assert (tmp_path / ".ssh" / "authorized_keys").read_text() == key + "\n"


def test_an_unknown_and_an_offline_host_may_still_be_billed() -> None:
    for word in ("offline", "unknown", "hovering"):
        machine = vast._machine({"id": 1, "actual_status": word, "is_bid": True})
        assert machine.state is State.UNKNOWN


def test_the_proxy_is_the_address_where_there_is_no_direct_one() -> None:
    row = {"id": 1, "actual_status": "running", "ssh_host": "ssh5.vast.ai", "ssh_port": 12345}
    address = vast._machine(row).address
    assert address is not None
    assert (address.host, address.port) == ("ssh5.vast.ai", 12345)


# --- Runpod ---------------------------------------------------------------------------------------


@pytest.fixture
def at_runpod() -> Iterator[tuple[FakeServer, runpod.Runpod]]:
    with fake_runpod() as server:
        client = server.client()
        assert isinstance(client, runpod.Runpod)
        yield server, client
        client.close()


RunpodPair = tuple[FakeServer, runpod.Runpod]


def test_values_are_variables_so_that_nothing_must_be_escaped(at_runpod: RunpodPair) -> None:
    server, client = at_runpod
    from dataclasses import replace

    order = replace(order_of(client), ssh_public_key='ssh-ed25519 AAAA "quoted" \\ }')
    client.create(order)
    (machine,) = server.world.machines.values()
    assert machine.order["env"] == [{"key": "PUBLIC_KEY", "value": order.ssh_public_key}]


def test_a_spot_pod_is_a_bid_for_each_gpu(at_runpod: RunpodPair) -> None:
    server, client = at_runpod
    offer = client.offers(Wanted("H100", gpus=4))[0]
    client.create(order_for(offer))
    (machine,) = server.world.machines.values()
    assert machine.order["bidPerGpu"] == pytest.approx(offer.price_per_hour / 4, abs=1e-3)
    assert "podRentInterruptable" in server.world.requests[-1]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (
            {"errors": [{"message": "There are no longer any instances available"}]},
            CreateRefusedError,
        ),
        (
            {"errors": [{"message": "x", "extensions": {"code": "BAD_USER_INPUT"}}]},
            CreateRefusedError,
        ),
        ({"errors": [{"message": "Something went wrong."}]}, CreateUnclearError),
        ({"errors": [{"message": "forbidden"}]}, CreateUnclearError),
        ({"errors": "what"}, CreateUnclearError),
        ({"data": {"podRentInterruptable": None}}, CreateUnclearError),
        ({"data": {"p": {"id": "a"}}, "errors": [{"message": "late"}]}, CreateUnclearError),
        ({}, CreateUnclearError),
        ([], CreateUnclearError),
    ],
)
def test_only_sure_words_count_as_a_refusal(answer: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        runpod._pod_id(json.dumps(answer))


def test_a_pod_behind_an_error_is_named_so_that_it_can_be_deleted() -> None:
    answer = {"data": {"p": {"id": "pod-1"}}, "errors": [{"message": "late"}]}
    with pytest.raises(CreateUnclearError) as caught:
        runpod._pod_id(json.dumps(answer))
    assert caught.value.machine_id == "pod-1"


def test_no_timer_of_the_provider_is_relied_on(at_runpod: RunpodPair) -> None:
    """`stopAfter` and `terminateAfter` are accepted there, and nothing happens."""
    server, client = at_runpod
    client.create(order_of(client))
    (machine,) = server.world.machines.values()
    assert not {"stopAfter", "terminateAfter"} & machine.order.keys()


def test_the_public_port_of_ssh_is_found_among_others(at_runpod: RunpodPair) -> None:
    server, client = at_runpod
    server.world.boot_s, server.world.on_start = 0.0, lambda _: ("1.2.3.4", 40022)
    client.create(order_of(client))
    (machine,) = client.machines()
    assert machine.address is not None
    assert (machine.address.host, machine.address.port) == ("1.2.3.4", 40022)


# --- how a machine ends itself --------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("curl") is None, reason="the machine's script needs curl")
@pytest.mark.parametrize("name", ["vast", "runpod"])
def test_a_machine_ends_itself_with_its_own_key_in_no_argument_list(
    name: str, tmp_path: Path
) -> None:
    seen: list[tuple[str, str, str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            seen.append((self.command, self.path, body, self.headers["authorization"]))
            self.send_response(200)
            self.end_headers()

        do_POST = do_DELETE = answer

        def log_message(self, format: str, *words: object) -> None:
            del format, words

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        client = vast.Vast("k" * 20, url) if name == "vast" else runpod.Runpod("k" * 20, url)
        first = tmp_path / "environ"
        first.write_bytes(
            b"PATH=/bin\0CONTAINER_API_KEY=own-key-1\0CONTAINER_ID=77\0"
            b"RUNPOD_API_KEY=own-key-1\0RUNPOD_POD_ID=pod9\0"
        )
        script = client.self_end.shell().replace("/proc/1/environ", str(first))
        script = script.replace("poweroff || shutdown -h now || kill -TERM 1", "echo off")
        traced = subprocess.run(
            ["sh", "-c", script + "end_machine"], capture_output=True, text=True, check=True
        )
        server.shutdown()
    assert traced.stdout.strip() == "off"
    ((method, path, body, key),) = seen
    assert key == "Bearer own-key-1"
    if name == "vast":
        assert (method, path, body) == ("DELETE", "/api/v0/instances/77/", "{}")
    else:
        assert (method, path) == ("POST", "/graphql")
        assert 'podTerminate(input: {podId: "pod9"})' in json.loads(body)["query"]
    curl = next(line for line in script.splitlines() if "curl" in line)
    assert "KEY" not in curl
    assert os.environ.get("CONTAINER_API_KEY") is None


def test_verdas_machine_can_only_switch_itself_off() -> None:
    script = verda.Verda.self_end.shell()
    assert "curl" not in script
    assert "poweroff" in script
    assert "nothing" in verda.Verda.self_end.stops_billing
    subprocess.run(["sh", "-n", "-c", script], check=True)


def test_a_call_that_fails_is_repeated_and_the_machine_is_switched_off_all_the_same() -> None:
    script = SelfEnd("x", "DELETE", "http://127.0.0.1:1/", "KEY").shell()
    script = script.replace("1 2 4 8 16 32 64 128 256", "0 0").replace("poweroff ||", "echo off ||")
    done = subprocess.run(
        ["sh", "-c", script + "end_machine"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "off"
    assert done.stderr.count("curl:") == 2
