"""The contract of `fake_hub`: the fake and the real Hub answer the same questions alike."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message

import pytest
from fake_hub import REPOSITORY, FakeHub

REAL = "https://huggingface.co"
REAL_REPOSITORY = "hf-internal-testing/tiny-random-LlamaForCausalLM"
HEX = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Message
    body: bytes


@dataclass(frozen=True)
class Hub:
    url: str
    repository: str

    def ask(self, path: str, method: str = "GET", **headers: str) -> Reply:
        """Return what is answered, following redirects as a client does."""
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        request = urllib.request.Request(self.url + path, method=method, headers=named)
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                return Reply(reply.status, reply.headers, reply.read())
        except urllib.error.HTTPError as error:
            return Reply(error.code, error.headers, error.read())

    def info(self) -> dict[str, object]:
        reply = self.ask(f"/api/models/{self.repository}/revision/main?blobs=True")
        assert reply.status == 200
        answer = json.loads(reply.body)
        assert isinstance(answer, dict)
        return answer

    def large_file(self) -> Mapping[str, object]:
        siblings = self.info()["siblings"]
        assert isinstance(siblings, list)
        return next(each for each in siblings if "lfs" in each)

    def path_of(self, file: Mapping[str, object]) -> str:
        return f"/{self.repository}/resolve/{self.info()['sha']}/{file['rfilename']}"


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.slow)])
def hub(request: pytest.FixtureRequest) -> Iterator[Hub]:
    if request.param == "real":
        try:
            socket.create_connection((REAL.removeprefix("https://"), 443), timeout=5).close()
        except OSError as error:
            # Needs the Internet; the fake is held by the same test, which is what it is for.
            pytest.skip(f"the Hub cannot be reached from here: {error}")
        yield Hub(REAL, REAL_REPOSITORY)
    else:
        files = {"config.json": b"{}", "model.safetensors": os.urandom(5000)}
        with FakeHub(files) as fake:
            yield Hub(fake.url, REPOSITORY)


def test_a_revision_is_described_with_its_commit_and_files(hub: Hub) -> None:
    info = hub.info()
    assert info["id"] == hub.repository
    assert HEX.fullmatch(str(info["sha"]))
    siblings = info["siblings"]
    assert isinstance(siblings, list)
    assert {"config.json"} <= {each["rfilename"] for each in siblings}
    assert all(isinstance(each["size"], int) for each in siblings)
    large = hub.large_file()
    assert isinstance(large["lfs"], dict)
    assert re.fullmatch(r"[0-9a-f]{64}", large["lfs"]["sha256"])


def test_a_large_file_has_the_hash_that_was_announced(hub: Hub) -> None:
    large = hub.large_file()
    reply = hub.ask(hub.path_of(large))
    assert reply.status == 200
    assert len(reply.body) == large["size"]
    assert isinstance(large["lfs"], dict)
    assert hashlib.sha256(reply.body).hexdigest() == large["lfs"]["sha256"]


def test_the_rest_of_a_file_can_be_asked_for(hub: Hub) -> None:
    large = hub.large_file()
    whole, rest = (hub.ask(hub.path_of(large)), hub.ask(hub.path_of(large), Range="bytes=1000-"))
    assert rest.status == 206
    assert rest.body == whole.body[1000:]
    assert rest.headers["Content-Range"] == f"bytes 1000-{len(whole.body) - 1}/{len(whole.body)}"


def test_a_small_file_says_its_commit_and_tag_without_a_body(hub: Hub) -> None:
    commit = hub.info()["sha"]
    reply = hub.ask(f"/{hub.repository}/resolve/{commit}/config.json", "HEAD")
    assert reply.status == 200
    assert reply.body == b""
    assert reply.headers["X-Repo-Commit"] == commit
    assert reply.headers["ETag"]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/models/{}/revision/no-such-revision", 404, "RevisionNotFound"),
        ("/{}/resolve/main/no-such-file.json", 404, "EntryNotFound"),
        ("/api/models/nobody-at-all-{}/revision/main", 401, None),
    ],
)
def test_what_is_not_there_is_refused_by_name(
    hub: Hub, path: str, status: int, code: str | None
) -> None:
    reply = hub.ask(path.format(hub.repository))
    assert reply.status == status
    assert code is None or reply.headers["X-Error-Code"] == code
