"""A local stand-in for the Hugging Face Hub that takes uploads; `fake_hub` is the one that gives.

Its contract, the part of the real Hub's that `HfApi.create_repo`, `list_repo_files`,
`create_commit` (over LFS, without Xet) and `create_tag` use:

- `POST /api/repos/create` → 200 with `url`, 409 where it exists.
- `GET /api/models/<name>` and `…/revision/main` → `id`, `sha`, `private`.
- `GET /api/models/<name>/tree/main` → per file `path`, `size`, `oid`.
- `POST /api/models/<name>/preupload/<revision>` → per file `uploadMode` lfs or regular, and the
  `oid` of the content that it has: SHA-256 for lfs, else git's SHA-1 of a blob.
- `POST /api/validate-yaml` with a card's text → `errors` and `warnings`.
- `POST /<name>.git/info/lfs/objects/batch` → per object an address to PUT it to, none where known.
- `POST /api/models/<name>/commit/<revision>`, lines of JSON: header, file, lfsFile, deletedFile; it
  all counts, or nothing; an LFS file whose content never came is refused.
- `POST /api/models/<name>/tag/<revision>` → 409 where the tag exists; `DELETE …/tag/<tag>` → 404
  where it does not.

For a data set, `datasets` in place of `models`, and `/datasets/<name>.git/…`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE_BYTES = 10_000


@dataclass
class UploadHub:
    """Takes one repository; `fault` may take a request over."""

    token: str | None = None
    """When set, whoever does not send it is answered 401."""
    fault: Callable[[Taker], bool] | None = None
    """Called with each request first; True means that it was answered."""
    repository: str | None = None
    """owner/name, once it is made."""
    private: bool | None = None
    kind: str = "models"
    """Or datasets, once a data set is made."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """By SHA-256."""
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    """(message, all files) after each."""
    tags: dict[str, str] = field(default_factory=dict)
    """Name → commit."""
    requests: list[str] = field(default_factory=list)
    handler: type[Taker] | None = None
    """Another class for requests; see fake_hub_whole."""

    def __enter__(self) -> UploadHub:
        hub = self

        class Handler(self.handler or Taker):  # type: ignore[misc]
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

    @property
    def files(self) -> dict[str, bytes]:
        """What main holds."""
        return self.commits[-1][1] if self.commits else {}

    def tagged(self, tag: str) -> dict[str, bytes]:
        """Return what the tag holds."""
        return self.commits[int(self.tags[tag], 16) - 1][1]

    @property
    def sha(self) -> str:
        """Of main: how many commits there are, as 40 hex digits."""
        return f"{len(self.commits):040x}"


def oid_of(content: bytes, mode: str) -> str:
    """Return the Hub's name of a content."""
    if mode == "lfs":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Taker(BaseHTTPRequestHandler):
    """One request."""

    hub: UploadHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.fault is not None and self.hub.fault(self):
            return
        if path.startswith("/blobs/"):
            self._take_blob(path.removeprefix("/blobs/"))
        elif self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.say({"error": "no such token"}, 401)
        elif path == "/api/validate-yaml":
            self.say({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create()
        elif self.hub.repository is None or self.hub.repository not in path:
            self.say({"error": "no such repository"}, 404, **{"X-Error-Code": "RepoNotFound"})
        else:
            self._in_repository(path)

    def _in_repository(self, path: str) -> None:
        name, kind = re.escape(self.hub.repository or ""), self.hub.kind
        place = "" if kind == "models" else f"/{kind}"
        for shape, take in (
            (rf"/api/{kind}/{name}(/revision/main)?", self._about),
            (rf"/api/{kind}/{name}/tree/main", self._tree),
            (rf"/api/{kind}/{name}/preupload/main", self._modes),
            (rf"{place}/{name}\.git/info/lfs/objects/batch", self._batch),
            (rf"/api/{kind}/{name}/commit/main", self._commit),
            (rf"/api/{kind}/{name}/tag/(?P<at>.+)", self._tag),
        ):
            if match := re.fullmatch(shape, path):
                take(**match.groupdict())
                return
        self.say({"error": f"{path} is unknown"}, 404)

    def _create(self) -> None:
        wanted = json.loads(self.body)
        name = (
            f"{wanted['organization']}/{wanted['name']}"
            if wanted.get("organization")
            else wanted["name"]
        )
        status = 409 if self.hub.repository == name else 200
        if status == 200:
            self.hub.repository, self.hub.private = name, wanted.get("visibility") == "private"
            self.hub.kind = f"{wanted.get('type', 'model')}s"
        self.say({"url": f"{self.hub.url}/{name}", "id": name, "name": name}, status)

    def _about(self) -> None:
        hub = self.hub
        about = {"id": hub.repository, "sha": hub.sha, "private": hub.private, "siblings": []}
        self.say({**about, "tags": [], "downloads": 0, "likes": 0})

    def _tree(self) -> None:
        self.say(
            [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in self.hub.files.items()
            ]
        )

    def _modes(self) -> None:
        files = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if file["size"] > LARGE_BYTES else "regular"
            there = self.hub.files.get(file["path"])
            oid = None if there is None else oid_of(there, mode)
            files.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
            )
        self.say({"files": files})

    def _batch(self) -> None:
        objects: list[dict[str, Any]] = []
        for wanted in json.loads(self.body)["objects"]:
            item = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.blobs:
                item["actions"] = {"upload": {"href": f"{self.hub.url}/blobs/{wanted['oid']}"}}
            objects.append(item)
        self.say({"transfer": "basic", "objects": objects})

    def _take_blob(self, digest: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != digest:
            self.say({"error": "another checksum"}, 400)
            return
        self.hub.blobs[digest] = self.body
        self.say({})

    def _commit(self) -> None:
        files, message = dict(self.hub.files), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile" and value["oid"] in self.hub.blobs:
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif item["key"] == "deletedFile" and value["path"] in files:
                del files[value["path"]]
            else:
                self.say({"error": f"{item['key']} {value['path']} cannot be"}, 400)
                return
        self.hub.commits.append((message, files))
        url = f"{self.hub.url}/{self.hub.repository}/commit/{self.hub.sha}"
        self.say({"commitUrl": url, "commitOid": self.hub.sha, "success": True})

    def _tag(self, at: str) -> None:
        if self.command == "DELETE":
            found = self.hub.tags.pop(at, None)
            self.say({}, 200 if found else 404)
            return
        tag = json.loads(self.body)["tag"]
        if tag in self.hub.tags:
            self.say({"error": "Tag exists"}, 409)
            return
        self.hub.tags[tag] = at
        self.say({})

    def say(self, content: object, status: int = 200, **headers: str) -> None:
        """Answer with JSON."""
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
