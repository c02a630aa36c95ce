"""The one HTTP client: what is repeated, what is sent once, what no error shows."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from crane_x7_remote.cloud.http import Api, NoAnswerError, Patience, StatusError, listing
from crane_x7_remote.cloud.provider import (
    CreateRefusedError,
    CreateUnclearError,
    ListUnreadableError,
)
from crane_x7_remote.errors import CloudError, CloudKeyError
from crane_x7_vla_rl import secret_text

KEY = "key-that-nobody-may-see-123456"
QUICK = Patience(request_s=0.5, attempts=3, first_pause_s=0.01)
Script = list[tuple[int, str, dict[str, str]]]


class Host:
    """A server that gives the answers of a script, one after the other, the last one again."""

    def __init__(self) -> None:
        self.script: Script = [(200, "{}", {})]
        self.seen: list[tuple[str, str, str | None]] = []
        self.times: list[float] = []
        self.slow_s = 0.0
        host = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length).decode()
                host.seen.append((self.command, self.path + body, self.headers["authorization"]))
                host.times.append(time.monotonic())
                status, text, headers = host.script[min(len(host.seen), len(host.script)) - 1]
                time.sleep(host.slow_s)
                self.send_response(status)
                self.send_header("content-length", str(len(text.encode())))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = do_DELETE = do_PUT = answer

            def log_message(self, format: str, *words: object) -> None:
                del format, words

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.server.shutdown()
    host.server.server_close()


@pytest.fixture
def api(host: Host) -> Iterator[Api]:
    secret_text.remember(KEY)
    api = Api("vast", host.url, lambda: {"Authorization": f"Bearer {KEY}"}, QUICK)
    yield api
    api.close()


def test_a_read_comes_back_as_json_with_the_key_in_a_header(host: Host, api: Api) -> None:
    host.script = [(200, '{"a": [1]}', {})]
    assert api.repeat("GET", "/x", params={"q": "1"}) == {"a": [1]}
    assert host.seen == [("GET", "/x?q=1", f"Bearer {KEY}")]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_provider_is_asked_again(host: Host, api: Api, status: int) -> None:
    host.script = [(status, "<html>", {}), (status, "", {}), (200, "[]", {})]
    assert api.repeat("GET", "/x") == []
    assert len(host.seen) == 3


def test_retry_after_is_heeded(host: Host, api: Api) -> None:
    host.script = [(429, "", {"retry-after": "1"}), (200, "[]", {})]
    api.repeat("GET", "/x")
    assert host.times[1] - host.times[0] >= 1


@pytest.mark.parametrize("text", ["soon", "Wed, 21 Oct 2026 07:28:00 GMT", "-5", "nan"])
def test_a_retry_after_that_is_no_number_does_no_harm(host: Host, api: Api, text: str) -> None:
    host.script = [(429, "", {"retry-after": text}), (200, "[]", {})]
    assert api.repeat("GET", "/x") == []


@pytest.mark.parametrize(
    ("status", "text"),
    [(200, "<html>502</html>"), (200, '{"instances": [{"id'), (200, "\x00"), (200, "NaN x")],
)
def test_what_is_no_json_is_an_error_that_quotes_it(
    host: Host, api: Api, status: int, text: str
) -> None:
    host.script = [(status, text, {})]
    with pytest.raises(NoAnswerError, match="expected JSON"):
        api.repeat("GET", "/x")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed_and_names_the_setting(
    host: Host, api: Api, status: int
) -> None:
    host.script = [(status, "", {"location": f"{host.url}/elsewhere"})]
    with pytest.raises(StatusError, match=r"redirects to .*VAST_BASE_URL"):
        api.repeat("GET", "/x")
    assert len(host.seen) == 1


def test_a_refused_key_is_its_own_error_and_is_not_tried_again(host: Host, api: Api) -> None:
    host.script = [(401, f'{{"msg": "key {KEY} is wrong"}}', {})]
    with pytest.raises(CloudKeyError) as caught:
        api.repeat("GET", "/x")
    assert KEY not in str(caught.value)
    assert "***" in str(caught.value)
    assert len(host.seen) == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((400, '{"message": "bad image"}', {}), CreateRefusedError),
        ((402, "no credit", {}), CreateRefusedError),
        ((403, "forbidden", {}), CreateRefusedError),
        ((404, "no such offer", {}), CreateRefusedError),
        ((409, "taken", {}), CreateRefusedError),
        ((429, "slow down", {}), CreateRefusedError),
        ((408, "", {}), CreateUnclearError),
        ((302, "", {"location": "/"}), CreateUnclearError),
        ((500, "", {}), CreateUnclearError),
        ((502, "<html>", {}), CreateUnclearError),
        ((503, "", {}), CreateUnclearError),
        ((504, "", {}), CreateUnclearError),
        ((401, "", {}), CloudKeyError),
    ],
)
def test_an_order_is_sent_once_whatever_the_answer(
    host: Host, api: Api, answer: tuple[int, str, dict[str, str]], error: type[CloudError]
) -> None:
    host.script = [answer, (200, "made", {})]
    with pytest.raises(error):
        api.order("POST", "/orders", {"label": "x"})
    assert len(host.seen) == 1


def test_an_order_without_an_answer_in_time_is_unclear_and_not_repeated(
    host: Host, api: Api
) -> None:
    host.slow_s = 1.0
    with pytest.raises(CreateUnclearError, match="no answer to the order"):
        api.order("POST", "/orders", {})
    time.sleep(0.6)
    assert len(host.seen) == 1


def test_an_order_that_cannot_be_sent_made_nothing() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    api = Api("vast", url, dict, QUICK)
    with pytest.raises(CreateRefusedError, match="nothing was ordered"):
        api.order("POST", "/orders", {})
    with pytest.raises(NoAnswerError):
        api.repeat("GET", "/x")
    api.close()


def test_a_login_that_fails_before_the_order_made_nothing(host: Host) -> None:
    def headers() -> dict[str, str]:
        raise NoAnswerError("verda: no answer to /oauth2/token")

    api = Api("verda", host.url, headers, QUICK)
    with pytest.raises(CreateRefusedError, match="nothing was ordered"):
        api.order("POST", "/orders", {})
    assert host.seen == []


@pytest.mark.parametrize(
    "url", ["http://api.verda.com/v1", "http://127.0.0.1.example.com", "ftp://x", "", "api.verda"]
)
def test_a_key_is_never_sent_in_the_clear(url: str) -> None:
    with pytest.raises(CloudError, match=r"VERDA_BASE_URL=.*expected https"):
        Api("verda", url, dict)


@pytest.mark.parametrize(
    "wrong", [lambda: [][0], lambda: {}["a"], lambda: None.x, lambda: int("a"), lambda: 1 + ""]
)
def test_a_list_of_another_form_is_unreadable_never_empty(wrong: Callable[[], object]) -> None:
    with pytest.raises(ListUnreadableError, match="another form"), listing("vast", "machines"):
        wrong()


def test_the_body_arrives_as_json(host: Host, api: Api) -> None:
    host.script = [(200, "id", {})]
    assert api.order("PUT", "/orders", {"label": 'a"b$(c)\n'}) == "id"
    assert json.loads(host.seen[0][1].removeprefix("/orders")) == {"label": 'a"b$(c)\n'}
