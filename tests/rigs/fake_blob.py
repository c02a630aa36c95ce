"""Azure Blob Storage on loopback, with faults: what ContainerClient needs to list and to read.

A real HTTP server with the service's XML, ranges, ETags and error codes. `faults` are consumed one
per request, in order; each is (path that the request's must contain, what happens).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

SIGNATURE = "c2lnbmF0dXJl"
SAS = f"?sv=2024-11-04&sp=rl&se=2999-01-01T00%3A00%3A00Z&sr=c&sig={SIGNATURE}"
PAGE = 2
"""Names per page of a listing."""
BUSY, CUT, SHORT, SLOW = "503", "cut", "short", "429"
"""An error of the server; half a body, then a closed connection; a wrong length in the listing."""


@dataclass
class Account:
    """What is stored, and what will go wrong."""

    container: str = "datasets"
    blobs: dict[str, bytes] = field(default_factory=dict)
    faults: list[tuple[str, str]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Path and range of each request so far."""
    versions: dict[str, int] = field(default_factory=dict)
    """Blob → number of its version; the ETag."""
    address: str = ""

    def etag(self, name: str) -> str:
        """Return the ETag of a blob."""
        return f'"0x{self.versions.get(name, 1):08X}"'

    def fault(self, path: str) -> str:
        """Return what goes wrong with this request, "" if nothing does."""
        if self.faults and self.faults[0][0] in path:
            return self.faults.pop(0)[1]
        return ""


@contextmanager
def serving(account: Account) -> Iterator[Account]:
    """Serve the account on a port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            words = {key: values[0] for key, values in parse_qs(parts.query).items()}
            path = unquote(parts.path).lstrip("/")
            asked = self.headers.get("x-ms-range") or self.headers.get("Range") or ""
            account.requests.append((path, asked))
            fault = account.fault(path)
            if fault in (BUSY, SLOW):
                return self.refuse(int(fault), "ServerBusy")
            if words.get("sig") != SIGNATURE:
                return self.refuse(403, "AuthenticationFailed")
            container, _, name = path.partition("/")
            if container != account.container:
                return self.refuse(404, "ContainerNotFound")
            if words.get("comp") == "list":
                return self.listing(words, fault)
            if name not in account.blobs:
                return self.refuse(404, "BlobNotFound")
            condition = self.headers.get("If-Match")
            if condition is not None and condition != account.etag(name):
                return self.refuse(412, "ConditionNotMet")
            return self.blob(name, asked, fault)

        def listing(self, words: dict[str, str], fault: str) -> None:
            found = sorted(n for n in account.blobs if n.startswith(words.get("prefix", "")))
            start = int(words.get("marker", "0"))
            rest = found[start + PAGE :]
            entries = "".join(
                f"<Blob><Name>{escape(name)}</Name><Properties>"
                "<Last-Modified>Sat, 28 Nov 2026 00:00:00 GMT</Last-Modified>"
                f"<Etag>{account.etag(name).strip(chr(34))}</Etag>"
                f"<Content-Length>{len(account.blobs[name]) + (fault == SHORT)}</Content-Length>"
                "<Content-Type>application/octet-stream</Content-Type>"
                "<BlobType>BlockBlob</BlobType></Properties></Blob>"
                for name in found[start : start + PAGE]
            )
            marker = f"<NextMarker>{start + PAGE}</NextMarker>" if rest else "<NextMarker/>"
            prefix = f"<Prefix>{escape(words.get('prefix', ''))}</Prefix>"
            found_here = f"{prefix}<Blobs>{entries}</Blobs>{marker}"
            self.answer(200, (
                '<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="x"'
                f' ContainerName="{account.container}">{found_here}</EnumerationResults>'
            ).encode(), {"Content-Type": "application/xml"})  # fmt: skip

        def blob(self, name: str, asked: str, fault: str) -> None:
            content = account.blobs[name]
            found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
            first, last = (int(found[1]), int(found[2] or len(content) - 1)) if found else (0, -1)
            last = len(content) - 1 if last < 0 else min(last, len(content) - 1)
            if content and first >= len(content):
                return self.refuse(416, "InvalidRange")
            part = content[first : last + 1]
            headers = {
                "ETag": account.etag(name), "Content-Type": "application/octet-stream",
                "Last-Modified": "Sat, 28 Nov 2026 00:00:00 GMT", "x-ms-blob-type": "BlockBlob",
                "Content-Range": f"bytes {first}-{last}/{len(content)}",
            }  # fmt: skip
            return self.answer(206 if found else 200, part, headers, cut=fault == CUT)

        def refuse(self, status: int, code: str) -> None:
            body = (
                f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
            )
            self.answer(status, body.encode(), {"x-ms-error-code": code})

        def answer(
            self, status: int, body: bytes, headers: dict[str, str], cut: bool = False
        ) -> None:
            self.send_response(status)
            for name, value in {"x-ms-version": "2024-11-04", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    account.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield account
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
