"""Bags from Azure Blob Storage by SAS. Account, container, prefix, token → verified files.

The container is listed first; what is listed is then there, with the listed length, or the command
fails. A file is written beside its place and renamed when it is whole; one that is there with the
listed length and ETag is not fetched again, and a cut one is continued where it ends. Network
errors and 5xx are retried, longer each time; a refused token is not.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import parse_qs

from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.training.errors import ConfigError, OutputError, PackageError, TrainingError

logger = logging.getLogger(__name__)

HOST: Final = "https://{account}.blob.core.windows.net"
PARTIAL: Final = ".partial"
NOTE: Final = ".etag"
"""Suffix of the file beside a partial one: which version of the blob it is a part of."""
RETRIES: Final = 8
PAUSE_S, LONGEST_S = 0.5, 30.0
PIECE_BYTES: Final = 4 << 20
TIMEOUT_S: Final = 60
RIGHTS: Final = "rl"
"""What the token must allow: read and list."""


@dataclass(frozen=True)
class Source:
    """Where the bags are."""

    account: str
    sas: str
    """Token, with or without its question mark."""
    container: str = "datasets"
    prefix: str = ""
    endpoint: str | None = None
    """Address of the service; default: that of the account in Azure."""

    @property
    def url(self) -> str:
        """Address of the account's blobs."""
        return self.endpoint or HOST.format(account=self.account)

    @property
    def shown(self) -> str:
        """Address of the prefix, without the token."""
        return f"{self.url.rstrip('/')}/{self.container}/{self.prefix}"


@dataclass(frozen=True)
class Blob:
    """One file as it is listed."""

    name: str
    size: int
    etag: str


def download(
    source: Source, folder: Path, sleep: Callable[[float], None] = time.sleep
) -> list[Path]:
    """Fetch everything below the prefix into `folder`, paths relative to the prefix; return them.

    Raises ConfigError for a token that cannot work, DataError for a place without bags, OutputError
    for the disk, TrainingError where the service fails for minutes.
    """
    check_token(source.sas)
    client = _client(source)
    with client:
        blobs = _retried(f"list {source.shown}", lambda: [*_listed(client, source)], sleep)
        if not blobs:
            raise DataError(
                f"{source.shown}: no blob there; check AZURE_BLOB_CONTAINER and AZURE_BLOB_PREFIX"
            )
        total = sum(blob.size for blob in blobs)
        logger.info("%s: %d files, %.1f MB", source.shown, len(blobs), total / 1e6)
        paths = [place(folder, source.prefix, blob.name) for blob in blobs]
        for blob, path in zip(blobs, paths, strict=True):
            _fetch(client, blob, path, sleep)
    wrong = [p for b, p in zip(blobs, paths, strict=True) if p.stat().st_size != b.size]
    if wrong:
        raise OutputError(f"{wrong[0]}: has {wrong[0].stat().st_size} bytes, another was listed")
    logger.info("downloaded: %s", folder)
    return paths


def check_token(sas: str, now: datetime | None = None) -> None:
    """Raise ConfigError for a SAS token that is none, has expired, or does not allow to list."""
    fields = {key: values[0] for key, values in parse_qs(sas.lstrip("?")).items()}
    where = "AZURE_STORAGE_SAS_TOKEN"
    if "sig" not in fields:
        raise ConfigError(f"{where}: holds no signature (sig=…); paste the whole SAS token")
    if missing := [right for right in RIGHTS if right not in fields.get("sp", RIGHTS)]:
        raise ConfigError(
            f"{where}: allows {fields['sp']!r} (sp), expected read and list (rl), without:"
            f" {''.join(missing)}"
        )
    now = datetime.now(UTC) if now is None else now
    if (end := _moment(fields.get("se"))) is not None and end <= now:
        raise ConfigError(f"{where}: has expired at {end:%Y-%m-%d %H:%M} UTC (se); make a new one")


def _moment(text: str | None) -> datetime | None:
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return None  # the service judges it
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def place(folder: Path, prefix: str, name: str) -> Path:
    """Return the path of a blob; raises DataError for one that would leave the folder."""
    relative = PurePosixPath(name.removeprefix(prefix).lstrip("/") or PurePosixPath(name).name)
    if ".." in relative.parts or relative.is_absolute():
        raise DataError(f"{name}: this name leads out of {folder}; nothing was downloaded")
    return folder / relative


