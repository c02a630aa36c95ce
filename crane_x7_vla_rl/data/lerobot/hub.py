"""Download a LeRobotDataset. `owner/name[@revision]` and patterns → a folder in the Hub's cache.

Only matching files are downloaded. The list of files is requested with a deadline (the library's
own listing has none) and retried; without an answer, the cache is used.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from crane_x7_vla_rl import secret_text
from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.log_text import shown

logger = logging.getLogger(__name__)

META: Final = ("meta/*",)
BRANCH: Final = "main"
"""What is taken where no revision is named."""
TRIES: Final = 3
FIRST_PAUSE_S: Final = 1.0
DOWNLOADS: Final = 4
"""Files that are fetched side by side."""


def fetch_dataset(repo_id: str, patterns: Sequence[str]) -> Path:
    """Return the folder with the repository's files that match one of `patterns`.

    Raises DataError where the Hub has no such data set, refuses, or stays silent and the cache
    does not hold it.
    """
    from huggingface_hub import constants, get_token, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    secret_text.remember(get_token())
    name, _, revision = repo_id.partition("@")
    revision = revision or BRANCH
    if constants.is_offline_mode():
        return _cached(repo_id, "HF_HUB_OFFLINE is set")
    listing = _list(name, revision)
    if listing is None:
        return _cached(repo_id, "the Hub did not answer")
    commit, files = listing
    wanted = [file for file in files if any(fnmatch(file, pattern) for pattern in patterns)]
    if not wanted:
        raise DataError(
            f"{repo_id}: holds no {' or '.join(patterns)}; is it a LeRobotDataset v3? It holds"
            f" {', '.join(files[:5]) or 'nothing'}"
        )

    def get(file: str) -> Path:
        return Path(hf_hub_download(name, file, repo_type="dataset", revision=commit))

    try:
        with ThreadPoolExecutor(DOWNLOADS) as pool:
            paths = list(pool.map(get, wanted))
    except (HfHubHTTPError, OSError) as error:
        raise DataError(
            f"{repo_id}: the download broke off ({type(error).__name__}: {shown(error)}); start"
            " again: what is complete is kept"
        ) from error
    folder = paths[0].parents[len(Path(wanted[0]).parts) - 1]
    if revision != commit:  # remembered as huggingface_hub does, for the time without it
        ref = folder.parents[1] / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
    return folder


def _list(name: str, revision: str) -> tuple[str, list[str]] | None:
    """Return commit and file names; None where the Hub is silent or in trouble."""
    import httpx2
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    pause_s = FIRST_PAUSE_S
    for left in reversed(range(TRIES)):
        try:
            info = HfApi().dataset_info(
                name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status != 429 and status < 500:
                raise DataError(
                    f"{name}: the Hub answered {status}; check the name and the revision, and set"
                    " HF_TOKEN where the data set is private"
                ) from error
            problem = f"the Hub answered {status}"
        except httpx2.TransportError as error:
            problem = f"the Hub did not answer ({type(error).__name__})"
        else:
            return str(info.sha), sorted(file.rfilename for file in info.siblings or ())
        if left:
            logger.info("%s: %s; asking again in %g s", name, problem, pause_s)
            time.sleep(pause_s)
            pause_s *= 2
    return None


def _cached(repo_id: str, why: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, _, revision = repo_id.partition("@")
    try:
        folder = snapshot_download(
            name, repo_type="dataset", revision=revision or BRANCH, local_files_only=True
        )
    except LocalEntryNotFoundError as error:
        raise DataError(
            f"{repo_id}: {why}, and the cache does not hold it; try again later, or fetch it where"
            " the Hub can be reached and give the folder"
        ) from error
    logger.warning("%s: %s; using what the cache holds: %s", repo_id, why, folder)
    return Path(folder)
