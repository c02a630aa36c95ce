"""The server of openpi's protocol, spoken to by clients written from the protocol alone."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from plain_policy_server import decode, encode
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from crane_x7_remote.errors import ExitCode, ServeError
from crane_x7_remote.policy_server.msgpack_bounds import Limits
from crane_x7_remote.policy_server.server import CLIENT_KEY, ServerConfig, running

METADATA = {"policy_type": "doubler", "chunk_steps": 2, "period_s": 0.1}
ANY_PORT = ServerConfig(port=0)
WAIT_S = 10.0
PATHS = f"import sys; sys.path += {sys.path!r};"
"""For a Python that skips `site`, so that no installed .pth file imports anything."""


def double(observations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Twice the state, as a chunk of two steps."""
    return [{"actions": np.stack([each["state"] * 2] * 2)} for each in observations]


@contextlib.contextmanager
def client(url: str, **options: Any) -> Iterator[ClientConnection]:
    with connect(url, compression=None, max_size=None, **options) as link:
        assert decode(link.recv(WAIT_S)) == METADATA
        yield link


def ask(link: ClientConnection, **observation: Any) -> Any:
    link.send(encode(observation))
    answer = link.recv(WAIT_S)
    return answer if isinstance(answer, str) else decode(answer)


def test_metadata_come_first_then_each_observation_is_answered() -> None:
    state = np.arange(8, dtype=np.float32)
    with running(double, METADATA, ANY_PORT) as url, client(url) as link:
        first, second = ask(link, state=state), ask(link, state=state + 1)
    np.testing.assert_array_equal(first["actions"], [state * 2] * 2)
    np.testing.assert_array_equal(second["actions"][0], state * 2 + 2)
    assert first["actions"].dtype == np.float32
    assert first["server_timing"]["batch"] == 1
    assert first["server_timing"].keys() < second["server_timing"].keys() >= {"prev_total_ms"}


def test_requests_that_wait_form_a_batch() -> None:
    sizes: list[int] = []
    is_busy, go_on = threading.Event(), threading.Event()

    def answer(observations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        sizes.append(len(observations))
        is_busy.set()
        assert go_on.wait(WAIT_S)
        return double(observations)

    config = ServerConfig(port=0, max_batch=3)
    with (
        running(answer, METADATA, config) as url,
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor() as pool,
    ):
        links = [stack.enter_context(client(url)) for _ in range(5)]
        asked = [pool.submit(ask, links[0], state=np.float32([0]))]
        assert is_busy.wait(WAIT_S)
        for number, link in enumerate(links[1:], 1):
            link.send(encode({"state": np.float32([number])}))
        # The server has read them when it has answered a ping that came after them.
        for link in links[1:]:
            assert link.ping().wait(WAIT_S)
        go_on.set()
        assert asked[0].result(WAIT_S)["actions"][0] == 0
        for number, link in enumerate(links[1:], 1):
            assert decode(link.recv(WAIT_S))["actions"][0] == 2 * number
    assert sizes == [1, 3, 1]


def test_one_clients_mistake_does_not_fail_the_others_of_its_batch() -> None:
    is_busy, go_on = threading.Event(), threading.Event()

    def answer(observations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        is_busy.set()
        assert go_on.wait(WAIT_S)
        return double(observations)

    with (
        running(answer, METADATA, ANY_PORT) as url,
        client(url) as one,
        client(url) as good,
        client(url) as bad,
    ):
        one.send(encode({"state": np.float32([1])}))
        assert is_busy.wait(WAIT_S)
        good.send(encode({"state": np.float32([2])}))
        bad.send(encode({"wrong": 0}))
        assert good.ping().wait(WAIT_S)
        assert bad.ping().wait(WAIT_S)
        go_on.set()
        assert decode(good.recv(WAIT_S))["actions"][0] == 4
        assert str(bad.recv(WAIT_S)).rstrip().endswith("KeyError: 'state'")
        assert ask(good, state=np.float32([3]))["actions"][0] == 6


def test_an_error_is_its_traceback_as_text_and_the_connection_closes_with_1011() -> None:
    def answer(_: list[dict[str, Any]]) -> list[dict[str, Any]]:
        raise RuntimeError("CUDA out of memory")

    with running(answer, METADATA, ANY_PORT) as url:
        with client(url) as link:
            text = ask(link, state=0)
            assert text.startswith("Traceback")
            assert text.rstrip().endswith("RuntimeError: CUDA out of memory")
            with pytest.raises(ConnectionClosedError) as closed:
                link.recv(WAIT_S)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1011
        with client(url) as link:  # it serves on
            assert "CUDA" in ask(link, state=0)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("hello", "expected a binary message"),
        (b"\xc1", "expected a msgpack message"),
        (encode([1]), "expected a map"),  # type: ignore[arg-type]
        (encode({b"raw": 1}), "expected a map"),  # type: ignore[dict-item]
        (
            encode({"x": {b"__ndarray__": True, b"data": b"", b"dtype": "|O", b"shape": [0]}}),
            "x: dtype '|O' is not allowed",
        ),
    ],
)
def test_what_is_no_observation_is_refused_with_words(message: str | bytes, words: str) -> None:
    with running(double, METADATA, ANY_PORT) as url, client(url) as link:
        link.send(message)
        text = link.recv(WAIT_S)
    assert isinstance(text, str)
    assert text.startswith("WireError: ")
    assert words in text


