"""The Hub: VLA_MODEL_PATH's folder or `owner/name[@revision]` → a local folder.

Weights and JSON go into the Hub's usual cache; code never does: `PATTERNS` lists the only files
that are downloaded. huggingface_hub does the transport, the cache layout and the progress bars.
This module adds: every request has a deadline (huggingface_hub's listing waits for ever for a
silent server), free disk space is checked before the first byte, and a partial download of a shard
by an earlier process is resumed. Data sets share `look_up`, `cached` and `note_revision`.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from crane_x7_vla_rl import secret_text, variables
from crane_x7_vla_rl.log_text import shown
from crane_x7_vla_rl.policies.base import PolicyLoadError

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, ModelInfo
    from huggingface_hub.errors import HfHubHTTPError

logger = logging.getLogger(__name__)

PATTERNS: Final = (
    "*.safetensors", "*.json", "tokenizer.model", "*--*_checkpoint.pt", "policy_io.yaml",
)  # fmt: skip
"""Weights, configuration, tokenizer, the extra heads of OpenVLA-OFT, and what a LeRobot policy's
inputs are on this arm. No code."""
FOLDERS: Final = (".", "lora_adapter", "lora_adapters", "vlm")
"""Folders of these files, `vlm` with the configuration and tokenizer of SmolVLA's model; other
folders of a training run are ignored."""
REPO_ID: Final = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
TRIES: Final = 3
ONE_TRY_S: Final = 0.5
"""Time limit for the Hub if another problem was found already."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 20.0
"""If a server requests a longer pause, the download is abandoned."""
ROOM_SHARE: Final = 1.01
"""Free space on the disk that a download needs, as a share of its size."""
CHUNK_BYTES: Final = 1 << 20
RECENT_S: Final = 60.0
"""An answer of the Hub, or a failure, is reused for this long: a start needs it several times."""
BIGGEST_DESCRIPTION: Final = 20_000_000
FULL_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class HubError(PolicyLoadError):
    """The model is neither available from the Hub nor in the cache."""

    def __init__(self, message: str, status: int | None = None) -> None:
        """`status` is the HTTP status of the Hub's refusal, if any."""
        super().__init__(message)
        self.status = status


class Absent(HubError):
    """Neither a folder nor an id, or neither on the Hub nor in the cache now."""


class Unreachable(Exception):
    """The Hub is silent, overloaded, broken or switched off: the cache may have a copy."""


@dataclass(frozen=True)
class Source:
    """One repository on the Hub."""

    name: str
    """owner/name."""
    revision: str
    """Branch, tag or commit."""
    token: str | None = None
    """None: huggingface_hub looks for it: HF_TOKEN or the token that `hf auth login` stored."""
    kind: Literal["model", "dataset"] = "model"

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}"


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
    sizes = _wanted(source, info)
    cache = _cache()
    if names is None:
        _check_room(cache, source, str(info.sha), sizes)
        small = [
            name
            for name, size in sizes.items()
            if name.endswith(".json") and size < BIGGEST_DESCRIPTION
        ]
    else:
        small = sorted({file.rfilename for file in info.siblings or ()} & {*names})
    folder = _fetch_files(source, str(info.sha), small, cache) if small else cache
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
        return _download(source, look_up(source))
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
            problem = _explain(error, source)
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


def _explain(error: HfHubHTTPError, source: Source) -> str:
    """Return the meaning of a temporary status; raises HubError for a permanent one."""
    from huggingface_hub.errors import RevisionNotFoundError

    status = error.response.status_code
    said = f"{source}: the Hub answered {status}"
    if status == 429:
        return f"{said}: too many requests from this machine"
    if status >= 500:
        return f"{said}: a failure of the server"
    if isinstance(error, RevisionNotFoundError):
        said = (
            f"{source.name} on the Hub has no revision {source.revision!r}; give a branch, a tag or"
            " a full commit hash"
        )
    elif status in (401, 403):
        said += (
            ": no access with this token, or no such repository; set HF_TOKEN to a token with read"
            " access, accept the model's licence on its page if it has one, and check the name"
        )
    elif status == 404:
        said += f": this {source.kind} does not exist; check the name"
    else:
        said += f": {shown(error)}"
    raise HubError(said, status) from error


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


def _download(source: Source, info: ModelInfo | DatasetInfo) -> Path:
    """Fetch every needed file of the commit that `info` describes; return their folder."""
    sizes, cache = _wanted(source, info), _cache()
    _check_room(cache, source, str(info.sha), sizes)
    folder = _fetch_files(source, str(info.sha), list(sizes), cache)
    try:
        note_revision(source, folder)
    except OSError as error:
        raise _explain_os_error(error, source, "refs", cache) from error
    return folder


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _wanted(source: Source, info: ModelInfo | DatasetInfo) -> dict[str, int]:
    """Return the size of each needed file, sorted by name; raises HubError if there are none."""
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    wanted = {name: sizes[name] for name in sorted(sizes) if _is_wanted(name)}
    if info.sha is None or not wanted:
        raise HubError(
            f"{source}: the repository holds no weights in safetensors and no configuration; found"
            f" {', '.join(sorted(sizes)) or 'nothing'}"
        )
    return wanted


