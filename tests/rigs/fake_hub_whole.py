"""A stand-in for the Hub that takes a model's checkpoints, gives them back, and holds a data set.

`UploadHub` with the addresses of downloads that huggingface_hub and LeRobot 0.6.1 use:

- `GET /api/models|datasets/<name>[/revision/<revision>]` → JSON with `id`, `sha` and `siblings`.
- `GET /api/models|datasets/<name>/tree/<revision>` → per file `path`, `size`, `oid`.
- `GET /api/datasets/<name>/refs` → branches and tags; the data set has main and its version's tag.
- `HEAD` and `GET [/datasets]/<name>/resolve/<revision>/<file>` → the file, ranges answered by 206.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fake_hub_upload import Taker, UploadHub

DATA_SHA = "d" * 40
_INFO = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)(?:/revision/.+)?")
_TREE = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)/tree/[^/]+")
_REFS = re.compile(r"/api/datasets/(?P<name>[^/]+/[^/]+)/refs")
_FILE = re.compile(r"(?P<data>/datasets)?/(?P<name>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)")


@dataclass
class WholeHub(UploadHub):
    """One model's repository, and one data set in a folder."""

    data: Path | None = None
    data_name: str = "me/data"

    def __post_init__(self) -> None:
        self.handler = Giver

    @property
    def markers(self) -> list[int]:
        """Steps of the complete checkpoints."""
        found = (re.fullmatch(r"checkpoints/(\d+)/complete\.json", name) for name in self.files)
        return sorted(int(match[1]) for match in found if match)


class Giver(Taker):
    """One request, uploads included."""

    hub: WholeHub

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.command not in ("GET", "HEAD"):
            super()._answer()
            return
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.fault is not None and self.hub.fault(self):
            return
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.say({"error": "no such token"}, 401)
        elif match := _REFS.fullmatch(path):
            branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": DATA_SHA}]
            tags = [{"name": "v3.0", "ref": "refs/tags/v3.0", "targetCommit": DATA_SHA}]
            self.say({"branches": branches, "tags": tags, "converts": []})
        elif match := _TREE.fullmatch(path):
            self._listed(match["kind"] == "datasets", match["name"])
        elif match := _INFO.fullmatch(path):
            self._info(match["kind"] == "datasets", match["name"])
        elif match := _FILE.fullmatch(path):
            self._file(match["data"] is not None, match["name"], match["file"])
        elif self.hub.repository is None or self.hub.repository not in path:
            self.say({"error": "no such repository"}, 404, **{"X-Error-Code": "RepoNotFound"})
        else:
            self._in_repository(path)

    def _files(self, is_data: bool, name: str) -> dict[str, Any] | None:
        """Return name → bytes or path."""
        hub = self.hub
        if not is_data:
            return dict(hub.files) if name == hub.repository else None
        if name != hub.data_name or hub.data is None:
            return None
        paths = (path for path in hub.data.rglob("*") if path.is_file())
        return {path.relative_to(hub.data).as_posix(): path for path in paths}

    def _listed(self, is_data: bool, name: str) -> None:
        files = self._files(is_data, name)
        if files is None:
            self.say({"error": "no such repository"}, 404, **{"X-Error-Code": "RepoNotFound"})
            return
        sizes = {each: len(_bytes(held)) for each, held in files.items()}
        rows = [{"type": "file", "path": p, "size": n, "oid": "0" * 40} for p, n in sizes.items()]
        self.say(rows)

    def _info(self, is_data: bool, name: str) -> None:
        files = self._files(is_data, name)
        if files is None:
            self.say({"error": "no such repository"}, 404, **{"X-Error-Code": "RepoNotFound"})
            return
        siblings = [{"rfilename": each, "size": len(_bytes(files[each]))} for each in files]
        sha = DATA_SHA if is_data else self.hub.sha
        self.say({"id": name, "sha": sha, "siblings": siblings, "tags": []})

    def _file(self, is_data: bool, name: str, file: str) -> None:
        files = self._files(is_data, name)
        if files is None or file not in files:
            self.say({"error": "no such file"}, 404, **{"X-Error-Code": "EntryNotFound"})
            return
        content = _bytes(files[file])
        begin = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        self.send_response(206 if begin else 200)
        self.send_header("X-Repo-Commit", DATA_SHA if is_data else self.hub.sha)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[begin:])


def _bytes(held: bytes | Path) -> bytes:
    return held if isinstance(held, bytes) else held.read_bytes()
