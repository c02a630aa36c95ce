"""The Hub: VLA_MODEL_PATH's folder or `owner/name[@revision]` → a local folder.

Weights and JSON go into the Hub's usual cache, see `hub_download`; code never does. Every request
has a deadline: huggingface_hub's listing waits for ever for a silent server. Data sets share
`look_up`, `cached` and `note_revision`.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from crane_x7_vla_rl import secret_text, variables
from crane_x7_vla_rl.log_text import shown
from crane_x7_vla_rl.policies.hub_download import (
    FOLDERS,
    cache_folder,
    check_room,
    download,
    fetch_files,
    wanted,
)
from crane_x7_vla_rl.policies.hub_download import note_revision as note_revision
from crane_x7_vla_rl.policies.hub_source import Absent as Absent
from crane_x7_vla_rl.policies.hub_source import HubError as HubError
from crane_x7_vla_rl.policies.hub_source import Source as Source
from crane_x7_vla_rl.policies.hub_source import Unreachable as Unreachable
from crane_x7_vla_rl.policies.hub_source import explain

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, ModelInfo

logger = logging.getLogger(__name__)

REPO_ID: Final = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
TRIES: Final = 3
ONE_TRY_S: Final = 0.5
"""Time limit for the Hub if another problem was found already."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 20.0
"""If a server requests a longer pause, the download is abandoned."""
RECENT_S: Final = 60.0
"""An answer of the Hub, or a failure, is reused for this long: a start needs it several times."""
BIGGEST_DESCRIPTION: Final = 20_000_000


def resolve(
    path_or_repo_id: str | Path, revision: str | None = None, token: str | None = None
) -> Path:
    """Return the checkpoint's folder, fetched from the Hub if the argument is not a folder.

    `revision` pins a branch, tag or commit and may also follow the id after an @. Raises HubError
    if it is neither a folder nor an id, and if neither Hub nor cache has it.
    """
    source = _source(path_or_repo_id, revision, token)
    return source if isinstance(source, Path) else _fetch(source)


def _source(path_or_repo_id: str | Path, revision: str | None, token: str | None) -> Path | Source:
    """Return the folder, or the repository on the Hub; raises HubError for anything else."""
    folder = Path(path_or_repo_id).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise Absent(f"{folder} is a file; expected the folder that holds the checkpoint")
    match = REPO_ID.fullmatch(str(path_or_repo_id))
    if match is None:
        raise Absent(
            f"{path_or_repo_id}: this folder does not exist, and it is not a Hub id either"
            " (owner/name or owner/name@revision)"
        )
    return Source(match["name"], revision or match["revision"] or "main", _usable(token))


@dataclass(frozen=True)
class Peek:
    """A checkpoint before its weights are fetched."""

    folder: Path
    """Has config.json, statistics, tokenizer and other small files, but maybe no weights."""
    names: frozenset[str]
    """Files of the whole checkpoint, relative to `folder`."""


def peek(
    path_or_repo_id: str | Path,
    revision: str | None = None,
    token: str | None = None,
    names: Collection[str] | None = None,
) -> Peek:
    """Return a checkpoint's small files, fetched from the Hub if it is not a folder.

    `names`: only those files, as far as they exist; the disk may then be too full for the
    weights. Raises HubError as `resolve` does.
    """
    source = _source(path_or_repo_id, revision, token)
    if isinstance(source, Path):
        return Peek(source, _names(source))
    try:
        info = look_up(source)
    except Unreachable as error:
        folder = _from_cache(source, error)
        return Peek(folder, _names(folder))
    sizes = wanted(source, info)
    cache = cache_folder()
    if names is None:
        check_room(cache, source, str(info.sha), sizes)
        small = [
            name
            for name, size in sizes.items()
            if name.endswith(".json") and size < BIGGEST_DESCRIPTION
        ]
    else:
        small = sorted({file.rfilename for file in info.siblings or ()} & {*names})
    folder = fetch_files(source, str(info.sha), small, cache) if small else cache
    return Peek(folder, frozenset(sizes))