def _fetch_files(source: Source, commit: str, names: list[str], cache: Path) -> Path:
    """Fetch these files, at least one; return the folder of the commit. Raises HubError."""
    import httpx2

    try:
        for name in names:
            path = _fetch_file(source, commit, name, cache)
    except httpx2.TransportError as error:
        raise HubError(
            f"{source}: the download of {name} was interrupted ({type(error).__name__}:"
            f" {shown(error)}); start again to resume it"
        ) from error
    except OSError as error:
        raise _explain_os_error(error, source, name, cache) from error
    return path.parents[len(Path(name).parts) - 1]


def _is_wanted(name: str) -> bool:
    path = PurePosixPath(name)
    return str(path.parent) in FOLDERS and any(fnmatch(path.name, shape) for shape in PATTERNS)


def _explain_os_error(error: OSError, source: Source, name: str, cache: Path) -> HubError:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if error.errno in FULL_DISK:
        return HubError(
            f"{source}: the disk is full: {name} does not fit into {cache} ({error.strerror}); free"
            " space or set HF_HOME to a larger disk, and start again: complete files are kept"
        )
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return HubError(
            f"{source}: {name} cannot be fetched ({type(error.__cause__).__name__}:"
            f" {shown(error.__cause__)}); start again to resume the download"
        )
    if isinstance(error, HfHubHTTPError):
        try:
            return HubError(f"{_explain(error, source)} (for {name}); try again later")
        except HubError as final:
            return final
    return HubError(f"{source}: {name} cannot be fetched into {cache}: {shown(error)}")


def _check_room(cache: Path, source: Source, commit: str, sizes: dict[str, int]) -> None:
    """Raise HubError if the rest of the download does not fit on the cache's disk."""
    from huggingface_hub import try_to_load_from_cache

    missing = sum(
        size
        for name, size in sizes.items()
        if not isinstance(try_to_load_from_cache(source.name, name, revision=commit), str)
    )
    parent = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(parent).free
    partial = sum(path.stat().st_size for path in _blobs(source, cache).glob("*.partial"))
    if missing * ROOM_SHARE - partial > free:
        raise HubError(
            f"{source} needs {missing / 1e9:.2f} GB more, and {parent} has {free / 1e9:.2f} GB"
            " free; free space or set HF_HOME to a larger disk"
        )


def _blobs(source: Source, cache: Path) -> Path:
    from huggingface_hub.file_download import repo_folder_name

    return cache / repo_folder_name(repo_id=source.name, repo_type="model") / "blobs"


def note_revision(source: Source, folder: Path) -> None:
    """Store the commit of the branch or tag, as huggingface_hub does, for use without the Hub.

    `folder` is the commit's, in the cache.
    """
    commit = folder.name
    if source.revision != commit:
        ref = folder.parents[1] / "refs" / source.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)


def _fetch_file(source: Source, commit: str, name: str, cache: Path) -> Path:
    """Return the file in the cache's snapshot folder, fetched if it is missing."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    found = try_to_load_from_cache(source.name, name, revision=commit)
    if isinstance(found, str):
        return Path(found)
    if name.endswith(".safetensors"):
        _fetch_blob(source, commit, name, cache)
    return Path(hf_hub_download(source.name, name, revision=commit, token=source.token))


def _fetch_blob(source: Source, commit: str, name: str, cache: Path) -> None:
    """Fetch a shard over plain HTTP into the cache's blobs; an earlier partial download is resumed.

    huggingface_hub does it if hf_xet is installed and no part exists: that is faster, but starts
    from zero after a crash.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        WeakFileLock,
        build_hf_headers,
    )

    url = hf_hub_url(source.name, name, revision=commit)
    about = get_hf_file_metadata(url, token=source.token, retry_on_errors=True)
    if about.etag is None or about.size is None:
        return
    blob = _blobs(source, cache) / about.etag
    partial = blob.with_name(blob.name + ".partial")
    if blob.exists() or (about.xet_file_data and _has_xet() and not partial.exists()):
        return
    headers = build_hf_headers(token=source.token)
    if urlsplit(about.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # a signed address of another host
    lock = cache / ".locks" / blob.parent.parent.name / f"{blob.name}.lock"
    for path in (partial, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock), partial.open("ab") as file:
        begun = file.tell()
        if begun > about.size:
            file.truncate(0)
            begun = 0
        if begun:
            logger.info("%s: resuming after %.1f MB", name, begun / 1e6)
        http_get(
            about.location, file, resume_size=begun, headers=headers,
            expected_size=about.size, displayed_filename=name,
        )  # fmt: skip
    if begun and len(about.etag) == 64 and _sha256(partial) != about.etag:
        partial.unlink()
        raise HubError(
            f"{source}: {name}, resumed from an earlier download, does not match the checksum of"
            " the Hub; the partial file was deleted, start again"
        )
    partial.rename(blob)


def _has_xet() -> bool:
    from huggingface_hub import constants

    return find_spec("hf_xet") is not None and not constants.HF_HUB_DISABLE_XET


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
