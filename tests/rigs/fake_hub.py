"""A local stand-in for the Hugging Face Hub, for tests of what happens when it misbehaves.

Its contract, the part of the real Hub's that a download uses (`HF_ENDPOINT` points to it):

- `GET /api/models/<owner>/<name>/revision/<revision>?blobs=True` (for data sets `datasets` in place
  of `models`, and the file addresses below begin with `/datasets`) → JSON with `id`, `sha` (40 hex
  digits) and `siblings`, each with `rfilename`, `size` and, for large files, `lfs.sha256`.
- `HEAD` and `GET /<owner>/<name>/resolve/<sha>/<file>` → the file, with `X-Repo-Commit`, `ETag`
  (the SHA-256 for large files, in `X-Linked-Etag` with `X-Linked-Size`), `Content-Length` and
  `Range` requests answered by 206.
- unknown repository: 401 without a token, 404 with `X-Error-Code: RepoNotFound` with one;
  unknown revision: 404 with `X-Error-Code: RevisionNotFound`.

test_fake_hub holds both to it.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "acme/tiny"
_INFO = re.compile(r"/api/(models|datasets)/(?P<name>[^/]+/[^/]+)/revision/(?P<revision>.+)")
_FILE = re.compile(r"(/datasets)?/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class FakeHub:
    """Serves one repository; `fault` may take a request over."""

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main", "v1", COMMIT)
    token: str | None = None
    """When set, whoever does not send it is answered 401."""
    fault: Callable[[Answer], bool] | None = None
    """Called with each request first; True means that it was answered."""
    requests: list[str] = field(default_factory=list)
    sent_bytes: int = 0
    """Of file contents."""

    def __enter__(self) -> FakeHub:
        hub = self

        class Handler(Answer):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT must be."""
        return f"http://127.0.0.1:{self._server.server_port}"


class Answer(BaseHTTPRequestHandler):
    """One request to the fake Hub."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.fault is not None and self.hub.fault(self):
            return
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.refuse(401)
        elif match := _INFO.fullmatch(path):
            self._info(match["name"], match["revision"])
        elif match := _FILE.fullmatch(path):
            self._file(match["file"], with_body)
        else:
            self.refuse(404)

    def _info(self, name: str, revision: str) -> None:
        if name != REPOSITORY:
            self.refuse(404 if self.headers.get("Authorization") else 401, "RepoNotFound")
        elif revision not in self.hub.revisions:
            self.refuse(404, "RevisionNotFound")
        else:
            siblings = [self._sibling(name) for name in self.hub.files]
            body = json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()
            self.start(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
            self.wfile.write(body)

    def _sibling(self, name: str) -> dict[str, object]:
        content = self.hub.files[name]
        sibling: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(content).hexdigest()
            sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
        return sibling

    def _file(self, name: str, with_body: bool) -> None:
        content = self.hub.files.get(name)
        if content is None:
            self.refuse(404, "EntryNotFound")
            return
        begin = int((self.headers.get("Range") or "bytes=0-")[6:].rstrip("-"))
        headers = {"X-Repo-Commit": COMMIT, "Content-Length": str(len(content) - begin)}
        if name.endswith(".safetensors"):
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(content))
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self.start(206 if begin else 200, headers)
        if with_body:
            self.send(content[begin:])

    def start(self, status: int, headers: dict[str, str]) -> None:
        """Send status line and headers."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, content: bytes) -> None:
        """Send a part of a file."""
        self.hub.sent_bytes += len(content)
        self.wfile.write(content)

    def refuse(self, status: int, code: str = "", **headers: str) -> None:
        """Answer with an error status and no body."""
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        if code:
            named["X-Error-Code"] = code
        self.start(status, {"Content-Length": "0", **named})

    def say_nothing(self, seconds: float = 30.0) -> None:
        """Keep the connection open and silent, as a dead machine behind a balancer does."""
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            time.sleep(0.1)
        self.close_connection = True
