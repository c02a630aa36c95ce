"""Files of a commit on the Hub → the Hub's usual cache. Only weights and JSON, see `PATTERNS`.

huggingface_hub does the transport and the cache layout. Free disk space is checked before the first
byte, and a partial download of a shard by an earlier process is resumed.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import shutil
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from crane_x7_vla_rl.log_text import shown
from crane_x7_vla_rl.policies.hub_source import HubError, Source, explain

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, ModelInfo

logger = logging.getLogger(__name__)

PATTERNS: Final = (
    "*.safetensors", "*.json", "tokenizer.model", "*--*_checkpoint.pt", "policy_io.yaml",
)  # fmt: skip
"""Weights, configuration, tokenizer, the extra heads of OpenVLA-OFT, and what a LeRobot policy's
inputs are on this arm. No code."""
FOLDERS: Final = (".", "lora_adapter", "lora_adapters", "vlm")
"""Folders of these files, `vlm` with the configuration and tokenizer of SmolVLA's model; other
folders of a training run are ignored."""
ROOM_SHARE: Final = 1.01
"""Free space on the disk that a download needs, as a share of its size."""
CHUNK_BYTES: Final = 1 << 20
FULL_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def download(source: Source, info: ModelInfo | DatasetInfo) -> Path:
    """Fetch every needed file of the commit that `info` describes; return their folder."""
    sizes, cache = wanted(source, info), cache_folder()
    check_room(cache, source, str(info.sha), sizes)
    folder = fetch_files(source, str(info.sha), list(sizes), cache)
    try:
        note_revision(source, folder)
    except OSError as error:
        raise _explain_os_error(error, source, "refs", cache) from error
    return folder


def cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def wanted(source: Source, info: ModelInfo | DatasetInfo) -> dict[str, int]:
    """Return the size of each needed file, sorted by name; raises HubError if there are none."""
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    wanted = {name: sizes[name] for name in sorted(sizes) if _is_wanted(name)}
    if info.sha is None or not wanted:
        raise HubError(
            f"{source}: the repository holds no weights in safetensors and no configuration; found"
            f" {', '.join(sorted(sizes)) or 'nothing'}"
        )
    return wanted


def fetch_files(source: Source, commit: str, names: list[str], cache: Path) -> Path:
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
            return HubError(f"{explain(error, source)} (for {name}); try again later")
        except HubError as final:
            return final
    return HubError(f"{source}: {name} cannot be fetched into {cache}: {shown(error)}")


def check_room(cache: Path, source: Source, commit: str, sizes: dict[str, int]) -> None:
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