def _names(folder: Path) -> frozenset[str]:
    files = [path for inside in FOLDERS for path in (folder / inside).glob("*")]
    return frozenset(str(path.relative_to(folder)) for path in files)


def _usable(token: str | None) -> str | None:
    """Return the cleaned token; raises HubError for one that a request cannot carry.

    It is masked in logs from now on, and so is the token that huggingface_hub finds instead.
    """
    from huggingface_hub import get_token

    secret_text.remember(token, get_token())
    try:
        return None if token is None else variables.secret(token)
    except ValueError as error:
        raise HubError(f"the token for the Hub (HF_TOKEN) {error}") from error


def _fetch(source: Source) -> Path:
    try:
        return download(source, look_up(source))
    except Unreachable as error:
        return _from_cache(source, error)


def _from_cache(source: Source, error: Unreachable) -> Path:
    folder = cached(source, str(error))
    if folder is None:
        raise Absent(
            f"{error}; {source} is not in the cache either: try again later, or download it on a"
            " machine that reaches the Hub and pass the folder"
        ) from error
    return folder


_hurried: ContextVar[bool] = ContextVar("_hurried", default=False)


@contextmanager
def hurried() -> Iterator[None]:
    """Try the Hub only once, for ONE_TRY_S: for a reply to the user that is not worth a wait."""
    token = _hurried.set(True)
    try:
        yield
    finally:
        _hurried.reset(token)


_recent: dict[Source, tuple[float, ModelInfo | DatasetInfo | Unreachable]] = {}


def look_up(source: Source) -> ModelInfo | DatasetInfo:
    """Return commit and files of a repository, after up to TRIES requests in RECENT_S.

    Raises HubError for a permanent failure, Unreachable for a temporary one.
    """
    asked_s, answer = _recent.get(source, (-RECENT_S, None))
    if answer is None or time.monotonic() > asked_s + RECENT_S:
        try:
            answer = _ask(source)
        except Unreachable as error:
            if _hurried.get():
                raise
            answer = error
        _recent[source] = time.monotonic(), answer
    if isinstance(answer, Unreachable):
        raise answer
    return answer


def _ask(source: Source) -> ModelInfo | DatasetInfo:
    """Do what `look_up` does, without its memory."""
    import httpx2
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.is_offline_mode():
        raise Unreachable("HF_HUB_OFFLINE is set")
    api = HfApi(token=source.token)
    pause_s, hurried = FIRST_PAUSE_S, _hurried.get()
    for left in reversed(range(1 if hurried else TRIES)):
        try:
            return api.repo_info(
                source.name, revision=source.revision, repo_type=source.kind,
                timeout=ONE_TRY_S if hurried else constants.HF_HUB_ETAG_TIMEOUT,
                files_metadata=True,
            )  # type: ignore[return-value]  # fmt: skip
        except HfHubHTTPError as error:
            problem = explain(error, source)
            asked_s = error.response.headers.get("Retry-After", "")
            pause_s = float(asked_s) if asked_s.isdecimal() else pause_s
        except httpx2.TransportError as error:
            problem = f"{source}: the Hub did not answer ({type(error).__name__}: {shown(error)})"
        if left == 0 or pause_s > LONGEST_PAUSE_S:
            break
        logger.info("%s; trying again in %g s", problem, pause_s)
        time.sleep(pause_s)
        pause_s *= 2
    raise Unreachable(problem)


def cached(source: Source, why: str) -> Path | None:
    """Return the folder of an earlier download, or None; loading it shows whether it is complete.

    `why`: the reason for not using the Hub, for the log.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                source.name, repo_type=source.kind, revision=source.revision, local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        return None
    logger.warning("%s; using the copy in the cache: %s", why, folder)
    return folder
