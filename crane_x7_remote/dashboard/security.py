"""Who may see the page and use its buttons. Every request passes here before the application.

Against other web sites in the same browser: the Host header must name this machine (unless a token
is needed, which other sites do not have), and a request that changes something must come from this
page. Against others on the network: a token, as a header or, after a login, as a cookie. A body is
read up to a limit and no further.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE: Final = "crane_x7_dashboard"
MAX_BODY_BYTES: Final = 4096
"""An instruction has at most 1024 bytes, which JSON may write as 6 each."""
WRONG_TOKEN_S: Final = 0.5
"""Pause before the answer to a wrong token."""
OPEN_PATHS: Final = ("/login", "/style.css", "/icon.svg")
"""What a browser gets before the login."""
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' blob:; media-src 'self'; connect-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
    # A browser keeps connections for later; one that a router has forgotten would swallow a stop.
    "Connection": "close",
}


@dataclass(frozen=True)
class Access:
    """Who may use one dashboard."""

    token: str | None = field(default=None, repr=False)
    """None: everybody who can connect, which is then this machine alone."""

    def is_right(self, given: str) -> bool:
        """Compare a token in constant time."""
        wanted = self.token or ""
        return hmac.compare_digest(given.encode(errors="surrogateescape"), wanted.encode())

    @property
    def cookie(self) -> str:
        """The cookie's value: whoever reads it does not know the token."""
        return hmac.new((self.token or "").encode(), b"dashboard", hashlib.sha256).hexdigest()

    def admits(self, headers: Headers) -> bool:
        """Whether a request has the token, if one is needed."""
        if self.token is None:
            return True
        scheme, _, word = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_right(word.strip()):
            return True
        given = _cookie(headers).encode(errors="surrogateescape")
        return hmac.compare_digest(given, self.cookie.encode())


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


def is_own_host(host: str) -> bool:
    """Whether a Host header names this machine itself: no other site's name leads here then."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_own_page(headers: Headers) -> bool:
    """Whether a request comes from this page or from no page at all, such as curl."""
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host", "")


class Gate:
    """The ASGI application in front of the real one."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = await self._refusal(scope)
        if scope["type"] == "websocket":
            if refusal is None:
                await self._app(scope, receive, send)
            else:
                await receive()  # websocket.connect; closing before accepting answers 403
                await send({"type": "websocket.close", "code": 1008})
            return
        secured = _with_headers(send)
        if refusal is not None:
            await refusal(scope, receive, secured)
            return
        body = await _body(receive) if scope["method"] not in ("GET", "HEAD") else b""
        if body is None:
            answer = _error(
                413, f"the request is too large, expected at most {MAX_BODY_BYTES} bytes"
            )
            await answer(scope, receive, secured)
            return
        await self._app(scope, _replayed(body, receive), secured)

    async def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        try:
            if self._access.token is None and not is_own_host(headers.get("host", "")):
                return _error(
                    403, "this name is not allowed without a token; open http://localhost:PORT"
                )
            changes = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")
            if changes and not is_own_page(headers):
                return _error(403, "requests of other web sites are refused")
        except ValueError:
            return _error(400, "the Host or Origin header is not an address")
        if self._access.admits(headers) or scope["path"] in OPEN_PATHS:
            return None
        if headers.get("authorization") or headers.get("cookie"):
            await asyncio.sleep(WRONG_TOKEN_S)
        if scope["path"] == "/" and scope["type"] == "http":
            return RedirectResponse("/login", 303)
        answer = _error(401, "the token is missing or wrong (DASHBOARD_TOKEN)")
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer


def _error(status: int, text: str) -> JSONResponse:
    return JSONResponse({"ok": False, "text": text}, status)


async def _body(receive: Receive) -> bytes | None:
    """Return a request's body; None if it is too large, of which the rest is not read."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        parts.append(message.get("body", b""))
        if sum(map(len, parts)) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body first."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_headers(send: Send) -> Send:
    async def secured(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        await send(message)

    return secured


def json_object(body: bytes) -> dict[str, object]:
    """Return the JSON object of a request; raises ValueError."""
    try:
        found = json.loads(body)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("expected a JSON object")
    return found