@pytest.mark.parametrize(
    "answers", [[], [{}, {}], [3], [{"actions": object()}]], ids=["none", "two", "number", "object"]
)
def test_a_policy_that_answers_something_else_is_an_error(answers: list[Any]) -> None:
    with running(lambda _: answers, METADATA, ANY_PORT) as url, client(url) as link:
        assert "Error: " in ask(link, state=0)


def test_without_the_api_key_nobody_is_served_but_health_is() -> None:
    config = ServerConfig(port=0, api_key="sesame")
    assert "sesame" not in repr(config)
    with running(double, METADATA, config) as url:
        for headers in ({}, {"Authorization": "Api-Key Sesame"}, {"Authorization": "sesame"}):
            with pytest.raises(InvalidStatus) as refused, client(url, additional_headers=headers):
                pass
            assert refused.value.response.status_code == 401
            assert b"API key" in refused.value.response.body
        with client(url, additional_headers={"Authorization": "Api-Key sesame"}) as link:
            assert ask(link, state=np.float32([1]))["actions"][0] == 2
        with urllib.request.urlopen(url.replace("ws", "http") + "/healthz", timeout=5) as health:
            assert (health.status, health.read()) == (200, b"OK\n")


@pytest.mark.parametrize("host", ["0.0.0.0", "100.64.0.7", "::", "robot.local"])
def test_an_address_that_others_reach_needs_an_api_key(host: str) -> None:
    with (
        pytest.raises(ServeError, match="set POLICY_API_KEY"),
        running(double, METADATA, ServerConfig(host, 0)),
    ):
        pass


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ServeError, match=f"127.0.0.1 port {port}.*--port") as error,
            running(double, METADATA, ServerConfig(port=port)),
        ):
            pass
    assert error.value.exit_code == ExitCode.SERVE


def test_a_web_page_in_a_browser_is_refused() -> None:
    with (
        running(double, METADATA, ANY_PORT) as url,
        pytest.raises(InvalidStatus) as refused,
        client(url, origin="https://example.org"),
    ):
        pass
    assert refused.value.response.status_code == 403


def test_a_message_over_the_limit_is_not_read() -> None:
    config = ServerConfig(port=0, limits=Limits(max_bytes=10_000))
    with running(double, METADATA, config) as url, client(url) as link:
        with pytest.raises(ConnectionClosedError) as closed:
            ask(link, image=np.zeros(10_001, np.uint8))
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


def test_one_client_too_many_gets_503() -> None:
    with running(double, METADATA, ServerConfig(port=0, max_clients=1)) as url:
        with client(url), pytest.raises(InvalidStatus) as refused, client(url):
            pass
        assert refused.value.response.status_code == 503


def test_every_observation_names_its_client_and_the_policy_learns_who_left() -> None:
    seen: list[int] = []
    left: list[int] = []
    has_left = threading.Event()

    def answer(observations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        seen.extend(each[CLIENT_KEY] for each in observations)
        return [{} for _ in observations]

    def on_left(number: int) -> None:
        left.append(number)
        has_left.set()

    with running(answer, METADATA, ANY_PORT, on_left) as url, client(url) as one:
        with client(url) as two:
            ask(one)
            ask(two, **{CLIENT_KEY: 77})
            ask(one)
        assert has_left.wait(WAIT_S)
        assert left == [2]
    assert seen == [1, 2, 1]


def test_a_request_of_a_client_that_left_is_not_computed() -> None:
    is_busy, go_on = threading.Event(), threading.Event()
    seen: list[int] = []
    gone: list[int] = []
    has_left = threading.Event()

    def answer(observations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        seen.extend(each[CLIENT_KEY] for each in observations)
        is_busy.set()
        assert go_on.wait(WAIT_S)
        return [{} for _ in observations]

    def on_left(number: int) -> None:
        gone.append(number)
        has_left.set()

    with running(answer, METADATA, ANY_PORT, on_left) as url, client(url) as one:
        one.send(encode({}))
        assert is_busy.wait(WAIT_S)
        with client(url) as two:
            two.send(encode({}))
            assert two.ping().wait(WAIT_S)
        go_on.set()
        decode(one.recv(WAIT_S))
        assert has_left.wait(WAIT_S)
        assert ask(one).keys() == {"server_timing"}
    assert seen == [1, 1]
    assert gone[0] == 2


def test_a_policy_that_hangs_does_not_keep_the_server_from_ending() -> None:
    is_busy, never = threading.Event(), threading.Event()

    def answer(observations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        is_busy.set()
        never.wait()
        return [{} for _ in observations]

    with contextlib.ExitStack() as stack:
        with running(answer, METADATA, ANY_PORT) as url:
            link = stack.enter_context(client(url))
            link.send(encode({}))
            assert is_busy.wait(WAIT_S)
        with pytest.raises(ConnectionClosed):
            link.recv(WAIT_S)
    never.set()


def test_the_server_needs_only_numpy_msgpack_and_websockets() -> None:
    """LeRobot's environment has no other package of this project."""
    code = (
        "import sys, crane_x7_remote.policy_server.server as s;"
        "print(*(name for name, module in sys.modules.items() if getattr(module, '__file__', 0)))"
    )
    loaded = subprocess.run([sys.executable, "-Sc", PATHS + code], capture_output=True, check=True)
    names = {name.partition(".")[0] for name in loaded.stdout.decode().split()}
    others = names - sys.stdlib_module_names - {"__main__"}
    assert others == {"crane_x7_remote", "crane_x7_vla_rl", "numpy", "msgpack", "websockets"}
