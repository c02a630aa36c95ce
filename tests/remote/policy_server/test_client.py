"""Our client against a server written from the protocol alone: answers, errors, and every wait."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from links import ConnectProxy, Proxy, SocksProxy
from plain_policy_server import ErrorText, PlainPolicyServer

from crane_x7_remote.policy_server.client import (
    AnswerTimeoutError,
    PolicyClient,
    PolicyServerError,
)

METADATA = {"policy_type": "plain"}


def echo(observation: dict[str, Any]) -> dict[str, Any]:
    return {"actions": np.full((2, 8), observation["value"])}


@pytest.fixture
def server() -> Iterator[PlainPolicyServer]:
    with PlainPolicyServer(echo, METADATA) as server:
        yield server


@pytest.fixture
def client(server: PlainPolicyServer) -> Iterator[PolicyClient]:
    client = PolicyClient(server.url, answer_timeout_s=2.0)
    yield client
    client.close()


def value(answer: Any) -> float:
    return float(answer["actions"][0, 0])


def test_metadata_and_answers_arrive(server: PlainPolicyServer, client: PolicyClient) -> None:
    assert client.metadata == METADATA
    assert [value(client.infer({"value": n})) for n in range(20)] == list(range(20))
    assert server.connections == client.connections == 1


def test_an_address_without_a_scheme_is_enough(server: PlainPolicyServer) -> None:
    client = PolicyClient(f"127.0.0.1:{server.port}")
    assert client.metadata == METADATA
    client.close()


@pytest.mark.parametrize(("kind", "scheme"), [(SocksProxy, "socks5h"), (ConnectProxy, "http")])
def test_a_proxy_resolves_the_name_that_only_it_knows(
    server: PlainPolicyServer, kind: type[Proxy], scheme: str
) -> None:
    with kind() as proxy:
        client = PolicyClient(
            f"ws://gpu-box:{server.port}", proxy=f"{scheme}://127.0.0.1:{proxy.port}"
        )
        assert value(client.infer({"value": 3}, 5)) == 3
        client.close()
        assert value(client.infer({"value": 4}, 5)) == 4  # connects again, through it
        client.close()
    assert proxy.asked == [("gpu-box", server.port)] * 2


@pytest.mark.parametrize(("kind", "scheme"), [(SocksProxy, "socks5h"), (ConnectProxy, "http")])
def test_a_proxy_that_cannot_connect_is_named_without_its_password(
    kind: type[Proxy], scheme: str
) -> None:
    with kind() as proxy:
        address = f"{scheme}://127.0.0.1:{proxy.port}"
        client = PolicyClient("ws://gpu-box:1", proxy=address, connect_timeout_s=5)
        with pytest.raises(PolicyServerError, match=r"the proxy .* POLICY_PROXY") as raised:
            client.infer({"value": 1}, 5)
    assert address in str(raised.value)
    gone = PolicyClient("ws://gpu-box:1", proxy=f"{scheme}://me:sesame@127.0.0.1:1")
    with pytest.raises(PolicyServerError, match="POLICY_PROXY") as raised:
        gone.infer({"value": 1}, 5)
    assert "sesame" not in str(raised.value)


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:8000", "ws://", "a b"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(PolicyServerError, match="is not the address of a policy server"):
        PolicyClient(url)


def test_a_restarted_server_is_asked_again(server: PlainPolicyServer, client: PolicyClient) -> None:
    client.infer({"value": 1})
    server.kill()
    with pytest.raises(PolicyServerError, match="closed the connection"):
        client.infer({"value": 2})
    with pytest.raises(PolicyServerError, match="no policy server at"):
        client.infer({"value": 3})
    server.restart()
    assert value(client.infer({"value": 4})) == 4


def test_a_late_answer_is_never_the_answer_to_the_next_request(
    server: PlainPolicyServer, client: PolicyClient
) -> None:
    server.stall_s = 0.6
    client.metadata  # noqa: B018
    with pytest.raises(AnswerTimeoutError, match=r"did not answer within 0.3 s"):
        client.infer({"value": 1}, timeout_s=0.3)
    server.stall_s = 0.0
    assert value(client.infer({"value": 2})) == 2


def test_an_error_text_is_shown_with_its_last_line() -> None:
    def fail(_: dict[str, Any]) -> dict[str, Any]:
        raise ErrorText("Traceback (most recent call last):\n  File \"x.py\"\nKeyError: 'state'\n")

    with PlainPolicyServer(fail, METADATA) as server:
        client = PolicyClient(server.url)
        with pytest.raises(PolicyServerError, match=r"failed: KeyError: 'state'$"):
            client.infer({"value": 1})
        client.close()


def test_a_wrong_key_names_the_variable() -> None:
    with PlainPolicyServer(echo, METADATA, api_key="right") as server:
        for key in (None, "wrong"):
            with pytest.raises(PolicyServerError, match=r"HTTP 401.*set POLICY_API_KEY"):
                PolicyClient(server.url, key).metadata  # noqa: B018
        client = PolicyClient(server.url, "right")
        assert client.metadata == METADATA
        client.close()


def test_a_server_without_metadata_is_refused_in_time() -> None:
    with PlainPolicyServer(echo, None) as server:
        client = PolicyClient(server.url, connect_timeout_s=0.4)
        began_s = time.monotonic()
        with pytest.raises(PolicyServerError, match="sent no metadata within"):
            client.metadata  # noqa: B018
        assert time.monotonic() - began_s < 3


@pytest.mark.parametrize("content", [b"\xc1", b"", b"\x90", b"\x81\xc4\x0b__ndarray__\xc3"])
def test_what_is_no_map_is_refused(content: bytes) -> None:
    with PlainPolicyServer(echo, content) as server:
        client = PolicyClient(server.url)
        with pytest.raises(PolicyServerError, match="sent metadata that is"):
            client.metadata  # noqa: B018
        client.close()


def test_another_program_on_the_port_is_named() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        link, _ = listener.accept()
        link.recv(4096)
        link.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
        link.close()

    thread = threading.Thread(target=answer)
    thread.start()
    port = listener.getsockname()[1]
    with pytest.raises(PolicyServerError, match="does not speak openpi's protocol"):
        PolicyClient(f"ws://127.0.0.1:{port}", connect_timeout_s=2).metadata  # noqa: B018
    thread.join()
    listener.close()


def test_a_server_that_stops_reading_ends_a_send_in_time(server: PlainPolicyServer) -> None:
    """Ten megabytes do not fit into the sockets' buffers, so that the send itself hangs."""
    server.stall_s = 3.0
    client = PolicyClient(server.url)
    client.metadata  # noqa: B018
    link = client._link
    assert link is not None
    link.send(b"\x81\xa5value\x01")  # its answer takes 3 s: nothing more is read meanwhile
    link.send(b"\x81\xa5value\x01")
    began_s = time.monotonic()
    big = {"image": np.zeros(20_000_000, np.uint8), "value": 1}
    with pytest.raises(AnswerTimeoutError):
        client.infer(big, timeout_s=0.4)
    assert time.monotonic() - began_s < 2.5