def _client(source: Source) -> Any:
    try:
        from azure.storage.blob import ContainerClient
    except ImportError as error:
        raise PackageError(
            "azure-storage-blob is missing: pip install 'crane-x7-remote[azure]'"
        ) from error
    return ContainerClient(
        source.url, source.container, credential=source.sas.lstrip("?"), retry_total=0,
        connection_timeout=TIMEOUT_S, read_timeout=TIMEOUT_S, max_single_get_size=PIECE_BYTES,
        max_chunk_get_size=PIECE_BYTES,
    )  # fmt: skip


def _listed(client: Any, source: Source) -> Iterator[Blob]:
    for each in client.list_blobs(name_starts_with=source.prefix or None):
        if not (each.name.endswith("/") and not each.size):  # a folder's mark
            tag = str(each.etag).strip('"')  # quoted in headers, and not in a listing
            yield Blob(each.name, int(each.size), f'"{tag}"')


def _fetch(client: Any, blob: Blob, path: Path, sleep: Callable[[float], None]) -> None:
    """Fetch one file, unless this version of it is there."""
    partial, note = path.with_name(path.name + PARTIAL), path.with_name(f".{path.name}{NOTE}")
    version = json.dumps({"etag": blob.etag, "size": blob.size})
    try:
        known = note.read_text(encoding="utf-8") if note.exists() else ""
        if known == version and path.exists() and path.stat().st_size == blob.size:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if known != version:
            partial.unlink(missing_ok=True)
            note.write_text(version, encoding="utf-8")
        _retried(blob.name, lambda: _append(client, blob, partial), sleep)
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {why(error)}") from error
    logger.info("%s: %d bytes", path, blob.size)


def _append(client: Any, blob: Blob, partial: Path) -> None:
    """Fetch what is missing of a file. Raises errors of azure.core."""
    from azure.core import MatchConditions
    from azure.core.exceptions import IncompleteReadError

    have = partial.stat().st_size if partial.exists() else 0
    if have > blob.size:
        partial.unlink()
        have = 0
    with partial.open("ab") as out:
        if have < blob.size:
            stream = client.get_blob_client(blob.name).download_blob(
                offset=have, length=blob.size - have, etag=blob.etag,
                match_condition=MatchConditions.IfNotModified,
            )  # fmt: skip
            for piece in stream.chunks():
                out.write(piece)
        out.flush()
    got = partial.stat().st_size
    if got != blob.size:
        raise IncompleteReadError(message=f"{got} of {blob.size} bytes")


def _retried(what: str, act: Callable[[], Any], sleep: Callable[[float], None]) -> Any:
    """Return what `act` returns; raises ConfigError, DataError or TrainingError for its failure."""
    from azure.core import exceptions as azure

    for attempt in range(RETRIES):
        try:
            return act()
        except azure.HttpResponseError as error:
            _refused(what, error)
            last: Exception = error
        except azure.AzureError as error:
            last = error
        pause_s = min(PAUSE_S * 2**attempt, LONGEST_S)
        logger.warning("%s: %s; again in %.0f s", what, _line(last), pause_s)
        sleep(pause_s)
    raise TrainingError(f"{what}: failed {RETRIES} times: {_line(last)}; try again later")


def _refused(what: str, error: Any) -> None:
    """Raise for an answer that a retry does not change."""
    code = getattr(error, "error_code", None)
    named = getattr(code, "value", code) or error.status_code
    if error.status_code in (401, 403):
        raise ConfigError(
            f"{what}: refused ({named}); AZURE_STORAGE_SAS_TOKEN has expired, is of another account"
            " or container, or does not allow read and list"
        ) from error
    if error.status_code == 404:
        raise DataError(f"{what}: is not there ({named}); check AZURE_BLOB_CONTAINER") from error
    if error.status_code == 412:
        raise DataError(f"{what}: was changed while it was downloaded; start again") from error
    if error.status_code is not None and error.status_code < 500 and error.status_code != 429:
        raise TrainingError(f"{what}: {error.status_code} {_line(error)}") from error


def _line(error: Exception) -> str:
    """Return the first line of an error's message, without what follows a token's start."""
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text.split("sig=")[0][:200]
