"""The one HTTP client of all providers: method, path, JSON → JSON, or an error of a few types.

Reads and deletions are repeated, with growing pauses and as Retry-After says; an order is sent
once. Keys travel in headers or bodies, and never in an address, a log or an error: what an error
quotes is masked. Redirects are errors, so that no key follows one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from crane_x7_remote import addresses
from crane_x7_remote.cloud.provider import (
    CreateRefusedError,
    CreateUnclearError,
    ListUnreadableError,
    ProviderError,
)
from crane_x7_remote.errors import CloudError, CloudKeyError
from crane_x7_vla_rl import log_text

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger(__name__)

ATTEMPTS: Final = 4
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
BUSY: Final = (408, 425, 429, 500, 502, 503, 504)
"""Answers after which the same question may succeed."""
SURELY_REFUSED: Final = range(400, 500)
PERHAPS_DONE: Final = (408,)
"""Of those: the server gave up waiting, and may have read the order."""
QUOTED: Final = 200
"""Characters of an answer that an error shows."""


class StatusError(ProviderError):
    """The provider answered with an error."""

    def __init__(self, message: str, status: int, body: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class NoAnswerError(ProviderError):
    """No answer arrived, or one that is not JSON."""


@dataclass(frozen=True)
class Patience:
    """How long one question may take."""

    request_s: float = 30.0
    attempts: int = ATTEMPTS
    first_pause_s: float = FIRST_PAUSE_S


class Api:
    """One account at one provider."""

    def __init__(
        self,
        name: str,
        base_url: str,
        headers: Callable[[], Mapping[str, str]],
        patience: Patience | None = None,
    ) -> None:
        """`headers` is called for each request; it may fetch a token. Raises CloudError."""
        parts = urlsplit(base_url)
        is_local = parts.scheme == "http" and addresses.is_loopback(parts.hostname or "")
        if parts.scheme != "https" and not is_local:
            raise CloudError(
                f"{name.upper()}_BASE_URL={base_url!r}: expected https://…: a key would travel"
                " unencrypted"
            )
        self.name = name
        self._is_local = is_local
        self._base = base_url.rstrip("/")
        self._headers = headers
        self._patience = patience or Patience()
        self._client: httpx2.Client | None = None

    def repeat(
        self,
        method: str,
        path: str,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Send a read or a deletion, repeatedly if need be, and return its JSON, None if empty.

        `headers` replace the account's. Raises StatusError, NoAnswerError or CloudKeyError.
        """
        pause = self._patience.first_pause_s
        for attempt in range(1, self._patience.attempts + 1):
            is_last = attempt == self._patience.attempts
            try:
                response = self._send(
                    method, path, body, params, self._headers() if headers is None else headers
                )
                if response.status_code not in BUSY or is_last:
                    return self._read(response)
                wait = _retry_after(response.headers.get("retry-after"), pause)
                logger.debug("%s answered %d, waiting", self.name, response.status_code)
            except NoAnswerError as error:
                if is_last:
                    raise
                wait = pause
                logger.debug("%s", error)
            time.sleep(min(wait, LONGEST_PAUSE_S))
            pause *= 2
        raise AssertionError("the last attempt returns or raises")

    def order(self, method: str, path: str, body: Any) -> str:
        """Send an order once, and return the text of its answer.

        Raises CreateRefusedError or CloudKeyError if surely nothing was made, else
        CreateUnclearError.
        """
        import httpx2

        try:
            headers = dict(self._headers())  # may fetch a token, which is no order yet
        except ProviderError as error:
            raise CreateRefusedError(f"{error}; nothing was ordered") from error
        try:
            response = self._client_now().request(
                method, self._base + path, json=body, headers=headers
            )
            text = response.text
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise CreateRefusedError(
                f"{self.name} cannot be reached, nothing was ordered: {_said(error)}"
            ) from error
        except (httpx2.HTTPError, UnicodeDecodeError) as error:
            raise CreateUnclearError(
                f"{self.name}: no answer to the order ({_said(error)})"
            ) from error
        status = response.status_code
        if status == 401:
            raise self._key_error(status)
        if status in SURELY_REFUSED and status not in PERHAPS_DONE:
            raise CreateRefusedError(f"{self.name} refused the order: {status} {_reason(text)}")
        if not response.is_success:
            raise CreateUnclearError(
                f"{self.name} answered the order with {status} {_reason(text)}"
            )
        return text

    def close(self) -> None:
        """Close its connections."""
        if self._client is not None:
            self._client.close()

    def _client_now(self) -> httpx2.Client:
        import httpx2

        if self._client is None:
            timeout = httpx2.Timeout(self._patience.request_s)
            # Over loopback there is no TLS, and certificates take long to load.
            self._client = httpx2.Client(
                timeout=timeout, follow_redirects=False, verify=not self._is_local
            )
        return self._client

    def _send(
        self,
        method: str,
        path: str,
        body: Any,
        params: Mapping[str, Any] | None,
        headers: Mapping[str, str],
    ) -> httpx2.Response:
        import httpx2

        words: dict[str, Any] = {"headers": dict(headers)}
        if body is not None:
            words["json"] = body
        if params:
            words["params"] = params
        try:
            return self._client_now().request(method, self._base + path, **words)
        except httpx2.HTTPError as error:
            raise NoAnswerError(f"{self.name}: no answer to {path}: {_said(error)}") from error

    def _read(self, response: httpx2.Response) -> Any:
        status, text = response.status_code, response.text
        if status == 401:
            raise self._key_error(status, _reason(text))
        if response.is_redirect:
            where = log_text.shown(response.headers.get("location", "nowhere"), QUOTED)
            raise StatusError(
                f"{self.name} redirects to {where}: set {self.name.upper()}_BASE_URL to the"
                " address that answers itself",
                status,
                text,
            )
        if not response.is_success:
            raise StatusError(f"{self.name}: {status} {_reason(text)}", status, text)
        if not text.strip():
            return None
        try:
            return json.loads(text)
        except ValueError as error:
            raise NoAnswerError(
                f"{self.name}: expected JSON, got {log_text.shown(text, QUOTED)!r}"
            ) from error

    def _key_error(self, status: int, reason: str = "") -> CloudKeyError:
        return CloudKeyError(
            f"{self.name} refuses the key ({status} {reason}".rstrip() + "); see docs/cloud.md"
        )


@contextlib.contextmanager
def listing(name: str, what: str) -> Iterator[None]:
    """Turn whatever goes wrong with a list into ListUnreadableError: never into an empty list."""
    try:
        yield
    except ListUnreadableError:
        raise
    except ProviderError as error:
        raise ListUnreadableError(f"{name}: no list of {what}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ListUnreadableError(
            f"{name}: the list of {what} has another form than expected"
            f" ({type(error).__name__}: {_said(error)})"
        ) from error


def _said(error: Exception) -> str:
    return log_text.shown(error, QUOTED) or type(error).__name__


def _reason(text: str) -> str:
    """Return the message of an error's body, else its beginning."""
    try:
        values = json.loads(text)
    except ValueError:
        return log_text.shown(text.strip(), QUOTED)
    if isinstance(values, dict):
        for name in ("message", "msg", "error"):
            if isinstance(values.get(name), str):
                return log_text.shown(values[name], QUOTED)
    return log_text.shown(text.strip(), QUOTED)


def _retry_after(text: str | None, otherwise_s: float) -> float:
    """Return the seconds of a Retry-After header; one with a date counts as none."""
    digits = (text or "").strip()
    return float(digits) if digits.isascii() and digits.isdecimal() else otherwise_s
